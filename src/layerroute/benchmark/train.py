"""Case ``train``: whole training steps of a routed model and of a static one, on the same batches."""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layerroute.argument_types import add_number
from layerroute.benchmark.case import Case, Check, Comparison, Prepared, Value, agree
from layerroute.errors import UserError
from layerroute.hybrid import HybridConfig, HybridForCausalLM, forward_flops
from layerroute.hybrid.hybrid_config import PATHS
from layerroute.precision import autocast, choose_device, choose_precision
from layerroute.recipe import Recipe, load_recipe
from layerroute.routing import forced
from layerroute.routing.estimators import SPARSE_ESTIMATORS
from layerroute.training.hybrid import build_model, model_config
from layerroute.training.objective import HybridLoss
from layerroute.training.optimization import ParameterGroup, decay_parameter_names, optimizer_groups

DESCRIPTION = """\
Time training steps (forward, backward, clipping, AdamW) of the models of two recipes on the same batches of random
tokens, executed as in training: both paths of a routed layer are computed (masked), unless the estimator is one that
trains sparsely. Before that, each routed model, with every token sent to one path, must equal the plain model that has
its weights: logits and gradients."""

_ROUTED = "attention_routing/dynamic"
_BATCHES = 4
_TOLERANCE = 2e-4
_COMPARED_SEQUENCES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    parser.add_argument(
        "--static",
        default="attention_routing/baseline",
        metavar="RECIPE",
        help="the static model (default: %(default)s)",
    )
    parser.add_argument(
        "--routed",
        nargs="+",
        default=[_ROUTED],
        metavar="RECIPE",
        help=f"the routed models (default: {_ROUTED})",
    )
    add_number(parser, "--batch-size", None, "sequences a step (default: the recipe's)")
    length = "tokens a sequence (default: the static recipe's)"
    add_number(parser, "--sequence-length", None, length, metavar="T")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="default: the static recipe's")


def comparisons(arguments: argparse.Namespace) -> list[Comparison]:
    """One row: the static arm and every routed one take turns."""
    recipes: dict[str, Recipe] = {}
    for path in (arguments.static, *arguments.routed):
        recipe = load_recipe(path)
        if recipe.name in recipes:
            raise UserError(
                f"two recipes are named {recipe.name!r}; give each its own name to tell them apart."
            )
        if recipe.capability != "attention_routing":
            raise UserError(
                f"recipe {recipe.name!r} is for {recipe.capability}; this case trains attention_routing models."
            )
        recipes[recipe.name] = recipe
    static = next(iter(recipes.values()))
    if all("routed" not in _pattern(recipe) for recipe in recipes.values()):
        raise UserError("none of the recipes has a routed layer; give one that has with --routed RECIPE.")
    batch = arguments.batch_size or static.train.batch_size
    time = arguments.sequence_length or static.data.sequence_length
    device = choose_device(static.train.device)
    precision = choose_precision(arguments.precision or static.train.precision, device).name
    return [
        Comparison(
            title=f"{batch} sequences of {time} tokens, {precision}",
            labels={"batch": batch, "time": time, "precision": precision},
            baseline=static.name,
            tokens=batch * time,
            prepare=partial(_prepare, recipes, batch, time, precision, device),
            device=device,
        )
    ]


CASES = {"train": Case(description=DESCRIPTION, add_arguments=add_arguments, comparisons=comparisons)}


def _pattern(recipe: Recipe) -> Sequence[str]:
    return HybridConfig(**recipe.model).layer_pattern or []


class TrainingStep:
    """One model with its optimizer; a call is one optimizer step on the next of a few fixed batches."""

    def __init__(
        self, recipe: Recipe, model: HybridForCausalLM, batches: Sequence[Tensor], precision: str
    ) -> None:
        config = recipe.train
        self.recipe, self.model, self.precision = recipe, model, precision
        self.batches, self.loss = itertools.cycle(batches), HybridLoss(recipe.objective)
        groups, _ = optimizer_groups(
            [ParameterGroup(name="model", parameters=dict(model.named_parameters()))],
            decay_parameter_names(model),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.optimizer = torch.optim.AdamW(
            groups, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon
        )

    def __call__(self) -> None:
        """Train on one batch."""
        config, batch = self.recipe.train, next(self.batches)
        rate = self.model.config.routing_config.rate
        self.optimizer.zero_grad()
        for ids in batch.tensor_split(min(config.gradient_accumulation, len(batch))):
            with autocast(self.precision, batch.device):
                terms, _, _ = self.loss(self.model, {"input_ids": ids, "labels": ids}, rate=rate)
            (terms.total * (len(ids) / len(batch))).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.max_gradient_norm)
        self.optimizer.step()


