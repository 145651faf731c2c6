"""Case ``train``: whole training steps of a routed model and of a static one, on the same batches."""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from layerroute.benchmark.case import Check, Comparison, Prepared, Value
from layerroute.benchmark.twins import plain_twin
from layerroute.errors import UserError
from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.hybrid.configuration import PATHS
from layerroute.precision import autocast, choose_device, choose_precision
from layerroute.recipe import Recipe, load_recipe
from layerroute.routing import collect_decisions, forced
from layerroute.routing.estimators import SPARSE_ESTIMATORS
from layerroute.training.models import Vocabulary, build_model, model_config, model_figures
from layerroute.training.objective import training_loss
from layerroute.training.optimization import decay_parameter_names

DESCRIPTION = """\
Time training steps (forward, backward, clipping, AdamW) of the models of two recipes on the same batches of random
tokens, executed as in training: both paths of a routed layer are computed (masked), unless the estimator is one that
trains sparsely. Before that, each routed model, with every token sent to one path, must equal the plain model that has
its weights: logits and gradients."""

STATIC, ROUTED = "attention_routing/baseline", "attention_routing/dynamic"
_BATCHES = 4
_TOLERANCE = 2e-4
_COMPARED_SEQUENCES = 2
_GPT2_VOCABULARY = 50257


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    parser.add_argument(
        "--static", default=STATIC, metavar="RECIPE", help="the model held against (default: %(default)s)"
    )
    parser.add_argument(
        "--routed",
        nargs="+",
        default=[ROUTED],
        metavar="RECIPE",
        help=f"the models compared with it (default: {ROUTED})",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="sequences a step (default: the recipe's)"
    )
    parser.add_argument(
        "--sequence-length", type=int, metavar="T", help="tokens a sequence (default: the static recipe's)"
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="default: the static recipe's")


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row: the static arm and every routed one take turns."""
    static = load_recipe(arguments.static)
    recipes = {static.name: static}
    for path in arguments.routed:
        recipe = load_recipe(path)
        if recipe.name in recipes:
            raise UserError(
                f"two recipes are named {recipe.name!r}; give each its own name to tell them apart."
            )
        recipes[recipe.name] = recipe
    for recipe in recipes.values():
        if recipe.capability != "attention_routing":
            raise UserError(
                f"recipe {recipe.name!r} is for {recipe.capability}; this case trains attention_routing models."
            )
    if all("routed" not in _pattern(recipe) for recipe in recipes.values()):
        raise UserError("none of the recipes has a routed layer; give one that has with --routed RECIPE.")
    batch = _positive("--batch-size", arguments.batch_size, static.train.batch_size)
    time = _positive("--sequence-length", arguments.sequence_length, static.data.sequence_length)
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


def _pattern(recipe: Recipe) -> Sequence[str]:
    return HybridConfig(**recipe.model).layer_pattern or []


def _positive(option: str, given: int | None, default: int) -> int:
    if given is not None and given < 1:
        raise UserError(f"{option} is {given}; give at least 1.")
    return default if given is None else given


class TrainingStep:
    """One model with its optimizer; a call is one optimizer step on the next of a few fixed batches."""

    def __init__(
        self, recipe: Recipe, model: HybridForCausalLM, batches: Sequence[Tensor], precision: str
    ) -> None:
        config = recipe.train
        self.recipe, self.model, self.batches, self.precision = recipe, model, batches, precision
        self.device = batches[0].device
        self.steps = 0
        decayed = set(decay_parameter_names(model))
        named = list(model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for n, p in named if n in decayed], "weight_decay": config.weight_decay},
                {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
        )

    def __call__(self) -> None:
        """Train on one batch."""
        config = self.recipe.train
        batch = self.batches[self.steps % len(self.batches)]
        self.steps += 1
        self.optimizer.zero_grad()
        parts = batch.tensor_split(min(config.gradient_accumulation, len(batch)))
        for ids in parts:
            with (
                autocast(self.precision, self.device),
                collect_decisions(self.model, graph=True) as decisions,
            ):
                output = self.model(input_ids=ids, labels=ids, use_cache=False)
            assert output.loss is not None
            rate = float(self.recipe.model.get("routing", {}).get("rate", 0.5))
            decision = decisions[0] if decisions else None
            loss = training_loss(self.recipe.objective, output.loss, decision, rate=rate).total
            (loss * (len(ids) / len(batch))).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.max_gradient_norm)
        self.optimizer.step()


def _prepare(
    recipes: dict[str, Recipe], batch: int, time: int, precision: str, device: torch.device
) -> Prepared:
    vocabulary = {name: _vocabulary(recipe) for name, recipe in recipes.items()}
    generator = torch.Generator().manual_seed(0)
    smallest = min(vocabulary.values())
    batches = [
        torch.randint(smallest, (batch, time), generator=generator).to(device) for _ in range(_BATCHES)
    ]
    models, facts = {}, {}
    for name, recipe in recipes.items():
        config = model_config(recipe.model, Vocabulary(size=vocabulary[name]))
        models[name] = build_model(config, seed=recipe.seed).train()
        models[name].to(device)
        facts[name] = _facts(models[name], recipe, time)
    arms = {name: TrainingStep(recipes[name], model, batches, precision) for name, model in models.items()}
    return Prepared(
        gate=lambda: [
            check
            for name, model in models.items()
            if model.config.routed_layers
            for check in _checks(name, model, batches[0])
        ],
        arms=arms,
        facts=facts,
    )


def _vocabulary(recipe: Recipe) -> int:
    """What the recipe's tokenizer will have, without asking for its data."""
    given = recipe.model.get("vocab_size")
    if given is not None:
        return int(given)
    return recipe.data.vocabulary_size if recipe.data.tokenizer == "bpe" else _GPT2_VOCABULARY


