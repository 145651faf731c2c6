"""The cells of `layerroute transfer`: one kind of text and one budget each, written as they come, and found again."""

import argparse
import gc
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from layerroute.benchmark.output import save
from layerroute.cli.arguments import use_threads
from layerroute.cli.calibration_inputs import open_base, router_settings_of, settings_of
from layerroute.data.configuration import DataConfig
from layerroute.data.kinds import UNNAMED
from layerroute.data.progress import Stage, stages
from layerroute.data.sources import make_source
from layerroute.data.texts import Texts, marks_of
from layerroute.errors import UserError
from layerroute.evaluation.loading import LoadedModel, load_model, model_folder, precision_of
from layerroute.integrity import content_sha256
from layerroute.records import SCHEMA_VERSION
from layerroute.skipping.calibration import Windows, arm_folder, draw_windows, journal_of, score
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.configure import config_for
from layerroute.skipping.calibration.controls import Ranking
from layerroute.skipping.calibration.equal_cost import match_all
from layerroute.skipping.calibration.own_text import sample_own_text
from layerroute.skipping.calibration.transfer import (
    STATIC,
    fingerprint_of,
    mixed_without,
    pools_needed,
    row_of,
    score_held,
    transfer_cell,
)
from layerroute.skipping.fingerprint import fingerprint
from layerroute.skipping.model import get_router
from layerroute.skipping.storage import DESCRIPTION, read_router

DEFAULT_BUDGETS = (0.25,)
Cell = dict[str, Any]


def leave_one_out(arguments: argparse.Namespace, texts: Texts) -> tuple[dict[str, Any], list[Cell]]:
    """One calibration for each budget and each kind left out.

    Returns:
        The recipe, and the cells.
    """
    budgets = list(arguments.budget or DEFAULT_BUDGETS)
    model, tokenizer = open_base(arguments)
    config = config_for(
        model,
        tokenizer,
        budget=budgets[0],
        checked=budgets,
        tokens_statistics=arguments.tokens_statistics or 18432,
        **settings_of(arguments),
        **router_settings_of(arguments),
    )
    held_out, selection, statistics = _pools(config, texts, tokenizer)
    cells: list[Cell] = []
    base, total = fingerprint(model), len(budgets) * len(texts.shares)
    with stages(True) as stage:
        journal = journal_of(model, config, also="own text")

        @cache
        def own_text() -> Tensor:  # once, and only if there is a cell to be made
            advance = stage("the model's own text")
            windows = config.tokens_statistics // config.length
            return journal.once(lambda: sample_own_text(model, config, windows, advance=advance))

        for left_out in texts.shares:
            home, seen, chosen = (
                mixed_without(left_out, pools, tokens, config.length, texts.shares)
                for pools, tokens in (
                    (held_out, config.tokens_heldout),
                    (statistics, config.tokens_statistics),
                    (selection, config.tokens_selection),
                )
            )
            away = held_out[left_out]
            prints = [windows.fingerprint for windows in (seen, chosen, home, away)]
            rankings: dict[str, Ranking] = {}
            for budget in budgets:
                own = replace(config, budget=budget)
                here = f"{len(cells) + 1} of {total}: {budget:.0%} without {left_out}"
                work = partial(
                    transfer_cell,
                    model,
                    own,
                    statistics=seen,
                    selection=chosen,
                    texts={left_out: (away, False), f"home without {left_out}": (home, True)},
                    rankings=rankings,
                    own_text=own_text,
                    stage=partial(_within, stage, here),
                )
                key = fingerprint_of(own.to_dict(), base, prints)
                cells.append(_cell(arguments.out, left_out, budget, key, work, left_out=left_out))
        journal.discard()
    return config.to_dict() | {"budgets": budgets}, cells


def _within(stage: Stage, here: str, name: str) -> Any:
    return stage(f"{here}, {name}")


