"""What an exported folder says of itself, and which engine can serve it.

``config.json`` is that of the base with ``model_type: layerroute``, so that nothing which does not know routing can
open it and serve the full depth by mistake, an architecture name of ours for vLLM, and a section ``layerroute``.
"""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from layerroute.errors import UserError
from layerroute.registration import FORMAT, MODEL_TYPE, SECTION

KEYS = {"format", "version", "base_model_type", "base", "skip"}

ENGINES = ("vllm", "hf")
VLLM_FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}
"""Families that the vLLM plugin serves, and the stem of vLLM's class."""


def vllm_obstacle(skip: Any, base_model_type: str, config: Any) -> str | None:
    """Why the vLLM plugin cannot serve a router (a ``SkipConfig``) on a model of a family, or None."""
    if base_model_type not in VLLM_FAMILIES:
        return f"the family {base_model_type!r}; the plugin serves {', '.join(VLLM_FAMILIES)}"
    if skip.granularity not in ("token", "per_layer"):
        return f"granularity: {skip.granularity}; the plugin serves token and per_layer"
    if skip.history:
        return f"history: {skip.history}; the plugin's routers see the state at their own layer alone"
    if skip.kv != "project":
        return f"kv: {skip.kv}; the plugin serves project, where skipped tokens write keys and values"
    for key in ("llama_4_scaling", "dual_chunk_attention_config", "ada_rms_norm_t_cond"):
        if getattr(config, key, None):
            return f"{key}, a twist of attention that the plugin does not know"
    if not getattr(config, "is_causal", True):
        return "is_causal: false, attention to later tokens"
    if base_model_type.startswith("qwen") and "sliding_attention" in (
        getattr(config, "layer_types", None) or []
    ):
        return "layers with sliding windows, which vLLM does not have for this family"
    return None


def check_section(section: Any, where: str) -> dict[str, Any]:
    """The section ``layerroute`` of a config.json.

    Raises:
        UserError: there is none, it is of a later version, or it has keys that this version does not know: what they
            ask for would not be done.
    """
    if not isinstance(section, dict):
        raise UserError(f"{where} has no section {SECTION!r}: it was not made by `layerroute export`")
    if section.get("format") != FORMAT:
        raise UserError(
            f"{where} is of export format {section.get('format')!r}; this version of layerroute reads {FORMAT}"
        )
    if unknown := sorted(section.keys() ^ KEYS):
        raise UserError(f"{where}: {SECTION}.{unknown[0]} is missing or not known; export the router again")
    return section


class RoutedConfig(PreTrainedConfig):
    """Opens ``config.json`` of an export; what it gives is a configuration of the base's own class, with a section."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration of the class that belongs to the base's family.

        Raises:
            UserError: as ``check_section``, or if transformers does not know the family.
        """
        section = check_section(config_dict.get(SECTION), "config.json")
        return routed_config_class(section["base_model_type"]).from_dict(config_dict, **kwargs)


_CLASSES: dict[str, Any] = {}


def routed_config_class(base_model_type: str) -> Any:
    """The configuration class of routed models of a family; made and registered with transformers once.

    Raises:
        UserError: if transformers does not know the family.
    """
    if base_model_type not in _CLASSES:
        if base_model_type not in CONFIG_MAPPING:
            raise UserError(f"transformers knows no family {base_model_type!r}; it may need another version")
        base: Any = CONFIG_MAPPING[base_model_type]

        def initialise(self: Any, **kwargs: Any) -> None:
            base.__init__(self, **kwargs)
            # Whoever asks an object gets the family, so that all that is done for it is done; on disk it is ours.
            self.model_type = base_model_type

        def reduce(self: Any) -> Any:
            # For copies and pickles, as vLLM sends to its workers: the class cannot be found under its name.
            return _unfilled, (base_model_type,), vars(self).copy()

        name = f"Routed{base.__name__}"
        own = {"__init__": initialise, "__reduce__": reduce, "model_type": MODEL_TYPE}
        made = type(name, (base,), {**own, "__module__": __name__})
        _CLASSES[base_model_type] = made
        from layerroute.exporting.modeling import routed_model_class

        AutoModelForCausalLM.register(made, routed_model_class(made, base), exist_ok=True)
    return _CLASSES[base_model_type]


def _unfilled(base_model_type: str) -> Any:
    made = routed_config_class(base_model_type)
    return made.__new__(made)


AutoConfig.register(MODEL_TYPE, RoutedConfig, exist_ok=True)
