"""Runs as their records tell them, and where to find them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerroute.errors import UserError, nearest
from layerroute.integrity import inside
from layerroute.records import RECORD_NAME, Record, aside_name, is_aside, read_record

if TYPE_CHECKING:
    import pandas as pd

COMPLETED = "completed"
_NOT_SEARCHED = {"checkpoints", "best", "last", "tensorboard", "report", "search"}


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """What is known of the tokens of one sentence beside their routes.

    Attributes:
        start: place of its first token in the window that it was read in.
        losses: of each token in nats, given what comes before it; None for the first of a window.
        seen: how often the training text holds each of them; None where that was not counted.
    """

    start: int
    losses: tuple[float | None, ...]
    seen: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class TokenRoutes:
    """Decisions on a few validation sentences of one run.

    ``sentences`` holds for each sentence its tokens as text, the chosen path (tokens × sites, an index into
    ``paths``) and the probability of the expensive path (tokens × sites). ``facts`` has an entry for each sentence, or
    is empty (runs of earlier versions).
    """

    sites: tuple[str, ...]
    paths: tuple[str, ...]
    sentences: tuple[tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]], ...]
    facts: tuple[TokenFacts, ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """One run: its record, and the files beside it, read when they are asked for."""

    record: Record
    path: Path

    @property
    def arm(self) -> str:
        """The arm as the record names it."""
        return str(self.record["arm"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.record["seed"])

    @property
    def status(self) -> str:
        """``completed``, ``failed``, ``interrupted`` or ``running``."""
        return str(self.record["status"])

    @property
    def completed(self) -> bool:
        """Only completed runs enter a mean."""
        return self.status == COMPLETED

    def value(self, *keys: str) -> Any:
        """The record's value at ``keys``, or None where any of them is missing, null or not finite."""
        found: Any = self.record
        for key in keys:
            if not isinstance(found, dict):
                return None
            found = found.get(key)
        return None if isinstance(found, float) and not math.isfinite(found) else found

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The curves, one row for each split and step, in order; empty where the record names no file or it is gone.

        A resumed run may repeat steps: the later line counts. A last line cut off by a crash is left out.

        Raises:
            UserError: if another line is not a JSON object with ``step`` and ``split``.
        """
        import pandas as pd  # half of what it takes to load this module, and few who do draw curves

        file = self._beside("curves")
        if file is None:
            return pd.DataFrame(columns=["step", "split"])
        lines = file.read_text(encoding="utf-8").splitlines()
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for index, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                key = (str(row["split"]), int(row["step"]))
            except (ValueError, KeyError, TypeError):
                if index == len(lines) - 1:
                    break
                raise UserError(
                    f"{file}, line {index + 1}: not a point of a curve; each line is a JSON object with "
                    "'step' and 'split'."
                ) from None
            rows.pop(key, None)
            rows[key] = row
        frame = pd.DataFrame([{"step": None, "split": None}, *rows.values()]).iloc[1:]
        return frame.sort_values(["split", "step"], kind="stable", ignore_index=True)

    def curve(self, split: str, key: str) -> pd.Series:
        """One curve by step, without the steps that lack it; empty if there is none."""
        import pandas as pd

        frame = self.curves
        if key not in frame.columns:
            return pd.Series(dtype=float, name=key)
        part = frame[frame["split"] == split]
        values = pd.to_numeric(part[key], errors="coerce").astype(float)
        return pd.Series(values.to_numpy(), index=part["step"].astype(int), name=key).dropna()

    @cached_property
    def token_routes(self) -> TokenRoutes | None:
        """The decisions on validation sentences, or None where the run has none.

        Raises:
            UserError: if the file does not hold tokens × sites for every sentence.
        """
        file = self._beside("token_routes")
        if file is None:
            return None
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            sites, paths = tuple(map(str, found["sites"])), tuple(map(str, found["paths"]))
            sentences, facts = [], []
            for sentence in found["sentences"]:
                tokens = tuple(map(str, sentence["tokens"]))
                choice, probability = (np.array(sentence[key]) for key in ("choice", "probability"))
                if not tokens:
                    continue
                if {choice.shape, probability.shape} != {(len(tokens), len(sites))}:
                    raise ValueError("choice and probability must be tokens × sites")
                if not ((choice >= 0) & (choice < len(paths))).all():
                    raise ValueError(f"a choice is one of {len(paths)} paths")
                choices = tuple(map(tuple, choice.astype(int).tolist()))
                sentences.append((tokens, choices, tuple(map(tuple, probability.astype(float).tolist()))))
                facts.append(_facts(sentence, len(tokens)))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} does not hold token routes: {error}.") from None
        there = tuple(fact for fact in facts if fact is not None)
        return TokenRoutes(
            sites=sites,
            paths=paths,
            sentences=tuple(sentences),
            facts=there if len(there) == len(sentences) else (),
        )

    def _beside(self, key: str) -> Path | None:
        name = self.record.get(key)
        if not name:
            return None
        file = inside(self.path.parent, name)
        return file if file.is_file() else None


def _facts(sentence: dict[str, Any], tokens: int) -> TokenFacts | None:
    if "loss" not in sentence:
        return None
    losses = tuple(None if value is None else float(value) for value in sentence["loss"])
    seen = tuple(map(int, sentence["seen"])) if sentence.get("seen") is not None else None
    if len(losses) != tokens or (seen is not None and len(seen) != tokens):
        raise ValueError("loss and seen must have an entry for each token")
    return TokenFacts(start=int(sentence["start"]), losses=losses, seen=seen)


def load_runs(paths: Sequence[str | os.PathLike[str]]) -> tuple[Run, ...]:
    """Read the runs at ``paths``: record files, run directories, or directories that hold runs at any depth.

    Where a directory holds no ``record.json`` at any depth, the ``.json`` files in it that are records count
    (committed results: one JSON a run). A run that is reached twice counts once; the order is that of ``paths``,
    by name within a directory. Runs that `train --fresh` set aside (``NAME.earlier-1``) count only where they are named
    and the run in their place is not: neither a directory above them nor ``runs/*`` makes them an arm.

    Raises:
        UserError: nothing is at a path, it holds no record, or a record is not valid.
    """
    files: dict[Path, Path] = {}
    for given in map(Path, paths):
        for file in _record_files(given):
            files.setdefault(file.resolve(), file)
    newer = {(folder.parent, folder.name) for folder in (file.parent for file in files)}
    return tuple(
        Run(read_record(file), file)
        for resolved, file in files.items()
        if not _replaced(resolved.parent, newer)
    )


def _replaced(folder: Path, there: Collection[tuple[Path, str]]) -> bool:
    """Whether the run of ``folder`` was set aside for one that is among the runs, too."""
    name, aside, _ = folder.name.rpartition(aside_name("", 0)[:-1])
    return bool(aside) and (folder.parent, name) in there


def _record_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no run at {path}.{nearest(path.name, siblings) if siblings else ''}")
    if (path / RECORD_NAME).is_file():
        return [path / RECORD_NAME]
    found = []
    for folder, below, files in os.walk(path):
        below[:] = sorted(
            name
            for name in below
            if name not in _NOT_SEARCHED and not name.startswith(".") and not is_aside(Path(name))
        )
        if RECORD_NAME in files:
            found.append(Path(folder) / RECORD_NAME)
            below[:] = []
    if not found:
        loose = (file for file in sorted(path.rglob("*.json")) if not is_aside(file.relative_to(path)))
        found = [file for file in loose if _looks_like_a_record(file)]
    if not found:
        raise UserError(
            f"{path} holds no run: no {RECORD_NAME} at any depth. Give a run's directory as `layerroute "
            "train` wrote it, or a directory of such."
        )
    return sorted(found)


def _looks_like_a_record(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"schema", "arm", "seed", "status"} <= content.keys()
