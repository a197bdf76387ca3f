"""Every value of a config can be given on the command line, as a Python literal; typos get the nearest key."""

import pathlib

import pytest
from ml_collections import ConfigDict

from ltjax.config import load, parse
from ltjax.errors import ConfigError

GCL = "--config=configs/gcl_digits.py"
OPTIONS = dict(workdir=load.Option("The folder."), strict=load.Option("A switch.", False))
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def root(monkeypatch):
  monkeypatch.chdir(ROOT)


def given(*arguments: str, config: str = GCL) -> ConfigDict:
  """The config of a command line."""
  return load.parse([config, *arguments], OPTIONS, "usage")["config"]


def refused(*arguments: str) -> str:
  """The one-line message for a command line."""
  with pytest.raises(ConfigError) as caught:
    load.parse(arguments, OPTIONS, "usage")
  assert "\n" not in str(caught.value)
  return str(caught.value)


def at(config: ConfigDict, path: str):
  """The value at a dotted path; numbers are indices of a tuple."""
  for part in path.split("."):
    config = config[int(part) if part.isdigit() else part]
  return config.to_dict() if isinstance(config, ConfigDict) else config


COSINE, CROP = dict(name="cosine", base=0.5, warmup=3), dict(name="random_crop", padding=1)
VALUES = [  # an override, the path to look at, the value there
    ("seed=3", "seed", 3),
    ("representation.epochs=1_000", "representation.epochs", 1000),
    ("dataset.imbalance=50", "dataset.imbalance", 50.0),
    ("representation.lr.base=1e-2", "representation.lr.base", 0.01),
    ("representation.adjust=None", "representation.adjust", None),
    ("representation.lr=0.1", "representation.lr", 0.1),
    ("classifier.mixup=1", "classifier.mixup", 1.0),
    ("classifier.loss.detach=False", "classifier.loss.detach", False),
    ("classifier.loss.detach=false", "classifier.loss.detach", False),
    ("reset_head", "reset_head", True),
    ("reset_head=true", "reset_head", True),
    ("precision=bf16", "precision", "bf16"),
    ("precision='bf16'", "precision", "bf16"),
    ('precision="bf16"', "precision", "bf16"),
    ("pretrained=2018", "pretrained", "2018"),  # a string stays one, whatever it looks like
    ("pretrained=None", "pretrained", "None"),
    ("pretrained=a=b", "pretrained", "a=b"),
    ("pretrained=", "pretrained", ""),
    ("pretrained=gs://bucket/w.safetensors", "pretrained", "gs://bucket/w.safetensors"),
    ("classifier.train=('head/.*','backbone/conv.*')", "classifier.train", ("head/.*", "backbone/conv.*")),
    ("classifier.train=['head/.*']", "classifier.train", ("head/.*",)),
    ("representation.lr.factors=(0.5,0.1)", "representation.lr.factors", (0.5, 0.1)),
    ("classifier.lr_factors=(('head/.*',0.1),)", "classifier.lr_factors", (("head/.*", 0.1),)),
    ("classifier.head={'name':'Linear'}", "classifier.head", dict(name="Linear")),
    ("classifier.head=dict(name='Linear', rare_start=True)", "classifier.head", dict(name="Linear", rare_start=True)),
    ("representation.lr=dict(name='cosine',base=0.5,warmup=3)", "representation.lr", COSINE),
    ("representation.lr={'name':'cosine','base':.5,'warmup':3}", "representation.lr", COSINE),
    ("classifier.lr.warmup=2", "classifier.lr.warmup", 2),  # a key that the block does not have yet
    ("representation.optimizer.clip_norm=1.0", "representation.optimizer.clip_norm", 1.0),
    ("classifier.adjust.margin=dict(name='linear',end=0.1)", "classifier.adjust.margin", dict(name="linear", end=0.1)),
    ("representation.class_weights=dict(name='effective_number',beta=0.99)", "representation.class_weights",
     dict(name="effective_number", beta=0.99)),
    ("posthoc=({'name':'logit_adjustment','tau':1.0},)", "posthoc", (dict(name="logit_adjustment", tau=1.0),)),
    ("posthoc=(dict(name='tau_normalize',tau=0.5),)", "posthoc.0", dict(name="tau_normalize", tau=0.5)),
    ("backbone.widths=(4,4,8)", "backbone.widths", (4, 4, 8)),
    ("dataset.on_bad_image=substitute", "dataset.on_bad_image", "substitute"),
    # The operations of a list by their names: changed, added with their first argument or a block, and removed.
    ("augment.random_crop.padding=2", "augment", (dict(CROP, padding=2),)),
    ("augment.random_crop=2", "augment", (dict(CROP, padding=2),)),
    ("augment.0.padding=2", "augment", (dict(CROP, padding=2),)),
    ("augment.random_crop=None", "augment", ()),
    ("augment.random_crop=False", "augment", ()),
    ("augment.flip=False", "augment", (CROP,)),
    ("augment.flip=True", "augment", (CROP, dict(name="flip"))),
    ("augment.jitter=(0.4,0.4,0.4)", "augment", (CROP, dict(name="jitter", strengths=(0.4, 0.4, 0.4)))),
    ("augment.cutmix=dict(alpha=0.5)", "augment", (CROP, dict(name="cutmix", alpha=0.5))),
    ("augment.cutout.size=4", "augment", (CROP, dict(name="cutout", size=4))),
    ("augment=()", "augment", ()),
    ("augment=(dict(name='flip'),)", "augment", (dict(name="flip"),)),
]


