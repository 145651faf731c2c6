"""Recall at lengths up to many times that of training, and by the distance from which an answer comes."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from layerroute.data.recall.prepared import RecallData
from layerroute.evaluation.perplexity import Autocast, evaluate, forward
from layerroute.evaluation.texts import Batch, split_rows
from layerroute.objectives.language_model import IGNORE


def answers_batch(ids: np.ndarray, answers: np.ndarray) -> Batch:
    """``input_ids`` and ``labels`` (N, T) in which only answers count."""
    tokens = torch.from_numpy(ids)
    return {"input_ids": tokens, "labels": tokens.masked_fill(~torch.from_numpy(answers), IGNORE)}


def distances(ids: np.ndarray, answers: np.ndarray, *, writes: int = 1) -> np.ndarray:
    """How many tokens before each answer its key was told, (N, T); 0 where there is no answer.

    The token before an answer is its key, whose first appearance counts, or that of number ``writes`` where keys are
    told several times. In copying it is the value before it.
    """
    found = np.zeros(ids.shape, dtype=np.int64)
    for row, place in zip(*np.nonzero(answers), strict=True):
        told = np.flatnonzero(ids[row, :place] == ids[row, place - 1])
        found[row, place] = place - 1 - int(told[writes - 1])
    return found


def recall_by_length(
    model: nn.Module,
    data: RecallData,
    multiples: Sequence[int],
    *,
    rows: int,
    batch_size: int,
    precision: Autocast = nullcontext,
) -> list[dict[str, Any]]:
    """Accuracy, loss and rate at ``multiples`` of the training length, the pairs being as many as in training.

    ``rows`` sequences at length 1×, fewer at longer ones so that about as many tokens are read, but 8 at least.
    """
    points = []
    for multiple in multiples:
        length, count = multiple * data.config.sequence_length, max(min(8, rows), rows // multiple)
        batch = answers_batch(*data.validation(count, length=length))
        batches = split_rows(batch, max(1, batch_size // multiple))
        result = evaluate(model, batches, precision=precision)
        points.append(
            {
                "multiple": multiple,
                "length": length,
                "accuracy": result.accuracy,
                "loss": result.loss,
                "answers": result.tokens,
                "mean_rate": None if result.routing is None else result.routing.mean_rate,
            }
        )
    return points


def recall_by_distance(
    model: nn.Module,
    data: RecallData,
    *,
    rows: int,
    batch_size: int,
    precision: Autocast = nullcontext,
) -> list[dict[str, Any]]:
    """Accuracy by the distance of key and question, in doubling ranges, at the length of training."""
    ids, answers = data.validation(rows)
    far = distances(ids, answers, writes=data.task.writes)
    right = np.zeros(ids.shape, dtype=np.bool_)
    for start in range(0, rows, batch_size):
        part = ids[start : start + batch_size]
        logits = forward(model, {"input_ids": torch.from_numpy(part)}, precision).logits
        right[start : start + batch_size, 1:] = logits[:, :-1].argmax(dim=-1).cpu().numpy() == part[:, 1:]
    points, low = [], 1
    while low <= int(far.max()):
        inside = answers & (far >= low) & (far < 2 * low)
        if inside.any():
            share = float(right[inside].mean())
            points.append({"from": low, "to": 2 * low - 1, "accuracy": share, "answers": int(inside.sum())})
        low *= 2
    return points
