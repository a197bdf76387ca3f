"""Writes the generated blocks of README.md: python benchmarks/readme.py

The tables of methods and presets come from the configs, their docstrings and tests/golden; the results on digits and
photographs, and the speed, come from benchmarks/results/. A test fails if the README is out of date.
"""

import ast
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import presets  # noqa: E402
from ltjax.config import load  # noqa: E402
from ltjax.report.published import published as command  # noqa: E402
from ltjax.report.published import reproducible  # noqa: E402

# The data families that names of configs end with; the docstring of the first describes the method.
FAMILIES = ("cifar", "imagenet_lt", "places_lt", "inat", "large", "folder", "csv", "caltech", "digits", "frozen")
COLUMNS = dict(cifar10="CIFAR-10-LT", cifar100="CIFAR-100-LT", imagenet_lt="ImageNet-LT", places_lt="Places-LT",
               inat="iNaturalist 2018")
COMMON = ("Identity", "ResNet", "ResNetCIFAR", "Linear", "instance")  # parts of nearly every config
# The golden files whose names differ from those of the parts.
GOLDEN = dict(
    prior_lade="lade", two_branches="bbn_mix", AFA="paper_afa_decomposition", CAMC="paper_camc",
    Cosine="cosine_classifier", DisAlign="disalign", LearnableScale="lws", NormalizedLinear="paper_normfc",
    ResNetBBN="bbn_mix", TDE="tde", cben="paper_gcl_cben", class_balanced="samplers", class_balanced_focal="cb_focal",
    cross_entropy="ce", effective_number="class_balanced_weights", generate_features="paper_afa_generation",
    nearest_class_mean="ncm", progressive="samplers", reverse="samplers",
    tau_normalize="tau_norm")
# The networks that are tested against the published code by their own files, and figures of pretrained networks.
NETWORKS = ("ViT", "EfficientNet")
PRETRAINED = dict(lift_cifar100="81.7", lift_imagenet_lt="78.3", lift_places_lt="52.2", lift_inat="80.4")
NOTE = """Published top-1 in %, on CIFAR at imbalance 100. Two numbers come from two papers; norm_fc's three are the
classifier as trained, re-trained and by class means; lift's are of a pretrained CLIP ViT-B/16. golden: tested against
values of the released code or its equations; equation: tested against the paper's equations. Arguments after the colon
give ablations and other backbones, as in `--config=configs/gcl_cifar.py:cifar10,cloud_size=cosine`; the docstring of
each config lists them with their numbers."""


def configs() -> dict[str, dict[str, pathlib.Path]]:
  """{method: {data family: config file}}; a file is called <method>_<family>.py, csv.py is GCL's, frozen.py any's."""
  found = {}
  for path in sorted((ROOT / "configs").glob("*.py")):
    method, family = re.fullmatch(f"(?:(.+)_)?({'|'.join(FAMILIES)})", path.stem).groups()
    found.setdefault(method or dict(csv="gcl").get(family, family), {})[family] = path
  return {method: {family: paths[family] for family in FAMILIES if family in paths}
          for method, paths in sorted(found.items())}


def description(path: pathlib.Path) -> str:
  """The first line of a config's docstring without the data set: the method and the paper."""
  line = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0].rstrip(".")
  return re.sub(r" on (CIFAR-LT|ImageNet-LT|large data sets)(, ResNet-32)?", "", line)


def published() -> dict[str, str]:
  """{config: numbers} of the rows that a config without further arguments trains, on CIFAR at imbalance 100."""
  found = {}
  for row in reproducible():
    path, _, argument = command(row).partition(":")
    stem, cifar = pathlib.Path(path).stem, row["dataset"].startswith("cifar")
    if stem.endswith("_large"):
      stem, argument = stem.replace("_large", f"_{argument}"), ""
    if argument == (f"{row['dataset']},100" if cifar else ""):
      numbers = found.setdefault(stem.replace("_cifar", f"_{row['dataset']}"), [])
      if row["kind"] != "quoted" and row["top1"] not in numbers or not numbers:
        numbers.append(row["top1"])
  return PRETRAINED | {name: ", ".join(numbers) for name, numbers in found.items()}