@pytest.mark.parametrize(("override", "path", "expected"), VALUES, ids=[override for override, *_ in VALUES])
def test_a_value_is_a_python_literal(override, path, expected):
  found = at(given(f"--config.{override}"), path)
  assert found == expected and type(found) is type(expected)


# These values depend on others, which is tested elsewhere: a head on its adjustment, patterns on parameters.
RUN = [override for override, *_ in VALUES if override.split("=")[0] not in (
    "reset_head", "pretrained", "classifier.head", "classifier.train", "augment.cutmix")]


@pytest.mark.parametrize("override", RUN)
def test_a_config_with_such_a_value_can_run(override):
  parse(given(f"--config.{override}"))


def test_the_value_may_be_the_next_argument():
  assert given("--config.seed", "3", "--config.representation.lr", "0.1").representation.lr == 0.1


def test_a_negative_number_is_a_value():
  assert given("--config.seed=-1").seed == -1


def test_later_overrides_see_earlier_ones():
  found = given("--config.representation.lr=dict(name='cosine',base=1.0)", "--config.representation.lr.base=0.3",
                "--config.augment.flip=True", "--config.augment.flip=False")
  assert found.representation.lr.to_dict() == dict(name="cosine", base=0.3)
  assert found.augment == (CROP,)


def test_a_dict_replaces_the_complete_block():
  found = given("--config.classifier.adjust=dict(name='kps')")
  assert found.classifier.adjust.to_dict() == dict(name="kps")


def test_choosing_one_stage_removes_the_blocks_of_the_others():
  found = given("--config.stages=('representation',)")
  assert found.stages == ("representation",) and "classifier" not in found
  assert [stage.name for stage in parse(found).stages] == ["representation"]


def test_every_leaf_of_a_config_can_be_given_as_it_is_printed():
  config = given()
  for key, value in load.flat(config).items():
    again = given(f"--config.{key}={value!r}")
    assert load.flat(again) == load.flat(config), key


REFUSED = [  # an override, parts of the message
    ("representation.epoch=3", "--config.representation.epoch: the config has no such key | 'representation.epochs'?"),
    ("epochs=3", "the config has no such key (did you mean 'representation.epochs'?)"),
    ("clasifier.epochs=3", "the config has no such key (did you mean 'classifier.epochs'?)"),
    ("sead=3", "the config has no such key (did you mean 'seed'?)"),
    ("representation.lr=cosine", "expected a dict or a number, got 'cosine' | --config.representation.lr.at=..."),
    ("seed.x=3", "--config.seed.x: seed is 0 and has no keys; give a complete block, --config.seed=\"dict(name="),
    ("classifier.head.name=Linear", "classifier.head is None | --config.classifier.head=\"dict(name='...', name=Linea"),
    ("augment.jiter=(0.4,0.4,0.4)", "--config.augment.jiter: there is no operation 'jiter' (did you mean 'jitter'?)"),
    ("augment.flip=0.5", "--config.augment.flip: flip takes no arguments; give True or False"),
    ("augment.random_crop.padding.x=2", "expected augment.random_crop.ARGUMENT"),
]


@pytest.mark.parametrize(("override", "parts"), REFUSED)
def test_a_missing_key_gets_the_nearest(override, parts):
  message = refused(GCL, f"--config.{override}")
  for part in parts.split(" | "):
    assert part in message


