"""The figures of a run: which there are, what each shows, and how they are written."""

import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from ltjax.augment import features as augment
from ltjax.data import longtail
from ltjax.report import predictions, statistics, tables
from ltjax.report.figures import classes, confusion, features, style, training
from ltjax.report.names import one_warning, shown

_BATCHES = 100  # whose generated features are counted


class Picture(NamedTuple):
  """A figure of the page: `text` says what one sees; `photos` is whether it holds images, whose colours must stay."""

  name: str
  title: str
  text: str
  draw: Callable[[], Figure]
  photos: bool = False


def of_run(stages, results: Mapping, logs: Mapping[str, list[dict]], seen, activations) -> list[Picture]:
  """The figures that apply to a run.

  Args:
    stages: the `stage.Stage`s, in order.
    results: the `train.StageResult` of each, by name.
    logs: the lines of each stage's metrics.jsonl and feature_norms.jsonl; none leave out the figures of the training.
    seen: the `predictions.Predictions` of the last stage; None without them.
    activations: an `activation_maps.Activations`, or None.
  """
  counts, names = stages[0].class_counts, stages[0].dataset.class_names
  confusions = {each.name: results[each.name].confusion for each in stages}
  present = tuple(group for group, members in longtail.shot_groups(counts).items() if len(members))
  last = stages[-1].name
  found = [
      Picture("accuracy_by_class_size", "Accuracy against class size",
              "Test accuracy of each class against its number of training images.",
              lambda: classes.accuracy_by_class_size(confusions, counts, names)),
      Picture("training_curves", "Training curves",
              "Training loss, and training and test accuracy by group of classes, against the epoch.",
              lambda: training.training_curves(logs, present)),
      Picture("confusion_matrix", "Confusion matrix",
              f"Of the test images of each true class (row), the per cent that {last} takes for each class (column).",
              lambda: confusion.confusion_matrix(confusions[last], counts, names))]
  if len(stages) > 1:
    found.append(Picture("gains", f"What {last} gains", f"Accuracy of {last} minus that of {stages[0].name}, mean of "
                         "the classes, in ten groups of classes from the largest to the smallest.",
                         lambda: classes.gains(confusions, counts)))
  if seen is not None:
    found += _of_predictions(seen, counts, names)
  norms = {each.name: predictions.class_vector_norms(each, results[each.name].variables) for each in stages}
  norms = {stage: values for stage, values in norms.items() if values is not None}
  if norms:
    found.append(Picture("classifier_norms", "Classifier norms", "The norm of each class vector against the class' "
                         "number of training images.", lambda: classes.classifier_norms(norms, counts, names)))
  if activations is not None:
    found.append(Picture("activation_maps", "Activation maps", f"Where {last} sees the class of an image, for a test "
                         "image of each of the smallest classes.",
                         lambda: features.activation_maps(activations, names), photos=True))
  if not logs:
    return [picture for picture in found if picture.name != "training_curves"]
  if rows := tables.of_feature_norms(logs):
    found.append(Picture("feature_norms_by_epoch", "Feature norms over epochs", "The mean norm of the features of test "
                         "images, mean of the classes of each group, against the epoch. The numbers are in "
                         "feature_norms.csv.", lambda: training.feature_norms(rows, present)))
  for each in stages:
    if (generated := generated_counts(each)) is not None:
      found.append(Picture("generated_features", "Generated features", f"Training images of each class, and the "
                           f"features that {each.name} generates for it in an epoch.",
                           lambda generated=generated: training.generated_features(counts, generated)))
  return found


def _of_predictions(seen, counts, names) -> list[Picture]:
  labels = seen.labels[seen.places]
  found = [
      Picture("reliability", "Calibration", "How often the model is right among test images of which it is equally "
              "sure; on the dashed line, it is as often right as it says. ECE is the mean distance from it.",
              lambda: features.reliability(reliabilities(seen, counts))),
      Picture("feature_norms", "Feature norms", "The mean norm of the features of each class' test images against the "
              "class' number of training images.",
              lambda: classes.feature_norms(seen.feature_norms, seen.labels, counts, names))]
  # Fewer than five images of a class show no cluster.
  if len(np.unique(labels)) > 1 and np.median(np.bincount(labels)[np.unique(labels)]) >= 5:
    found.append(Picture("features", "Features", "Features of test images in two dimensions (t-SNE): "
                         + ("all classes." if len(np.unique(labels)) == len(counts) else
                            f"{len(np.unique(labels))} of {len(counts):,} classes, from the largest to the smallest "
                            "of those with five test images or more."),
                         lambda: features.features(features.embed(seen.features), labels, counts, names)))
  return found


def reliabilities(seen, counts: np.ndarray) -> dict[str, statistics.Reliability]:
  """The `statistics.Reliability` of all test images, as "overall", and of those of each group of classes."""
  found = dict(overall=statistics.reliability(seen.confidence, seen.right))
  for group, members in longtail.shot_groups(counts).items():
    inside = np.isin(seen.labels, members)
    if inside.any():
      found[group] = statistics.reliability(seen.confidence[inside], seen.right[inside])
  return found


def generated_counts(stage) -> np.ndarray | None:
  """Features that a stage generates for each class in an epoch, [c], from at most 100 batches; None without any."""
  order, size = stage.order, len(stage.class_counts)
  final = order.clock(order.steps - 1)
  for call, active in zip(stage.spec.transforms, stage.active(final), strict=True):
    if active and call.function.__name__ == "generate_features":
      options = {key: call.constants[key] for key in ("gamma", "alpha") if key in call.constants}
      count = jax.jit(functools.partial(augment.generated_counts, num_classes=size, **options))
      steps = np.unique(np.linspace(order.steps - order.steps_per_epoch, order.steps - 1, _BATCHES).astype(int))
      labels = stage.dataset.train[1].astype(np.int32)
      found = sum(np.asarray(count(labels[order.batch(int(step)).ravel()])) for step in steps)
      return found * order.steps_per_epoch / len(steps)
  return None


def draw(pictures: Sequence[Picture], class_names: Sequence[str], folder: pathlib.Path) -> list[Picture]:
  """Writes each figure to `folder` as PNG and, but for photographs, as SVG.

  Returns those that could be drawn, and says on stderr which could not.
  """
  drawn = []
  with one_warning([shown(name, "terminal") for name in class_names]) as warning:
    if warning:
      print(warning, file=sys.stderr)
    for picture in pictures:
      path = folder / f"{picture.name}.png"
      try:
        style.save(picture.draw(), path, vector=not picture.photos)
        drawn.append(picture)
      except OSError:
        raise
      except Exception as error:  # a font, a name, a figure too large: nothing that may cost the results
        print(f"WARNING: {path} could not be drawn ({type(error).__name__}: {error})", file=sys.stderr)
  return drawn
