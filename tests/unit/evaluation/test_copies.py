"""The loss on copied tokens is told apart from that on the rest, and together they are the loss."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerroute.data.copies import CopiesConfig, copied_tokens
from layerroute.evaluation.copies import blank_tokens, copies_section
from layerroute.evaluation.perplexity import evaluate

VOCABULARY, RULE = 50, CopiesConfig(length=3, beyond=8)


class Copier(nn.Module):
    """Expects what followed the same two tokens last time; knows nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(1, len(ids)):
                for at in range(1, place):
                    if ids[at - 1 : at + 1] == ids[place - 1 : place + 1]:
                        logits[row, place] = 0.0
                        logits[row, place, ids[at + 1]] = 100.0
        return SimpleNamespace(logits=logits)


class Tokenizer:
    """Token 0 ends a text, 1 is white space, the others are words."""

    all_special_ids = (0,)

    def decode(self, ids: list[int]) -> str:
        return {0: "<end>", 1: " \n"}.get(ids[0], f" w{ids[0]}")


def batches() -> list[dict[str, Tensor]]:
    """Four windows: a stretch of 6 tokens comes twice, 12 apart, in all but the last one."""
    ids = torch.arange(2, 32).repeat(4, 1)
    ids[:3, 18:24] = ids[:3, 6:12]
    ids[1, 8:9] = ids[1, 20:21] = 1
    return [{"input_ids": part} for part in ids.split(2)]


def section(found: list[dict[str, Tensor]]) -> dict[str, Any]:
    return copies_section(Copier(), found, Tokenizer(), RULE)  # type: ignore[arg-type]


def test_a_model_that_copies_shows_on_copied_tokens_alone() -> None:
    found = section(batches())
    copied, rest = found["copied"], found["rest"]
    assert (found["length"], found["beyond"], found["within"]) == (3, 8, "sequence")
    assert copied["window_tokens"] == [4, 3, 4, 0] and copied["tokens"] == 11
    assert rest["window_tokens"] == [25, 26, 25, 29]
    assert copied["loss"] < 1e-6 and rest["loss"] > math.log(VOCABULARY)
    assert found["margin"] == pytest.approx(rest["loss"] - copied["loss"])
    assert copied["window_losses"][3] is None, "no token, no loss"


def test_both_parts_are_the_loss_of_every_window() -> None:
    found, whole = section(batches()), evaluate(Copier(), batches())
    sums = [
        sum(
            (part["window_losses"][window] or 0.0) * part["window_tokens"][window]
            for part in (found["copied"], found["rest"])
        )
        for window in range(4)
    ]
    assert [total / 29 for total in sums] == pytest.approx(whole.window_losses, abs=1e-6)
    assert found["copied"]["tokens"] + found["rest"]["tokens"] == whole.tokens


@pytest.mark.parametrize("told_by", ["document_ids", "position_ids"])
def test_where_attention_keeps_to_documents_copies_do(told_by: str) -> None:
    ends = torch.zeros(30, dtype=torch.int64)
    ends[15] = 1  # between the stretch and its copy
    documents = ends.cumsum(0)
    value = documents if told_by == "document_ids" else torch.arange(30) - 15 * documents
    apart = [{**batch, told_by: value.repeat(len(batch["input_ids"]), 1)} for batch in batches()]
    found = section(apart)
    assert found["within"] == "document" and found["copied"]["tokens"] == 0
    assert found["copied"]["loss"] is None and found["margin"] is None and found["rest"]["loss"] is not None


def test_white_space_and_special_tokens_are_blank() -> None:
    assert blank_tokens(Tokenizer(), range(5)) == [0, 1]  # type: ignore[arg-type]
    ids = batches()[0]["input_ids"].numpy()
    assert copied_tokens(ids, RULE, blank=[1]).sum() < copied_tokens(ids, RULE).sum()
    assert np.array_equal(copied_tokens(ids, RULE, blank=[1])[0], copied_tokens(ids, RULE)[0])
