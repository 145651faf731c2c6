"""PEFT's classes, for ``isinstance``: a model can only hold one where somebody has imported PEFT."""

import sys
from typing import Any

from torch import nn


def peft_class(name: str, module: str = "peft") -> Any:
    """A class of PEFT, or, where PEFT was not imported, the empty tuple, of which nothing is an instance."""
    return getattr(sys.modules.get(module), name, ())


def is_tuner(module: nn.Module) -> bool:
    """Whether it is a layer that PEFT has wrapped."""
    return isinstance(module, peft_class("BaseTunerLayer", "peft.tuners.tuners_utils"))


def tuners(model: nn.Module) -> list[Any]:
    """All such layers."""
    return [module for module in model.modules() if is_tuner(module)]
