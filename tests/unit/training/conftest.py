"""A tiny model and its decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.routing import RouteDecision


@pytest.fixture
def make_model() -> Callable[..., HybridForCausalLM]:
    """Make a model of hidden size 16 with 40 tokens; keyword arguments go to its configuration."""

    def make(**settings: Any) -> HybridForCausalLM:
        torch.manual_seed(0)
        defaults = {
            "vocab_size": 40,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "layer_pattern": ["gdn", "routed", "routed", "softmax"],
        }
        return HybridForCausalLM(HybridConfig(**{**defaults, **settings}))

    return make


@pytest.fixture
def make_decision() -> Callable[..., RouteDecision]:
    """Make a decision at two sites from choices (B T R); ``p`` is the probability of the expensive path."""

    def make(choice: list[Any], *, p: float = 0.5, valid: list[Any] | None = None) -> RouteDecision:
        chosen = torch.tensor(choice)
        expensive = torch.full(chosen.shape, p)
        probabilities = torch.stack([1 - expensive, expensive], dim=-1).requires_grad_()
        return RouteDecision(
            probabilities=probabilities,
            choice=chosen,
            valid=torch.ones(chosen.shape[:2], dtype=torch.bool) if valid is None else torch.tensor(valid),
            sites=("layer1.mixer", "layer2.mixer"),
            paths=("gdn", "softmax"),
            costs=torch.tensor([[1.0, 3.0], [1.0, 2.0]]),
            gate=torch.nn.functional.one_hot(chosen, 2).float(),
        )

    return make
