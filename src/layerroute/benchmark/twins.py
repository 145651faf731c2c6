"""Plain models that share the weights of a routed one: what routing that always takes one path must equal."""

from layerroute.hybrid import HybridConfig, HybridForCausalLM


def plain_twin(routed: HybridForCausalLM, path: str) -> HybridForCausalLM:
    """Return the model in which every routed layer is a plain ``path`` layer, with the same weights.

    Args:
        routed: a model with routed layers; left as it is. The twin is on its device and in its mode.
        path: ``gdn`` or ``softmax``.
    """
    config = routed.config
    assert isinstance(config, HybridConfig)
    settings = {**config.to_dict(), "router_layer": None, "granularity": "token"}
    settings["layer_pattern"] = [path if kind == "routed" else kind for kind in config.layer_pattern or []]
    settings.pop("model_type", None)
    twin = HybridForCausalLM(HybridConfig(**settings))
    state = {_plain_name(name, config, path): tensor for name, tensor in routed.state_dict().items()}
    wanted = twin.state_dict()
    twin.load_state_dict({name: tensor for name, tensor in state.items() if name in wanted})
    twin.to(next(routed.parameters()).device)  # type: ignore[arg-type]
    return twin.train(routed.training)


def _plain_name(name: str, config: HybridConfig, path: str) -> str:
    """What a routed model's parameter is called in the plain one; the other path's names stay, and fit nothing."""
    for layer in config.routed_layers:
        here = f"model.layers.{layer}."
        if config.routed_unit == "block":
            name = name.replace(f"{here}paths.{path}.", f"{here}block.")
            continue
        name = name.replace(f"{here}paths.{path}.", f"{here}block.mixer.")
        for shared in ("mixer_norm", "mlp_norm", "mlp"):
            name = name.replace(f"{here}{shared}.", f"{here}block.{shared}.")
    return name
