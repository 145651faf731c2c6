"""The `train` and `objective` sections of a recipe. No torch here: recipes are checked without it."""

import math
from dataclasses import dataclass, field
from typing import Literal

from layerroute.errors import expect, expect_limits
from layerroute.precision import Device, Precision


@dataclass(kw_only=True)
class ScheduleConfig:
    """A value that moves linearly from `start` to `end` while the run goes from share `begin` to share `finish`.

    Shares are of the run's own number of steps (0 = first step, 1 = last step), so that a shorter run
    goes through the whole schedule too.

    Attributes:
        start: value until ``begin``.
        end: value from ``finish`` on.
        begin: share of the run at which the value begins to move.
        finish: share of the run at which it has arrived.
    """

    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0

    def __post_init__(self) -> None:
        expect(
            math.isfinite(self.start) and math.isfinite(self.end),
            f"schedule start and end must be finite numbers, got {self.start} and {self.end}",
        )
        _expect_span("schedule", self.begin, self.finish)

    def value(self, done: float) -> float:
        """The value where the share ``done`` of the run is done, in [0, 1]."""
        if done < self.begin or (done == self.begin < self.finish):
            return self.start
        if done >= self.finish:
            return self.end
        return self.start + (self.end - self.start) * ((done - self.begin) / (self.finish - self.begin))


def _expect_span(what: str, begin: float, finish: float) -> None:
    expect(
        0.0 <= begin <= finish <= 1.0,
        f"{what} begin and finish are shares of the run: 0 <= begin <= finish <= 1, "
        f"got begin={begin}, finish={finish}",
    )


@dataclass(kw_only=True)
class RateScheduleConfig:
    """How the rate asked for (`model.routing.rate`) is approached.

    A near-dense start (``start: 1.0``) lets the expensive path learn before it becomes rare.

    Attributes:
        start: rate at first; it then moves linearly to `model.routing.rate`. None: it is `model.routing.rate` all the
            time.
        begin: share of the run at which the rate begins to move.
        finish: share of the run at which it has arrived.
    """

    start: float | None = None
    begin: float = 0.3
    finish: float = 0.6

    def __post_init__(self) -> None:
        expect(
            self.start is None or 0.0 <= self.start <= 1.0,
            f"objective.rate.start is a share of tokens between 0 and 1, got {self.start}",
        )
        _expect_span("objective.rate", self.begin, self.finish)

    def towards(self, rate: float) -> ScheduleConfig:
        """The schedule that ends at ``rate``."""
        start = rate if self.start is None else self.start
        return ScheduleConfig(start=start, end=rate, begin=self.begin, finish=self.finish)


@dataclass(kw_only=True)
class ObjectiveConfig:
    """What is added to the cross-entropy in training (never in validation), and the schedules of the routing.

    Attributes:
        balance_weight: α of the Switch balance loss N·Σ f_j·P_j (0 = off; the original setting is 0.01, the
            stronger one 0.05).
        budget_weight: weight of (mean p - rate)², with gradient (0 = off). Budgets that are held by thresholds
            are part of the model: `model.routing.budget`.
        temperature: τ of the training-time softmax.
        rate: the way to `model.routing.rate`.
    """

    balance_weight: float = 0.0
    budget_weight: float = 0.0
    temperature: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(start=1.0, end=0.5))
    rate: RateScheduleConfig = field(default_factory=RateScheduleConfig)

    def __post_init__(self) -> None:
        expect_limits(self, "objective", "must not be negative", "balance_weight", "budget_weight")
        expect_limits(self.temperature, "objective.temperature", "must be above 0", "start", "end")


@dataclass(kw_only=True)
class TrainConfig:
    """How long, how fast and on what a model is trained.

    Attributes:
        max_steps: optimizer steps of the run; every schedule is a share of it.
        batch_size: sequences per optimizer step, over all processes and accumulation steps.
        gradient_accumulation: parts in which one process computes its share of a batch, to save memory.
        learning_rate: peak of AdamW's learning rate.
        warmup_share: share of `max_steps` in which the learning rate rises from 0; it then falls to 0.
        schedule: shape of the fall: ``linear`` (default) or ``cosine``.
        wait_above: nats: while the running mean of the training cross-entropy is above this, the schedules of
            ``objective`` and recall's curriculum stand still, and the learning rate goes on. None (default): they go by
            steps alone.
        weight_decay: decoupled decay of matrices; norms, biases and decay parameters have none.
        adam_beta1, adam_beta2: decay of AdamW's means of gradients and of their squares, per step.
        adam_epsilon: added to the root of the second mean.
        max_gradient_norm: gradients are scaled down to this global L2 norm.
        device: ``auto`` is the GPU if there is one.
        precision: ``auto`` takes bfloat16 autocast where the machine has fast units for it, else float32.
        log_every, evaluate_every, save_every: steps between training curve points, evaluations and
            checkpoints; 0 evaluations or checkpoints = only at the end.
        evaluation_sequences: validation windows of each evaluation, the same ones every time.
        evaluation_batch_size: windows computed at once; bounds memory, does not change results.
        threshold_tokens: held-out tokens on which the thresholds of a quantile budget are set before each evaluation,
            so that the rate asked for is the rate served (0: their running mean of training serves).
        keep_checkpoints: newest resumable checkpoints kept on disk (the best and the last model are always kept).
        route_sentences: validation sentences whose token routes are stored at the end, 0 = none.
        separate_documents: tokens see no other document of their window. Default False: windows are plain text with
            end-of-text tokens in it, as in the original.
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        report_to: trackers known to transformers' Trainer, by name, e.g. ``["tensorboard"]``.
    """

    max_steps: int = 1000
    batch_size: int = 48
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_share: float = 0.1
    schedule: Literal["linear", "cosine"] = "linear"
    wait_above: float | None = None
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    max_gradient_norm: float = 1.0
    precision: Precision = "auto"
    device: Device = "auto"
    log_every: int = 10
    evaluate_every: int = 100
    save_every: int = 100
    evaluation_sequences: int = 64
    evaluation_batch_size: int = 8
    threshold_tokens: int = 8192
    keep_checkpoints: int = 2
    route_sentences: int = 16
    separate_documents: bool = False
    gradient_checkpointing: bool = False
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self) -> None:
        for limit, names in (
            (
                "must be at least 1",
                "max_steps batch_size gradient_accumulation log_every evaluation_sequences evaluation_batch_size "
                "keep_checkpoints",
            ),
            (
                "must not be negative",
                "evaluate_every save_every route_sentences threshold_tokens weight_decay",
            ),
            ("must be a positive number", "learning_rate max_gradient_norm adam_epsilon"),
            ("is a share of the run, 0 <= share < 1", "warmup_share"),
            ("must be in [0, 1)", "adam_beta1 adam_beta2"),
        ):
            expect_limits(self, "train", limit, *names.split())
        if self.wait_above is not None:
            expect_limits(self, "train", "must be a positive number", "wait_above")
        expect(
            self.batch_size % self.gradient_accumulation == 0,
            f"train.batch_size ({self.batch_size}) must be a multiple of train.gradient_accumulation "
            f"({self.gradient_accumulation}): each accumulation step takes an equal part of the batch",
        )