def judge_router(arguments: argparse.Namespace, texts: Texts) -> tuple[dict[str, Any], list[Cell]]:
    """Every kind under a router as it stands, against static arms from folders.

    Returns:
        The router's configuration, and the cells.

    Raises:
        UserError: there is no static arm to compare with, or a budget that the router does not serve.
    """
    use_threads(arguments)
    folder = Path(arguments.model)
    against = _static_folders(folder, arguments.against)
    if arguments.budget and len(arguments.budget) > 1:
        raise UserError("--budget: static arms of a ROUTER have one budget; give one at a time")
    loaded = load_model(
        folder, device=arguments.device, budget=(arguments.budget or [None])[0], serve=arguments.serve
    )
    _check_unseen(loaded, texts)
    for path in against.values():
        _check_alike(loaded, path)
    for path in (loaded.path, *against.values()):
        texts.seen |= _calibrated_on(model_folder(path))
    skip = get_router(loaded.model).config
    budget = (arguments.budget or [skip.budget])[0]
    length, tokens = arguments.length, arguments.tokens_heldout
    held_out = {
        kind: draw_windows(
            {kind: documents}, loaded.tokenizer, tokens=tokens, length=length, seed=arguments.seed + 2
        )
        for kind, documents in texts.distinct.items()
    }
    home = _home_kinds(loaded)
    digests = {
        name: content_sha256(model_folder(path), without="controls")
        for name, path in {"routed": loaded.path, **against}.items()
    }
    settings = [budget, skip.serve, digests, loaded.precision]
    keys = {kind: fingerprint_of(*settings, own.fingerprint) for kind, own in held_out.items()}
    cells = {kind: _done(arguments.out, kind, budget, keys[kind]) for kind in held_out}
    open_ = {kind: own for kind, own in held_out.items() if cells[kind] is None}
    with stages(True) as stage:
        scores: dict[str, dict[str, Any]] = {kind: {} for kind in open_}
        for name, path in against.items() if open_ else ():
            other = load_model(path, device=arguments.device, precision=precision_of(loaded.precision))
            advance = stage(f"scoring {name}")
            for index, (kind, own) in enumerate(open_.items()):
                scores[kind][name] = score(other.model, own.ids.to(other.device), precision=other.precision)
                advance((index + 1) / len(open_))
            del other
            gc.collect()
        for kind, own in open_.items():
            advance = stage(f"serving {kind} at equal cost")
            work = partial(_judged, loaded, own, scores[kind], kind, kind in home, budget, advance)
            cells[kind] = _cell(arguments.out, kind, budget, keys[kind], work)
    return skip.to_dict(), [cell for cell in cells.values() if cell is not None]


def _judged(
    loaded: LoadedModel,
    windows: Windows,
    others: dict[str, Any],
    kind: str,
    home: bool,
    budget: float,
    advance: Any,
) -> tuple[list[dict[str, Any]], None]:
    """The row of one kind: the router as served, and at the cost of each static arm."""
    ids = windows.ids.to(loaded.device)
    served = score(loaded.model, ids, precision=loaded.precision)
    found = match_all(loaded.model, ids, others, precision=loaded.precision, advance=advance)
    held = score_held(loaded.model, ids, loaded.precision)
    return [row_of(kind, home, budget, {"routed": served, **others}, found, held=held)], None


