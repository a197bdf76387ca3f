"""What `python -m mkdocs build --strict` adds to docs/: pages that are generated from the code and from what it prints.

The start page is the README, the methods and configs come from configs/, each command's page from its --help and from
runs of it, the API from the docstrings, the tour from the notebook. Links between files of the repository become links
between pages; those to files that have no page become text.
"""

import base64
import html
import importlib
import json
import os
import pathlib
import posixpath
import re
import shlex
import subprocess
import sys
import tempfile
import types

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import presets, readme  # noqa: E402
from ltjax import __main__ as program  # noqa: E402

# {command: examples that the build runs one after the other in one folder}
EXAMPLES = dict(
    doctor=["ltjax doctor images", "ltjax doctor configs/gcl_digits.py"],
    verify=["ltjax verify --config=configs/gcl_folder.py --config.dataset.root=images"],
    configs=["ltjax configs gcl_digits"],
    train=["ltjax train --config=configs/gcl_digits.py --config.representation.epochs=8 --config.classifier.epochs=4"
           " --config.representation.lr.at='(6,7)' --config.checkpoint_every_epochs=2 --workdir=runs/gcl",
           "ltjax train --config=configs/ce_digits.py --config.representation.epochs=8"
           " --config.representation.lr.at='(6,7)' --workdir=runs/ce",
           "ltjax train --config=configs/gcl_folder.py:resnet10,size=32,batch_size=8,epochs=6,retrain_epochs=2"
           " --config.dataset.root=images --workdir=runs/photographs"],
    predict=["ltjax predict --workdir=runs/photographs images/temple --top=2"],
    evaluate=["ltjax evaluate runs/gcl --split=train"],
    posthoc=["ltjax posthoc runs/gcl --method=nearest_class_mean"],
    export=["ltjax export runs/gcl --to=stablehlo"],
    compare=["ltjax compare runs/ce runs/gcl"],
    debug_step=["ltjax debug_step runs/gcl --stage=representation --step=70"],
    extract=["ltjax extract --workdir=runs/gcl --output=features.safetensors"],
    plan=["ltjax plan configs/gcl_digits.py --topology=cpu:2 --stage=classifier"],
    reproduce=["ltjax reproduce --rows='method=gcl dataset=cifar10' --seeds=3 --dry-run"],
    sweep=["ltjax sweep configs/ce_digits.py --seeds=2 --set representation.epochs=1"],
    unpack=["ltjax unpack images.zip unpacked"],
    convert=["ltjax convert --dataset=photographs --data_dir=tfds --out=records"])
ORDER = ("doctor", "verify", "train", "evaluate", "compare", "predict")  # first, as one uses them; then the others
_LINES = 120  # of a command's output
_REPORT = "runs/gcl/report/index.html"
# {page: (title, its modules)}
API = dict(
    run=("Runs from Python", ("ltjax.main", "ltjax.config", "ltjax.config.load", "ltjax.recipes")),
    losses=("Losses and adjustments", ("ltjax.losses",)), samplers=("Samplers", ("ltjax.data.samplers",)),
    augment=("Augmentation", ("ltjax.augment", "ltjax.augment.batches")),
    schedules=("Schedules", ("ltjax.schedules",)), optim=("Optimisers", ("ltjax.optim",)),
    models=("Networks", ("ltjax.models", "ltjax.models.heads", "ltjax.models.tuning", "ltjax.models.head_init")),
    data=("Data sets", ("ltjax.data.sources", "ltjax.data.photos", "ltjax.data.features")),
    metrics=("Measures", ("ltjax.metrics", "ltjax.report.statistics")),
    posthoc=("Post-hoc methods", ("ltjax.posthoc",)), errors=("Errors", ("ltjax.errors",)))


# -- what the commands print ------------------------------------------------------------------------------------------


def run(command: str, folder: pathlib.Path) -> str:
  """What a command prints on stdout, the middle of a long text left out; raises if it fails."""
  words = shlex.split(command)
  environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", COLUMNS="100")
  done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True,
                        encoding="utf-8", timeout=1800)
  if done.returncode:
    raise RuntimeError(f"{command}: exit code {done.returncode}: {done.stderr[-2000:]}")
  lines = done.stdout.strip("\n").replace(str(ROOT), "...").splitlines()
  return "\n".join(lines if len(lines) <= _LINES else [*lines[:_LINES - 10], "...", *lines[-9:]])


