"""What all tests share: no network, few threads, shapes checked at run time."""

import os

# Before anything imports transformers or torch.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: with more threads than cores each test takes several times as long.
    os.environ["OMP_NUM_THREADS"] = "1"

CHECKED_PACKAGES = [
    "layerroute.routing",
    "layerroute.objectives",
    "layerroute.ops",
    "layerroute.hybrid",
    "layerroute.skipping",
]

if os.environ.get("LAYERROUTE_NO_TYPECHECK") != "1":
    from jaxtyping import install_import_hook

    install_import_hook(CHECKED_PACKAGES, "beartype.beartype")
