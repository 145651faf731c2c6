"""Attention of gathered queries against all keys: reference, PyTorch by key prefixes, one dispatch."""

from layerroute.ops.routed_attention.dispatch import BACKENDS, attend_spans, backend_report, routed_attention
from layerroute.ops.routed_attention.gathered import (
    WINDOW_BLOCK,
    BlockPlan,
    block_size,
    share_of_keys,
    window_keys,
)
from layerroute.ops.routed_attention.inputs import Intervals, Padding, document_starts, intervals
from layerroute.ops.routed_attention.sight import Sight, sight_of
