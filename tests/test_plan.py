"""Plans: the programs that training runs, compiled for devices that are not there."""

import contextlib
import copy
import doctest
import importlib.util
import json
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from ltjax import errors, stage
from ltjax.commands import plan as command
from ltjax.commands.planning import estimate, hlo, host, nominal, page, plan, programs, topologies, traffic
from ltjax.config import load, parse
from ltjax.data import longtail
from ltjax.data.official import OFFICIAL
from ltjax.distributed import platforms, sharding
from tests import tiny

LIBTPU = importlib.util.find_spec("libtpu") is not None
VIT = dict(name="ViT", width=12, depth=1, heads=2, patch=4)
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="libtpu, the compiler for TPUs, is not installed: extra `plan`")


@pytest.fixture(scope="module")
def here():
  return topologies.find("here")


@pytest.fixture(scope="module")
def digits():
  return tiny.config("gcl_digits", backbone=tiny.ONE_CONV)


@pytest.fixture(scope="module")
def planned(here, digits):
  return plan.make(digits, here)


@pytest.mark.parametrize("module", [hlo, traffic], ids=lambda module: module.__name__)
def test_docstring_examples(module):
  assert doctest.testmod(module) == (0, 1)


# -- the programs are those of a run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pipeline"), [("representation", "resident"), ("classifier", "tf_data")])
def test_the_planned_train_step_is_that_of_training(here, digits, name, pipeline):
  made = tiny.stages(plan.changed(digits, dataset__pipeline=pipeline))[name]
  real = made.train_steps[1].lower(made.like, made.data, *made.batches(0, 1)).as_text()
  assert programs.lowered_train(made, here).as_text() == real


def test_two_branches_have_their_second_stream(here):
  branches = dict(name="two_branches", sampler=dict(name="reverse"), share=0.5)
  (made,) = tiny.stages(tiny.config("ce_digits", backbone=dict(name="ResNetBBN", depth=14, widths=(2, 2, 2)),
                                    representation__transforms=(branches,))).values()
  real = made.train_steps[1].lower(made.like, made.data, *made.batches(0, 1)).as_text()
  assert programs.lowered_train(made, here).as_text() == real


@pytest.mark.parametrize("pipeline", ["resident", "tf_data"])
def test_the_planned_evaluation_step_is_that_of_an_evaluation(here, digits, pipeline, monkeypatch):
  made = tiny.stages(plan.changed(digits, dataset__pipeline=pipeline))["classifier"]
  evaluator, given = made.evaluators["test"], []
  step = evaluator._step

  def noted(*arguments):
    given.append(step.lower(*arguments).as_text())
    return step(*arguments)

  monkeypatch.setattr(evaluator, "_step", noted)
  evaluator(sharding.replicate(made.init(), made.mesh))
  assert set(given) == {programs.lowered_evaluation(made, here).as_text()}


def test_the_same_program_is_compiled_once(here, digits):
  made = tiny.stages(digits)
  first, second = (programs.evaluation(made[name], here) for name in ("representation", "classifier"))
  assert second is first
  smaller = tiny.stages(plan.changed(digits, eval_batch_size="16"))["classifier"]
  assert programs.evaluation(smaller, here) is not first


def test_loops_are_unrolled_for_a_cpu_alone(digits):
  config, loops = plan.changed(digits, classifier__optimizer__accumulate="2"), []
  for platform in ("cpu", "tpu"):
    made = tiny.stages(config)["classifier"]  # a new one: jit keeps what it has traced
    with platforms.planned(platform):
      text = made.train_steps[1].lower(made.like, made.data, *made.batches(0, 1)).as_text()
    loops.append(text.count("stablehlo.while"))
  assert loops[1] == loops[0] + 1 and platforms.target() == "cpu"


def test_a_frozen_stage_has_the_convolutions_of_an_evaluation(here, digits):
  made = tiny.stages(digits)
  found = [lowered.as_text().count("stablehlo.convolution") for lowered in (
      programs.lowered_train(made["representation"], here), programs.lowered_train(made["classifier"], here),
      programs.lowered_evaluation(made["classifier"], here))]
  assert found == [2, 1, 1]  # forward and the kernel's gradient; forward alone


