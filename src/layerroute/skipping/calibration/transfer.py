"""Does a router hold away from home? One kind of text is left out, and each text is judged at equal executed FLOPs."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

import layerroute
from layerroute.precision import choose_precision
from layerroute.skipping.calibration.arms import install_for_budgets
from layerroute.skipping.calibration.calibrate import FittedArms, Stage, fit_arms, silent
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.controls import Ranking
from layerroute.skipping.calibration.equal_cost import Matched, compare_arms
from layerroute.skipping.calibration.folders import journal_of
from layerroute.skipping.calibration.heldout import Score, score
from layerroute.skipping.calibration.result import arm_section
from layerroute.skipping.calibration.windows import Windows, mix, needed
from layerroute.skipping.model import get_router, remove_router

STATIC = ("static_influence", "static_greedy", "static_block_influence", "static_block_greedy")
"""The controls that every text is judged against."""

_PARTS = ("skipping", "routing", "ops")


def pools_needed(config: CalibrationConfig, shares: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    """Windows of each kind for selection and statistics, so that any one kind can be left out."""
    most = dict.fromkeys(shares, (0, 0))
    for left_out in shares:
        rest = [kind for kind in shares if kind != left_out]
        counts = [
            needed(rest, tokens=tokens, length=config.length, shares=shares)
            for tokens in (config.tokens_selection, config.tokens_statistics)
        ]
        for kind in rest:
            most[kind] = max(most[kind][0], counts[0][kind]), max(most[kind][1], counts[1][kind])
    return most


def mixed_without(
    left_out: str, pools: Mapping[str, Windows], tokens: int, length: int, shares: Mapping[str, float]
) -> Windows:
    """Windows of all kinds but one, in their shares."""
    rest = {kind: pool for kind, pool in pools.items() if kind != left_out}
    return mix(rest, tokens=tokens, length=length, shares=shares)


def transfer_cell(
    model: Any,
    config: CalibrationConfig,
    *,
    statistics: Windows,
    selection: Windows,
    texts: Mapping[str, tuple[Windows, bool]],
    rankings: dict[str, Ranking] | None = None,
    own_text: Callable[[], Tensor] | None = None,
    stage: Stage = silent,
) -> tuple[list[dict[str, Any]], FittedArms]:
    """Calibrate on some kinds, and judge every text at equal executed FLOPs; goes on where the same call was cut off.

    Args:
        model: a transformers causal LM without a router; it is left as it is.
        config: what to make.
        statistics, selection: windows of the kinds that are calibrated on.
        texts: by kind, held-out windows, and whether the kind is home.
        rankings: see `fit_arms`.
        own_text: gives the model's own text, for calibrations that share it.
        stage: for progress.

    Returns:
        A row a text (see `row_of`), and the calibration.
    """
    device = model.device
    judged = [windows.ids for windows, _ in texts.values()]
    # What is known is no step of the journal: by it the numbers of the steps differ.
    known = [(unit, sorted(ranking.taken)) for unit, ranking in sorted((rankings or {}).items())]
    journal = journal_of(model, config, statistics.ids, selection.ids, *judged, also=["transfer", known])
    calibration = fit_arms(
        model,
        config,
        statistics=statistics.ids.to(device),
        selection=selection.ids.to(device),
        controls=STATIC,
        rankings=rankings,
        own=None if own_text is None else own_text(),
        journal=journal,
        stage=stage,
    )
    found = {
        kind: compare_arms(model, calibration, windows.ids.to(device), journal=journal, stage=stage)
        for kind, (windows, _) in texts.items()
    }
    precision = choose_precision(config.precision, device).name
    advance = stage("the rate held")
    install_for_budgets(model, calibration, statistics.ids.to(device))
    try:
        held = {
            kind: score_held(model, windows.ids.to(device), precision) for kind, (windows, _) in texts.items()
        }
    finally:
        remove_router(model)
    advance(1.0)
    journal.discard()
    rows = [
        row_of(kind, home, config.budget, *found[kind], held=held[kind]) for kind, (_, home) in texts.items()
    ]
    return rows, calibration


def score_held(model: Any, ids: Int[Tensor, "N T"], precision: str) -> Score | None:
    """Windows under a router that holds its rate (``serve: rate``); None where it cannot. It is then put back."""
    router = get_router(model)
    if router.config.serve_obstacle is not None:
        return None
    serve = router.config.serve
    router.set_serve("rate")
    try:
        return score(model, ids, precision=precision)
    finally:
        router.set_serve(serve)


def row_of(
    kind: str,
    home: bool,
    budget: float,
    scores: Mapping[str, Score],
    against: Mapping[str, Matched | None],
    *,
    held: Score | None,
) -> dict[str, Any]:
    """One text as plain data: what was asked and served, and every static arm with routing moved to its share.

    ``held`` is the router under ``serve: rate``, where it can hold one.
    """
    routed = scores["routed"]
    arms = {
        name: arm_section(name, score, routed, against.get(name))
        for name, score in scores.items()
        if name not in ("dense", "routed")
    }
    return {
        "kind": kind,
        "home": home,
        "budget": budget,
        "served": routed.skipped,
        "saved": routed.saved,
        "loss": routed.loss,
        "held": held and {"served": held.skipped, "saved": held.saved, "loss": held.loss},
        "dense": scores["dense"].loss if "dense" in scores else None,
        "windows": len(routed.losses),
        "arms": arms,
    }


@cache
def code_version() -> str:
    """Of the version of this package and the text of its routing and skipping modules: what results depend on."""
    digest = hashlib.sha256(layerroute.__version__.encode())
    root = Path(layerroute.__file__).parent
    for part in _PARTS:
        for path in sorted((root / part).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def fingerprint_of(*parts: Any) -> str:
    """SHA-256 of plain data, for telling whether a cell is done."""
    return hashlib.sha256(repr([code_version(), *parts]).encode()).hexdigest()
