"""The benchmark cases by name. A case's module is imported when it is asked for, not before."""

import importlib
from typing import TYPE_CHECKING, cast

from layerroute.errors import UserError, nearest

if TYPE_CHECKING:
    from layerroute.benchmark.case import Case

CASES: dict[str, tuple[str, str]] = {
    "gated-delta": (
        "layerroute.benchmark.gated_delta",
        "the gated delta rule against transformers' chunked one and the plain recurrence",
    ),
    "prefill": (
        "layerroute.benchmark.prefill",
        "reading prompts: dense, masked, sparse, and the same model with layers removed",
    ),
    "decode": (
        "layerroute.benchmark.decode",
        "decoding token by token: dense, masked, sparse, and the same model with layers removed",
    ),
    "train": (
        "layerroute.benchmark.train",
        "training steps of a routed model against a static one, from two recipes",
    ),
    "train-skipping": (
        "layerroute.benchmark.train_skipping",
        "training steps of a model that skips layers: dense, masked, sparse",
    ),
    "attention": (
        "layerroute.benchmark.attention",
        "attention of some queries against full causal attention, forward and backward",
    ),
    "peers": (
        "layerroute.benchmark.peers",
        "the same routed attention by other means that are installed",
    ),
    "lossless": (
        "layerroute.benchmark.lossless",
        "full depth's own text, drafted by the routed path: equality on many prompts, acceptance, speed",
    ),
    "calibrate": (
        "layerroute.benchmark.calibrate",
        "from which share of skipped tokens sparse execution pays on this machine",
    ),
    "hybrid": (
        "layerroute.benchmark.hybrid",
        "reading prompts with the hybrid model: masked and sparse",
    ),
}


def load_case(name: str) -> "Case":
    """Import a case.

    Raises:
        UserError: there is no such case; the message names the nearest.
    """
    if name not in CASES:
        raise UserError(f"there is no benchmark case {name!r}.{nearest(name, CASES)}")
    return cast("Case", importlib.import_module(CASES[name][0]))
