"""The optimiser: PyTorch's SGD as an optax chain, and which parameters it moves."""

import re

import flax.traverse_util
import jax
import optax

from ltjax.errors import ConfigError


def sgd(*, momentum: float, weight_decay: float, factors,
        no_decay: tuple = ()) -> optax.GradientTransformationExtraArgs:
  """v <- momentum v + (g + weight_decay p); p <- p - lr factor v, with `lr` given at every update.

  The decay is coupled and falls on every trained parameter, BatchNorm's and biases included, as in the released codes;
  `no_decay` are regular expressions on the paths of those that it spares.
  """

  def decayed(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: not any(
        re.fullmatch(pattern, jax.tree_util.keystr(path, simple=True, separator="/")) for pattern in no_decay), params)

  def scale(updates, params=None, *, lr, **extra):
    del params, extra
    return jax.tree.map(lambda update, factor: -lr * factor * update, updates, factors)

  scale_by_lr = optax.GradientTransformationExtraArgs(
      lambda params: optax.EmptyState(), lambda updates, state, params=None, **extra: (scale(updates, **extra), state))
  decay = optax.add_decayed_weights(weight_decay, decayed if no_decay else None)
  return optax.chain(decay, optax.trace(momentum), scale_by_lr)


def learning_rate_factors(params, train: tuple, lr_factors: tuple = (), *, where: str = "train"):
  """A tree like `params`: None where a parameter is frozen, else the factor on the learning rate.

  Args:
    params: the parameters, a nested dict.
    train: regular expressions on "backbone/..." paths; a parameter is trained where one matches the whole path.
    lr_factors: (regular expression, factor) pairs, the first that matches counts; 1 where none does.
    where: the name of the config block, for messages.

  Raises:
    ConfigError: an expression that matches nothing, or nothing to train.
  """
  paths = flax.traverse_util.flatten_dict(params, sep="/")
  check_patterns((*train, *(pattern for pattern, _ in lr_factors)), params, where=where)
  if not train:
    raise ConfigError(f"{where}: nothing is trained; give at least one regular expression, such as 'head/.*'")

  def factor(path):
    if not any(re.fullmatch(pattern, path) for pattern in train):
      return None
    return float(next((value for pattern, value in lr_factors if re.fullmatch(pattern, path)), 1.0))

  return flax.traverse_util.unflatten_dict({path: factor(path) for path in paths}, sep="/")


def check_patterns(patterns: tuple, params, *, where: str) -> None:
  """Raises a `ConfigError` for a regular expression that matches the path of no parameter."""
  paths = sorted(flax.traverse_util.flatten_dict(params, sep="/"))
  for pattern in patterns:
    if not any(re.fullmatch(pattern, path) for path in paths):
      some = paths if len(paths) <= 6 else [*paths[:3], f"... ({len(paths)} in all) ...", *paths[-3:]]
      raise ConfigError(f"{where}: {pattern!r} matches no parameter; there are {', '.join(some)}")


def split(params, factors):
  """(trained, frozen): two trees like `params` with None in each other's places."""
  trained = jax.tree.map(lambda factor, value: None if factor is None else value, factors, params, is_leaf=_is_none)
  frozen = jax.tree.map(lambda factor, value: value if factor is None else None, factors, params, is_leaf=_is_none)
  return trained, frozen


def join(trained, frozen):
  """The inverse of `split`."""
  return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=_is_none)


def _is_none(value) -> bool:
  return value is None
