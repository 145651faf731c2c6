"""The map of kinds by layers: what it shows is what its data say, and stars stand where the tests find something."""

from __future__ import annotations

import numpy as np
import pytest

from layerroute.lab.report.figures_kinds import layers_data, layers_figure
from layerroute.lab.tokens import LayerKinds

RATE = np.array([[0.8, 0.5], [0.2, 0.5]])
FOUND = {
    "kind": LayerKinds(
        layers=("layer4", "layer7"),
        kinds=("number", "word start"),
        tokens=(10, 30),
        rate=RATE,
        low=RATE - 0.1,
        high=np.full((2, 2), np.nan),
        p_values=(0.01, 0.6),
    ),
    "place in context": LayerKinds(
        layers=("layer4", "layer7"),
        kinds=("0 to 31",),
        tokens=(40,),
        rate=np.array([[0.35, 0.5]]),
        low=np.array([[0.3, 0.4]]),
        high=np.array([[0.4, 0.6]]),
        p_values=(None, None),
    ),
}


def test_the_map_is_the_distance_from_the_mean_of_all_tokens_of_the_layer() -> None:
    kind, place = layers_figure(FOUND, "softmax").axes[:2]
    # The layer's mean is over tokens, not over kinds: (10 × 0.8 + 30 × 0.2) / 40 = 0.35.
    assert np.asarray(kind.images[0].get_array()) == pytest.approx(np.array([[45.0, 0.0], [-15.0, 0.0]]))
    assert np.asarray(place.images[0].get_array()) == pytest.approx(0.0)
    assert [label.get_text() for label in kind.get_yticklabels()] == ["number (10)", "word start (30)"]
    assert [label.get_text() for label in place.get_xticklabels()] == ["4", "7"]
    assert [(text.get_text(), text.get_position()[0]) for text in kind.texts] == [("*", 0)]
    assert not place.texts, "not tested"


def test_the_data_have_every_cell_with_what_is_known_of_it() -> None:
    data = layers_data(FOUND).set_index(["by", "kind", "layer"])
    assert len(data) == 6
    cell = data.loc[("kind", "number", "layer4")]
    assert (cell["rate"], cell["low_95"], cell["layer_p_value"]) == pytest.approx((0.8, 0.7, 0.01))
    assert np.isnan(cell["high_95"])
