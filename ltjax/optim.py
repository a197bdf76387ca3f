"""Optimisers: optax transformations at learning rate 1, and the choice of the parameters that they update.

An optimiser is a function of keyword arguments that returns an optax transformation. It multiplies its updates by
`learning_rate` (or `lr`): the stage calls it with 1 and scales the updates by its own schedule. So `optax:lion`, or any
optimiser of that form, works by its name.
"""

import re
from typing import Annotated, Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from ltjax.errors import ConfigError

__all__ = ["adam", "adamw", "lamb", "lars", "sgd"]

NonNegative = Annotated[float, "[0, inf)"]
Decay = Annotated[float, "[0, 1)"]


def sgd(*, learning_rate: float = 1.0, momentum: Decay = 0.9, nesterov: bool = False, weight_decay: NonNegative = 0.0,
        mask: Any = None) -> optax.GradientTransformation:
  """PyTorch's SGD: v <- momentum v + (g + weight_decay p); p <- p - learning_rate v.

  The decay is coupled and applies to all trained parameters, including BatchNorm's and biases, as in the released code.
  """
  return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.trace(momentum, nesterov),
                     optax.scale(-learning_rate))


def adamw(*, learning_rate: float = 1.0, b1: Decay = 0.9, b2: Decay = 0.999,
          eps: Annotated[float, "(0, inf)"] = 1e-8, weight_decay: NonNegative = 0.01,
          mask: Any = None) -> optax.GradientTransformation:
  """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019); PyTorch's defaults."""
  return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)


def adam(*, learning_rate: float = 1.0, b1: Decay = 0.9, b2: Decay = 0.999,
         eps: Annotated[float, "(0, inf)"] = 1e-8) -> optax.GradientTransformation:
  """Adam (Kingma and Ba, ICLR 2015)."""
  return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


def lars(*, learning_rate: float = 1.0, momentum: Decay = 0.9, weight_decay: NonNegative = 0.0,
         trust_coefficient: Annotated[float, "(0, inf)"] = 0.001, mask: Any = True) -> optax.GradientTransformation:
  """LARS for very large batches (You et al., 2017); `no_decay` also exempts parameters from the trust ratio."""
  mask = True if mask is None else mask  # optax.lars takes no None; True exempts nothing
  return optax.lars(learning_rate, weight_decay, weight_decay_mask=mask, trust_coefficient=trust_coefficient,
                    trust_ratio_mask=mask, momentum=momentum)


def lamb(*, learning_rate: float = 1.0, b1: Decay = 0.9, b2: Decay = 0.999,
         eps: Annotated[float, "(0, inf)"] = 1e-6, weight_decay: NonNegative = 0.0,
         mask: Any = None) -> optax.GradientTransformation:
  """LAMB for very large batches (You et al., ICLR 2020)."""
  return optax.lamb(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)


class Optimizer(NamedTuple):
  """An optimiser with its learning rate factors, gradient accumulation and moving average.

  Args:
    transform: the optax transformation at learning rate 1.
    factors: a tree like the parameters; None for a frozen one, else the factor on the learning rate.
    accumulate: the number of parts that a batch is cut into; their gradients are added up.
    ema: the decay of a moving average of parameters and statistics; 0 for none.
  """

  transform: optax.GradientTransformation
  factors: Any
  accumulate: int = 1
  ema: float = 0.0

  def init(self, params) -> optax.OptState:
    """The optimiser state of the trained parameters."""
    return self.transform.init(split(params, self.factors)[0])

  def update(self, grads, state, trained, *, lr):
    """(trained parameters, state) after a step of learning rate `lr`."""
    updates, state = self.transform.update(grads, state, trained)
    updates = jax.tree.map(lambda update, factor: lr * factor * update, updates, self.factors)
    return optax.apply_updates(trained, updates), state

  def init_average(self, params, batch_stats) -> dict | None:
    """The moving average before the first step: the initial parameters and statistics."""
    # A copy: the state is donated, and an array may not be donated twice.
    return jax.tree.map(jnp.copy, dict(params=split(params, self.factors)[0], batch_stats=batch_stats)
                        ) if self.ema else None

  def average(self, average: dict | None, trained, batch_stats) -> dict | None:
    """average <- ema average + (1 - ema) new."""
    if average is None:
      return None
    return jax.tree.map(lambda old, new: self.ema * old + (1 - self.ema) * new, average,
                        dict(params=trained, batch_stats=batch_stats))

  def averaged(self, average: dict, params) -> dict:
    """{"params", "batch_stats"} of the moving average, completed by the frozen parameters."""
    return dict(params=join(average["params"], split(params, self.factors)[1]), batch_stats=average["batch_stats"])


