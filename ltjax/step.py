"""The only jitted training code: one step, written once for every method."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from ltjax import optim
from ltjax.augment.batches import Batch, Weighing
from ltjax.distributed import platforms
from ltjax.losses.objective import Objective
from ltjax.models import batch_norm


class TrainState(struct.PyTreeNode):
  """Everything that changes during a stage.

  `loss_state` belongs to losses that declare a state and to weights that are learned, `ema` to an optimiser with a
  moving average; otherwise both are None. `window` sums the numbers for the log since its last line.
  """

  step: jax.Array
  params: dict
  batch_stats: dict
  opt_state: optax.OptState
  loss_state: dict | None
  ema: dict | None
  window: dict


def init_window() -> dict:
  """The sums at the start of a window."""
  return dict(loss=np.zeros((), np.float32), correct=np.zeros((), np.float32), examples=np.zeros((), np.float32))


class Parts(NamedTuple):
  """The parts of a step.

  Args:
    model: (inputs, train) -> (logits, features), a linen module.
    optimizer: an `optim.Optimizer`.
    objective: the loss.
    transform: (data, batch, key, scalars) -> `Batch` or `Weighing`, inside jit.
    batch_norm: "train", "eval", "shift", or patterns of the layers that train; see `recipes.stage`.
    on_nonfinite: "stop" or "skip".
  """

  model: Any
  optimizer: optim.Optimizer
  objective: Objective
  transform: Any
  batch_norm: str | tuple[str, ...] = "train"
  on_nonfinite: str = "stop"


class Gradients(NamedTuple):
  """The loss and gradients of a step, and the intermediate values that the step needs."""

  loss: jax.Array
  grads: dict  # of the trained parameters
  batch_stats: dict
  loss_state: dict | None
  batch: Batch
  logits: jax.Array


def make_gradients(parts: Parts):
  """gradients(state, data, batch, scalars) -> Gradients; the arguments are those of `make_train_step`."""
  model, objective = parts.model, parts.objective
  factors, pieces = parts.optimizer.factors, parts.optimizer.accumulate

  def gradients(state: TrainState, data, batch, scalars) -> Gradients:
    key = jax.random.fold_in(data["key"], state.step)
    batch, key_loss = parts.transform(data, batch, key, scalars), jax.random.fold_in(key, 1)
    trained, frozen = optim.split(state.params, factors)

    def forward(trained, batch_stats, inputs, piece):
      variables = dict(params=optim.join(trained, frozen), batch_stats=batch_stats)
      train, layers = batch_norm.mode(parts.batch_norm)
      with layers:
        return model.apply(variables, inputs, train=train, mutable=["batch_stats"],
                           rngs=dict(dropout=jax.random.fold_in(jax.random.fold_in(key, 4), piece)))

    def row_losses(trained, batch: Batch):
      (logits, features), _ = forward(trained, state.batch_stats, batch.inputs, 0)
      return objective.values(logits, batch.terms[0].labels, features=features, key=key_loss, scalars=scalars,
                              class_counts=data["class_counts"], state=state.loss_state)

    def loss_fn(trained, batch_stats, loss_state, batch: Batch, piece, totals):
      (logits, features), updates = forward(trained, batch_stats, batch.inputs, piece)
      for term in batch.observed:
        loss_state = objective.update_state(loss_state, logits[:len(term.labels)], term.labels, term.weight)
      keys = jax.random.split(jax.random.fold_in(key_loss, piece) if pieces > 1 else key_loss, len(batch.terms))
      loss = 0.0
      for term, key_term, total in zip(batch.terms, keys, totals, strict=True):
        rows = slice(len(term.labels))  # rows without an image come last
        loss += objective(logits[rows], term.labels, features=features[rows], key=key_term, scalars=scalars,
                          class_counts=data["class_counts"], state=loss_state, valid=term.valid, weight=term.weight,
                          total=total)
      return loss, (logits, updates.get("batch_stats", {}), loss_state)

    differentiate, weighted, loss_state = jax.value_and_grad(loss_fn, has_aux=True), batch, state.loss_state
    if isinstance(batch, Weighing):
      weighted, loss_state = weighed(batch, row_losses, trained, loss_state, scalars["lr"])
      batch = batch.batch  # accuracies count all rows alike
    if pieces == 1:
      (loss, (logits, batch_stats, loss_state)), grads = differentiate(
          trained, state.batch_stats, loss_state, weighted, 0, [None] * len(batch.terms))
      return Gradients(loss, grads, batch_stats, loss_state, batch, logits)
    totals = [objective.row_weights(term.labels, scalars, term.valid)[1] for term in batch.terms]

    def add(carry, piece):
      loss, grads, batch_stats, loss_state = carry
      (more, (logits, batch_stats, loss_state)), more_grads = differentiate(
          trained, batch_stats, loss_state, batch.piece(piece, pieces), piece, totals)
      return (loss + more, jax.tree.map(jnp.add, grads, more_grads), batch_stats, loss_state), logits

    start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained), state.batch_stats, state.loss_state)
    # XLA runs convolutions inside a loop about fifty times slower on a CPU, so there the loop is unrolled.
    unroll = pieces if platforms.target() == "cpu" else 1
    (loss, grads, batch_stats, loss_state), logits = jax.lax.scan(add, start, jnp.arange(pieces), unroll=unroll)
    return Gradients(loss, grads, batch_stats, loss_state, batch, jnp.swapaxes(logits, 0, 1).reshape(
        -1, logits.shape[-1]))  # piece p has the rows p, p + pieces, ...

  return gradients


def weighed(given: Weighing, row_losses, trained: dict, loss_state: dict | None, lr) -> tuple[Batch, dict | None]:
  """(the batch with the weights that `given.weigh` finds, the new state of losses).

  Args:
    given: the batch, and what weighs it.
    row_losses: (trained parameters, batch) -> the loss of each row.
    trained: the parameters.
    loss_state: the state of losses, with that of the weights if they have one.
    lr: the learning rate.
  """
  batch, held_out, weigh = given
  weights, weigher = weigh(lambda p: row_losses(p, batch), lambda p: jnp.mean(row_losses(p, held_out)), trained,
                           (loss_state or {}).get("weigher"), lr)
  (term,) = batch.terms
  return Batch(batch.inputs, (term._replace(weight=jax.lax.stop_gradient(weights)),)), (
      loss_state and loss_state | dict(weigher=weigher))


def make_train_step(parts: Parts):
  """train_step(state, data, batch, scalars) -> (state, finite).

  A batch is the input of `parts.transform`: indices [b], or images and labels. `data` holds the stage's constant arrays
  and its random key, `scalars` the scheduled values at this step, and its number. Only the trained parameters are
  differentiated, so a frozen backbone costs no backward pass.

  If the loss or any number of the new state is infinite or NaN, `finite` is false and the state keeps its values. With
  `on_nonfinite` "stop" it then stays before this step, also through the calls that are already under way; with "skip"
  the next step takes the next batch.
  """
  gradients, optimizer = make_gradients(parts), parts.optimizer

  def train_step(state: TrainState, data, batch, scalars) -> tuple[TrainState, jax.Array]:
    result, (trained, frozen) = gradients(state, data, batch, scalars), optim.split(state.params, optimizer.factors)
    trained, opt_state = optimizer.update(result.grads, state.opt_state, trained, lr=scalars["lr"])
    observed = result.batch.observed
    size = len(observed[0].labels)
    predictions = jnp.argmax(result.logits[:size], axis=-1)
    correct = sum(term.sum(predictions == term.labels) for term in observed)
    sums = dict(loss=result.loss * size, correct=correct, examples=jnp.float32(size))
    learned = state.replace(
        step=state.step + 1, params=optim.join(trained, frozen), batch_stats=result.batch_stats, opt_state=opt_state,
        loss_state=result.loss_state, ema=optimizer.average(state.ema, trained, result.batch_stats),
        window=jax.tree.map(jnp.add, state.window, sums))
    # After a failed step with "stop", the state's step no longer matches the number that the host sends with each step.
    finite = all_finite((result.loss, trained, result.batch_stats, opt_state)) & (state.step == scalars["step"])
    unchanged = state if parts.on_nonfinite == "stop" else state.replace(step=state.step + 1)
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), learned, unchanged), finite

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
