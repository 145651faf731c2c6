"""What all dispatches of operators do: say once which backend runs and why, and tell which ones can."""

import logging
from collections.abc import Iterable
from functools import cache

import torch

from layerroute.errors import UserError, nearest

_logger = logging.getLogger(__name__)


def check_backend(operator: str, backend: str, known: Iterable[str]) -> None:
    """Refuse a name that is no backend.

    Raises:
        UserError: with the nearest that is.
    """
    if backend not in known:
        raise UserError(f"unknown {operator} backend {backend!r}.{nearest(backend, ['auto', *known])}")


@cache  # once per process for each choice: a silent slow fallback would be a bug, a line per call a nuisance
def announce(operator: str, backend: str, reason: str) -> None:
    """Log which backend runs."""
    _logger.info("%s runs on backend %r (%s)", operator, backend, reason)


def report(known: Iterable[str], *, plain: str, fast: str, obstacle: str | None) -> dict[str, object]:
    """Tell, for ``layerroute doctor``, which backends can run here and what ``auto`` takes on each device.

    Args:
        plain: what ``auto`` takes on a CPU, and where ``fast`` cannot run.
        obstacle: why ``fast`` cannot run here, or None.

    Returns:
        ``{"auto": {"cpu": name, "cuda": name | None}, "backends": {name: {"available": bool, "reason": str}}}``;
        ``cuda`` is None on a machine without a CUDA device, and ``reason`` is empty for an available backend.
    """
    cuda = None if not torch.cuda.is_available() else plain if obstacle else fast
    backends = {name: {"available": True, "reason": ""} for name in known}
    backends[fast] = {"available": not obstacle, "reason": obstacle or ""}
    return {"auto": {"cpu": plain, "cuda": cuda}, "backends": backends}