def prepare(folder: pathlib.Path) -> None:
  """Files for the examples: photographs in class folders, and the same as an archive and as TFDS prepares them."""
  import zipfile

  import numpy as np
  from PIL import Image
  from sklearn.datasets import load_sample_images

  (folder / "configs").symlink_to(ROOT / "configs")
  photographs = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
  generator = np.random.default_rng(0)
  for name, count in dict(flower=24, temple=6).items():
    (folder / "images" / name).mkdir(parents=True)
    for k in range(count):
      top, left = generator.integers(0, 227), generator.integers(0, 440)
      Image.fromarray(photographs[name][top:top + 200, left:left + 200]).save(folder / "images" / name / f"{k:02}.jpg")
  with zipfile.ZipFile(folder / "images.zip", "w") as archive:
    for path in sorted((folder / "images").rglob("*.jpg")):
      archive.write(path, path.relative_to(folder))
  prepare_tfds(folder)


def prepare_tfds(folder: pathlib.Path) -> None:
  """The photographs as a data set of TFDS, in its usual format."""
  from ltjax.data import quiet

  tfds, paths = quiet.tensorflow_datasets(), sorted((folder / "images").rglob("*.jpg"))
  features = tfds.features.FeaturesDict(dict(
      image=tfds.features.Image(), label=tfds.features.ClassLabel(names=["flower", "temple"])))
  tfds.dataset_builders.store_as_tfds_dataset(
      "photographs", "1.0.0", data_dir=folder / "tfds", features=features, split_datasets=dict(
          train=[(number, dict(image=str(path), label=path.parent.name)) for number, path in enumerate(paths)]))


def command_pages(folder: pathlib.Path) -> dict[str, str]:
  """{"commands/NAME.md": page} of every command, and the index; `folder` holds the work of the examples."""
  prepare(folder)
  names = [*ORDER, *(name for name in program.names() if name not in ORDER)]
  printed = {name: [(example, run(example, folder)) for example in EXAMPLES[name]] for name in names}
  pages, lines = {}, ["# Commands", "", "Every command is `ltjax NAME` or `python -m ltjax NAME`; "
                      "`python -m ltjax.main` is `ltjax train`.", "", "| command | |", "| --- | --- |"]
  for name in names:
    text = run(f"ltjax {name} --help", folder)
    first = importlib.import_module(f"ltjax.commands.{name}").__doc__.splitlines()[0]
    lines.append(f"| [{name}]({name}.md) | {first} |")
    parts = [f"# ltjax {name}", first, _fenced(text), "## What it prints",
             *(_fenced(f"$ {example}\n{out}") for example, out in printed[name])]
    if name == "train":
      parts.append("[The report of the first of these runs](report.html), as it is written beside its checkpoints.")
    pages[f"commands/{name}.md"] = "\n\n".join(parts) + "\n"
  return pages | {"commands/index.md": "\n".join(lines) + "\n"}


def _fenced(text: str) -> str:
  return f"```text\n{text}\n```"


# -- pages from the code ----------------------------------------------------------------------------------------------


def method_pages() -> dict[str, str]:
  """The tables of methods and presets, and a page for each config: what `ltjax configs NAME` prints."""
  from ltjax.commands import configs
  from ltjax.config import shipped

  pages = {"methods.md": "\n\n".join((
      "# Methods", readme.methods(), "## Presets", presets.table())) + "\n"}
  for name in shipped.names():
    text = configs.page(name).replace(f"{shipped.folder()}{os.sep}", "configs/")
    pages[f"configs/{name}.md"] = f"# {name}\n\n{_fenced(text)}\n"
  return pages


def api_pages() -> dict[str, str]:
  """{"api/NAME.md": page}: a directive for every public function and class of the modules in `API`."""
  pages, index = {}, ["# API", ""]
  for page, (title, modules) in API.items():
    lines = [f"# {title}", ""]
    for module in map(importlib.import_module, modules):
      if len(modules) > 1:
        lines += [f"**{module.__name__}**", ""]
      lines += [module.__doc__.strip(), ""]
      for name in getattr(module, "__all__", None) or sorted(_own(module)):
        part = getattr(module, name)
        if callable(part):
          lines += [f"::: {part.__module__}.{part.__qualname__}", ""]
    pages[f"api/{page}.md"] = "\n".join(lines)
    index.append(f"- [{title}]({page}.md): {', '.join(f'`{name}`' for name in modules)}")
  return pages | {"api/index.md": "\n".join(index) + "\n"}


