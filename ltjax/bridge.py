"""A stage's first parameters: from a checkpoint of the stage before, another run, a weights file, or prototypes."""

import json
import pathlib
import re
from collections.abc import Callable, Collection, Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ltjax import optim
from ltjax.config import parse
from ltjax.data import prng, sources
from ltjax.data.files import Paths
from ltjax.distributed import processes, sharding
from ltjax.errors import WorkdirError
from ltjax.models import head_init, import_torch
from ltjax.stage import Stage
from ltjax.workdir import folder, identity, manifest
from ltjax.workdir.checkpoint import Checkpoints
from ltjax.workdir.trunk import Trunk


def start(stage: Stage, before: Stage | None, workdir: pathlib.Path, checkpoints: Callable[..., Checkpoints], *,
          reset_head: bool = False) -> dict:
  """{"params", "batch_stats"} that `stage` starts with: after another, from pretrained weights, or from random ones.

  `start_head` comes after it.

  Args:
    stage: the stage that begins.
    before: the stage that ended, if any.
    workdir: the work folder.
    checkpoints: opens a folder of checkpoints.
    reset_head: see `pretrained`.
  """
  variables = from_stage(stage, before, workdir, checkpoints) if before else stage.init()
  if stage.pretrained and not before:
    found = pretrained(variables, stage.pretrained, stage.dataset.class_names, reset_head=reset_head)
    variables = take_over(found, stage.init, stage.spec.reset)
  return variables


def start_head(stage: Stage, variables: dict) -> dict:
  """`variables` with the head that the stage's `head_init` asks for, if any."""
  return head_init.start(stage, variables)


def check_heads(stages: Collection[Stage]) -> None:
  """Raises where the head of a stage cannot start from the file that its `head_init` names."""
  for stage in stages:
    head_init.check(stage)


def from_stage(stage: Stage, before: Stage, workdir: pathlib.Path, checkpoints: Callable[..., Checkpoints]) -> dict:
  """The {"params", "batch_stats"} that `stage` starts with after `before`.

  Args:
    stage: the stage that begins.
    before: the stage that ended.
    workdir: the work folder; `stage` writes its prototypes there.
    checkpoints: opens a folder of checkpoints.
  """
  with checkpoints(workdir / before.name / "checkpoints", trunk=trunk(before)) as earlier:
    variables = earlier.restore_model(before.on_devices(before.shapes))
  taken = take_over(variables, stage.init, stage.spec.reset)
  if not getattr(stage.model.head, "wants_prototypes", False):
    return taken
  return with_prototypes(stage, before, taken, variables, workdir / stage.name)


def take_over(variables: dict, init: Callable[[], dict], reset: tuple) -> dict:
  """The variables of a stage: taken from the stage before if it has the same path, else drawn by `init`.

  Args:
    variables: {"params", "batch_stats"} of the stage before.
    init: draws this stage's variables.
    reset: regular expressions of parameters and statistics to draw although the stage before has them.
  """
  wanted = jax.eval_shape(init)
  if jax.tree.structure(wanted) == jax.tree.structure(variables) and not reset:
    return variables
  fresh, taken = init(), {}
  for kind, tree in fresh.items():
    earlier, drawn = (flax.traverse_util.flatten_dict(tree, keep_empty_nodes=True, sep="/")
                      for tree in (variables[kind], tree))
    same = {path for path in drawn if path in earlier and not any(re.fullmatch(pattern, path) for pattern in reset)}
    taken[kind] = flax.traverse_util.unflatten_dict(
        {path: earlier[path] if path in same else drawn[path] for path in drawn}, sep="/")
  return taken


# -- another training -------------------------------------------------------------------------------------------------


