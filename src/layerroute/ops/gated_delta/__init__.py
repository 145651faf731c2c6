"""The gated delta rule, the recurrence of Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464)."""

from layerroute.ops.gated_delta.chunked import gated_delta_flops
from layerroute.ops.gated_delta.dispatch import backend_report, gated_delta_rule
