"""Figures with a point for each class, against its number of training images."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from ltjax import metrics
from ltjax.data import longtail, tally
from ltjax.report.figures import style

_POINTS = 100  # classes up to which each has a point of its own; above, means of ten groups say more
_TENTHS = 10


def accuracy_by_class_size(confusions: dict[str, np.ndarray], class_counts: np.ndarray,
                           class_names: tuple[str, ...]) -> Figure:
  """Test accuracy of every class against its number of training images, of all stages; the last one's is filled.

  Above 100 classes, points are faint and a line joins the means of ten groups of classes.
  """
  figure, axis = style.make(size=(5.4, 3.9))
  style.counts_axis(axis, class_counts)
  style.percent_axis(axis, "test accuracy of the class")
  handles, many = {}, len(class_counts) > _POINTS
  for stage, confusion in confusions.items():
    last, accuracy = stage == list(confusions)[-1], accuracies(confusion)
    if last or not many:
      _points(axis, class_counts, accuracy, filled=last, faint=many)
    if many:
      axis.plot(*_means(class_counts, accuracy), color=style.LATER if last else style.EARLIER, marker="o", zorder=3,
                linestyle="-" if last else "--")
    handles[stage] = Line2D([], [], color=style.LATER if last else style.EARLIER, marker="o", markersize=5,
                            markerfacecolor=None if last else "none", linestyle=("-" if last else "--") if many else "")
  _add_legend(figure, handles, class_counts)
  if not many:
    _label(figure, axis, class_counts, [accuracies(confusion) for confusion in confusions.values()], class_names)
  return figure


def gains(confusions: dict[str, np.ndarray], class_counts: np.ndarray) -> Figure:
  """How much accuracy the last stage gains over the first one in ten groups of classes, from the largest classes on."""
  (first, before), *_, (last, after) = ((stage, accuracies(confusion)) for stage, confusion in confusions.items())
  return gain_bars(after - before, class_counts, f"{last} minus {first}")


def gain_bars(difference: np.ndarray, class_counts: np.ndarray, what: str) -> Figure:
  """Mean `difference` [c] of accuracies in ten groups of classes by their size; classes with NaN enter no mean."""
  groups = tenths(class_counts)
  means = [np.nanmean(difference[group]) if np.isfinite(difference[group]).any() else 0.0 for group in groups]
  figure, axis = style.make()
  axis.bar(range(len(groups)), means, color=["#3f7d20" if mean >= 0 else "#b2182b" for mean in means])
  axis.axhline(0, color=style.LATER, linewidth=0.8)
  for place, mean in enumerate(means):
    axis.annotate(f"{100 * mean:+.1f}", (place, mean), xytext=(0, 3 if mean >= 0 else -10), ha="center",
                  textcoords="offset points", fontsize=7.5)
  reach = 1.25 * max(np.abs(means).max(), 0.01)
  single = len(groups) == len(class_counts)
  axis.set(ylim=(-reach if min(means) < 0 else 0, reach if max(means) > 0 or not any(means) else 0),
           ylabel=f"accuracy: {what}",
           xlabel=f"training images of {'the class' if single else 'a class in the group'}")
  axis.set_xticks(range(len(groups)), [_range(class_counts[group]) for group in groups])
  axis.yaxis.set_major_formatter(PercentFormatter(1))
  axis.grid(axis="x", visible=False)
  return figure


def classifier_norms(norms: dict[str, np.ndarray], class_counts: np.ndarray, class_names: tuple[str, ...]) -> Figure:
  """The norm of each class vector against the class' number of training images; `norms` are [c] of each stage."""
  return _by_size(norms, class_counts, class_names, "norm of the class vector")


def feature_norms(norms: np.ndarray, labels: np.ndarray, class_counts: np.ndarray,
                  class_names: tuple[str, ...]) -> Figure:
  """The mean norm of the features of each class' test images, against its number of training images.

  Args:
    norms: of the test images, [n].
    labels: of the test images, [n].
    class_counts: [c].
    class_names: c names.
  """
  means = tally.class_means(norms, labels, len(class_counts))
  return _by_size({"test images": means}, class_counts, class_names, "mean norm of the features")