def _pools(
    config: CalibrationConfig, texts: Texts, tokenizer: Any
) -> tuple[dict[str, Windows], dict[str, Windows], dict[str, Windows]]:
    """Windows of each kind to judge on, to select on and to fit on; all texts are read before any work."""
    wanted = pools_needed(config, texts.shares)

    def draw(kind: str, windows: int, seed: int) -> Windows:
        return draw_windows(
            {kind: texts.distinct[kind]},
            tokenizer,
            tokens=windows * config.length,
            length=config.length,
            seed=config.seed + seed,
        )

    held_out = {kind: draw(kind, -(-config.tokens_heldout // config.length), 2) for kind in texts.documents}
    selection = {kind: draw(kind, max(1, count), 0) for kind, (count, _) in wanted.items()}
    statistics = {kind: draw(kind, max(1, count), 1) for kind, (_, count) in wanted.items()}
    return held_out, selection, statistics


def _cell(
    out: Path | None,
    kind: str,
    budget: float,
    key: str,
    work: Callable[[], tuple[list[dict[str, Any]], Any]],
    *,
    left_out: str | None = None,
) -> Cell:
    """The finished cell of this fingerprint, or a new one, written at once."""
    found = _done(out, kind, budget, key)
    if found is not None:
        return found
    begun = time.perf_counter()
    rows = [{**row, "left_out": left_out} for row in work()[0]]
    cell = {"schema": SCHEMA_VERSION, "kind": "transfer-cell", "fingerprint": key, "rows": rows}
    cell["seconds"] = time.perf_counter() - begun
    if out is not None:
        save(_path(out, kind, budget), cell)
    return cell


def _done(out: Path | None, kind: str, budget: float, key: str) -> Cell | None:
    if out is None:
        return None
    try:
        cell = json.loads(_path(out, kind, budget).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not there, or cut short: it is done anew
    return cell if isinstance(cell, dict) and cell.get("fingerprint") == key else None


def _path(out: Path, kind: str, budget: float) -> Path:
    return out / "cells" / f"{kind}-{100 * budget:g}.json"


def _static_folders(folder: Path, given: list[Path] | None) -> dict[str, Path]:
    if given:
        names = [path.resolve().name for path in given]
        if len(set(names)) < len(names):
            raise UserError("--against names two folders of one name")
        return dict(zip(names, given, strict=True))
    found = {name: arm_folder(folder, name) for name in STATIC}
    found = {name: path for name, path in found.items() if (path / DESCRIPTION).is_file()}
    if not found:
        raise UserError(
            f"{folder} has no static arms to compare with; calibrate it with --controls, or name them with --against"
        )
    return found


def _home_kinds(loaded: LoadedModel) -> set[str]:
    """The kinds that a router was calibrated or trained on, as its folder or its run says."""
    recipe = (loaded.record or {}).get("recipe") or {}
    trained = (recipe.get("data") or {}).get("kinds") or {}
    noted = read_router(loaded.path).notes.get("kinds") or {}
    return {*trained, *noted} - {UNNAMED}  # any file without a name is called so


def _check_unseen(loaded: LoadedModel, texts: Texts) -> None:
    """Nothing is judged on what a router was calibrated or trained on: the fits and the static choice have seen it."""
    noted = read_router(loaded.path).notes.get("kinds") or {}
    seen = {kind.get("fingerprint") for kind in noted.values()}
    trained = ((loaded.record or {}).get("recipe") or {}).get("data")
    with suppress(UserError):  # what is no longer there is not judged on either
        seen |= marks_of(make_source(DataConfig(**trained))) if trained else set()
    if (known := texts.known_as(seen)) is not None:
        raise UserError(f"{loaded.path} has seen this text ({known}); give --data that it has not seen")


def _calibrated_on(folder: Path) -> set[bytes]:
    """Digests of the documents that a router folder notes; whatever file they come in, they are not judged on."""
    noted = read_router(folder).notes.get("documents", [])
    try:
        return {bytes.fromhex(digest) for digest in noted}
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / DESCRIPTION}: notes.documents must be digests in hexadecimal") from error


def _check_alike(loaded: LoadedModel, path: Path) -> None:
    """Static arms are of the same base: what is told apart is where compute is left out."""
    own, other = (read_router(folder).fingerprint for folder in (loaded.path, model_folder(path)))
    for part, found in own.items():
        if None not in (found, other.get(part)) and found != other[part]:
            raise UserError(f"{path} is of another base model than {loaded.path}: they cannot be compared")
