"""Attention of gathered queries against all keys: reference, PyTorch by key prefixes, one dispatch."""

from layerroute.ops.routed_attention.dispatch import BACKENDS, attend_spans, routed_attention
from layerroute.ops.routed_attention.gathered import BLOCK, BlockPlan
from layerroute.ops.routed_attention.inputs import Intervals, document_starts, intervals

__all__ = [
    "BACKENDS",
    "BLOCK",
    "BlockPlan",
    "Intervals",
    "attend_spans",
    "document_starts",
    "intervals",
    "routed_attention",
]