def pretrained(variables: dict, path: str, class_names: tuple[str, ...], *, reset_head: bool = False) -> dict:
  """`variables` of a first stage with pretrained parameters in their place.

  A file of weights replaces the backbone. The work folder of a run replaces all parameters by those of its last stage,
  or with `reset_head` only the backbone, to fine-tune for other classes.

  Args:
    variables: {"params", "batch_stats"}, arrays or shapes.
    path: a file or a folder.
    class_names: of this run; without `reset_head`, the other run must have the same, in the same order.
    reset_head: leaves the head as it is.

  Raises:
    DataError: the file does not fit.
    WorkdirError: the folder is not a run, or its model has other arrays, which the message lists.
  """
  source = pathlib.Path(path).expanduser()
  if not source.is_dir():
    return import_torch.into(variables, str(source))
  known = folder.read_identity(source)
  if known and not reset_head and list(known["class_names"]) != list(class_names):
    different = "; ".join(identity.of_classes(known["class_names"], list(class_names)))
    raise WorkdirError(f"pretrained: the head of {source} was trained for other classes ({different}); give "
                       "--config.reset_head=True to draw the head afresh for these classes")
  stored = Checkpoints(_last_stage(source) / "checkpoints", read_only=True, trunk=_trunk(
      variables, folder.load(source).get("pretrained", ""))).stored_model()

  def taken(tree: dict) -> dict[str, str]:
    return {path: text for path, text in manifest.describe(tree).items()
            if not (reset_head and path.split("/")[1] == "head")}

  if different := manifest.differences(taken(variables), taken(stored)):
    raise WorkdirError(f"pretrained: the model of {source} does not fit the config's: {different}; "
                       "--config.reset_head=True draws the head afresh, where that is all that differs")
  places = {tuple(path.split("/")) for path in taken(variables)}
  found = flax.traverse_util.flatten_dict(stored)
  flat = {place: jnp.asarray(found[place]) if place in places else leaf
          for place, leaf in flax.traverse_util.flatten_dict(variables, keep_empty_nodes=True).items()}
  return {kind: {} for kind in variables} | flax.traverse_util.unflatten_dict(flat)


def check_features(made_by: Mapping, path: str) -> None:
  """Raises where the head of the run in `path` was trained on features that something else made than `made_by` says."""
  source = pathlib.Path(path).expanduser()
  before = (folder.read_identity(source) or {}).get("made_by") if source.is_dir() else None
  if made_by and before and (different := [
      key for key in ("weights_sha256", "preprocessing", "precision", "maps") if made_by[key] != before[key]]):
    key = different[0]
    raise WorkdirError(f"pretrained: the head of {source} was trained on features with {key} {before[key]}, but those "
                       f"of this run have {made_by[key]}; give features of the same weights and preprocessing, or "
                       "--config.pretrained='' to train a new head")


def trunk(stage: Stage) -> Trunk | None:
  """The parameters that the checkpoints of a stage leave out; None for a run that starts from no file of weights."""
  return _trunk(stage.shapes, stage.pretrained, stage.frozen)


def _trunk(variables: dict, pretrained: str, frozen: Collection[str] = ()) -> Trunk | None:
  if not pretrained or pathlib.Path(pretrained).expanduser().is_dir():
    return None
  source = pathlib.Path(pretrained).expanduser()
  given = import_torch.paths(variables)

  def load(noted: str) -> dict:
    # A path that is relative to another folder, or a file that has moved with its run.
    found = import_torch.into(variables, pretrained if source.is_file() or not pathlib.Path(noted).is_file() else noted)
    return {path: leaf for path, leaf in optim.flat(found).items() if path in given}

  omitted = frozenset(f"params/{path}" for path in frozen) & given
  return Trunk(omitted, str(source.resolve()) if source.is_file() else pretrained, load)


def loaded(variables: dict, path: str, *, reset_head: bool = False) -> str:
  """A sentence on what `pretrained` takes from `path`, after it has: how many parameters, and from where."""
  source = pathlib.Path(path).expanduser()
  if not source.is_dir():
    return f"pretrained: {import_torch.summary(variables, str(source))}"
  part, tree = ("backbone", variables["params"]["backbone"]) if reset_head else ("network", variables["params"])
  return f"pretrained: {part}: {sum(leaf.size for leaf in jax.tree.leaves(tree)):,} parameters from the run {source}"


def _last_stage(workdir: pathlib.Path) -> pathlib.Path:
  try:
    return workdir / json.loads((workdir / "config.json").read_text())["stages"][-1]
  except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
    raise WorkdirError(f"pretrained: {workdir} is not the work folder of a run ({type(error).__name__}: {error}); give "
                       "one, or a file of weights") from error


