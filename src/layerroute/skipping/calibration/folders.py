"""Calibrations on disk: a router folder for the routed arm, one for each control, and a cache of them."""

import hashlib
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

import layerroute
from layerroute.folders import cache_folder, open_or_build
from layerroute.integrity import Manifest
from layerroute.precision import choose_precision
from layerroute.skipping.calibration.arms import install_for_budgets, installed
from layerroute.skipping.calibration.calibrate import (
    CONTROLS,
    FittedArms,
    Stage,
    applicable,
    fit_arms,
    silent,
)
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.journal import Journal
from layerroute.skipping.devices import is_offloaded
from layerroute.skipping.fingerprint import fingerprint
from layerroute.skipping.model import remove_router
from layerroute.skipping.storage import DESCRIPTION, save_router

CONTROLS_FOLDER = "controls"
METHOD = 6
"""Counts changes of what calibration does with the same settings: older calibrations in the cache are not used."""


def arm_folder(folder: Path, arm: str) -> Path:
    """Where an arm of a saved calibration is: the folder itself for ``routed``."""
    return folder if arm == "routed" else folder / CONTROLS_FOLDER / arm


def save_calibration(
    model: Any,
    calibration: FittedArms,
    statistics: Int[Tensor, "N T"],
    folder: Path,
    *,
    controls: bool = True,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write the routed arm as a router folder, and with ``controls`` each control as one in ``controls/``.

    Args:
        model: the plain base; it is left as it is.
        statistics: the windows that the calibration saw (thresholds of further budgets are set on them).
        notes: kept in the folders.
    """
    notes = {"calibration": calibration.config.to_dict(), **(notes or {})}
    install_for_budgets(model, calibration, statistics)
    try:
        save_routed(model, folder, notes=notes)
    finally:
        remove_router(model)
    if controls:
        save_controls(model, calibration, folder, notes=notes)


def save_routed(model: Any, folder: Path, *, notes: dict[str, Any]) -> None:
    """Write the router that is on the model; the controls of one that it replaces do not stay beside it."""
    if (folder / DESCRIPTION).is_file():
        shutil.rmtree(folder / CONTROLS_FOLDER, ignore_errors=True)
    save_router(model, folder, notes={**notes, "arm": "routed"})


def save_controls(model: Any, calibration: FittedArms, folder: Path, *, notes: dict[str, Any]) -> None:
    """Write each control as a router folder in ``controls/``; the plain base is left as it is."""
    for name, policy in calibration.arms.items():
        if name != "routed":
            with installed(model, policy, calibration.skip):
                save_router(model, arm_folder(folder, name), notes={**notes, "arm": name})


def cached_calibration(
    model: Any,
    config: CalibrationConfig,
    *,
    statistics: Int[Tensor, "N T"],
    selection: Int[Tensor, "M T"],
    stage: Stage = silent,
) -> Path:
    """The folder of a calibration with all its controls, made now if it is not in the cache.

    It is in the cache if the same version of this package calibrated the same weights, on the same tokens, with the
    same settings. One that is damaged is made anew; of several processes that need the same one, one makes it.

    Raises:
        UserError: the cache cannot be written, or what ``fit_arms`` raises.
    """
    name = _name_of(model, config, statistics, selection)

    def build(folder: Path) -> Manifest:
        journal = journal_of(model, config, statistics, selection)
        found = fit_arms(
            model,
            config,
            statistics=statistics,
            selection=selection,
            controls=CONTROLS,
            journal=journal,
            stage=stage,
        )
        save_calibration(model, found, statistics, folder)
        journal.discard()
        return {"calibration": config.to_dict()}

    folder = cache_folder() / "calibrations" / name
    needed = [
        (arm_folder(folder, arm) / DESCRIPTION).relative_to(folder).as_posix()
        for arm in ("routed", *applicable(CONTROLS, config.unit))
    ]
    open_or_build(folder, tuple(needed), build, what="calibration")
    return folder


def journal_of(
    model: Any, config: CalibrationConfig, *tokens: Int[Tensor, "_ T"], also: Any = None
) -> Journal:
    """The journal, in the cache folder, of a calibration with these weights, settings, tokens and ``also``.

    It keeps the states of unfinished steps where layers are read from disk: there a step takes long. Journals that
    nothing was written to for a month are removed.
    """
    unfinished = cache_folder() / "unfinished"
    oldest = time.time() - 30 * 86400
    for journal in unfinished.glob("*"):
        with suppress(OSError):  # another process may have removed it
            if journal.stat().st_mtime < oldest:
                shutil.rmtree(journal)
    # One base's fingerprint is the same in all dtypes.
    computed = [str(model.dtype), model.device.type, choose_precision(config.precision, model.device).name]
    name = _name_of(model, config, *tokens, also=[computed, also])
    return Journal(unfinished / name, states=is_offloaded(model))


def _name_of(model: Any, config: CalibrationConfig, *tokens: Tensor, also: Any = None) -> str:
    key = {
        "layerroute": layerroute.__version__,
        "method": METHOD,
        "config": config.to_dict(),
        "base": fingerprint(model),
        "tokens": [_digest(ids) for ids in tokens],
        **({} if also is None else {"also": also}),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def _digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.cpu().contiguous().numpy().tobytes()).hexdigest()
