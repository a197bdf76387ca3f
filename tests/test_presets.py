"""Presets: their constants are those of the papers and codes, and a run says which one it is."""

import ast
import pathlib
import re

import pytest

from benchmarks import presets
from ltjax.config import check, keys, load, parse
from ltjax.config.bind import plain
from ltjax.errors import ConfigError
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
GCL, FIRST, SECOND = "configs/gcl_", "representation", "classifier"


def stage(epochs, batch, lr, decay=None, **more) -> dict:
  """What a table gives of a stage; `decay` are (epochs, factors) of a schedule by steps, else it is a cosine."""
  steps = {} if decay is None else {"lr.at": decay[0], "lr.factors": decay[1]}
  return {"epochs": epochs, "batch_size": batch, "lr.base": lr, "lr.name": "multi_step" if decay else "cosine",
          "optimizer.momentum": 0.9} | steps | {key.replace("__", "."): value for key, value in more.items()}


TEN, HUNDRED = ((160, 180), (0.1, 0.01)), ((160, 180), (0.01, 0.0001))
LARGE, PLACES = ((120, 160), (0.1, 0.01)), ((60, 80), (0.1, 0.01))
DRAWS, CYCLE = dict(sampler__name="class_balanced"), dict(sampler__name="class_aware", sampler__samples_per_class=4)
BLOCK = ("backbone/stage4_block3/.*",)
# (config, source, first stage, second stage): typed once from the sources. Lines are those of the papers' text, pages
# and tables those of the thesis (Li, ch. 3 to 5); codes are named by repository and file.
FACTS = [
    (GCL + "cifar.py:preset=code", "Keke921/GCLLoss, cifar_train_*.py",
     stage(200, 64, 0.1, TEN, lr__warmup=5, optimizer__weight_decay=2e-4, mixup=1.0, adjust__scale=30.0,
           adjust__noise_scale=0.5, batch_norm="train"),
     stage(30, 64, 0.002, mixup=1.0, adjust__scale=20.0, adjust__margin=0.1, adjust__noise_scale=0.5, loss__gamma=1.0,
           sampler__name="cben", sampler__a=0.999, sampler__b=0.0009, batch_norm="eval")),
    (GCL + "cifar.py:preset=paper", "thesis table 5.1, section 5.4.1 (noise of amplitude 1, beta in [0.999, 0.9999])",
     stage(200, 128, 0.1, HUNDRED, optimizer__weight_decay=2e-4, adjust__noise_scale=1.0, mixup=1.0),
     stage(10, 128, 0.02, adjust__noise_scale=1.0, sampler__a=0.999, sampler__b=0.0009)),
    (GCL + "imagenet_lt.py:preset=paper", "thesis table 5.1",
     stage(200, 256, 0.1, HUNDRED, optimizer__weight_decay=2e-4, adjust__noise_scale=1.0), stage(10, 256, 0.01)),
    (GCL + "imagenet_lt.py:preset=code", "thesis table 5.1, Keke921/GCLLoss",
     stage(200, 256, 0.1, TEN, optimizer__weight_decay=2e-4, adjust__noise_scale=0.5), stage(10, 256, 0.002)),
    (GCL + "inat.py:preset=paper", "thesis table 5.1",
     stage(180, 256, 0.1, LARGE, optimizer__weight_decay=1e-4, adjust__noise_scale=1.0), stage(30, 256, 0.01)),
    (GCL + "places_lt.py:preset=paper", "thesis table 5.1",
     stage(90, 512, 0.2, PLACES, optimizer__weight_decay=5e-4, adjust__noise_scale=1.0), stage(30, 512, 0.02)),
    (GCL + "places_lt.py:preset=code", "Keke921/GCLLoss, Places-LT",
     stage(90, 512, 0.2, PLACES, mixup=0.2, adjust__noise_scale=1.0, adjust__scale=30.0, batch_norm=BLOCK, reset=BLOCK),
     stage(30, 512, 0.002, mixup=1.0, adjust__scale=15.0, adjust__noise_scale=1.0, batch_norm="eval")),
    ("configs/kps_cifar.py:preset=code", "Keke921/KPSLoss",
     stage(200, 64, 0.1, TEN, lr__warmup=5, optimizer__weight_decay=2e-4, mixup=0.0, adjust__max_margin=0.2,
           adjust__base=50.0, adjust__scale=15.0), None),
    ("configs/kps_cifar.py:preset=paper", "thesis table 3.1, section 3.5.2 (m_max = 0.5, n_base = 50, s_base = 15)",
     stage(200, 64, 0.1, HUNDRED, lr__warmup=5, optimizer__weight_decay=2e-4, adjust__max_margin=0.5,
           adjust__base=50.0, adjust__scale=15.0), None),
    ("configs/fbl_cifar.py:preset=code", "juyongjiang/FBL",
     stage(200, 64, 0.1, HUNDRED, optimizer__weight_decay=2e-4, adjust__alpha__end=60.0, adjust__alpha__shorten=10),
     None),
    ("configs/fbl_cifar.py:preset=paper", "FBL paper, line 165 and equations 5 to 7",
     stage(200, 64, 0.1, HUNDRED, adjust__normalize=False, adjust__alpha__name="parabolic", adjust__alpha__shorten=0),
     None),
    ("configs/fbl_imagenet_lt.py:preset=paper", "FBL paper, line 165; thesis table 4.1 (weight decay)",
     stage(180, 512, 0.2, LARGE, optimizer__weight_decay=2e-4), None),
    ("configs/fbl_imagenet_lt.py:preset=code", "juyongjiang/FBL, run.sh and the parser's defaults",
     stage(200, 512, 0.2, LARGE, optimizer__weight_decay=2e-4, adjust__alpha__end=150.0), None),
    ("configs/fbl_inat.py:preset=paper", "FBL paper, line 165; thesis table 4.1 (weight decay)",
     stage(180, 512, 0.2, LARGE, optimizer__weight_decay=1e-4), None),
    ("configs/fbl_inat.py:preset=code", "juyongjiang/FBL, run.sh and the parser's defaults",
     stage(200, 512, 0.2, LARGE, optimizer__weight_decay=2e-4), None),
    ("configs/fbl_places_lt.py:preset=paper", "thesis table 4.1",
     stage(90, 512, 0.2, PLACES, optimizer__weight_decay=5e-4, batch_norm=BLOCK), None),
    ("configs/fbl_places_lt.py:preset=code", "juyongjiang/FBL, run.sh and the parser's defaults",
     stage(200, 512, 0.2, PLACES, optimizer__weight_decay=2e-4, batch_norm=BLOCK), None),
    ("configs/ce_cifar.py:preset=paper", "thesis table 5.1; kaidic/LDAM-DRW",
     stage(200, 128, 0.1, HUNDRED, optimizer__weight_decay=2e-4), None),
    ("configs/ce_cifar.py:preset=code", "Keke921/GCLLoss", stage(200, 64, 0.1, TEN), None),
    ("configs/ce_cifar.py:preset=fbl", "juyongjiang/FBL", stage(200, 64, 0.1, HUNDRED), None),
    ("configs/ce_mixup_crt_cifar.py:preset=paper", "thesis table 5.1",
     stage(200, 128, 0.1, HUNDRED, mixup=1.0), stage(10, 128, 0.02, batch_norm="eval", **DRAWS)),
    ("configs/ce_mixup_crt_cifar.py:preset=kang", "facebookresearch/classifier-balancing",
     stage(200, 128, 0.1, HUNDRED, mixup=1.0), stage(10, 128, 0.1, batch_norm="train", reset=("head/.*",), **CYCLE)),
    ("configs/ce_mixup_crt_large.py:imagenet_lt", "thesis table 5.1",
     stage(200, 256, 0.1, TEN, mixup=0.2), stage(10, 256, 0.01)),
    ("configs/ce_mixup_crt_large.py:places_lt", "thesis table 5.1",
     stage(90, 512, 0.2, PLACES, mixup=0.2), stage(30, 512, 0.02)),
    ("configs/ce_mixup_crt_large.py:inat", "thesis table 5.1",
     stage(180, 256, 0.1, LARGE, mixup=0.2), stage(30, 256, 0.01)),
    ("configs/mislas_cifar.py:cifar100,preset=code", "dvlab-research/MiSLAS, config/cifar100 and datasets",
     stage(200, 128, 0.1, TEN, mixup=1.0, optimizer__weight_decay=2e-4),
     stage(10, 128, 0.1, batch_norm="shift", loss__head=0.4, loss__tail=0.1, **CYCLE)),
    ("configs/mislas_large.py:imagenet_lt", "dvlab-research/MiSLAS, config/imagenet",
     stage(180, 256, 0.1, mixup=0.2, optimizer__weight_decay=5e-4),
     stage(10, 256, 0.1, batch_norm="shift", loss__head=0.3, loss__tail=0.0, **CYCLE)),
    ("configs/mislas_large.py:places_lt", "dvlab-research/MiSLAS, config/places and train_stage2.py",
     stage(90, 256, 0.1, mixup=0.2, optimizer__weight_decay=5e-4, batch_norm=BLOCK, reset=BLOCK),
     stage(10, 256, 0.1, batch_norm=BLOCK, loss__head=0.4, loss__tail=0.1, **CYCLE)),
    ("configs/mislas_large.py:inat", "dvlab-research/MiSLAS, config/ina2018",
     stage(200, 256, 0.1, mixup=0.2, optimizer__weight_decay=1e-4), stage(10, 256, 0.1, batch_norm="shift", **CYCLE)),
    ("configs/camc_imagenet_lt.py:preset=paper", "CAMC paper, line 143",
     stage(200, 256, 0.1), stage(10, 256, 0.1, head__scale=16.0, head__num_prototypes=5, batch_norm="eval", **DRAWS)),
    ("configs/camc_cifar.py:preset=kang", "CAMC paper, line 143; facebookresearch/classifier-balancing",
     stage(200, 256, 0.1), stage(10, 256, 0.1, batch_norm="train", reset=("head/kernel",), **CYCLE)),
    ("configs/norm_fc_imagenet_lt.py:preset=kang,retrain=linear,classifier=wn", "CAMC paper, lines 143 and 170",
     stage(200, 256, 0.1), stage(10, 256, 0.1, head__name="Linear", batch_norm="train", **CYCLE)),
    ("configs/afa_imagenet_lt.py:preset=paper", "AFA paper, lines 226 to 230",
     stage(90, 512, 0.2, optimizer__weight_decay=5e-4), stage(10, 512, 0.2, batch_norm="eval", **DRAWS)),
    ("configs/afa_cifar.py:preset=kang", "AFA paper, lines 228 to 230; facebookresearch/classifier-balancing",
     stage(90, 128, 0.05), stage(10, 128, 0.05, batch_norm="train", **CYCLE)),
    ("configs/lade_large.py:imagenet_lt", "hyperconnect/LADE, config/ImageNet_LT/lade.yaml",
     stage(180, 256, 0.05, optimizer__weight_decay=5e-4, loss__weight=0.1, loss__remine=0.1), None),
    ("configs/lade_large.py:inat", "hyperconnect/LADE, config/iNaturalist18/lade.yaml",
     stage(200, 256, 0.1, optimizer__weight_decay=1e-4, loss__weight=0.05, loss__remine=0.5), None),
    ("configs/tde_large.py:imagenet_lt", "KaihuaTang/Long-Tailed-Recognition.pytorch, ImageNet_LT/causal_norm.yaml",
     stage(90, 512, 0.2, optimizer__weight_decay=5e-4), None),
]
SHORT = [0.02, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.001, 0.001]


