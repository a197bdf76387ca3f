"""Losses, logit adjustments, class weights and reductions: pure functions, arrays first, one result per example."""

from ltjax.losses.adjustment import fbl, logit_adjustment, seesaw, softmax_equalization
from ltjax.losses.angular import arcface, gcl_angular, kps_angular
from ltjax.losses.centroids import discriminative_centroids
from ltjax.losses.contrastive import hybrid_contrastive
from ltjax.losses.cross_entropy import cross_entropy, focal
from ltjax.losses.disentangling import lade, prior_lade
from ltjax.losses.margins import cosface, gcl, kps, ldam
from ltjax.losses.reduce import mean, weighted_mean
from ltjax.losses.sigmoid import class_balanced_focal, sigmoid_equalization
from ltjax.losses.smoothing import label_aware_smoothing
from ltjax.losses.weights import effective_number, inverse_frequency

__all__ = [
  "arcface",
  "class_balanced_focal",
  "cosface",
  "cross_entropy",
  "discriminative_centroids",
  "effective_number",
  "fbl",
  "focal",
  "gcl",
  "gcl_angular",
  "hybrid_contrastive",
  "inverse_frequency",
  "kps",
  "kps_angular",
  "label_aware_smoothing",
  "lade",
  "ldam",
  "logit_adjustment",
  "mean",
  "prior_lade",
  "seesaw",
  "sigmoid_equalization",
  "softmax_equalization",
  "weighted_mean",
]
