"""What all tests share: no network, few threads, shapes checked at run time."""

import gc
import os
import sys

# Before anything imports transformers or torch.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
# readline sets it in the process that starts the workers: tables would be as narrow as a terminal that is not there.
os.environ.pop("COLUMNS", None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: with more threads than cores each test takes several times as long.
    os.environ["OMP_NUM_THREADS"] = "1"

if os.environ.get("CI"):
    # A run of CI says something about a commit: the same examples each time. Elsewhere hypothesis explores.
    from hypothesis import settings

    settings.register_profile("ci", derandomize=True, deadline=None)
    settings.load_profile("ci")

CHECKED_PACKAGES = [
    "layerroute.routing",
    "layerroute.objectives",
    "layerroute.ops",
    # Not hybrid.configuration: the checker would forbid the extra keys that transformers puts into a config.
    "layerroute.hybrid.cache_layers",
    "layerroute.hybrid.compaction",
    "layerroute.hybrid.context",
    "layerroute.hybrid.flops",
    "layerroute.hybrid.layers",
    "layerroute.hybrid.mixers",
    "layerroute.hybrid.modeling",
    "layerroute.skipping",
]

if os.environ.get("LAYERROUTE_NO_TYPECHECK") != "1":
    import jaxtyping

    from tests.typecheck import checked_once

    if sys.dont_write_bytecode:
        # What a module under the hook imports is compiled anew, 1,500 modules: the hook looks for bytecode of its own.
        import torch._dynamo  # noqa: F401
        import transformers.modeling_utils  # noqa: F401

    jaxtyping.jaxtyped = checked_once
    jaxtyping.install_import_hook(CHECKED_PACKAGES, "tests.typecheck.check")


def pytest_collection_finish() -> None:
    """What is imported by now stays: no later collection, of which each run makes some, need look at it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the interpreter's end nothing is left frozen: nanobind would tell of leaks."""
    gc.unfreeze()
