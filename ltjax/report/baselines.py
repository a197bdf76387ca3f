"""Two simple classifiers on the features of a run, so that nobody deploys something worse."""

import sys
import warnings

import numpy as np

from ltjax import metrics, posthoc
from ltjax.data import tally
from ltjax.distributed import processes

IMAGES = 100_000  # training images, whose features take minutes beyond
SAID = 5_000  # training images, whose features may take a minute
LIMIT = 2_000_000_000  # images x features x classes: a logistic regression on so many takes about a minute on two cores
SCORES = 2**24  # of images for classes, that are computed at a time
NAMES = ("nearest class mean", "logistic regression")


def of_stage(stage, variables: dict) -> list[dict]:
  """What simple classifiers reach on the test set with the features of a trained stage.

  The nearest class mean is by cosine; the logistic regression weights classes by 1 / n_c and sees standardised
  features. Neither has seen the test set, and nothing is chosen.

  Args:
    stage: a `stage.Stage`, after training.
    variables: its {"params", "batch_stats"}.

  Returns:
    [{"name", "test": accuracies, "balanced_accuracy"}, ...]; none beyond `IMAGES`, no logistic regression beyond
    `LIMIT`.
  """
  if len(stage.dataset.train[1]) > IMAGES:
    return []
  dataset, classes, extract = stage.dataset, len(stage.class_counts), stage.extractor(variables)
  if len(dataset.train[1]) >= SAID and not dataset.holds_features and processes.is_first():
    print(f"baselines: the features of {len(dataset.train[1]):,} training images", file=sys.stderr, flush=True)
  (train, labels), (test, truth) = dataset.train, dataset.test
  train, test = (extract(images, "features")["features"] for images in (train, test))
  if not processes.is_first():
    return []
  kernel = posthoc.nearest_class_mean(train, labels, classes)
  # In parts: the scores of thousands of classes would take a GiB.
  parts = range(0, len(test), max(1, SCORES // classes))
  predictions = {NAMES[0]: np.concatenate([np.argmax(posthoc.nearest_mean_logits(
      test[first:first + parts.step], kernel), axis=-1) for first in parts])}
  if train.size * classes <= LIMIT:
    predictions[NAMES[1]] = logistic_regression(train, labels, test)
  counts = {name: tally.count(truth, found, classes) for name, found in predictions.items()}
  return [dict(name=name, test=metrics.scores(found, stage.class_counts),
               balanced_accuracy=metrics.balanced_accuracy(found)) for name, found in counts.items()]


def warn(results: dict) -> list[str]:
  """Lines on what did worse than something simpler: the last stage than a baseline, or a stage than the one before.

  A stage is compared with the one before it on held-out images, where the run has some.
  """
  lines, stages = [], list(results["stages"].items())
  for (first, earlier), (second, later) in zip(stages, stages[1:], strict=False):
    before, after = earlier.get("held_out"), later.get("held_out")
    if before is not None and after is not None and after < before:
      lines.append(f"WARNING: {second} ended below {first} on held-out images: a balanced accuracy of "
                   f"{100 * after:.2f} after {100 * before:.2f}")
  for baseline in results.get("baselines", ()):
    if baseline["balanced_accuracy"] > results["balanced_accuracy"]:
      lines.append(f"WARNING: {baseline['name']} on the same features is better: a balanced accuracy of "
                   f"{100 * baseline['balanced_accuracy']:.2f} against {100 * results['balanced_accuracy']:.2f}")
  return lines


def logistic_regression(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
  """The classes [m] of `test` [m d] by a logistic regression on standardised features, classes weighted by 1 / n_c."""
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=200))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # its result is a baseline all the same
    return model.fit(train, labels).predict(test)