def finished(workdir: pathlib.Path) -> tuple[Stage, dict]:
  """(last stage, its trained {"params", "batch_stats"}) of a finished run, without reading its data set.

  Raises:
    WorkdirError: the folder is not a run's, or the run is not finished.
  """
  spec, path = parse(folder.load(workdir)), workdir / "results.json"
  if not path.is_file():
    raise WorkdirError(f"{workdir}: the run is not finished, as there is no results.json; repeat the command "
                       "that started it")
  try:
    data = json.loads(path.read_text())["data"]
    counts, names = np.array(data["class_counts"], np.int64), tuple(map(str, data["class_names"]))
    mean, std, channels = tuple(data["mean"]), tuple(data["std"]), tuple(data["image_shape"])
    kind = np.dtype(data.get("image_type", "uint8"))
    spec = spec._replace(interpolation=data.get("interpolation", "bilinear"))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise WorkdirError(f"{path}: not the results of a run ({type(error).__name__}: {error})") from error
  # A data set without images: the stage needs only its counts, names and statistics, which results.json has.
  labels = np.repeat(np.arange(len(counts)), counts)
  images = np.zeros((0, *channels), kind) if channels else Paths("", ())
  dataset = sources.Dataset((images, labels), (images, labels[:0]), np.arange(len(labels)), names, mean, std,
                            background=spec.dataset.constants.get("background", "white"))
  stage = Stage(spec.stages[-1], spec, dataset, sharding.data_mesh())
  with Checkpoints(workdir / stage.name / "checkpoints", read_only=True, trunk=trunk(stage)) as checkpoints:
    return stage, checkpoints.restore_model(stage.on_devices(stage.shapes))


# -- prototypes: features of training images as parameters ------------------------------------------------------------


def with_prototypes(stage: Stage, before: Stage, variables: dict, earlier: dict, folder: pathlib.Path) -> dict:
  """`variables` of `stage` with features of training images as the `prototypes` of its head.

  A prototype is the pooled feature of a training image, in evaluation mode and without augmentation, by the model of
  the stage before. The choice of images is a pure function of the seed, the stage and the class, so a repeated run
  draws the same ones; `folder/prototypes.json` lists them by their indices in the set from which the long-tailed one
  was selected.

  Args:
    stage: the stage that begins.
    before: the stage before it.
    variables: {"params", "batch_stats"} that `stage` begins with.
    earlier: those that `before` ended with.
    folder: the folder of `stage`.
  """
  head, (images, labels), extract = stage.model.head, stage.dataset.train, before.extractor(earlier, one_view=True)
  places = {int(c): np.flatnonzero(labels == c) for c in head.tail}
  features = None
  if head.pick == "kmeans":
    features = extract(images, "features", places=np.concatenate(list(places.values())))["features"]

  def choose() -> np.ndarray:
    chosen = _chosen(head, places, features, stage.settings.seed, stage.name)
    _write(folder / "prototypes.json", before.name, {
        stage.dataset.class_names[c]: stage.dataset.selected[own].tolist()
        for c, own in zip(head.tail, chosen, strict=True)})
    return chosen

  chosen = processes.from_first(choose)
  features = extract(images, "features", places=chosen.ravel())["features"].reshape(*chosen.shape, -1)
  return variables | dict(params=variables["params"] | dict(head=variables["params"]["head"] | dict(
      prototypes=features)))


def _chosen(head, places: dict[int, np.ndarray], features: np.ndarray | None, seed: int, stage: str) -> np.ndarray:
  """The chosen indices [tail classes, prototypes] out of `places`; k-means needs the `features` of all of them."""
  if head.pick == "kmeans":
    of_class = np.split(features, np.cumsum([len(own) for own in places.values()])[:-1])
    chosen = [own[_central(part, head.num_prototypes, seed)]
              for own, part in zip(places.values(), of_class, strict=True)]
  elif head.pick == "first":
    chosen = [own[:head.num_prototypes] for own in places.values()]
  else:
    chosen = [_drawn(own, head.num_prototypes, seed, stage, c) for c, own in places.items()]
  # A class with fewer images repeats them.
  return np.stack([np.resize(own, head.num_prototypes) for own in chosen])


def _drawn(places: np.ndarray, number: int, seed: int, stage: str, label: int) -> np.ndarray:
  """At most `number` of `places`, without replacement."""
  words = prng.host_words(seed, stage, "prototypes", counter=label, size=len(places))
  return places[np.argsort(words, kind="stable")[:number]]


def _central(features: np.ndarray, number: int, seed: int) -> np.ndarray:
  """Rows of `features` nearest to the centres of k-means, the row of a larger cluster first."""
  from sklearn.cluster import KMeans

  found = KMeans(min(number, len(features)), n_init=1, random_state=seed).fit(features)
  sizes = np.bincount(found.labels_, minlength=len(found.cluster_centers_))
  nearest = found.transform(features).argmin(axis=0)
  return nearest[np.argsort(-sizes, kind="stable")]


def _write(path: pathlib.Path, before: str, images: dict[str, list[int]]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(dict(features_of_stage=before, images=images), indent=1) + "\n")
