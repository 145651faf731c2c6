"""Load a trained model for use: the one place that decides what a checkpoint is, and says what is wrong with one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from layerroute.data.tokenizer import TOKENIZER_FILE, transformers_tokenizer
from layerroute.errors import UserError, nearest, one_line
from layerroute.evaluation.weights import check_fits
from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.integrity import check_intact
from layerroute.precision import Device, Precision, autocast, choose_device, choose_precision
from layerroute.records import RECORD_NAME, read_record
from layerroute.registration import MODEL_TYPE
from layerroute.routing import RoutingHandle, find_handle, set_serve
from layerroute.routing.execution import EXECUTIONS
from layerroute.skipping import find_router
from layerroute.skipping.pretrained import base_options, check_windows, load_pretrained, tokens_read
from layerroute.skipping.storage import DESCRIPTION, load_routed, read_router


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in inference mode with its tokenizer.

    Attributes:
        path: the folder that it was read from.
        record: of the run that trained it, None if the folder is not part of a run.
        precision: ``bf16`` or ``fp32``: that of the training, so that its figures are found again.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: Path
    record: dict[str, Any] | None
    precision: str

    def switch_router_off(self) -> None:
        """Let every token run every layer from now on.

        Raises:
            UserError: for a model that has no layer router.
        """
        router = find_router(self.model)
        if router is None:
            raise UserError(f"{self.path} has no layer router, so that there is nothing to switch off")
        router.enabled = False

    def execute(self, execution: str) -> None:
        """Execute routed layers ``auto``, ``sparse`` or ``masked`` from now on, whatever the configuration says.

        Raises:
            UserError: for a model that routes nothing (now), one that cannot be executed sparsely, or another word.
        """
        if execution not in EXECUTIONS:
            raise UserError(f"unknown execution {execution!r}.{nearest(execution, EXECUTIONS)}")
        handle = self._handle
        if handle is None:
            raise UserError(f"{self.path} routes nothing, so that there is no execution to choose")
        if execution == "sparse" and handle.sparse_obstacle is not None:
            raise UserError(
                f"execution: sparse is not possible: {handle.sparse_obstacle}; use auto or masked"
            )
        handle.execution = execution

    @property
    def serve(self) -> str | None:
        """How the rate is served, ``threshold``, ``rate`` or ``rate:SHARE``; None where nothing is routed."""
        return None if self._handle is None else str(self._handle.config.serve)

    @property
    def execution(self) -> str | None:
        """How routed layers are executed; None where nothing is routed."""
        return None if self._handle is None else self._handle.execution

    @property
    def _handle(self) -> RoutingHandle | None:
        """The model's, if it routes (now)."""
        handle = find_handle(self.model)
        return handle if handle is not None and handle.enabled and handle.all_routings() else None

    @property
    def context_length(self) -> int | None:
        """Tokens that a pretrained model reads at most; None: any number (hybrid models), or it is not said."""
        return None if isinstance(self.model.config, HybridConfig) else tokens_read(self.model)

    def check_room(self, prompt: int, new: int) -> None:
        """Refuse a text of more tokens than the model reads.

        Raises:
            UserError: ``prompt`` and ``new`` tokens together are more than ``context_length``.
        """
        if self.context_length is not None and prompt + new > self.context_length:
            raise UserError(too_many_tokens(prompt, new, self.context_length))

    def check_windows(self, length: int) -> None:
        """Refuse windows of text that are longer than the model reads.

        Raises:
            UserError: ``length`` is above ``context_length``.
        """
        check_windows(length, self.context_length)

    @property
    def end_ids(self) -> list[int]:
        """Tokens with which the model ends a text."""
        ends: Any = self.model.generation_config.eos_token_id
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def in_precision(self) -> partial[Any]:
        """Makes the context in which the model computes at its precision."""
        return partial(autocast, self.precision, self.device)


def too_many_tokens(prompt: int, new: int | None, length: int) -> str:
    """That a prompt does not fit, with the tokens that were asked for."""
    asked = "" if new is None else f" and {new} new ones"
    return f"the prompt's {prompt} tokens{asked} are too many: this model reads {length} in all"


def load_model(
    path: str | Path,
    *,
    device: Device = "auto",
    precision: Precision | None = None,
    budget: float | None = None,
    serve: str | None = None,
) -> LoadedModel:
    """Load a checkpoint that `layerroute train` saved, or a router folder onto the base that it names.

    Args:
        path: a router folder, a folder with a saved model (``best``, ``last``, ``checkpoints/checkpoint-N``), or
            the folder of a run, whose best model is taken.
        precision: default: that of the training run if it is known, else fp32.
        budget: share of routed compute to skip, for a layer router that serves several; default its own.
        serve: ``threshold``, ``rate`` or ``rate:SHARE`` (see ``routing.set_serve``); default as the model's own
            configuration says.

    Raises:
        UserError: no such folder, no or damaged weights, weights that are not safetensors, another architecture, a
            budget that the model does not serve, a rate that it cannot hold, no tokenizer. Nothing else is ever loaded
            in its place.
    """
    loaded = _load(model_folder(Path(path)), device, precision, budget)
    if serve is not None:
        set_serve(loaded.model, serve)
    return loaded


