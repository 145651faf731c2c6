"""A calibration's settings as a model asks for them, and the windows of text that it sees."""

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from layerroute.data.texts import Texts
from layerroute.errors import UserError, check_keys
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.windows import Windows, draw_windows
from layerroute.skipping.families import decoder_stack, family_of
from layerroute.skipping.pretrained import check_windows, special_tokens, tokens_read

_logger = logging.getLogger(__name__)

MOST, LEAST = 36864, 9216
"""Tokens of statistics where none are asked for: as many as the text has, between these."""


def config_for(
    model: Any,
    tokenizer: Any,
    *,
    unit: str | None = None,
    allocation: str | None = None,
    checked: Sequence[float] = (),
    **settings: Any,
) -> CalibrationConfig:
    """The settings for a model: what is not given goes by its layers and its tokenizer.

    Args:
        model: a transformers causal LM.
        tokenizer: its own; its special tokens always run, where ``sink_ids`` are not given.
        unit: default ``mlp``, or ``block`` where layerroute cannot take the model's layers apart.
        allocation: default ``cost`` for whole layers, but ``even`` where sequences decide; else ``even``.
        checked: the budgets that are to be held, all of them.
        settings: further fields of ``CalibrationConfig``; a ``rank`` above the model's width is that width.

    Raises:
        UserError: the tokenizer has ids for which the model has no embedding; the model is to skip layers that it does
            not have; a budget that no static subset of them can meet; one window to judge on; windows that are longer
            than the model reads; a setting that does not exist.
    """
    check_keys(settings, [one.name for one in fields(CalibrationConfig)], "calibration")
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    rows = embeddings.num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"{model.config._name_or_path}: the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings: "
            "they do not fit"
        )
    check_windows(settings.get("length", CalibrationConfig.length), tokens_read(model))
    chosen = unit or "mlp"
    whole = "even" if settings.get("granularity") == "sequence" else "cost"
    config = CalibrationConfig(
        unit=chosen,
        **{
            "sink_ids": special_tokens(tokenizer),
            **_allocated(allocation or (whole if chosen == "block" else "even")),
            **settings,
        },
    )
    if config.tokens_heldout < 2 * config.length:
        raise UserError(
            f"calibration.tokens_heldout is {config.tokens_heldout}, less than two windows of {config.length} tokens: "
            "one has no interval"
        )
    stack = decoder_stack(model)[1]
    if unit is None and family_of(model, stack) is None:
        _logger.warning("the layers of this model cannot be taken apart; whole layers skip")
        config = replace(config, unit="block", **{**_allocated(allocation or whole), **settings})
    # A skip path is a map of the state: no rank is above its width.
    config = replace(config, rank=min(config.rank, model.config.get_text_config().hidden_size))
    for share in checked:
        check_budget(share, len(config.skip_config(len(stack)).places()), config.unit)
    return config


def _allocated(allocation: str) -> dict[str, Any]:
    """The method, and what goes with it: rates by cost were chosen with two refits."""
    return {"allocation": allocation, "refits": 2 if allocation == "cost" else 1}


def check_budget(budget: float, sites: int, unit: str) -> None:
    """Raise :class:`UserError` for a budget that no static subset of so many sites can meet."""
    if sites < 2:
        raise UserError(
            "one layer alone may be skipped: static pruning takes out all of it or none; name two"
        )
    of = f"{sites} {'halves of ' if '+' in unit else ''}layers"
    if round(budget * sites) < 1:
        raise UserError(
            f"a budget of {budget:.1%} is less than one of {of}: static pruning cannot meet it; the least "
            f"is {1 / sites:.1%}"
        )
    if round(budget * sites) >= sites:
        raise UserError(
            f"a budget of {budget:.1%} takes out all of {of}: static pruning cannot meet it; the most is "
            f"{1 - 1 / sites:.1%}"
        )


def draw(
    texts: Texts,
    tokenizer: Any,
    config: CalibrationConfig,
    tokens: int,
    seed: int,
    *,
    least: int | None = None,
) -> Windows:
    """The next windows of every kind, in their shares; where text runs short ``least`` tokens suffice."""
    return draw_windows(
        texts.distinct,
        tokenizer,
        tokens=tokens,
        length=config.length,
        seed=config.seed + seed,
        shares=texts.shares,
        least=least,
    )
