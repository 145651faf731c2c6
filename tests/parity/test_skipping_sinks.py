"""Tokens that always run: the first ones, and separators; masked, sparse, cached and padded."""

import pytest
import torch

from layerroute.routing import RoutingConfig
from layerroute.skipping import last_decision
from tests.parity.contracts import assert_close, left_padded, tokens
from tests.parity.skipping_models import VOCABULARY, routed
from tests.parity.test_skipping import chunked, logits


def test_sinks_always_run():
    for sinks in (0, 3):
        model = routed("llama", sink_tokens=sinks)
        logits(model, tokens(4, 12, VOCABULARY), "auto")
        run = last_decision(model).choice.float().mean(dim=(0, 2))
        assert (run[:sinks] == 1).all()
        assert run[sinks:].max() < 1


@pytest.mark.parametrize("control", [None, "random", "static"])
def test_tokens_of_sink_ids_always_run_masked_sparse_and_cached(control):
    controlled = {"routing": RoutingConfig(control=control, rate=0.4)} if control else {}
    model = routed("llama", sink_tokens=0, sink_ids=[5, 7], **controlled)
    ids = tokens(4, 12, VOCABULARY)
    ids[0, 3], ids[1, 11], ids[2, 0], ids[3, 5], ids[3, 6] = 5, 7, 5, 7, 7
    expected = logits(model, ids, "masked")
    separators = torch.isin(ids, torch.tensor([5, 7]))
    run = last_decision(model).choice.bool()
    assert run[separators].all()
    assert not run[~separators].all()
    assert_close(logits(model, ids, "sparse"), expected, "sparse")
    assert_close(chunked(model, ids, "sparse", [4, 5]), expected, "cached")


def test_padding_whose_id_is_a_separator_changes_nothing():
    model = routed("llama", sink_tokens=1, sink_ids=[0, 7])
    rows = [tokens(1, n, VOCABULARY, seed=n)[0] for n in (4, 9, 13)]
    rows[1][5] = rows[2][0] = 7
    singles = {}
    for execution in ("masked", "sparse"):
        for index, row in enumerate(rows):
            singles[execution, index] = logits(model, row[None], execution)[0], last_decision(model).choice[0]
    ids, mask = left_padded(rows)
    for execution in ("masked", "sparse"):
        result = logits(model, ids, execution, attention_mask=mask)
        choice = last_decision(model).choice
        for index, real in enumerate(mask.bool()):
            expected, decided = singles[execution, index]
            assert_close(result[index][real], expected, f"{execution}, row {index}")
            assert torch.equal(choice[index][real], decided)