def _prepare(
    recipes: dict[str, Recipe], batch: int, time: int, precision: str, device: torch.device
) -> Prepared:
    vocabulary = {name: _vocabulary(recipe) for name, recipe in recipes.items()}
    generator = torch.Generator().manual_seed(0)
    drawn = (
        torch.randint(min(vocabulary.values()), (batch, time), generator=generator) for _ in range(_BATCHES)
    )
    batches = [ids.to(device) for ids in drawn]
    arms = {}
    for name, recipe in recipes.items():
        config = model_config(recipe.model, vocabulary[name])
        model: Any = build_model(config, seed=recipe.seed).train()
        arms[name] = TrainingStep(recipe, model.to(device), batches, precision)

    def gate() -> Iterator[Check]:
        for name, arm in arms.items():
            for index, path in enumerate(PATHS) if arm.model.config.routed_layers else ():
                what = f"{{}} of {name} with all tokens on {path} and of the plain {path} model"
                ids = batches[0][:_COMPARED_SEQUENCES]
                with forced(arm.model, index):
                    routed = _results(arm.model, ids)
                yield from agree(what, routed, _results(plain_model(arm.model, path), ids), _TOLERANCE)

    return Prepared(
        gate=gate,
        arms=arms,
        count=lambda: {name: _facts(arm.model, recipes[name], time) for name, arm in arms.items()},
    )


def _vocabulary(recipe: Recipe) -> int:
    """What the recipe's tokenizer will have, without asking for its data."""
    bpe = recipe.data.tokenizer == "bpe"
    return int(
        recipe.model.get("vocab_size") or (recipe.data.vocabulary_size if bpe else HybridConfig().vocab_size)
    )


def _facts(model: HybridForCausalLM, recipe: Recipe, time: int) -> dict[str, Value]:
    config = model.config
    assert isinstance(config, HybridConfig)
    return {
        "layer_pattern": " ".join(_pattern(recipe)),
        "parameters": sum(value.numel() for value in model.parameters()),
        "forward_flops_per_token": forward_flops(config, time).forward_per_token,
        "optimizer_batch": recipe.train.batch_size,
        "execution": _execution(config),
    }


def _execution(config: HybridConfig) -> str:
    """How training steps are executed: not at all routed, masked, sparse or auto."""
    if not config.routed_layers:
        return "plain"
    sparse = config.routing_config.estimator in SPARSE_ESTIMATORS and config.sparse_obstacle is None
    return config.execution if sparse else "masked"


def _results(model: HybridForCausalLM, ids: Tensor) -> dict[str, Tensor]:
    """Logits, and the embedding's gradient, in inference mode and in fp32."""
    was_training = model.training
    output = model.eval()(input_ids=ids, labels=ids, use_cache=False)
    model.train(was_training)
    assert output.loss is not None and output.logits is not None
    (gradient,) = torch.autograd.grad(output.loss, [model.model.embed_tokens.weight])
    return {"logits": output.logits.detach(), "gradients": gradient}


def plain_model(routed: HybridForCausalLM, path: str) -> HybridForCausalLM:
    """The model in which every routed layer is a plain ``path`` layer, with copies of the same weights.

    Norms of the paths (``normalize_paths``) are laid over its layers.

    Args:
        routed: a model with routed layers; left as it is. The plain one is on its device and in its mode.
    """
    config: Any = routed.config
    settings = {**config.to_dict(), "router_layer": None, "granularity": "token", "serve": "threshold"}
    settings["layer_pattern"] = [path if kind == "routed" else kind for kind in config.layer_pattern or []]
    settings.pop("model_type", None)
    plain: Any = HybridForCausalLM(HybridConfig(**settings))
    state = {_plain_name(name, config, path): tensor for name, tensor in routed.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    plain.to(next(routed.parameters()).device)
    for layer in config.routed_layers if config.normalize_paths else ():
        norms: Any = routed.model.layers[layer].path_norms
        block: Any = plain.model.layers[layer].block
        if config.routed_unit == "block":
            block.register_forward_hook(partial(_normalized_change, norms[path]))
        else:
            block.mixer.register_forward_hook(partial(_normalized, norms[path]))
    return plain.train(routed.training)


def _normalized(norm: nn.Module, _: nn.Module, _given: tuple[Any, ...], output: Tensor) -> Any:
    return norm(output)


def _normalized_change(norm: nn.Module, _: nn.Module, given: tuple[Any, ...], output: Tensor) -> Any:
    return given[0] + norm(output - given[0])


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
