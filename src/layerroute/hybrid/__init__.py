"""Attention routing: models in which each token takes Gated DeltaNet or softmax attention.

Importing this package registers the model with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from layerroute.hybrid.flops import FlopsReport, forward_flops, sparse_flops_per_token
from layerroute.hybrid.hybrid_config import HybridConfig
from layerroute.hybrid.modeling import HybridForCausalLM, HybridModel, HybridOutput
from layerroute.hybrid.parameters import parameters_by_part
from layerroute.hybrid.reading import BytesRead, bytes_read

AutoConfig.register(HybridConfig.model_type, HybridConfig, exist_ok=True)
AutoModel.register(HybridConfig, HybridModel, exist_ok=True)
AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM, exist_ok=True)

__all__ = [
    "BytesRead",
    "FlopsReport",
    "HybridConfig",
    "HybridForCausalLM",
    "HybridModel",
    "HybridOutput",
    "bytes_read",
    "forward_flops",
    "parameters_by_part",
    "sparse_flops_per_token",
]
