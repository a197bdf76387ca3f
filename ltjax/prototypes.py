"""Features of training images as parameters: what a head with `prototypes` takes from the stage before it."""

import json
import pathlib

import numpy as np

from ltjax.config import bind as build
from ltjax.data import prng
from ltjax.distributed import processes, sharding
from ltjax.evaluate import Extractor


def fill(config, name: str, before: str, dataset, variables: dict, earlier: dict, folder: pathlib.Path) -> dict:
  """`variables` of stage `name` with prototypes in its head, if it has any; else as they are.

  A prototype is the pooled feature of a training image, in evaluation mode and without augmentation, by the model of
  the stage before. Which images is a pure function of the seed, the stage and the class, so a run that is asked again
  draws the same; `folder/prototypes.json` lists them by their indices in the set from which the long-tailed one was
  selected.

  Args:
    config: the whole config.
    name: the stage that begins.
    before: the stage before it.
    dataset: a `sources.Dataset`.
    variables: {"params", "batch_stats"} that the stage begins with.
    earlier: those that stage `before` ended with.
    folder: the stage's.
  """
  head = build.model(config, dataset.class_counts, name).head
  if "prototypes" not in variables["params"].get("head", {}):
    return variables
  extract = Extractor(build.model(config, dataset.class_counts, before), earlier, mean=dataset.mean, std=dataset.std,
                      batch_size=config.eval_batch_size, mesh=sharding.data_mesh(), size=config.augment.get("size", 0))
  images, labels = dataset.train
  places = {int(c): np.flatnonzero(labels == c) for c in head.tail}
  features = None
  if head.pick == "kmeans":
    features = extract(images, "features", places=np.concatenate(list(places.values())))["features"]

  def choose() -> np.ndarray:
    chosen = _chosen(head, places, features, config.seed, name)
    _write(folder / "prototypes.json", before, {dataset.class_names[c]: dataset.selected[own].tolist()
                                                for c, own in zip(head.tail, chosen, strict=True)})
    return chosen

  chosen = processes.from_first(choose)
  features = extract(images, "features", places=chosen.ravel())["features"].reshape(*chosen.shape, -1)
  return variables | dict(params=variables["params"] | dict(head=variables["params"]["head"] | dict(
      prototypes=features)))


def _chosen(head, places: dict[int, np.ndarray], features: np.ndarray | None, seed: int, stage: str) -> np.ndarray:
  """[tail classes, prototypes] of `places`; `features`, for k-means, are those of all places."""
  if head.pick == "kmeans":
    of_class = np.split(features, np.cumsum([len(own) for own in places.values()])[:-1])
    chosen = [own[_central(part, head.num_prototypes, seed)]
              for own, part in zip(places.values(), of_class, strict=True)]
  elif head.pick == "first":
    chosen = [own[:head.num_prototypes] for own in places.values()]
  else:
    chosen = [_drawn(own, head.num_prototypes, seed, stage, c) for c, own in places.items()]
  # A class with fewer images goes round them.
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
