"""The only jitted training code: one step, written once for every method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from ltjax import optim
from ltjax.augment.features import enlarge
from ltjax.augment.images import normalize
from ltjax.data.resident import gather


class TrainState(struct.PyTreeNode):
  """Everything that changes in a stage.

  `seen_counts` [c] are the examples of each class drawn so far; `window` sums what the log reports, since its last
  line.
  """

  step: jax.Array
  params: dict
  batch_stats: dict
  opt_state: optax.OptState
  seen_counts: jax.Array
  window: dict


def init_window() -> dict:
  """The sums at the start of a window."""
  return dict(loss=np.zeros((), np.float32), correct=np.zeros((), np.float32), examples=np.zeros((), np.float32))


class Gradients(NamedTuple):
  """What a step learns from; with generation, the last rows of `logits` are the generated ones."""

  loss: jax.Array
  grads: dict  # of the trained parameters
  batch_stats: dict
  seen_counts: jax.Array
  images: jax.Array
  targets: tuple  # pairs of labels [b] and their share
  logits: jax.Array


def make_gradients(model, factors, objective, load, *, batch_norm: str):
  """gradients(state, data, batch, scalars) -> Gradients; the arguments are those of `make_train_step`."""

  def gradients(state: TrainState, data, batch, scalars) -> Gradients:
    key_load, key_loss, key_plan = jax.random.split(jax.random.fold_in(data["key"], state.step), 3)
    images, targets = load(data, batch, key_load, scalars)
    seen_counts, terms = state.seen_counts, [(labels, share, None) for labels, share in targets]
    for labels, share in targets:
      seen_counts = seen_counts.at[labels].add(share)
    if "generation" in scalars:
      plan = objective.plan(targets[0][0], key_plan, len(data["class_counts"]))
      images, labels, valid = enlarge(images, targets[0][0], plan)
      terms.append((labels, scalars["generation"], valid))
    trained, frozen = optim.split(state.params, factors)

    def loss_fn(trained):
      variables = dict(params=optim.join(trained, frozen), batch_stats=state.batch_stats)
      (logits, features), updates = model.apply(variables, images, train=batch_norm != "eval", mutable=["batch_stats"])
      loss = 0.0
      for (labels, share, valid), key in zip(terms, jax.random.split(key_loss, len(terms)), strict=True):
        rows = slice(len(labels))  # generated rows are the last
        loss += share * objective(logits[rows], labels, features=features[rows], key=key, scalars=scalars, valid=valid,
                                  class_counts=data["class_counts"], seen_counts=seen_counts)
      return loss, (logits, updates["batch_stats"])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    return Gradients(loss, grads, batch_stats, seen_counts, images, targets, logits)

  return gradients


def make_train_step(model, tx, factors, objective, load, *, batch_norm: str, on_nonfinite: str):
  """train_step(state, data, batch, scalars) -> (state, finite).

  A batch is what `load` takes: indices [b], or images and labels. `data` are the stage's constant arrays and its random
  key, `scalars` the scheduled values at this step, and its number. Only the parameters that `factors` trains are
  differentiated, so a frozen backbone costs no backward pass. Where `scalars` have `generation`, which makes a program
  of its own, rows are generated and the loss of all rows is added with it.

  Where the loss or any number of the new state is infinite or NaN, `finite` is false and nothing is learned. With
  `on_nonfinite` "stop" the state stays before that very step, through the calls that are already under way; with "skip"
  the next step is the next batch's.
  """
  gradients = make_gradients(model, factors, objective, load, batch_norm=batch_norm)

  def train_step(state: TrainState, data, batch, scalars) -> tuple[TrainState, jax.Array]:
    found, (trained, frozen) = gradients(state, data, batch, scalars), optim.split(state.params, factors)
    updates, opt_state = tx.update(found.grads, state.opt_state, trained, lr=scalars["lr"])
    trained = optax.apply_updates(trained, updates)
    size = len(found.targets[0][0])
    predictions = jnp.argmax(found.logits[:size], axis=-1)
    correct = sum(share * jnp.sum(predictions == labels) for labels, share in found.targets)
    sums = dict(loss=found.loss * size, correct=correct, examples=jnp.float32(size))
    learned = state.replace(
        step=state.step + 1, params=optim.join(trained, frozen), batch_stats=found.batch_stats, opt_state=opt_state,
        seen_counts=found.seen_counts, window=jax.tree.map(jnp.add, state.window, sums))
    finite = all_finite((found.loss, trained, found.batch_stats, opt_state)) & (state.step == scalars["step"])
    kept = state if on_nonfinite == "stop" else state.replace(step=state.step + 1)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), learned, kept), finite

  return train_step


def repeat(train_step, steps: int, *, unroll: bool):
  """train_step over `steps` batches in one call: each array of a batch [steps b ...], scalars and `finite` [steps].

  XLA runs convolutions inside a loop about fifty times slower on a CPU, so there the loop is unrolled.
  """

  def train_steps(state: TrainState, data, batches, scalars) -> tuple[TrainState, jax.Array]:
    def body(state, batch):
      return train_step(state, data, *batch)

    return jax.lax.scan(body, state, (batches, scalars), unroll=steps if unroll else 1)

  return train_steps


def all_finite(tree) -> jax.Array:
  """Whether no number in `tree` is infinite or NaN."""
  return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def make_eval_step(model, read=gather):
  """eval_step(variables, data, batch, valid [b], confusion [c c]) -> confusion with the valid examples added.

  `read(data, batch)` gives the images and labels of a batch.
  """

  def eval_step(variables, data, batch, valid, confusion):
    images, labels = read(data, batch)
    logits, _ = model.apply(variables, normalize(images, data["mean"], data["std"]), train=False)
    return confusion.at[labels, jnp.argmax(logits, axis=-1)].add(valid.astype(jnp.int32))

  return eval_step