def long_tail(class_counts: np.ndarray) -> Figure:
  """Training images of every class, from the largest to the smallest."""
  sizes = np.sort(class_counts)[::-1]
  figure, axis = style.make(size=(7.5, 4.2))
  handles = {}
  for group, classes in longtail.shot_groups(sizes).items():
    if len(classes):
      edges = np.append(classes, classes[-1] + 1)
      handles[f"{group}: {len(classes):,} classes, {sizes[classes].sum():,} images"] = axis.stairs(
          sizes[classes], edges, baseline=0.5, fill=True, color=style.COLORS[group])
  axis.set(xlabel="classes, largest first", ylabel="training images", yscale="log", xlim=(0, len(sizes)),
           ylim=(0.5, 1.5 * sizes[0]))
  axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
  style.legend(figure, list(handles.values()), list(handles))
  return figure


def accuracies(confusion: np.ndarray) -> np.ndarray:
  """The accuracy of each class, NaN without test images, [c]."""
  return np.where(tally.by_class(confusion).total > 0, metrics.per_class_accuracy(confusion), np.nan)


def tenths(class_counts: np.ndarray) -> list[np.ndarray]:
  """Classes in at most ten groups of equal number, from the largest classes to the smallest."""
  order = np.argsort(-class_counts, kind="stable")
  return np.array_split(order, min(_TENTHS, len(order)))


def _by_size(norms: dict[str, np.ndarray], class_counts, class_names, what: str) -> Figure:
  figure, axis = style.make()
  style.counts_axis(axis, class_counts)
  axis.set_ylabel(what)
  handles, many = {}, len(class_counts) > _POINTS
  for stage, values in norms.items():
    last = stage == list(norms)[-1]
    if last or not many:
      _points(axis, class_counts, values, filled=last, faint=many)
    if many:
      axis.plot(*_means(class_counts, values), color=style.LATER if last else style.EARLIER, marker="o", zorder=3)
    handles[stage] = Line2D([], [], color=style.LATER if last else style.EARLIER, marker="o", markersize=5,
                            markerfacecolor=None if last else "none", linestyle="-" if many else "")
  axis.set_ylim(bottom=0)
  axis.margins(y=0.1)
  _add_legend(figure, handles, class_counts)
  if not many:
    _label(figure, axis, class_counts, list(norms.values()), class_names)
  return figure


def _points(axis, class_counts, values, filled: bool, faint: bool) -> None:
  for group, classes in longtail.shot_groups(class_counts).items():
    color = style.COLORS[group]
    axis.scatter(class_counts[classes], values[classes], s=8 if faint else 30, alpha=0.25 if faint else 1,
                 linewidths=0 if faint else 1, edgecolors=color, facecolors=color if filled else "none",
                 rasterized=faint)


def _means(class_counts, values) -> tuple[list[float], list[float]]:
  """(geometric mean of sizes, mean of values) of ten groups of classes; a group without any value is left out."""
  groups = [group[np.isfinite(values[group])] for group in tenths(class_counts)]
  return ([float(np.exp(np.log(class_counts[group]).mean())) for group in groups if len(group)],
          [float(values[group].mean()) for group in groups if len(group)])


def _add_legend(figure: Figure, handles: dict, class_counts) -> None:
  groups = {f"{group} ({len(classes):,})": Line2D([], [], color=style.COLORS[group], marker="s", linestyle="")
            for group, classes in longtail.shot_groups(class_counts).items() if len(classes)}
  if len(class_counts) > _POINTS:
    handles = {f"{stage}, mean of ten groups": handle for stage, handle in handles.items()}
  found = groups | handles
  style.legend(figure, list(found.values()), list(found))


def _label(figure: Figure, axis, class_counts, of_stages: list[np.ndarray], class_names) -> None:
  """Names the last stage's points; where there is no room for all, those at the edges first, which one wants to know.
  """
  *earlier, values = of_stages
  there = np.flatnonzero(np.isfinite(values))
  if not len(there):
    return
  ranks = [np.argsort(np.argsort(score[there])) for score in (values, -values, class_counts, -class_counts)]
  order = there[np.argsort(np.min(ranks, axis=0), kind="stable")]
  style.annotate(figure, axis, np.column_stack([class_counts[order], values[order]]),
                 [style.name(class_names[c]) for c in order],
                 np.array([pair for each in earlier for pair in zip(class_counts, each, strict=True)]).reshape(-1, 2))


def _range(sizes: np.ndarray) -> str:
  low, high = sizes.min(), sizes.max()
  return f"{low:,}" if low == high else f"{high:,}\nto {low:,}"