def _load(folder: Path, device: Device, precision: Precision | None, budget: float | None) -> LoadedModel:
    if (folder / DESCRIPTION).is_file():
        return _load_router(folder, choose_device(device), precision, budget)
    if budget is not None:
        raise UserError(f"{folder} has no layer router, so that there is no budget to choose; leave it out")
    check_intact(folder)
    if model_type_of(folder) == MODEL_TYPE:
        return _load_export(folder, choose_device(device), precision)
    config = _read_config(folder)
    check_fits(config, folder)
    record = _record_of(folder)
    target = choose_device(device)
    precision = precision or precision_of((record or {}).get("precision"))
    try:
        with _no_bars():
            model: Any = HybridForCausalLM.from_pretrained(
                folder, config=config, use_safetensors=True, local_files_only=True, dtype=torch.float32
            )
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise UserError(f"the weights in {folder} cannot be loaded: {one_line(error)}") from error
    if not (folder / TOKENIZER_FILE).is_file():
        raise UserError(f"{folder} has no {TOKENIZER_FILE}; save the tokenizer beside the model")
    return _ready(model.to(target), transformers_tokenizer(folder), folder, precision, record)


def _load_router(
    path: Path, target: torch.device, precision: Precision | None, budget: float | None
) -> LoadedModel:
    """A router folder, on its base in the form on which it was trained (float32 for one that was only calibrated)."""
    notes = read_router(path).notes
    form = notes.get("model", {"dtype": "float32"})
    known = ("dtype", "quantization", "attention")
    if not isinstance(form, dict) or not set(form) <= set(known):
        raise UserError(f"{path / DESCRIPTION}: notes.model must name {', '.join(known)} alone, got {form!r}")
    options = base_options(device=target, **form)
    with _no_bars():
        model, tokenizer = load_routed(path, budget=budget, **options)
    if "quantization_config" not in options:
        model.to(target)  # type: ignore[arg-type]
    precision = precision or precision_of(notes.get("precision"))
    return _ready(model, tokenizer, path, precision, _record_of(path))


@contextmanager
def _no_bars() -> Iterator[None]:
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _ready(
    model: Any, tokenizer: Any, path: Path, precision: Precision, record: dict[str, Any] | None = None
) -> LoadedModel:
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        path=path,
        record=record,
        precision=choose_precision(precision, model.device).name,
    )


def precision_of(noted: Any) -> Precision:
    """The precision of a training run as a record or a router notes it; fp32 where it says nothing."""
    return noted if noted in ("bf16", "fp32") else "fp32"


def model_type_of(folder: Path) -> str | None:
    """What the config.json of a folder says that it is; None if it says nothing."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _load_export(folder: Path, target: torch.device, precision: Precision | None) -> LoadedModel:
    """What `layerroute export` wrote."""
    model, tokenizer = load_pretrained(str(folder), dtype=torch.float32)
    return _ready(model.to(target), tokenizer, folder, precision or "fp32")  # type: ignore[arg-type]


def model_folder(path: Path) -> Path:
    """The folder of the model that ``path`` means: itself, or ``best`` or ``last`` of a run."""
    if not path.exists():
        raise UserError(
            f"there is no checkpoint {path}; give the folder of a run, of a saved model or of a router, which "
            "layerroute calibrate makes"
        )
    if not path.is_dir():
        raise UserError(f"{path} is a file; give the folder of a run, of a saved model or of a router")
    for folder in (path, path / "best", path / "last"):
        if (folder / DESCRIPTION).is_file() or (folder / "config.json").is_file():
            return folder
    if (path / RECORD_NAME).is_file():
        raise UserError(f"the run in {path} has saved no model yet")
    raise UserError(
        f"{path} holds no model: there is no config.json and no {DESCRIPTION}; give the folder of a run, of a saved "
        "model or of a router"
    )


def _read_config(folder: Path) -> HybridConfig:
    file = folder / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content.get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is damaged: it is not a JSON object") from error
    if kind != HybridConfig.model_type:
        raise UserError(
            f"{folder} holds a model of another architecture ({kind!r}); this needs {HybridConfig.model_type!r}"
        )
    try:
        return HybridConfig.from_dict(content)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except Exception as error:  # whatever the libraries make of values that nobody foresaw
        raise UserError(f"{file}: {type(error).__name__}: {error}") from error


def _record_of(folder: Path) -> dict[str, Any] | None:
    """The record of the run of which ``folder`` is ``best``, ``last`` or ``checkpoints/checkpoint-N``."""
    own = folder.resolve()
    if own.name in ("best", "last"):
        run = own.parent
    elif own.parent.name == "checkpoints":
        run = own.parents[1]
    else:
        return None  # a record beside or in it, if there is one, may be of something else
    return read_record(run) if (run / RECORD_NAME).is_file() else None
