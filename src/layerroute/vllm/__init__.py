"""vLLM's plugin: importing this changes nothing; vLLM calls ``register`` through its entry point."""


def register() -> None:
    """Tell vLLM of our architectures. vLLM calls this in each of its processes, perhaps more than once."""
    import vllm.model_executor.models.config as configured
    from vllm import ModelRegistry

    from layerroute.exporting.configuration import VLLM_FAMILIES
    from layerroute.registration import architecture
    from layerroute.vllm.settings import RoutedSettings

    known = ModelRegistry.get_supported_archs()
    for family in VLLM_FAMILIES:
        name = architecture(family)
        if name not in known:
            ModelRegistry.register_model(name, f"layerroute.vllm.model:{name}")
        configured.MODELS_CONFIG_MAP.setdefault(name, RoutedSettings)
