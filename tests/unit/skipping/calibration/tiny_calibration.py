"""Settings and windows for calibrations of the tiny models, by the second."""

import torch

from layerroute.skipping.calibration import CalibrationConfig
from tests.parity.skipping_models import VOCABULARY

LENGTH = 32
LAYERS = [2, 3, 4, 5]


def ids(windows, seed=0):
    """(windows, LENGTH) random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (windows, LENGTH), generator=generator)


def config(**changes):
    """Of all sizes the least."""
    sizes = dict.fromkeys(
        ("tokens_statistics", "tokens_selection", "tokens_search", "tokens_heldout"), 8 * LENGTH
    )
    settings = {
        "budget": 0.3,
        "layers": LAYERS,
        "router_layer": 2,
        "rank": 4,
        "length": LENGTH,
        "sink_tokens": 1,
    }
    return CalibrationConfig(**{**settings, **sizes, **changes})