def _facts(model: HybridForCausalLM, recipe: Recipe, time: int) -> dict[str, Value]:
    figures, config = model_figures(model, time), model.config
    assert isinstance(config, HybridConfig)
    return {
        "layer_pattern": " ".join(_pattern(recipe)),
        "parameters": figures.total,
        "forward_flops_per_token": figures.flops.forward_per_token,
        "optimizer_batch": recipe.train.batch_size,
        "execution": _execution(config),
    }


def _execution(config: HybridConfig) -> str:
    """How training steps are executed: not at all routed, masked, sparse or auto."""
    if not config.routed_layers:
        return "plain"
    sparse = config.routing_config.estimator in SPARSE_ESTIMATORS and config.sparse_obstacle is None
    return config.execution if sparse else "masked"


def _checks(name: str, model: HybridForCausalLM, batch: Tensor) -> Iterator[Check]:
    ids = batch[:_COMPARED_SEQUENCES]
    for index, path in enumerate(PATHS):
        what = f"of {name} with all tokens on {path} and of the plain {path} model"
        yield from _same(what, model, plain_twin(model, path), ids, force=index)


def _same(
    what: str, routed: HybridForCausalLM, plain: HybridForCausalLM, ids: Tensor, *, force: int
) -> Iterator[Check]:
    """Compare logits, and the embedding's gradient, in inference mode and in fp32."""

    def results(model: HybridForCausalLM) -> tuple[Tensor, Tensor]:
        was_training = model.training
        output = model.eval()(input_ids=ids, labels=ids, use_cache=False)
        model.train(was_training)
        assert output.loss is not None and output.logits is not None
        (gradient,) = torch.autograd.grad(output.loss, [model.model.embed_tokens.weight])
        return output.logits.detach(), gradient

    with forced(routed, force):
        actual = results(routed)
    for kind, mine, theirs in zip(("logits", "gradients"), actual, results(plain), strict=True):
        yield Check.compare(f"{kind} {what}", mine, theirs, _TOLERANCE)
