"""Figures of the training itself: curves, and the features that a method has generated."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from ltjax.report.figures import style


def training_curves(logs: dict[str, list[dict]], groups: tuple[str, ...]) -> Figure:
  """Loss and accuracy against the epoch, stages side by side; `logs` are the lines of each stage's metrics.jsonl."""
  figure, axes = style.make(len(logs), 2, (max(5.4, 3.2 * len(logs)), 4.6), squeeze=False, sharex="col")
  handles = {}
  for (stage, lines), (top, bottom) in zip(logs.items(), axes.T, strict=True):
    train = [line for line in lines if "loss" in line]
    test = [line for line in lines if "test" in line]
    epochs, losses = [line["epoch"] for line in train], np.array([line["loss"] for line in train], float)
    dots = "." if len(train) < 15 else ""  # a line through one point cannot be seen
    top.plot(epochs, losses, color=style.LATER, marker=dots)
    top.set_title(style.name(stage, 30), fontsize=10)
    top.set_ylabel("training loss")
    finite = losses[np.isfinite(losses)]
    if finite.size:
      top.set_ylim(min(0, 1.05 * finite.min()), 1.05 * finite.max() or 1)
    else:
      top.text(0.5, 0.5, "no loss in the log", ha="center", transform=top.transAxes)
    handles["training"], = bottom.plot(epochs, [line["accuracy"] for line in train], color="#9a9a9a", marker=dots)
    for group in ("overall", *groups):
      measured = [np.nan if line["test"][group] is None else line["test"][group] for line in test]
      label = f"test, {group}"
      handles[label], = bottom.plot(
          [line["epoch"] for line in test], measured, color=style.COLORS.get(group, style.LATER),
          linestyle="--" if group in groups else "-", marker="." if len(test) < 40 else "")
    bottom.set(xlabel="epoch")
    style.percent_axis(bottom, "accuracy", (-0.02, 1.02))
  style.legend(figure, list(handles.values()), list(handles))
  return figure


def feature_norms(rows: list[dict], groups: tuple[str, ...]) -> Figure:
  """The mean norm of the features against the epoch, a line a group and stages side by side.

  `rows` are those of `tables.of_feature_norms`.

  References:
    The left sides of figures 4.2 and 4.3 of the thesis that KPS, FBL and GCL are from, with groups for single classes.
  """
  stages = list(dict.fromkeys(row["stage"] for row in rows))
  figure, axes = style.make(len(stages), 1, (max(5.4, 3.2 * len(stages)), 3.4), squeeze=False, sharey=True)
  handles = {}
  for stage, axis in zip(stages, axes.flat, strict=True):
    of_stage = [row for row in rows if row["stage"] == stage]
    for group in groups:
      norms = [np.nan if row[group] is None else row[group] for row in of_stage]
      handles[group], = axis.plot([row["epoch"] for row in of_stage], norms, color=style.COLORS[group],
                                  marker="." if len(of_stage) < 40 else "")
    axis.set_title(style.name(stage, 30), fontsize=10)
    axis.set(xlabel="epoch")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
  axes[0, 0].set(ylabel="mean norm of the features", ylim=(0, None))
  style.legend(figure, list(handles.values()), list(handles))
  return figure


def generated_features(class_counts: np.ndarray, generated: np.ndarray) -> Figure:
  """Training images of each class, from the largest to the smallest, and the features generated on top of them.

  Args:
    class_counts: [c].
    generated: features an epoch of each class, [c].
  """
  order = np.argsort(-class_counts, kind="stable")
  edges, images, added = np.arange(len(order) + 1), class_counts[order], generated[order]
  figure, axis = style.make()
  handles = [axis.stairs(images, edges, baseline=0, fill=True, color=style.COLORS["many"]),
             axis.stairs(images + added, edges, baseline=images, fill=True, color="#e08214")]
  axis.set(xlabel="classes, largest first", ylabel="examples an epoch", xlim=(0, len(order)))
  axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
  style.legend(figure, handles, ["images", "generated features"])
  return figure
