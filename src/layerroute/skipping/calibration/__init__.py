"""Calibration: a routed model from a pretrained one with forward passes alone."""

from layerroute.skipping.calibration.arms import (
    evaluate_arms,
    install,
    install_for_budgets,
    installed,
    score_budgets,
)
from layerroute.skipping.calibration.calibrate import CONTROLS, TABLE, FittedArms, fit_arms
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.equal_cost import Matched, agrees, compare_arms, matched, serve_at
from layerroute.skipping.calibration.folders import (
    arm_folder,
    cached_calibration,
    journal_of,
    save_calibration,
    save_controls,
    save_routed,
)
from layerroute.skipping.calibration.heldout import Difference, Score, paired_bootstrap, saved_share, score
from layerroute.skipping.calibration.journal import Journal
from layerroute.skipping.calibration.result import result_sections, verdict
from layerroute.skipping.calibration.windows import Windows, draw_windows

__all__ = [
    "CONTROLS",
    "TABLE",
    "CalibrationConfig",
    "Difference",
    "FittedArms",
    "Journal",
    "Matched",
    "Score",
    "Windows",
    "agrees",
    "arm_folder",
    "cached_calibration",
    "compare_arms",
    "draw_windows",
    "evaluate_arms",
    "fit_arms",
    "install",
    "install_for_budgets",
    "installed",
    "journal_of",
    "matched",
    "paired_bootstrap",
    "result_sections",
    "save_calibration",
    "save_controls",
    "save_routed",
    "saved_share",
    "score",
    "score_budgets",
    "serve_at",
    "verdict",
]