def test_several_steps_in_one_call_are_those_of_training(digits):
  made = tiny.stages(plan.changed(digits, steps_per_call="2"))["representation"]
  real = made.train_steps[2].lower(made.like, made.data, *made.batches(0, 2)).as_text()
  assert programs.lowered_train(made, topologies.find("here"), 2).as_text() == real


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_a_plan_has_every_stage_and_is_json(planned):
  found = json.loads(json.dumps(planned))
  assert list(found["stages"]) == ["representation", "classifier"]
  for made in found["stages"].values():
    for program in (made["train"], made["evaluation"]):
      assert program["fits"] and program["flops"] > 0 and program["traffic"] > 0
      assert program["bytes"] == sum(program["memory"].values()) > 0
    assert made["estimated"] is None  # nobody publishes the peaks of any CPU
  assert "representation: 2 epochs" in page.text(found) and page.too_large(found) == ""


def test_weights_need_not_be_here(here):
  vit = tiny.config(backbone=VIT)
  found = [plan.make(config, here, ("classifier",)) for config in (
      vit, plan.changed(vit, pretrained="of_the_pod.safetensors", reset_head="True"))]
  assert found[0]["stages"]["classifier"]["train"]["memory"] == found[1]["stages"]["classifier"]["train"]["memory"]


def test_collectives_are_counted_by_kind():
  text = """
  %a = (f32[64]{0}, f32[64]{0}) all-reduce(%x, %y), replica_groups={{0,1}}
  %b = bf16[2,8]{1,0} all-reduce-start(%z), to_apply=%add
  %c = bf16[2,8]{1,0} all-reduce-done(%b)
  %d = s32[] all-gather(%z), dimensions={0}
  %e = f32[64]{0} fusion(%all-reduce.1), kind=kLoop
  """
  assert hlo.collectives(text) == [hlo.Collective("all-gather", 1, 4, ("s32",)),
                                   hlo.Collective("all-reduce", 2, 512 + 32, ("bf16", "f32"))]


MODULE = """HloModule module

FileNames
1 "/somewhere/ltjax/step.py"
2 "/somewhere/flax/linear.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=4 end_column=4}
2 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=4 end_column=4}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%sliced (a: f32[100]) -> f32[10] {
  %a = f32[100]{0} parameter(0)
  ROOT %b = f32[10]{0} slice(%a), slice={[0:10]}
}

%placed (a: f32[100], b: f32[10], c: s32[]) -> f32[100] {
  %b = f32[10]{0:S(1)} parameter(1)
  %a = f32[100]{0} parameter(0)
  %c = s32[] parameter(2)
  ROOT %d = f32[100]{0} dynamic-update-slice(%a, %b, %c)
}

%body (a: (f32[100])) -> (f32[100]) {
  %a = (f32[100]{0}) parameter(0)
  %b = f32[100]{0} get-tuple-element(%a), index=0
  ROOT %c = (f32[100]{0}) tuple(%b)
}

%condition (a: (f32[100])) -> pred[] {
  %a = (f32[100]{0}) parameter(0)
  %b = f32[100]{0} get-tuple-element(%a), index=0
  ROOT %c = pred[]{:S(6)} fusion(%b), kind=kLoop, calls=%any
}

%any (a: f32[100]) -> pred[] {
  %a = f32[100]{0} parameter(0)
  ROOT %b = pred[] custom-call(%a)
}

ENTRY %main (x: f32[100], i: s32[]) -> f32[100] {
  %x = f32[100]{0:T(128)} parameter(0), metadata={op_name="state.params[\\'kernel\\']"}
  %i = s32[]{:S(6)} parameter(1)
  %start = ((f32[100]{0:T(128)}), f32[25]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:25]}
  %done = f32[25]{0:T(128)S(1)} slice-done(%start)
  %chip = f32[25]{0:S(1)} multiply(%done, %done)
  %out = (f32[25]{0}, f32[25]{0:S(1)}, u32[]{:S(2)}) copy-start(%chip)
  %gone = f32[25]{0} copy-done(%out)
  %few = f32[10]{0:S(1)} fusion(%x), kind=kLoop, calls=%sliced, metadata={op_name="f/mul" stack_frame_id=2}
  %set = f32[100]{0} fusion(%x, %few, %i), kind=kLoop, calls=%placed, metadata={op_name="f/set" stack_frame_id=1}
  %once = (f32[100]{0}) tuple(%set)
  %loop = (f32[100]{0}) while(%once), condition=%condition, body=%body
  ROOT %last = f32[100]{0} get-tuple-element(%loop), index=0
}
"""