def make(call: Any, factors, *, no_decay: tuple = (), clip_norm: float = 0.0, accumulate: int = 1,
         ema: float = 0.0) -> Optimizer:
  """An `Optimizer` of the transformation that `call` returns at learning rate 1.

  Args:
    call: an optimiser with its hyper-parameters, a `config.bind.Call`. With `no_decay` it gets a mask for the weight
      decay, a function from parameters to a tree of bools.
    factors: see `Optimizer`.
    no_decay: regular expressions on the paths of parameters without weight decay.
    clip_norm: gradients longer than this, over all trained parameters, are scaled down to it; 0 for no limit.
    accumulate: see `Optimizer`.
    ema: see `Optimizer`.
  """

  def decayed(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: not any(
        re.fullmatch(pattern, jax.tree_util.keystr(path, simple=True, separator="/")) for pattern in no_decay), params)

  given = {name: 1.0 for name in ("learning_rate", "lr") if name in call.arguments}
  transform = call(**given, **(dict(mask=decayed) if no_decay else {}))
  if clip_norm:
    transform = optax.chain(optax.clip_by_global_norm(clip_norm), transform)
  return Optimizer(transform, factors, accumulate, ema)


def learning_rate_factors(params, train: tuple, lr_factors: tuple = (), *, where: str = "train"):
  """A tree like `params`: None for a frozen parameter, else the factor on the learning rate.

  Args:
    params: the parameters, a nested dict.
    train: regular expressions on "backbone/..." paths; a parameter is trained if one matches its complete path.
    lr_factors: (regular expression, factor) pairs; the first match counts, and without one the factor is 1.
    where: the name of the config block, for messages.

  Raises:
    ConfigError: an expression matches nothing, or there is nothing to train.
  """
  # A backbone without parameters stays: the tree of factors has the structure of the parameters.
  paths = flax.traverse_util.flatten_dict(params, keep_empty_nodes=True, sep="/")
  check_patterns((*train, *(pattern for pattern, _ in lr_factors)), params, where=where)
  if not train:
    raise ConfigError(f"{where}: nothing is trained; give at least one regular expression, such as 'head/.*'")

  def factor(path):
    if not any(re.fullmatch(pattern, path) for pattern in train):
      return None
    return float(next((value for pattern, value in lr_factors if re.fullmatch(pattern, path)), 1.0))

  empty = flax.traverse_util.empty_node
  return flax.traverse_util.unflatten_dict({path: leaf if leaf is empty else factor(path)
                                            for path, leaf in paths.items()}, sep="/")


def flat(tree) -> dict:
  """{"a/b": leaf} of nested dicts."""
  return flax.traverse_util.flatten_dict(tree, sep="/")


def check_patterns(patterns: tuple, params, *, where: str) -> None:
  """Raises a `ConfigError` for a regular expression that matches the path of no parameter."""
  paths = sorted(flat(params))
  for pattern in patterns:
    if not any(re.fullmatch(pattern, path) for path in paths):
      some = paths if len(paths) <= 6 else [*paths[:3], f"... ({len(paths)} in all) ...", *paths[-3:]]
      raise ConfigError(f"{where}: {pattern!r} matches no parameter; there are {', '.join(some)}")


def split(params, factors):
  """(trained, frozen): two trees like `params`, each with None for the other's parameters."""
  trained = jax.tree.map(lambda factor, value: None if factor is None else value, factors, params, is_leaf=_is_none)
  frozen = jax.tree.map(lambda factor, value: value if factor is None else None, factors, params, is_leaf=_is_none)
  return trained, frozen


def join(trained, frozen):
  """The inverse of `split`."""
  return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=_is_none)


def _is_none(value) -> bool:
  return value is None
