"""The model card of an export: what was measured and what was set, and nothing else."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import layerroute


def card(
    *,
    base: str,
    engine: str,
    plain: bool,
    skip: Any,
    budget: float,
    notes: Mapping[str, Any],
    layers: tuple[int, int],
    size: int,
) -> str:
    """README.md of the folder.

    Args:
        base: name of the base model, or its folder, of which the last part is told.
        engine: ``vllm`` or ``hf``.
        plain: whether the folder is a plain smaller model.
        skip: the router's ``SkipConfig``.
        budget: that is served: the configuration's own, or another that was chosen.
        notes: of the router folder.
        layers: of the base, and of what was exported.
        size: bytes of weights.
    """
    # The hub takes no path, and nobody is to read ours.
    local = Path(base).is_absolute() or Path(base).exists()
    name = Path(base).name if local else base
    of_base = "" if local else f"base_model: {base}\n"
    facts = {
        "base model": name,
        "layers": f"{layers[1]} of {layers[0]}",
        "weights": f"{size / 1e6:,.1f} MB",
        "unit": skip.unit,
        "who decides": skip.routing.control or skip.granularity,
        "share of routed compute asked to skip": f"{budget:g}",
        "routed layers": ", ".join(map(str, skip.layers)),
        "skip path": skip.skip_path
        if skip.skip_path == "identity"
        else f"{skip.skip_path}, rank {skip.rank}",
        "first tokens that always run": skip.sink_tokens,
        "served by": skip.serve,
        "made by": f"layerroute {layerroute.__version__}",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    told = "\n".join(f"| {key} | {value} |" for key, value in _flat(notes))
    return (
        f"---\n{of_base}library_name: transformers\npipeline_tag: text-generation\ntags: [layerroute]\n---\n"
        f"# {name}, {'with layers left out' if plain else 'with per-token layer skipping'}\n\n{_use(engine, plain)}\n\n"
        f"| what | value |\n|---|---|\n{rows}\n"
        + (f"\nFrom the router folder:\n\n| note | value |\n|---|---|\n{told}\n" if told else "")
    )


def _use(engine: str, plain: bool) -> str:
    if plain:
        return "A plain model: any engine that knows its family opens it."
    if engine == "vllm":
        return "```bash\npip install 'layerroute[vllm]'\nlayerroute serve --engine vllm FOLDER\n```"
    return (
        "```python\nimport layerroute  # noqa: F401\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n```'
    )


def _flat(notes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Numbers and words of nested notes under dotted names; lists only if they are short."""
    if isinstance(notes, Mapping):
        for key, value in notes.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(notes, list):
        if 0 < len(notes) <= 8 and not any(isinstance(item, list | dict) for item in notes):
            yield prefix, ", ".join(map(str, notes))
    elif notes is not None:
        yield prefix, f"{notes:.4g}" if isinstance(notes, float) else str(notes).replace("|", "/")