@pytest.mark.parametrize(("override", "parts"), [
    ("representation.lr.wramup=5",
     "representation.lr.wramup: multi_step has no such argument (did you mean 'warmup'?)"),
    ("representation.optimizer.clipnorm=1", "clipnorm: sgd has no such argument (did you mean 'clip_norm'?)"),
    ("augment.random_crop.pading=2", "augment[0].pading: random_crop has no such argument (did you mean 'padding'?)"),
    ("seed=x", "seed: expected an integer in [0, 4294967295], got 'x'"),
    ("representation.epochs=2.5", "representation.epochs: expected an integer of at least 1, got 2.5"),
    ("representation.epochs=(1,)", "representation.epochs: expected an integer of at least 1, got (1,)"),
    ("classifier.loss.detach=maybe", "classifier.loss.detach: expected bool, got 'maybe'"),
    ("classifier.head={'nam':'Linear'}", "classifier.head.nam: not a key here (did you mean 'name'?)"),
    ("classifier.train=head/.*", "classifier.train: expected a tuple, got 'head/.*'"),
    ("stages=representation", "stages: expected a tuple of stage names, got 'representation'"),
    ("augment.jitter=0.4", "augment[1].strengths: expected tuple, got 0.4"),
    ("augment.cutmix.alpha=0.5",
     "representation.augment: mixup: the examples are mixed already; remove one of the two"),
    ("precision=16", "precision: expected one of float32, bf16, got '16'")])
def test_an_impossible_value_is_refused_by_its_key(override, parts):
  with pytest.raises(ConfigError) as caught:
    parse(given(f"--config.{override}"))
  for part in parts.split(" | "):
    assert part in str(caught.value)


@pytest.mark.parametrize("text", ["__import__('os')", "open('x')", "dict(**{'a': 1})", "lambda: 0", "(1", "1 +", "[x]",
                                  "dict(a=open)", "f'{1}'", "", "(" * 500])
def test_text_that_is_not_a_literal_is_a_string_and_never_run(text):
  with pytest.raises(ValueError):
    load.literal(text)
  assert given(f"--config.precision={text}").precision == text


@pytest.mark.parametrize("text", ["(representation,)", "dict(name=linear)", "[1,", "{a: 1}"])
def test_a_tuple_or_dict_that_lost_its_quotes_is_refused_with_them(text):
  message = refused(GCL, f"--config.stages={text}")
  assert f"--config.stages: {text!r} is no Python literal" in message
  assert given(message[message.index("as in ") + 6:].replace('"', "")).stages == ("representation",)


def test_a_name_in_the_place_of_its_block_gets_the_block():
  message = refused(GCL, "--config.classifier.sampler=instance")
  advice = message[message.index("complete block, ") + 16:].replace('"', "")
  assert given(advice).classifier.sampler.to_dict() == dict(name="instance")


def test_a_block_at_another_place_is_found():
  assert "(did you mean 'representation.lr'?)" in refused(GCL, "--config.lr=0.1")


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "parts"), [
    (("--epochs=3",), "--epochs: no such option (did you mean --config.representation.epochs?) | --workdir, --strict"),
    (("--workdr=x",), "--workdr: no such option (did you mean 'workdir'?)"),
    (("--workdir",), "--workdir needs a value, --workdir=..."),
    (("--strict=maybe",), "--strict: expected true or false, got 'maybe'"),
    (("runs/x",), "unexpected argument 'runs/x'")])
def test_a_wrong_option_gets_the_right_one(arguments, parts):
  message = refused(GCL, *arguments)
  for part in parts.split(" | "):
    assert part in message


def test_the_advice_for_an_option_works():
  message = refused(GCL, "--epochs=3")
  key = message.split("did you mean --config.")[1].split("?")[0]
  assert at(given(f"--config.{key}=3"), key) == 3


@pytest.mark.parametrize(("arguments", "workdir", "strict"), [
    ((), None, False), (("--workdir=a=b",), "a=b", False), (("--workdir", "x", "--strict"), "x", True),
    (("-workdir=x", "--strict=false"), "x", False), (("--nostrict",), None, False)])
def test_options_beside_the_config(arguments, workdir, strict):
  found = load.parse([GCL, *arguments], OPTIONS, "usage")
  assert (found["workdir"], found["strict"]) == (workdir, strict)


@pytest.mark.parametrize("option", ["--help", "-h", "--helpfull"])
def test_help_exits_with_0_and_names_every_option(option, capsys):
  with pytest.raises(SystemExit) as caught:
    load.parse([option], OPTIONS, "How to use it.")
  assert caught.value.code == 0
  out = capsys.readouterr().out
  assert out.startswith("How to use it.")
  for text in ("--config=FILE[:ARGUMENT]", "--config.KEY=VALUE", "--workdir=...  The folder.", "--strict  A switch."):
    assert text in out


def test_a_command_line_without_a_config_is_refused():
  message = refused("--workdir=x")
  assert message == "--config is missing; try --config=configs/gcl_digits.py"
  assert pathlib.Path(message.split("=")[1]).is_file()


def test_two_command_lines_in_one_process_are_independent():
  first = given("--config.seed=3", "--config.augment.flip=True")
  second = given("--config.classifier.epochs=7")
  assert (first.seed, second.seed) == (3, 0) and second.augment == (CROP,)
  assert (first.classifier.epochs, second.classifier.epochs) == (30, 7)
