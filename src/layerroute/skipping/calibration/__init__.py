"""Calibration: a routed model from a pretrained one with forward passes alone."""

from layerroute.skipping.calibration.arms import install, installed
from layerroute.skipping.calibration.calibrate import Calibration, calibrate, evaluate_arms
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.heldout import Difference, Score, paired_bootstrap, score
from layerroute.skipping.calibration.result import result_sections, verdict
from layerroute.skipping.calibration.windows import Windows, draw_windows

__all__ = [
    "Calibration",
    "CalibrationConfig",
    "Difference",
    "Score",
    "Windows",
    "calibrate",
    "draw_windows",
    "evaluate_arms",
    "install",
    "installed",
    "paired_bootstrap",
    "result_sections",
    "score",
    "verdict",
]