def parts(path: pathlib.Path) -> list[str]:
  """The functions and modules that a config names, without those of nearly every config."""
  config = load.read(str(path))
  stages = [config[name] for name in config.stages]
  blocks = [stage[key] for key in ("adjust", "loss", "class_weights", "sampler", "head") for stage in stages]
  nested = [config.backbone.get(key) for key in ("insert", "tuning")]
  names = [block["name"] for block in (config.backbone, *nested, config.head, *blocks, *config.posthoc) if block]
  names += [block["name"] for stage in stages for block in stage.transforms]
  names += ["mixup"] if any(stage.mixup for stage in stages) else []
  names += [block["name"] for block in config.augment if block["name"] in ("auto_augment", "cutout")]
  return list(dict.fromkeys(name for name in names if name not in COMMON))


def checks(names: list[str]) -> str:
  """Which of `names` are tested against values of released code, and which against the paper's equations alone."""
  found = {"golden": [], "equation": []}
  for name in names:
    path = ROOT / "tests" / "golden" / f"{GOLDEN.get(name, name)}.json"
    released = name in NETWORKS or path.exists() and json.loads(path.read_text())["kind"] != "from the paper"
    found["golden" if released else "equation"].append(name)
  return "; ".join(f"{kind}: {', '.join(values)}" for kind, values in found.items() if values)


def methods() -> str:
  """The table: one row per method."""
  titles = ("method", "what, paper", "configs", *COLUMNS.values(), "tested against")
  rows, numbers = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"], published()
  for method, paths in configs().items():
    first = next(iter(paths.values()))
    links = ", ".join(f"[{path.stem}](configs/{path.name})" for path in paths.values())
    scores = [numbers.get(f"{method}_{dataset}", "-") for dataset in COLUMNS]
    rows.append(f"| {' | '.join((method, description(first), links, *scores, checks(parts(first))))} |")
  return "\n".join([*rows, "", NOTE])


def digits() -> str:
  """The results on digits, without their title."""
  return (ROOT / "benchmarks" / "results" / "digits.md").read_text().split("\n", 1)[1].strip()


def photographs() -> str:
  """The results of a pretrained backbone on photographs, beside those of training from scratch."""
  results = ROOT / "benchmarks" / "results"
  text = (results / "folder.md").read_text().split("\n", 1)[1].strip()
  (scratch,) = re.findall(r"^\| gcl_caltech (.*)$", (results / "caltech.md").read_text(), flags=re.MULTILINE)
  rows, _, rest = text.rpartition("\n\nA run took")
  rest = rest.replace("(caltech.md)", "(benchmarks/results/caltech.md)")
  return f"{rows}\n| GCL, half a ResNet-10 from scratch, 64 px {scratch}\n\nA run took{rest}"


def speed() -> str:
  """What is measured of the speed, what is estimated, and what neither."""
  results = ROOT / "benchmarks" / "results"
  rates = {name: (rate, of_best) for name, rate, of_best in re.findall(
      r"^\| (.*?) \| [0-9.]+ \| (\d+) \| ([0-9.]+) \|$", (results / "pytorch_cpu.md").read_text(), re.MULTILINE)}
  found = {"training": "ltjax, ce_cifar", "the classifier on a frozen backbone": "ltjax, gcl_cifar",
           "evaluation": "ltjax"}
  rows = [f"| {what} | {' | '.join(rates[name])} |" for what, name in found.items()]
  plan = json.loads((results / "plan.json").read_text())["gcl_inat, v5e:4x4"]["stages"]
  step, hours = 1e3 * plan["representation"]["estimated"]["step"], sum(
      stage["estimated"]["total"] for stage in plan.values())
  return "\n".join([
      "Measured, on a CPU, in one run beside PyTorch ([pytorch_cpu.md](benchmarks/results/pytorch_cpu.md)):", "",
      "| ResNet-32, images/s | ltjax | of the best of PyTorch |", "| --- | ---: | ---: |", *rows, "",
      f"Estimated: on a TPU v5e slice of 4x4, `gcl_inat` takes at least {step:.0f} ms a step and {hours:.1f} hours"
      "\nin all ([plan.md](benchmarks/results/plan.md)). Not measured: any GPU, any TPU."])


def filled(readme: str) -> str:
  """`readme` with its generated blocks up to date."""
  for name, content in dict(
      digits=digits(), photographs=photographs(), speed=speed(), methods=methods(),
      presets=presets.table()).items():
    before, rest = readme.split(f"<!-- {name} -->\n")
    readme = f"{before}<!-- {name} -->\n{content}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
  return readme


if __name__ == "__main__":
  path = ROOT / "README.md"
  path.write_text(filled(path.read_text()))
