"""How the logits of a run's model become probabilities: their scale, a temperature, and the prior of the classes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from ltjax.report.predictions import logit_scale
from ltjax.schedules import Clock

_LEAST = 1e-12  # a prior that is taken for 0: the correction for it would be infinite
_INVERSE = np.geomspace(0.02, 50, 400)  # of the temperatures that are tried


class Readout(NamedTuple):
  """softmax(scale z / temperature + shift) of a model's logits z, or of those that a post-hoc method makes.

  Attributes:
    scale: the factor that makes logits of a head that gives cosines.
    temperature: above 1 it lowers the confidence of every prediction; no rank changes.
    shift: log(target prior / assumed prior) of each class, [c]; None leaves the prior that the model assumes.
    method: (features [b d], logits [b c]) -> logits [b c] of a post-hoc method; None for the model's own.
  """

  scale: float
  temperature: float = 1.0
  shift: np.ndarray | None = None
  method: Callable | None = None

  def __call__(self, features, logits):
    """Probabilities, [b c]."""
    if self.method is not None:
      logits = self.method(features, logits)
    logits = logits * jnp.float32(self.scale / self.temperature)
    return jax.nn.softmax(logits if self.shift is None else logits + jnp.float32(self.shift), axis=-1)


def of_stage(stage, target: np.ndarray | None = None) -> Readout:
  """The readout of a stage's model, for images whose classes have the prior `target`, [c], of any sum."""
  return Readout(logit_scale(stage), shift=None if target is None else shift(assumed_prior(stage), target))


def shift(assumed: np.ndarray, target: np.ndarray) -> np.ndarray:
  """log(target / assumed) of two priors, [c], float32; a class whose target is 0 is never predicted.

  p'(y | x) = p(y | x) target_y / assumed_y, up to a factor that is the same for all y

  References:
    Saerens et al., `Adjusting the Outputs of a Classifier to New a Priori Probabilities`, 2002, equation 2.4.

  >>> shift(np.array([3.0, 1.0]), np.array([1.0, 1.0])).round(4).tolist()
  [-0.4055, 0.6931]
  """
  assumed, target = (np.maximum(np.asarray(prior, np.float64) / np.sum(prior), 0) for prior in (assumed, target))
  found = np.log(np.maximum(target, _LEAST)) - np.log(np.maximum(assumed, _LEAST))
  return np.float32(np.where(target > 0, found, -1e9))  # no infinity, which some runtimes turn into NaN


def assumed_prior(stage) -> np.ndarray:
  """The prior of the classes that a stage's probabilities assume, [c], of sum 1, as far as its config tells.

  assumed_c ~ s_c w_c n_c^-tau, with the sampler's probabilities s, the class weights w, the counts n, and the tau of a
  `logit_adjustment` in training, else 0. Margins change the decision and are no statement on priors: they count for
  nothing here.
  """
  counts, spec = np.asarray(stage.class_counts, np.float64), stage.spec
  last = Clock(spec.epochs - 1, 1, spec.epochs)  # schedules are at their ends
  sampler, adjust = spec.samplers[0], stage.objective.adjust
  if getattr(sampler.function, "permutes", False):
    found = counts / counts.sum()
  elif getattr(sampler.function, "cycles", False):
    found = np.ones(len(counts))
  else:
    found = np.asarray(sampler(stage.class_counts, **sampler.at(last)), np.float64)
  if spec.class_weights:
    found = found * np.asarray(spec.class_weights(stage.class_counts, **spec.class_weights.at(last)), np.float64)
  if adjust is not None and adjust.name == "logit_adjustment":
    tau = (dict(tau=1.0) | adjust.constants | adjust.at(last))["tau"]
    found = found * (counts / counts.sum()) ** -float(tau)
  return found / found.sum()


def temperature(logits: np.ndarray, labels: np.ndarray, shift: np.ndarray | None = None) -> tuple[float, float, float]:
  """(temperature, negative log-likelihood at 1, the same at this temperature) of logits [n c] and labels [n].

  argmin_T - sum_i log softmax(z_i / T + shift)_{y_i}, among 400 values from 0.02 to 50

  References:
    Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017, section 4.2.

  >>> temperature(np.array([[4.0, 0.0]] * 4), np.array([0, 0, 0, 1]))[0].__round__(1)
  3.6
  """
  logits = np.asarray(logits, np.float64)

  def loss(inverse: float) -> float:
    scaled = inverse * logits if shift is None else inverse * logits + shift
    return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]))

  losses = [loss(inverse) for inverse in _INVERSE]
  best = int(np.argmin(losses))
  return float(1 / _INVERSE[best]), loss(1.0), losses[best]
