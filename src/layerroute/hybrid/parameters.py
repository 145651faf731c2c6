"""Parameter counts by part."""

from collections import Counter

from torch import nn

_PARTS = (
    ("routing.", "router"),
    ("embed_tokens", "embedding"),
    ("lm_head", "output"),
    ("mlp.", "mlp"),
    ("paths.gdn", "routed gdn"),
    ("paths.softmax", "routed softmax"),
    ("norm", "norms"),
)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part; tied weights count once, under the embedding."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = next((part for key, part in _PARTS if key in name), None)
        if part in (None, "norms") and "mixer." in name:
            layer = model.get_submodule(name[: name.index(".mixer.") + len(".mixer")])
            part = "softmax" if type(layer).__name__ == "SoftmaxMixer" else "gdn"
        counts[part or "other"] += parameter.numel()
    return dict(counts)
