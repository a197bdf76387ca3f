"""The report's pictures. Each function takes numbers and a path, and writes one PNG."""

import pathlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from ltjax import metrics
from ltjax.data import longtail, tally

GROUP_COLORS = dict(many="#2166ac", medium="#4d9221", few="#b2182b")


def _save(figure: Figure, path: pathlib.Path) -> None:
  figure.savefig(path, dpi=120)


def training_curves(logs: dict[str, list[dict]], groups: tuple[str, ...], path: pathlib.Path) -> None:
  """Loss and accuracy against the epoch, stages side by side; `logs` are the lines of each stage's metrics.jsonl."""
  figure = Figure(figsize=(5.2 * len(logs), 6), layout="constrained")
  axes = figure.subplots(2, len(logs), squeeze=False, sharex="col")
  for (name, lines), (top, bottom) in zip(logs.items(), axes.T, strict=True):
    train = [line for line in lines if "loss" in line]
    test = [line for line in lines if "test" in line]
    epochs = [line["epoch"] for line in train]
    top.plot(epochs, [line["loss"] for line in train], color="black")
    top.set(title=name, ylabel="training loss", ylim=(0, 1.05 * max((line["loss"] for line in train), default=1)))
    bottom.plot(epochs, [line["accuracy"] for line in train], color="grey", label="training")
    for group in ("overall", *groups):
      measured = [np.nan if line["test"][group] is None else line["test"][group] for line in test]
      bottom.plot([line["epoch"] for line in test], measured,
                  color=GROUP_COLORS.get(group, "black"), linestyle="--" if group in groups else "-", marker=".",
                  label=f"test, {group}")
    bottom.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    bottom.yaxis.set_major_formatter(PercentFormatter(1))
    bottom.legend(fontsize="small")
    for axis in (top, bottom):
      axis.grid(alpha=0.3)
  _save(figure, path)


def accuracy_by_class_size(confusions: dict[str, np.ndarray | tally.Tally], class_counts: np.ndarray,
                           class_names: tuple[str, ...], path: pathlib.Path) -> None:
  """Test accuracy of every class against its number of training images; a stage before the last is drawn hollow."""
  figure = Figure(figsize=(7.5, 4.8), layout="constrained")
  axis = figure.subplots()
  for name, confusion in confusions.items():
    last = name == list(confusions)[-1]
    accuracy = np.where(tally.by_class(confusion).total > 0, metrics.per_class_accuracy(confusion), np.nan)
    for group, classes in longtail.shot_groups(class_counts).items():
      if len(classes):
        color = GROUP_COLORS[group]
        axis.scatter(class_counts[classes], accuracy[classes], s=36, edgecolors=color,
                     facecolors=color if last else "none", label=f"{group}, {name}")
    if last and len(class_names) <= 20:
      for x, y, label in zip(class_counts, accuracy, class_names, strict=True):
        if np.isnan(y):
          continue
        axis.annotate(label, (x, y), xytext=(5, -11), textcoords="offset points", fontsize="small")
  axis.set_xscale("log")
  axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
  axis.xaxis.set_minor_formatter(NullFormatter())
  axis.set(xlabel="training images of the class", ylabel="test accuracy of the class", ylim=(-0.04, 1.04))
  axis.yaxis.set_major_formatter(PercentFormatter(1))
  axis.grid(alpha=0.3)
  axis.legend(fontsize="small")
  _save(figure, path)


def activation_maps(found, class_names: tuple[str, ...], path: pathlib.Path) -> None:
  """A column an image: the image, then each kind of map of its class over it, from its smallest value to its largest.

  `found` is a `cams.Activations`.
  """
  images, (height, width) = found.images.squeeze(-1) if found.images.shape[-1] == 1 else found.images, (
      found.images.shape[1:3])
  figure = Figure(figsize=(1.8 * len(images), 0.45 + (1.8 * height / width + 0.1) * (1 + len(found.maps))),
                  layout="constrained")
  rows = figure.subplots(1 + len(found.maps), len(images), squeeze=False)
  for column, (image, label, prediction) in enumerate(zip(images, found.labels, found.predictions, strict=True)):
    verdict = "right" if label == prediction else f"taken for {class_names[prediction]}"
    rows[0, column].set_title(f"{class_names[label]}\n{verdict}", fontsize="small")
    for row, (axis, heat) in enumerate(zip(rows[:, column], (None, *found.maps.values()), strict=True)):
      axis.imshow(image, cmap="gray", extent=(0, width, height, 0))
      if heat is not None:
        axis.imshow(heat[column], cmap="jet", alpha=0.5, extent=(0, width, height, 0), interpolation="bilinear")
      axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
      if column == 0:
        axis.set_ylabel(("image", *found.maps)[row], fontsize="small")
  _save(figure, path)


_CELLS = 200  # rows and columns of a matrix that a picture can show


def confusion_matrix(confusion: np.ndarray, class_counts: np.ndarray, class_names: tuple[str, ...],
                     path: pathlib.Path) -> None:
  """Rows are true classes, columns predictions, in per cent of the row; classes from the largest to the smallest.

  Above 200 classes a cell is a block of neighbouring classes.
  """
  order = np.argsort(-class_counts, kind="stable")
  cells = min(len(order), _CELLS)
  block = np.empty(len(order), np.int64)
  block[order] = np.arange(len(order)) * cells // len(order)
  rows, columns = np.nonzero(confusion)  # far fewer than the cells of a matrix of thousands of classes
  counts = np.zeros((cells, cells), np.int64)
  np.add.at(counts, (block[rows], block[columns]), confusion[rows, columns])
  shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  figure = Figure(figsize=(6.6, 5.8), layout="constrained")
  axis = figure.subplots()
  image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
  figure.colorbar(image, label="% of the row's test images", shrink=0.85)
  blocks = "" if cells == len(order) else f", {len(order):,} classes in {cells} blocks"
  axis.set(xlabel=f"predicted (largest class first{blocks})", ylabel="true")
  if len(order) <= 20:
    names = [class_names[c] for c in order]
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    for (row, column), share in np.ndenumerate(shares):
      if share >= 0.5:
        axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize="x-small",
                  color="white" if share > 60 else "black")
  _save(figure, path)


def long_tail(class_counts: np.ndarray, path: pathlib.Path) -> None:
  """Training images of every class, from the largest to the smallest."""
  sizes = np.sort(class_counts)[::-1]
  figure = Figure(figsize=(7.5, 4.2), layout="constrained")
  axis = figure.subplots()
  for group, classes in longtail.shot_groups(sizes).items():
    if len(classes):
      edges = np.append(classes, classes[-1] + 1)
      axis.stairs(sizes[classes], edges, baseline=0.5, fill=True, color=GROUP_COLORS[group],
                  label=f"{group}: {len(classes):,} classes, {sizes[classes].sum():,} images")
  axis.set(xlabel="classes, largest first", ylabel="training images", yscale="log", xlim=(0, len(sizes)),
           ylim=(0.5, 1.5 * sizes[0]))
  axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
  axis.grid(alpha=0.3)
  axis.legend(fontsize="small")
  _save(figure, path)