@pytest.mark.parametrize("fact", FACTS, ids=[call.removeprefix("configs/") for call, *_ in FACTS])
def test_a_preset_has_the_constants_of_its_source(fact):
  call, source, first, second = fact
  assert source
  config = load.read(str(ROOT / call))
  flat = {key: plain(value) for key, value in keys.flat(config).items()}
  assert len(config.stages) == (1 if second is None else 2)
  for name, wanted in ((FIRST, first), (SECOND, second or {})):
    assert {key: flat[f"{name}.{key}"] for key in wanted} == wanted, name


@pytest.mark.parametrize("name", ["ce", "gcl"])
def test_the_short_protocol(name):
  config = load.read(str(ROOT / f"configs/{name}_cifar.py:preset=short"))
  spec = parse(config)
  first = spec.stage(FIRST)
  found = [first.lr(check.Clock(epoch, 1, first.epochs)) for epoch in range(first.epochs)]
  assert found == pytest.approx(SHORT)
  assert (first.batch_size, config.representation.mixup) == (128, 0.0)
  if name == "gcl":
    assert (config.classifier.epochs, config.classifier.mixup) == (3, 0.0)
    # The thesis's amplitude first: with the 0.5 of the released code, twelve epochs end six points lower.
    assert [config[stage].adjust.noise_scale for stage in config.stages] == [1.0, 0.5]


