import json
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.trainer_callback import PrinterCallback

from layerroute.data.sequence import TokenSequence
from layerroute.errors import UserError
from layerroute.evaluation.texts import split_rows
from layerroute.objectives import switch_loss
from layerroute.recipe import load_recipe
from layerroute.routing import routings_of
from layerroute.training import objective as objective_module
from layerroute.training.arguments import training_arguments
from layerroute.training.checkpoint import newest_checkpoint
from layerroute.training.configuration import ObjectiveConfig, TrainConfig
from layerroute.training.errors import TrainingDiverged
from layerroute.training.hybrid import HybridTrainee
from layerroute.training.objective import HybridLoss, LossTerms
from layerroute.training.run import train_recipe
from layerroute.training.samples import TrainingWindows, evaluation_windows, model_inputs
from layerroute.training.trainer import RoutedTrainer

DEFAULTS = {"max_steps": 4, "batch_size": 4, "log_every": 1, "evaluate_every": 0, "save_every": 2, "precision": "fp32",
            "device": "cpu", "evaluation_sequences": 3, "evaluation_batch_size": 2, "report_to": []}  # fmt: skip


@pytest.fixture
def make_trainer(make_model, tmp_path: Path):
    """Make a trainer of a tiny model on tokens that repeat; keyword arguments are of TrainConfig."""

    def make(
        model=None, objective: ObjectiveConfig | None = None, folder: Path = tmp_path / "run", **settings
    ):
        config = TrainConfig(**{**DEFAULTS, **settings})
        tokens = (np.arange(400) * 7 % 40).astype(np.uint16)
        sequence = TokenSequence(tokens, end_of_text=0, sequence_length=8)
        samples = config.max_steps * config.batch_size
        objective = objective or ObjectiveConfig(balance_weight=0.01)
        model = model or make_model()
        trainee = SimpleNamespace(
            model=model,
            recipe=SimpleNamespace(train=config, objective=objective),
            tokenizer=None,
            own_weights=False,
            loss=lambda: HybridLoss(objective),
            groups=lambda: None,
            in_precision=nullcontext,
            before_evaluation=lambda: None,
        )
        trainer = RoutedTrainer(
            trainee,
            arguments=training_arguments(config, folder=folder, device=torch.device("cpu"), seed=1),
            windows=TrainingWindows(sequence, samples=samples, batch_size=config.batch_size, seed=1),
            validation=split_rows(model_inputs(sequence, evaluation_windows(sequence, 3), None), 2),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


def points(trainer: RoutedTrainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "lm_loss" in entry]


def weights(trainer: RoutedTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_the_total_is_cross_entropy_plus_weighted_terms(make_trainer) -> None:
    trainer = make_trainer(objective=ObjectiveConfig(balance_weight=0.5))
    trainer.train()
    for point in points(trainer):
        assert point["loss"] == pytest.approx(point["lm_loss"] + 0.5 * point["balance_loss"])
        assert {"temperature", "gradient_norm", "rate/layer1.mixer", "entropy/layer2.mixer"} <= set(point)
    assert [point["temperature"] for point in points(trainer)] == pytest.approx([1.0, 5 / 6, 4 / 6, 0.5])


def test_optimizer_and_schedule_are_those_of_the_recipe(make_trainer) -> None:
    trainer = make_trainer(max_steps=10, learning_rate=0.01, warmup_share=0.2, save_every=0)
    trainer.train()
    rates = [point["learning_rate"] for point in points(trainer)]
    assert rates == pytest.approx([0.005, 0.01, 0.01, *(0.01 * (10 - step) / 8 for step in range(3, 10))])
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    groups = optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert groups[0]["betas"] == (0.9, 0.95)
    assert groups[0]["eps"] == 1e-8
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))


def test_what_this_machine_cannot_do_is_told_before_anything_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(HybridTrainee, "read", lambda *_, **__: pytest.fail("it was read"))
    dynamic = partial(load_recipe, "attention_routing/dynamic")
    with pytest.raises(UserError, match="'nobody' is not a tracker"):
        train_recipe(dynamic({"train.report_to": ["nobody"]}), out=tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(UserError, match="must be a multiple of processes"):
        train_recipe(dynamic({"train.report_to": []}), out=tmp_path / "run")


def test_gradients_are_clipped_and_the_norm_before_it_is_logged(make_trainer) -> None:
    trainer = make_trainer(max_steps=1, max_gradient_norm=1e-3, save_every=0)
    seen = {}
    original = trainer.create_optimizer

    def create_optimizer(model=None):
        optimizer = original(model)
        step = optimizer.step

        def record(*args, **kwargs):
            grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
            seen["norm"] = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])))
            return step(*args, **kwargs)

        optimizer.step = record
        return optimizer

    trainer.create_optimizer = create_optimizer
    trainer.train()
    assert seen["norm"] == pytest.approx(1e-3, rel=0.01)
    assert points(trainer)[0]["gradient_norm"] > 0.1