def test_traffic_is_what_main_memory_gives_and_takes():
  found = traffic.moved(MODULE)
  assert [(each.operation, each.source or each.path, each.read, each.written) for each in found] == [
      ("slice-start", "state.params", 100, 0),  # what is prefetched, not all of it
      ("copy-start", "state.params", 0, 100),
      ("fusion", "ltjax/step.py:7", 40, 0),  # the innermost line of ltjax
      ("fusion", "ltjax/step.py:7", 0, 40),  # in place
      ("fusion", "", 400, 0)]  # once, whatever the number of rounds
  assert traffic.by_source(found)[1:] == (traffic.Source("state.params", ("copy-start", "slice-start"), 2, 100, 100),
                                          traffic.Source("ltjax/step.py:7", ("fusion",), 2, 40, 40))


def test_a_bound_is_the_larger_of_compute_and_memory_and_what_the_links_add():
  chip = topologies.Chip(flops=1e12, bandwidth=1e9, memory=1e9, links=1e6)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
  program = programs.Program("step", {}, 2e12, 1e9, [hlo.Collective("all-reduce", 1, 10**6, ("f32",))], 0, 0.0)
  found = estimate.bound(program, topologies.Topology("one", mesh, chip, 1, 1), float32=False)
  assert (found.compute, found.memory, found.interconnect, found.by) == (2.0, 1.0, 0.0, "compute")
  assert found.seconds == 2.0
  assert estimate.bound(program, topologies.Topology("one", mesh, None, 1, 1), float32=False) is None


def test_the_largest_batch_is_found_by_bisection(here, digits, monkeypatch):
  tried = []

  def train(made, topology):
    tried.append(made.order.batch_size)
    size = made.order.batch_size
    return programs.Program("step", {}, 0.0, 0.0, [], 0, 0.0, "" if size <= 300 else "used 2 G of 1 G")

  monkeypatch.setattr(programs, "train", train)
  found = plan.fit_batch(digits, here, "representation")
  assert 300 - 300 / 8 <= found <= 300 and found in tried and len(tried) < 10


def test_variants_change_what_they_say(here, digits):
  found = plan.variants(digits, here)
  assert found["precision=bf16"].precision == "bf16" and digits.precision == "float32"
  assert found["accumulate doubled"].classifier.optimizer.accumulate == 2
  for config in found.values():
    parse(config)


@pytest.mark.parametrize(("backbone", "expected"), [
    (VIT, "remat=True"), (dict(VIT, remat=True), "remat=False"),
    (dict(name="ResNet", depth=10, bn_groups=2), "bn_groups=1")])
def test_variants_are_those_that_the_backbone_has(here, backbone, expected):
  found = plan.variants(tiny.config(backbone=backbone), here)
  assert list(found) == ["precision=bf16", expected, "accumulate doubled"]
  key, value = expected.split("=")
  assert str(found[expected].backbone[key]) == value


def test_this_machine_decodes_something():
  rate, cores = host.measured(32, seconds=0.1)
  assert rate > 0 and cores >= 1


# -- data sets that are not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet_lt", "places_lt", "inat2018"])
def test_published_sizes(name):
  config = load.read(f"configs/ce_{name.removesuffix('2018')}.py")
  found, source = nominal.dataset(parse(config))
  official, counts = OFFICIAL[name], found.class_counts
  assert source == "published sizes" and counts.sum() == official.lists["train"].lines
  assert len(counts) == official.classes and len(found.test[1]) == official.lists["test"].lines
  assert counts.min() == official.smallest and abs(counts.max() - official.largest) <= 1


def test_cifar_by_its_definition():
  found, _ = nominal.dataset(parse(load.read("configs/ce_cifar.py:cifar100,imbalance=100")))
  np.testing.assert_array_equal(found.class_counts, longtail.exponential_counts(100, 500, 100.0))
  assert found.train[0].shape == (10_847, 32, 32, 3) and len(found.test[1]) == 10_000


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "message"), [
    (["configs/gcl_digits.py"], "--topology is missing"),
    (["configs/gcl_digits.py", "--topology=v9:2x2"], "there is no 'v9:2x2'"),
    (["configs/gcl_digits.py", "--topology=v5e:2x2x2"], "v5e has no shape '2x2x2'"),
    (["configs/gcl_digits.py", "--topology=cpu:0"], "expected cpu:N"),
    (["configs/gcl_digits.py", "--topology=cpu:4096"], "JAX has started with"),
    (["configs/gcl_digits.py", "--topology=gpu:h100x8"], "write --topology=here"),
    (["configs/gcl_digits.py", "--topology=here", "--stage=clasifier"], "did you mean 'classifier'?"),
    (["configs/gcl_digit.py", "--topology=here"], "did you mean 'configs/gcl_digits.py'?")])
