"""``model.save_pretrained`` of a routed model: base and router in one folder, which ``from_pretrained`` opens again."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import layerroute
from layerroute.errors import UserError
from layerroute.registration import FORMAT, MODEL_TYPE, SECTION, architecture
from layerroute.routing.handle import get_handle

_INSTEAD = "layerroute.save(model, folder) writes the router and adapters, layerroute.export a whole model"


def save_whole(model: Any, folder: str | Path, *, base: str | None = None, **options: Any) -> None:
    """Write a routed model as transformers writes a plain one.

    After ``import layerroute``, ``AutoModelForCausalLM.from_pretrained(folder)`` gives the routed model, in inference
    mode. Its ``config.json`` says ``model_type: layerroute``, so that nothing which does not know routing opens it as
    the plain model by mistake. While the router is switched off (``router_disabled``) the plain base is written.

    Args:
        model: of transformers, with a router in it; ``save_pretrained`` of the model calls this.
        base: the name of the base that is noted. Default: what it was loaded by.
        options: of ``save_pretrained``.

    Raises:
        UserError: the base is quantised, has adapters of PEFT inside, or is a model that transformers does not make
            from a ``config.json``.
    """
    router: Any = get_handle(model)

    def save(*arguments: Any, **options: Any) -> None:
        with nullcontext() if router.steps is None else router.steps.as_before():
            type(model).save_pretrained(*arguments, **options)

    if getattr(model, "_hf_peft_config_loaded", False):
        save(model, folder, **options)  # adapters alone, as transformers has it
        return
    if not router.enabled:
        weights = options.pop("state_dict", None) or model.state_dict()
        plain = {name: value for name, value in weights.items() if not name.startswith(f"{SECTION}.")}
        save(model, folder, state_dict=plain, **options)
        opened_with_it = SECTION in vars(model.config)
        if opened_with_it and options.get("is_main_process", True):
            _rewrite(Path(folder), {**_plain(model.config), SECTION: None})
        return
    config = model.config
    if any(hasattr(module, "lora_A") or hasattr(module, "base_layer") for module in model.modules()):
        raise UserError(f"the model has adapters inside, which save_pretrained would mix with it; {_INSTEAD}")
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"the base has quantised weights, with which no routed model is opened; {_INSTEAD}")
    if config.get_text_config() is not config or type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(f"{type(model).__name__} is not opened by AutoModelForCausalLM alone; {_INSTEAD}")
    if options.pop("push_to_hub", False):
        raise UserError("a routed model is saved first and pushed then: model.push_to_hub(name) does both")
    save(model, folder, **options)
    if options.get("is_main_process", True):
        _rewrite(Path(folder), _changes(model, router, base))


def become_plain(model: Any) -> None:
    """Give a model that was opened with its router, which is off now, the class and configuration of its base."""
    config = getattr(model, "config", None)
    if config is None or SECTION not in vars(config):
        return
    plain = CONFIG_MAPPING[config.model_type]
    model.__class__, config.__class__ = AutoModelForCausalLM._model_mapping[plain], plain
    config.architectures = _plain(config)["architectures"]
    delattr(config, SECTION)


def _plain(config: Any) -> dict[str, Any]:
    """What a base's config.json says of its class."""
    made: Any = AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[config.model_type]]
    return {"architectures": [made.__name__], "model_type": config.model_type}


def _rewrite(folder: Path, changes: dict[str, Any]) -> None:
    """Change entries of a config.json; what is None goes."""
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    for key in (key for key, value in changes.items() if value is None):
        del content[key]
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _changes(model: Any, router: Any, base: str | None) -> dict[str, Any]:
    """What a base's config.json says otherwise when it is ours."""
    skip = {**router.config.to_dict(), "execution": router.execution}
    if router.budgets is not None:
        skip["routing"]["rate"] = 1.0 - router.budgets.current
    family = str(model.config.get_text_config().model_type)
    noted = getattr(model.config, SECTION, None)
    return {
        "architectures": [architecture(family)],
        "model_type": MODEL_TYPE,
        SECTION: {
            "format": FORMAT,
            "version": layerroute.__version__,
            "base_model_type": family,
            "base": base or (noted or {}).get("base") or str(model.config._name_or_path),
            "skip": skip,
        },
    }
