"""Evaluators: scores of frozen features, blind to what trained them."""

from selfsame.evals.health import (
    align,
    alpha_req,
    feature_std,
    lidar,
    lidar_eigenvalues,
    match,
    neighbor_distance,
    rankme,
    uniform,
)
from selfsame.evals.interval import bootstrap_interval
from selfsame.evals.knn import knn, knn_scores
from selfsame.evals.linear import LinearProbe, fit_logistic, fit_probe, linear

__all__ = [
    "LinearProbe",
    "align",
    "alpha_req",
    "bootstrap_interval",
    "feature_std",
    "fit_logistic",
    "fit_probe",
    "knn",
    "knn_scores",
    "lidar",
    "lidar_eigenvalues",
    "linear",
    "match",
    "neighbor_distance",
    "rankme",
    "uniform",
]
