"""Makes transformers know our models as soon as it is imported, without importing it (or torch) ourselves.

After ``import layerroute``, ``AutoModelForCausalLM.from_pretrained`` must open our checkpoints, whichever of the two
was imported first; but ``import layerroute`` alone must not pay for torch. So where transformers' Auto classes are
not loaded yet, a finder on ``sys.meta_path`` waits for them. It changes nothing that is imported; it only notices
when the *outermost* import of a transformers module ends. Before that, transformers is half initialised, and a model
that builds on it could not be imported (``transformers.modeling_utils``, for one, loads the Auto configuration on its
way). The models then register themselves, by the public ``register`` of the Auto classes, and the finder is gone.
"""

import importlib
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MODEL_TYPE = "layerroute"
"""Of pretrained models with a router inside, in their config.json, and ``SECTION``, which says what router."""
SECTION = "layerroute"
FORMAT = 1

MODEL_PACKAGES = ("layerroute.hybrid", "layerroute.exporting")
"""Packages that register models with transformers when they are imported."""

_PACKAGE = "transformers"
_AWAITED = "transformers.models.auto.configuration_auto"
"""Every Auto class needs it, so nobody can ask for a model type before it is there."""


def architecture(base_model_type: str) -> str:
    """The name under which vLLM finds our class: ``RoutedLlamaForCausalLM``."""
    return f"Routed{base_model_type.replace('_', ' ').title().replace(' ', '')}ForCausalLM"


def register_models() -> None:
    """Register our models now if transformers' Auto classes are there already, or else as soon as they are."""
    if any(isinstance(finder, _AwaitTransformers) for finder in sys.meta_path):
        return
    if _AWAITED in sys.modules and not _in_progress():
        _import_models()
    else:
        sys.meta_path.insert(0, _AwaitTransformers())


def _in_progress() -> bool:
    """Say whether some transformers module is being imported at this moment."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == _PACKAGE]
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules)


def _import_models() -> None:
    for name in MODEL_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            # The import that we are riding on is transformers' own and has worked; it must not fail for us.
            warnings.warn(f"layerroute could not register the models of {name}: {error}", stacklevel=2)


class _Depth(threading.local):
    value = 0


class _AwaitTransformers:
    """A finder that finds nothing of its own: it counts how deep the imports of transformers modules are nested."""

    def __init__(self) -> None:
        self._depth = _Depth()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != _PACKAGE:
            return None
        spec = self._ask_the_others(name, path, target)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._count(spec)
        return spec

    def _ask_the_others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                return spec
        return None

    def _count(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        assert loader is not None
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self._depth.value += 1
            try:
                execute(module)
            finally:
                self._depth.value -= 1
            if self._depth.value == 0 and _AWAITED in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                _import_models()

        # On the instance, so that everything else that a loader offers (get_source, resources) stays as it is.
        loader.exec_module = exec_module  # type: ignore[method-assign]
