"""Settings and windows for calibrations of the tiny models, by the second."""

import torch

from layerroute.skipping.calibration import CalibrationConfig, in_order
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


class Cut(Exception):
    """The calibration is killed."""


def cut_at_fit(monkeypatch, number):
    """No site is fitted after so many (None: all are); returns the places that are fitted from now on."""
    fit, fitted = in_order._fit_site, []

    def fit_site(*args):
        if len(fitted) == number:
            raise Cut
        fitted.append(args[6])
        return fit(*args)

    monkeypatch.setattr(in_order, "_fit_site", fit_site)
    return fitted
