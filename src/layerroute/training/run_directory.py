"""The folder of one run: what may be written where, and where a run goes on. No torch here."""

import errno
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layerroute.errors import UserError
from layerroute.integrity import DamagedError
from layerroute.liveness import LOCK, hold, is_alive
from layerroute.records import RECORD_NAME, aside_name, read_record
from layerroute.training.checkpoint import check_resumable, checkpoints, verify_checkpoint

_OF_THE_MACHINE = (("data", "cache_dir"),)


def recipe_fingerprint(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved recipe, without what only says where things lie on this machine."""
    plain = json.loads(json.dumps(recipe, sort_keys=True))
    for section, key in _OF_THE_MACHINE:
        plain.get(section, {}).pop(key, None)
    # A key that came to be after a run was recorded, and says nothing, must not make it another run.
    plain["data"] = {key: value for key, value in (plain.get("data") or {}).items() if value is not None}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class RunDirectory:
    """The files of a run in the folder ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe, self.record = path / "recipe.yaml", path / RECORD_NAME
        self.curves, self.token_routes = path / "curves.jsonl", path / "token_routes.json"
        self.checkpoints, self.tensorboard = path / "checkpoints", path / "tensorboard"
        self.best, self.last = path / "best", path / "last"

    def check_folder(self) -> None:
        """Refuse a file in the place of the folder."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out: {self.path} is a file; give a folder")

    def check_there(self) -> None:
        """Raise OSError if the folder is not the one whose lock this process holds: it was removed or unmounted.

        What writes would make it anew, and go on in a place where nobody looks for it.
        """
        if not (self.path / LOCK).is_file():
            raise FileNotFoundError(errno.ENOENT, "the folder of the run is gone", str(self.path))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            UserError: if another process trains in it.
        """
        self.check_folder()
        self.path.mkdir(parents=True, exist_ok=True)
        with hold(self.path) as free:
            if not free:
                raise UserError(f"--out: another process is training in {self.path}; give another folder")
            yield


def _content(path: Path) -> list[str]:
    """Names in a folder. A lock, or a record that a killed process did not finish writing, is no content."""
    names = (entry.name for entry in path.iterdir())
    return sorted(name for name in names if name != LOCK and not name.startswith(f".{RECORD_NAME}"))


def set_run_aside(path: Path) -> Path | None:
    """Rename the folder of an earlier run, so that a new one can start there; nothing is deleted.

    Returns:
        Its new name (``NAME.earlier-N`` beside it), or None where there is no earlier run.

    Raises:
        UserError: the folder holds something else, or another process trains in it.
    """
    if not path.exists() or (path.is_dir() and not _content(path)):
        return None
    if not (path / RECORD_NAME).is_file():
        raise UserError(f"--fresh: {path} holds no run, and nothing else is moved away; give another --out")
    if is_alive(path):
        raise UserError(f"--fresh: another process is training in {path}; give another --out")
    own = path.resolve()
    names = (own.with_name(aside_name(own.name, number)) for number in itertools.count(1))
    aside = next(path for path in names if not path.exists())
    own.rename(aside)
    if path.is_symlink():  # it leads to where the run was, and the new one is to be there, too
        own.mkdir()
    return aside


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        kind: ``new``, ``resume`` (from ``checkpoint``) or ``completed`` (there is nothing to do).
        record: of the earlier part of the run, None for a new one.
        damaged: newer checkpoints that are not what was written, and what is wrong with each. They are not used.
        step: of ``checkpoint``, whatever its folder is called; None without one.
    """

    kind: Literal["new", "resume", "completed"]
    checkpoint: Path | None = None
    record: dict[str, Any] | None = None
    damaged: tuple[tuple[Path, str], ...] = ()
    step: int | None = None

    @property
    def note(self) -> str:
        """One line about checkpoints that had to be passed over, or nothing."""
        if not self.damaged:
            return ""
        told = "; ".join(f"{path.name} is damaged ({reason})" for path, reason in self.damaged)
        rest = (
            f"going on from {self.checkpoint.name}"
            if self.checkpoint
            else "starting from the beginning, because there is no other"
        )
        return f"{told}; {rest}"


def find_start(directory: RunDirectory, recipe: Mapping[str, Any], resume: str) -> Start:
    """Decide what to do in ``directory``, writing nothing.

    Args:
        resume: ``auto`` (go on from the newest intact checkpoint if there is one), ``never`` (the folder must be
            empty), or the path of a checkpoint.

    Raises:
        UserError: if the folder holds another run or other files, or the checkpoint does not fit.
    """
    path, fingerprint = directory.path, recipe_fingerprint(recipe)
    directory.check_folder()
    entries = _content(path) if path.exists() else []
    record = None
    if entries:
        if resume == "never":
            raise UserError(
                f"--resume never: {path} is not empty; give another --out, or --resume auto to go on there"
            )
        if RECORD_NAME not in entries:
            raise UserError(
                f"--out: {path} holds no run but other files ({', '.join(entries[:3])}); give an empty or new folder"
            )
        record = read_record(directory.record)
        if recipe_fingerprint(record["recipe"]) != fingerprint:
            raise UserError(
                f"--out: {path} holds another run ({record['run']}): {first_difference(record['recipe'], recipe)}; "
                "give another --out"
            )
    if resume not in ("auto", "never"):
        checkpoint = Path(resume)
        state = check_resumable(checkpoint, fingerprint)
        return Start("resume", checkpoint, record, step=state["step"])
    if record is not None and record["status"] == "completed":
        return Start("completed", None, record)
    damaged = []
    for checkpoint in reversed(checkpoints(directory.checkpoints)):
        try:
            verify_checkpoint(checkpoint)
        except DamagedError as damage:
            damaged.append((checkpoint, str(damage)))
            continue
        state = check_resumable(checkpoint, fingerprint)
        return Start("resume", checkpoint, record, tuple(damaged), step=state["step"])
    return Start("new", None, record, tuple(damaged))


def seen_start(directory: RunDirectory, recipe: Mapping[str, Any]) -> Start:
    """What another process than the first of a distributed run can say: whether there is nothing left to do.

    The first one may be writing at this moment; all else is its word.
    """
    try:
        record = read_record(directory.record)
    except UserError:
        return Start("new")
    same = recipe_fingerprint(record["recipe"]) == recipe_fingerprint(recipe)
    return Start("completed" if same and record["status"] == "completed" else "new", None, record)


def first_difference(there: Any, here: Any, key: str = "") -> str:
    """The first key, in alphabetical order, whose value differs: ``"train.max_steps is 200 there and 29 here"``."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in sorted({*there, *here}):
            inner = f"{key}.{name}" if key else str(name)
            found = first_difference(there.get(name), here.get(name), inner)
            if found:
                return found
        return ""
    plain = [json.loads(json.dumps(value)) for value in (there, here)]
    return "" if plain[0] == plain[1] else f"{key} is {plain[0]!r} there and {plain[1]!r} here"
