"""Progress of a build on the terminal: one bar a stage, with an ETA; nothing where no one is watching."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[[float | None], None]
"""Called with the share done, in [0, 1], or None where it is not known."""

Stage = Callable[[str], Advance]
"""Called with the title of a stage that begins; ends the stage before."""


@contextlib.contextmanager
def stages(enabled: bool) -> Iterator[Stage]:
    """Yield a :data:`Stage` that draws on stderr, or does nothing if not ``enabled`` or if stderr is no terminal."""
    if not enabled:
        yield lambda title: lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda title: lambda share: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        running: list[tuple[str, int]] = []

        def stage(title: str) -> Advance:
            if running:
                progress.update(running[-1][1], total=1.0, completed=1.0)  # type: ignore[arg-type]
            task = progress.add_task(title, total=None)
            running.append((title, task))

            def advance(share: float | None) -> None:
                if share is not None:
                    progress.update(task, total=1.0, completed=min(1.0, share))

            return advance

        yield stage
        if running:
            progress.update(running[-1][1], total=1.0, completed=1.0)  # type: ignore[arg-type]