def _own(module: types.ModuleType) -> list[str]:
  return [name for name, part in vars(module).items()
          if not name.startswith("_") and getattr(part, "__module__", None) == module.__name__ and callable(part)]


def notebook_pages() -> dict[str, str | bytes]:
  """The notebook with its outputs as a page, and its pictures."""
  pages, lines = {}, []
  for number, cell in enumerate(json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]):
    source = "".join(cell["source"])
    lines.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    for output in cell.get("outputs", ()):
      data = output.get("data", {})
      if "image/png" in data:
        pages[f"tour_{number}.png"] = base64.b64decode("".join(data["image/png"]))
        lines.append(f"![The output of the cell](tour_{number}.png)")
      else:
        lines.append(_fenced("".join(output.get("text") or data["text/plain"]).strip("\n")))
  return pages | {"tour.md": "\n\n".join(lines) + "\n\n[The notebook itself](tour.ipynb)\n"}


def result_pages() -> dict[str, str | bytes]:
  """The measurements in benchmarks/results."""
  folder, pages = ROOT / "benchmarks" / "results", {}
  for path in sorted(folder.rglob("*")):
    if path.suffix in (".md", ".png"):
      name = f"results/{path.relative_to(folder).as_posix().replace('README.md', 'index.md')}"
      pages[name] = path.read_text(encoding="utf-8") if path.suffix == ".md" else path.read_bytes()
  listed = "\n".join(f"- [{name.removeprefix('results/').removesuffix('.md')}]({name.removeprefix('results/')})"
                     for name in pages if name.endswith(".md"))
  return pages | {"results/index.md": f"# Measurements\n\n{listed}\n"}


# -- what MkDocs calls ------------------------------------------------------------------------------------------------


def on_config(config):
  """Adds the generated pages to the navigation."""
  names = [*ORDER, *(name for name in program.names() if name not in ORDER)]
  results = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.md"))
  parts = dict(Commands=["commands/index.md", *(f"commands/{name}.md" for name in names)],
               API=["api/index.md", *(f"api/{name}.md" for name in API)],
               Measurements=["results/index.md", *(f"results/{name}.md" for name in results)])
  config.nav = [{title: parts.get(title, page)} for entry in config.nav for title, page in entry.items()]
  return config


def on_files(files, config):
  """Adds the generated pages."""
  with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    pages = command_pages(work) | {"commands/report.html": (work / _REPORT).read_bytes()}
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  pages |= {"index.md": re.sub(r"<!--.*?-->\n?", "", text)}
  pages |= method_pages() | api_pages() | notebook_pages() | result_pages()
  for name, content in pages.items():
    files.append(File.generated(config, name, content=content))
  return files


def on_page_markdown(markdown, page, config, files):
  """Links between files of the repository become links between pages, or text where there is no page."""
  here, there = page.file.src_uri, {file.src_uri for file in files}
  folder = {"index.md": ""}.get(here, "docs")
  if here.startswith(("commands/", "api/", "configs/")):
    return markdown
  folder = posixpath.join("benchmarks", posixpath.dirname(here)) if here.startswith("results/") else folder
  folder = "" if here == "methods.md" else folder

  def rewritten(match):
    image, text, target = match.groups()
    if re.match(r"\w+:|#", target):
      return match[0]
    path, _, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(folder, path))
    path = path.removeprefix("docs/").replace("benchmarks/results", "results").replace("README.md", "index.md")
    path = re.sub(r"^configs/(\w+)\.py$", r"configs/\1.md", path)
    path = f"{path}/index.md" if f"{path}/index.md" in there else path
    if path not in there:
      return text
    start = posixpath.dirname(here)
    return f"{image}[{text}]({posixpath.relpath(path, start or '.')}{'#' + anchor if anchor else ''})"

  return re.sub(r"(!?)\[([^\]\n]+)\]\(([^)\s]+)\)", rewritten, markdown)


def on_page_content(content, page, config, files):
  """References in docstrings, `Title <address>`_, become links."""
  def link(match):
    title, address = re.split(r"\s*<(?=http)", html.unescape(match[1]), maxsplit=1)
    return f'<a href="{html.escape(address.rstrip(">"))}">{html.escape(title)}</a>'

  return re.sub(r"<code>([^<]+&lt;https?:[^<]+&gt;)</code>_", link, content)
