"""Which sections the recipes of each capability have, and which class each section is held to.

Classes are named, not imported: a recipe's own module stays free of torch, and a capability is one entry in the
table. The class of a section is imported when a recipe that has it is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of a recipe.

    Attributes:
        configuration: dotted path of the class whose keyword arguments are the section's keys.
        below: dotted path of a base class whose own fields no recipe may set.
        nested: for keys that the class declares as a plain mapping: dotted path of the class that the mapping is
            for.
        build: True hands out an instance. False hands out the keyword arguments, checked by making an instance that
            is thrown away: for classes that need more than the recipe knows (the vocabulary's size, say).
    """

    configuration: str
    below: str = "builtins.object"
    nested: Mapping[str, str] = field(default_factory=dict)
    build: bool = True


_DATA = Section(configuration="layerroute.data.configuration.DataConfig")
_TRAIN = Section(configuration="layerroute.training.configuration.TrainConfig")

CAPABILITIES: dict[str, Mapping[str, Section]] = {
    "attention_routing": {
        "model": Section(
            configuration="layerroute.hybrid.hybrid_config.HybridConfig",
            below="transformers.configuration_utils.PreTrainedConfig",
            nested={"routing": "layerroute.routing.module.RoutingConfig"},
            build=False,
        ),
        "data": _DATA,
        "train": _TRAIN,
        "objective": Section(configuration="layerroute.training.configuration.ObjectiveConfig"),
    },
    "layer_skipping": {
        "model": Section(configuration="layerroute.training.skipping.configuration.PretrainedConfig"),
        "skip": Section(configuration="layerroute.skipping.skip_config.SkipConfig"),
        "start": Section(configuration="layerroute.training.skipping.configuration.StartConfig"),
        "adapt": Section(configuration="layerroute.training.skipping.configuration.AdaptConfig"),
        "data": _DATA,
        "train": _TRAIN,
        "objective": Section(
            configuration="layerroute.training.skipping.configuration.SkippingObjectiveConfig"
        ),
    },
}


def import_class(path: str) -> type:
    """Import the class at a dotted path."""
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, type):
        raise TypeError(f"{path} is not a class")
    return found
