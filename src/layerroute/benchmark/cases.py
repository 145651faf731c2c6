"""The benchmark cases by name. A case's module is imported when it is asked for, not before."""

import importlib
from typing import TYPE_CHECKING, cast

from layerroute.errors import UserError, nearest

if TYPE_CHECKING:
    from layerroute.benchmark.case import Case

CASES = {
    "gated-delta": (
        "gated_delta",
        "the gated delta rule against transformers' chunked one and the plain recurrence",
    ),
    "prefill": ("skipping", "reading prompts: dense, masked, sparse, and the same model with layers removed"),
    "decode": (
        "skipping",
        "decoding token by token: dense, masked, sparse, and the same model with layers removed",
    ),
    "train": ("train", "training steps of a routed model against a static one, from two recipes"),
    "train-skipping": (
        "skipping",
        "training steps of a model that skips layers: dense, masked, sparse",
    ),
    "attention": (
        "attention",
        "attention of some queries against full causal attention, forward and backward",
    ),
    "peers": ("attention", "the same routed attention by other means that are installed"),
    "lossless": (
        "lossless",
        "full depth's own text, drafted by the routed path: equality on many prompts, acceptance, speed",
    ),
    "calibrate": ("calibrate", "from which share of skipped tokens sparse execution pays on this machine"),
    "engine": ("engine", "vLLM on a routed export, on its weights without the router, and on fewer layers"),
    "hybrid": ("hybrid", "reading prompts with the hybrid model: masked and sparse"),
}
"""The module whose ``CASES`` holds the case, and what it measures in a line."""


def load_case(name: str) -> "Case":
    """Import a case.

    Raises:
        UserError: there is no such case; the message names the nearest.
    """
    if name not in CASES:
        raise UserError(f"there is no benchmark case {name!r}.{nearest(name, CASES)}")
    return cast("Case", importlib.import_module(f"layerroute.benchmark.{CASES[name][0]}").CASES[name])