def test_every_preset_is_tested_or_says_that_it_is_ours_and_all_are_listed():
  rows = presets.rows()
  assert len(rows) > 40
  for name in sorted({row.config for row in rows}):
    choices = [row.preset for row in rows if row.config == name]
    source = (ROOT / name).read_text()
    assert "preset=" in ast.get_docstring(ast.parse(source))
    with pytest.raises(ConfigError) as info:
      load.read(f"{ROOT / name}:preset=nosuch")
    assert f"expected one of {', '.join(choices)}, got 'nosuch'" in str(info.value)
    assert sum("(default)" in row.source for row in rows if row.config == name) == 1
    default = next(row.preset for row in rows if row.config == name and "(default)" in row.source)
    assert load.read(str(ROOT / name)).preset.to_dict() == dict(name=default, changed=())
  with_presets = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")
                  if re.search(r"\bpreset=", path.read_text())}
  assert with_presets == {row.config for row in rows}


def test_every_preset_can_run():
  for row in presets.rows():
    if "(default)" in row.source:
      continue  # as every other config, by test_configs.py
    config = load.read(f"{ROOT / row.config}:preset={row.preset}")
    parse(config)
    assert config.preset.to_dict() == dict(name=row.preset, changed=())


@pytest.mark.parametrize(("argv", "changed"), [
    (["--config=configs/gcl_cifar.py:paper,cifar100,imbalance=50"], ()),
    (["--config=configs/gcl_cifar.py:paper,sampler=instance", "--config.seed=3"], ("sampler=instance",)),
    (["--config=configs/kps_cifar.py:paper,max_margin=0.5"], ()),
    (["--config=configs/kps_cifar.py:paper,max_margin=0.2", "--config.representation.epochs=10",
      "--config.log_every_steps=7"], ("max_margin=0.2", "representation.epochs=10 instead of 200")),
    (["--config=configs/ce_cifar.py:short", "--config.representation.optimizer.ema=0.9",
      "--config.representation.epochs=12"], ("representation.optimizer.ema=0.9 instead of nothing",)),
])
def test_a_preset_that_is_changed_in_part_says_so(argv, changed):
  config = load.parse([text.replace("configs/", f"{ROOT}/configs/") for text in argv], {}, "")["config"]
  assert config.preset.changed == changed
  parse(config)


@pytest.mark.parametrize(("call", "words"), [
    ("gcl_cifar.py:preset=papr", ("preset", "expected one of code, paper, short, got 'papr'", "'paper'")),
    ("gcl_cifar.py:kang", ("'kang' is not a choice", "cifar10, cifar100, code, paper, short")),
    ("bbn_cifar.py:preset=paper", ("this config has one recipe, and no presets",)),
    ("mislas_large.py:imagenet", ("'imagenet' is not a choice (did you mean 'imagenet_lt'?)",
                                  "imagenet_lt, places_lt")),
    ("mislas_large.py:dataset=cifar10", ("expected one of imagenet_lt, places_lt, inat, got 'cifar10'",)),
])
def test_an_unknown_preset_or_data_set_is_refused(call, words):
  with pytest.raises(ConfigError) as info:
    load.read(f"{ROOT}/configs/{call}")
  assert all(word in str(info.value) for word in words) and "\n" not in str(info.value)


def test_a_preset_is_chosen_behind_the_colon():
  config = tiny.config("ce_digits")
  with config.unlocked():
    config.preset = "paper"
  with pytest.raises(ConfigError, match="preset: expected dict.*--config=FILE:preset=NAME"):
    parse(config)
