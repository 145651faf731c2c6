"""The model of a recipe."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from layerroute.errors import UserError
from layerroute.hybrid import FlopsReport, HybridConfig, HybridForCausalLM, forward_flops, parameters_by_part
from layerroute.recipe import Recipe, recipe_to_dict


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a model must know of its tokenizer: number of ids, and the ids of special tokens (None = there is none)."""

    size: int
    end_of_text: int | None = None
    padding: int | None = None


def model_config(model: Mapping[str, Any], vocabulary: Vocabulary) -> HybridConfig:
    """The configuration of a recipe's `model` section for a vocabulary.

    `vocab_size` follows the data unless the recipe gives a larger one (a padded output matrix).

    Raises:
        UserError: if the recipe's vocabulary is smaller than the data's.
    """
    asked = model.get("vocab_size")
    if asked is not None and asked < vocabulary.size:
        raise UserError(
            f"model.vocab_size is {asked}, but the tokenizer has {vocabulary.size} ids; leave it out to follow the data"
        )
    special = {
        "eos_token_id": vocabulary.end_of_text,
        "bos_token_id": vocabulary.end_of_text,
        "pad_token_id": vocabulary.padding if vocabulary.padding is not None else vocabulary.end_of_text,
    }
    return HybridConfig(**{**special, **model, "vocab_size": asked or vocabulary.size})


def build_model(config: HybridConfig, *, seed: int) -> HybridForCausalLM:
    """A model with fresh weights, which depend on the configuration and the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HybridForCausalLM(config)


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """What a model costs, known before it is trained."""

    parameters: dict[str, int]
    total: int
    trainable: int
    flops: FlopsReport


def model_figures(model: PreTrainedModel, context_length: int) -> ModelFigures:
    """Parameters by part and analytic forward FLOPs per token at ``context_length``; works on the meta device."""
    assert isinstance(model.config, HybridConfig)
    return ModelFigures(
        parameters=parameters_by_part(model),
        total=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        flops=forward_flops(model.config, context_length),
    )


def figures_of(model: Mapping[str, Any], *, vocabulary_size: int, context_length: int) -> ModelFigures:
    """``model_figures`` of a recipe's `model` section, without memory for weights."""
    config = model_config(model, Vocabulary(size=vocabulary_size))
    with torch.device("meta"):
        return model_figures(HybridForCausalLM(config), context_length)


_FROM_THE_DATA = ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id")


def resolved_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default of the model written out, except what follows from the data."""
    plain = recipe_to_dict(recipe)
    if recipe.capability != "attention_routing":
        return plain  # its sections are instances already, defaults and all
    config = HybridConfig(**recipe.model)
    own = inspect.get_annotations(HybridConfig)
    plain["model"] = {
        name: getattr(config, name) for name in own if name in recipe.model or name not in _FROM_THE_DATA
    }
    return plain
