"""Losses, logit adjustments, class weights and reductions: pure functions, arrays first, one result per example."""

from ltjax.losses.cross_entropy import cross_entropy, focal
from ltjax.losses.margins import gcl
from ltjax.losses.reduce import mean, weighted_mean
from ltjax.losses.weights import effective_number, inverse_frequency

__all__ = [
  "cross_entropy",
  "effective_number",
  "focal",
  "gcl",
  "inverse_frequency",
  "mean",
  "weighted_mean",
]