def test_accumulated_micro_batches_are_one_batch(make_trainer, make_model, tmp_path: Path) -> None:
    # Without routing noise the only difference is the order of sums.
    settings = {"layer_pattern": ["gdn", "softmax"]}
    one = make_trainer(make_model(**settings), batch_size=4, folder=tmp_path / "a", save_every=0)
    two = make_trainer(
        make_model(**settings), batch_size=4, gradient_accumulation=4, folder=tmp_path / "b", save_every=0
    )
    for trainer in (one, two):
        trainer.train()
    # The norm too: AdamW and clipping hide a gradient that is too long by a factor.
    for name in ("lm_loss", "gradient_norm"):
        assert [p[name] for p in points(two)] == pytest.approx([p[name] for p in points(one)], rel=1e-4), name
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(two)[name], atol=1e-5), name
    assert one.meter.tokens == two.meter.tokens == 4 * 4 * 8


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step(make_trainer, monkeypatch, spoil) -> None:
    trainer = make_trainer(max_steps=6)
    before: dict[str, torch.Tensor] = {}
    original = objective_module.training_loss

    def poisoned(config, loss, decision, *, rate):
        terms = original(config, loss, decision, rate=rate)
        if trainer.state.global_step < 3:
            return terms
        before.update(weights(trainer))
        if spoil == "loss":
            return LossTerms(total=terms.total * math.nan, parts=terms.parts)
        trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
        return terms

    monkeypatch.setattr(objective_module, "training_loss", poisoned)
    with pytest.raises(TrainingDiverged) as caught:
        trainer.train()
    assert caught.value.step == 4
    assert caught.value.checkpoint == newest_checkpoint(trainer.folder) == trainer.folder / "checkpoint-2"
    told = {"loss": "training loss is nan at step 4", "gradient": "gradient norm is inf at step 4"}[spoil]
    assert told in str(caught.value)
    assert "checkpoint-2" in str(caught.value)
    after = weights(trainer)
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_before_the_first_checkpoint_divergence_says_so() -> None:
    error = TrainingDiverged("training loss", math.inf, step=1, checkpoint=None)
    assert "no checkpoint was saved yet" in str(error)


def test_evaluation_is_bit_identical_and_touches_nothing(make_trainer) -> None:
    trainer = make_trainer(save_every=0)
    trainer.train()
    before, state = weights(trainer), torch.get_rng_state()
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first == second
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in before.items())
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.model.training


def test_validation_loss_is_cross_entropy_alone(make_trainer, make_model) -> None:
    heavy = make_trainer(make_model(), objective=ObjectiveConfig(balance_weight=100.0))
    light = make_trainer(make_model(), objective=ObjectiveConfig())
    assert heavy.evaluate()["eval_loss"] == light.evaluate()["eval_loss"]
    model = heavy.model.eval()
    ids = torch.cat([batch["input_ids"] for batch in heavy.validation])
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids, use_cache=False)
    assert heavy.evaluate()["eval_loss"] == pytest.approx(float(output.loss), rel=1e-6)
    assert float(switch_loss(output.decision)) > 0.5  # there is something that could have been added


def test_checkpoints_are_whole_few_and_hold_no_pickled_object(make_trainer) -> None:
    trainer = make_trainer(max_steps=8, keep_checkpoints=2)
    trainer.train()
    assert sorted(path.name for path in trainer.folder.iterdir()) == ["checkpoint-6", "checkpoint-8"]
    checkpoint = trainer.folder / "checkpoint-8"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"model.safetensors", "layerroute_state.json"} <= names
    assert not names & {"training_args.bin", "pytorch_model.bin"}
    from transformers.trainer_pt_utils import safe_globals

    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(checkpoint / name, weights_only=True)
    with safe_globals():
        torch.load(checkpoint / "rng_state.pth", weights_only=True)
    state = json.loads((checkpoint / "layerroute_state.json").read_text())
    assert state["step"] == 8
    assert state["meter"]["tokens"] == 8 * 4 * 8


def test_a_checkpoint_that_cannot_be_finished_never_gets_its_name(make_trainer, monkeypatch) -> None:
    trainer = make_trainer(max_steps=4, save_every=2)

    def fail(output_dir: str) -> None:
        if output_dir.endswith("checkpoint-4"):
            raise OSError(28, "No space left on device", output_dir)

    monkeypatch.setattr(trainer, "_save_rng_state", fail)
    monkeypatch.setattr("layerroute.training.checkpoint.missing_files", lambda path: [])
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert newest_checkpoint(trainer.folder) == trainer.folder / "checkpoint-2"
    assert not (trainer.folder / "checkpoint-4").exists()


def test_the_controller_learns_from_training_decisions_and_is_saved(make_trainer, make_model) -> None:
    model = make_model(routing={"budget": "controller", "rate": 0.0, "threshold_step": 0.5})
    trainer = make_trainer(model, objective=ObjectiveConfig())
    trainer.train()
    thresholds = routings_of(model)[0].thresholds
    assert thresholds.value.tolist() == pytest.approx([2.0, 2.0])  # four steps, each above the rate asked for
    from safetensors.torch import load_file

    saved = load_file(trainer.folder / "checkpoint-4" / "model.safetensors")
    assert any(torch.equal(value, thresholds.value) for value in saved.values())


def test_a_step_is_timed_without_evaluation_and_saving(make_trainer, monkeypatch) -> None:
    import time

    trainer = make_trainer(max_steps=2, save_every=1, evaluate_every=1)
    original = trainer.evaluate

    def slow(*args, **kwargs):
        time.sleep(0.5)
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer, "evaluate", slow)
    started = time.perf_counter()
    trainer.train()
    assert time.perf_counter() - started > 1.0
    assert trainer.meter.seconds < time.perf_counter() - started - 1.0
    assert points(trainer)[-1]["tokens_per_second"] > 0
