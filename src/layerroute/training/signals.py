"""Ctrl-C and SIGTERM: leave a state from which the run can go on, and say so with the exit code."""

import signal
from types import FrameType, TracebackType
from typing import Self


class Interrupted(KeyboardInterrupt):
    """The run was interrupted by ``signal_number``; ``exit_code`` is 130 for SIGINT and 143 for SIGTERM."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number


class Interruption:
    """Context manager that catches SIGINT and SIGTERM.

    While ``deferred`` is set (``RunCallback`` sets it), the first signal is only noted in ``signal_number``, so that
    the step can be finished and a checkpoint written; a second SIGINT raises :class:`Interrupted` at once (a second
    SIGTERM does not: schedulers send several). Otherwise the first one raises.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.deferred = False
        self._previous: dict[int, signal.Handlers | object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        impatient = self.signal_number is not None and number == signal.SIGINT
        self.signal_number = number
        if impatient or not self.deferred:
            raise Interrupted(number)
