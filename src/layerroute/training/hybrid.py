"""Attention routing as what a run trains: a hybrid model from scratch, on text or on recall sequences."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from layerroute.data.prepare import prepare_data
from layerroute.data.recall.prepared import RecallData
from layerroute.errors import UserError
from layerroute.evaluation.bigram import bigram_cross_entropy
from layerroute.evaluation.perplexity import forward
from layerroute.evaluation.recall import recall_by_distance, recall_by_length
from layerroute.evaluation.routing_statistics import RoutingStatistics
from layerroute.hybrid import HybridConfig, HybridForCausalLM, bytes_read, forward_flops, parameters_by_part
from layerroute.precision import ChosenPrecision
from layerroute.recipe import Recipe, recipe_to_dict
from layerroute.training.objective import HybridLoss, RoutedLoss
from layerroute.training.summary import (
    describe_data,
    describe_memory,
    describe_model,
    describe_run,
    estimate_memory,
)
from layerroute.training.trainee import Trainee, parameter_section

_FROM_THE_DATA = ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id")


def model_config(
    model: Mapping[str, Any], vocabulary: int, *, end_of_text: int | None = None, padding: int | None = None
) -> HybridConfig:
    """The configuration of a recipe's `model` section for a tokenizer.

    `vocab_size` follows the data unless the recipe gives a larger one (a padded output matrix).

    Args:
        vocabulary: number of ids.
        end_of_text, padding: ids of special tokens; padding is end-of-text where there is none of its own.

    Raises:
        UserError: if the recipe's vocabulary is smaller than the data's.
    """
    asked = model.get("vocab_size")
    if asked is not None and asked < vocabulary:
        raise UserError(
            f"model.vocab_size is {asked}, but the tokenizer has {vocabulary} ids; leave it out to follow the data"
        )
    special = dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), end_of_text)
    if padding is not None:
        special["pad_token_id"] = padding
    return HybridConfig(**{**special, **model, "vocab_size": asked or vocabulary})


def build_model(config: HybridConfig, *, seed: int) -> HybridForCausalLM:
    """A model with fresh weights, which depend on the configuration and the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HybridForCausalLM(config)


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


class HybridTrainee(Trainee):
    """See ``Trainee``. On recall data loss and accuracy, of training and evaluation, are those of the answers."""

    def read(self, *, progress: bool) -> None:
        """Prepare the data (recall sequences are made when they are needed); the vocabulary follows from them."""
        data = self.recipe.data
        if data.source == "recall":
            self.data = RecallData(data)
        else:
            self.data = prepare_data(data, progress=progress)
        self.config: HybridConfig = model_config(
            self.recipe.model,
            self.data.vocabulary_size,
            end_of_text=self.data.end_of_text,
            padding=self.tokenizer.pad_token_id,
        )

    def build(self, *, device: torch.device, precision: ChosenPrecision, tell: Callable[[str], None]) -> None:
        """Fresh weights, which depend on configuration and seed alone."""
        del tell
        self.precision, self.device = precision, device
        self.model = build_model(self.config, seed=self.recipe.seed)
        self.parameters = parameter_section(self.model, parameters_by_part(self.model))
        self.flops = forward_flops(self.config, self.recipe.data.sequence_length)

    def loss(self) -> RoutedLoss:
        """The model's own cross-entropy, and the terms of the recipe."""
        return HybridLoss(self.recipe.objective, few=isinstance(self.data, RecallData))

    @property
    def asked_rate(self) -> float | None:
        """The balance loss asks for none: the original serves what argmax makes of it."""
        routing = self.config.routing_config
        asked = routing.budget != "none" or self.recipe.objective.budget_weight > 0
        return routing.rate if asked and routing.control is None else None

    def write(self, folder: Path) -> None:
        """Weights, configuration and tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def describe(self, micro_batch: int) -> list[str]:
        """Model by part, data, tokens, machine, memory."""
        memory = estimate_memory(
            self.config,
            parameters=self.parameters["total"],
            micro_batch=micro_batch,
            sequence_length=self.recipe.data.sequence_length,
            precision=self.precision.name,
            gradient_checkpointing=self.recipe.train.gradient_checkpointing,
        )
        data = self.data.describe()
        return [
            *describe_model(self.config, self.parameters, self.flops),
            describe_data(data),
            *describe_run(self.recipe, data["train_tokens"], self.device, self.precision),
            describe_memory(memory),
        ]

    def decided_by(self, statistics: RoutingStatistics) -> dict[str, Any]:
        config, routing = self.config, self.config.routing_config
        return {
            "router": config.router_mode,
            "control": routing.control,
            "context": config.context,
            "estimator": None if routing.control else routing.estimator,
        }

    def flops_section(self, statistics: RoutingStatistics | None, executed: float | None) -> dict[str, Any]:
        flops = self.flops
        section: dict[str, Any] = {
            "forward_per_token": flops.forward_per_token,
            "by_part": flops.by_part,
            "by_path": flops.by_path,
            "executed_per_token": executed,
            "context_length": flops.context_length,
        }
        if not flops.routed_layers:
            section["routed_per_token"] = flops.forward_per_token
        elif statistics is not None:
            section["routed_per_token"] = flops.at_rate(statistics.mean_rate)
        return section

    def measure(self) -> dict[str, Any]:
        """On recall data ``recall``, by length and by distance, on text ``copies`` where they are asked for.

        With either comes ``cache``, the bytes that a token reads.
        """
        if not isinstance(self.data, RecallData):
            found = super().measure()
            return {**found, "cache": self._cache_section()} if found else {}
        train, task = self.recipe.train, self.data.task
        sizes: dict[str, Any] = {
            "rows": train.evaluation_sequences,
            "batch_size": train.evaluation_batch_size,
            "precision": self.in_precision,
        }
        return {
            "cache": self._cache_section(),
            "recall": {
                "task": task.task,
                "pairs": task.pairs,
                "chance": 1 / task.values,
                "by_length": recall_by_length(self.model, self.data, task.evaluation_multiples, **sizes),
                "by_distance": recall_by_distance(self.model, self.data, **sizes),
            },
        }

    def _cache_section(self) -> dict[str, Any]:
        """On the sequences on which executed FLOPs are counted."""
        batch = self.validation()[0]["input_ids"]
        decision = forward(self.model, {"input_ids": batch}, self.in_precision).decision
        number = 2 if self.precision.name == "bf16" else 4
        found = bytes_read(self.config, batch.shape[1], decision, number=number)
        return {
            "read_per_token": found.per_token,
            "keys_values": found.keys_values,
            "state": found.state,
            "context_length": batch.shape[1],
        }

    def bigram_loss(self) -> float | None:
        """The floor: a bigram model of the same training tokens, on the same validation windows.

        None on recall data: what is recalled is drawn anew in every sequence, and pairs of tokens say nothing about it.
        """
        if isinstance(self.data, RecallData):
            return None
        windows = torch.cat([batch["input_ids"] for batch in self.validation()])
        return bigram_cross_entropy(self.data.train.tokens, windows.numpy(), self.config.vocab_size)