def test_a_mistake_costs_one_line_and_exit_code_2(arguments, message, here, capsys):
  del here  # JAX has started
  with pytest.raises(SystemExit) as ended:
    command.main(arguments)
  err = capsys.readouterr().err
  assert ended.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_a_missing_compiler_is_one_sentence(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.ConfigError, match=r"libtpu, is not installed; install it with `pip install libtpu==\d"):
    topologies.find("v5e:2x2")


@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed")
def test_a_compiler_of_another_version_is_refused(monkeypatch):
  version = importlib.metadata.version
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == "libtpu" else version(name))
  with pytest.raises(errors.ConfigError, match=r"wants libtpu [\d.]+, but 0\.0\.1 is installed"):
    topologies.find("v5e:2x2")


def test_too_little_memory_says_by_how_much_and_what_would_fit(planned):
  found = copy.deepcopy(planned)
  found["topology"]["device_peaks"] = dict(memory=3 * 2**30)
  found["stages"]["classifier"]["train"] |= dict(fits=False, bytes=4 * 2**30, margin=-(2**30))
  assert page.too_large(found) == (
      "classifier.batch_size: the train step with 128 images does not fit into a device's memory (1.00 GiB too much); "
      "about 96 would (estimated; --fit-batch finds the largest batch), or write --config.precision=bf16")


# -- the compiler for TPUs --------------------------------------------------------------------------------------------


@needs_libtpu
@pytest.mark.parametrize(("ending", "code", "message"), [
    (-signal.SIGSEGV, 2, "error: --topology: the compiler for TPUs has crashed (SIGSEGV, with its own words on "
                         "stderr) while it compiled for v6e:16x16; "), (2, 2, ""), (0, None, "")])
def test_a_crash_of_the_compiler_is_one_sentence(ending, code, message, monkeypatch, capsys):
  asked, arguments = [], ["--config=configs/gcl_digits.py", "--topology=v6e:16x16"]

  def run(arguments, check):
    asked.extend(arguments)
    return subprocess.CompletedProcess(arguments, ending)

  monkeypatch.setattr(subprocess, "run", run)
  with pytest.raises(SystemExit) if code else contextlib.nullcontext() as ended:
    command.main(arguments)
  assert asked[0] == sys.executable and asked[3:] == arguments
  assert not code or ended.value.code == code
  err = capsys.readouterr().err
  assert err.strip().startswith(message) and err.count("\n") == 2 * bool(message)


@needs_libtpu
def test_a_batch_that_the_chips_cannot_share(capfd):
  with pytest.raises(SystemExit) as ended:
    command.main(["configs/gcl_digits.py", "--topology=v5e:2x2", "--config.representation.batch_size=30"])
  assert ended.value.code == 2
  assert "30 is not divisible by 4 devices; valid are its multiples, the nearest 28 and 32" in capfd.readouterr().err


@needs_libtpu
def test_a_resnet_is_compiled_for_four_chips():
  topology = topologies.find("v5e:2x2")
  config = load.read("configs/ce_imagenet_lt.py:resnet10")
  config.precision, config.representation.batch_size, config.representation.mixup = "bf16", 64, 0.2
  for key, value in (("random_resized_crop.size", "64"), ("jitter", "False")):  # colours become floats
    load.override(config, f"augment.{key}", value)
  spec = parse(config)
  dataset, _ = nominal.dataset(spec)
  (made,) = stage.build(spec, dataset, topology.mesh)[:1]
  program = programs.train(made, topology)
  assert not program.excess and 0 < program.bytes < topology.chip.memory
  (reduce,) = (each for each in program.collectives if each.kind == "all-reduce")
  norms = sum(path.endswith("/mean") for path in flat(made.shapes["batch_stats"]))
  # A layer's two sums are one collective, forward and backward, and one reduces all gradients.
  assert reduce.count <= 2 * norms + 2 and "f32" in reduce.dtypes
  # Nothing else travels but the images that mixup pairs, as bytes.
  assert [each for each in program.collectives if each is not reduce] == [
      hlo.Collective("all-gather", 1, 64 * 64 * 64 * 3, ("u8",))]
  assert program.traffic < program.accessed
  assert program.sources[0].place.startswith("ltjax/step.py:")  # the new state, after the guard
  bound = estimate.bound(program, topology, float32=False)
  assert bound.seconds > 0


def flat(tree):
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in
          jax.tree_util.tree_leaves_with_path(tree)]
