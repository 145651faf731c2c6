"""The sections `model`, `start`, `adapt` and `objective` of layer-skipping recipes. No torch here."""

from dataclasses import dataclass, field
from typing import Literal

from layerroute.errors import expect, expect_limits
from layerroute.training.configuration import RateScheduleConfig, ScheduleConfig

Arm = Literal["routed", "static_influence", "static_greedy", "random", "periodic", "early_exit"]


@dataclass(kw_only=True)
class PretrainedConfig:
    """The model that a router is added to.

    Attributes:
        name: ``smollm2-135m`` (default; from a package, no download), a local folder, or an id on the Hugging Face hub.
        dtype: of the frozen weights; ``auto`` is the checkpoint's own on a GPU and float32 on a CPU.
        quantization: ``nf4`` loads the frozen weights in 4 bits (QLoRA, Dettmers et al. 2023; needs bitsandbytes).
        attention: transformers' attention implementation (``sdpa``, ``flash_attention_2``, ``eager``); default its
            own choice.
        trust_remote_code: let the model run code that comes with it. Off by default.
    """

    name: str = "smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "nf4"] = "none"
    attention: str | None = None
    trust_remote_code: bool = False


@dataclass(kw_only=True)
class StartConfig:
    """Where router and skip paths begin.

    Attributes:
        method: ``calibrated`` (default: fitted without gradients on training text, once for all arms, and cached) or
            ``fresh`` (new weights, by the `skip` section).
        arm: which arm of the calibration: ``routed`` or one of its controls, all with skip paths fitted alike. With
            ``skip.skip_path: identity`` the static ones leave their layers out, with nothing in their place.
        folder: of a calibration that `layerroute calibrate --controls --out` made; default: made when first needed.
        tokens_statistics, tokens_selection, tokens_search: of the calibration.
        own_text: share of what the fits see that the model writes itself (see ``CalibrationConfig``).
        allocation: ``even`` (default): the same share of the tokens skips at every layer; ``cost``: by what skipping
            costs; ``search``: a program of layers a prompt, for ``skip.granularity: sequence`` (see
            ``CalibrationConfig``).
        min_share: of ``cost``: a layer is skipped by none or by at least this share of the tokens.
        seed: of the calibration's text; not the run's seed, so that all seeds and arms start at the same.
        thresholds: ``site`` (each site at its own rate; default for calibrated starts), ``model`` (one threshold, at
            which the model as a whole is at its rate; default for fresh ones) or ``auto``.
    """

    method: Literal["calibrated", "fresh"] = "calibrated"
    arm: Arm = "routed"
    folder: str | None = None
    tokens_statistics: int = 12288
    tokens_selection: int = 2048
    tokens_search: int = 1536
    own_text: float = 0.25
    allocation: Literal["even", "cost", "search"] = "even"
    min_share: float = 0.1
    seed: int = 42
    thresholds: Literal["auto", "site", "model"] = "auto"

    def __post_init__(self) -> None:
        expect(
            self.method == "calibrated" or (self.arm == "routed" and self.folder is None),
            "start.arm and start.folder belong to start.method: calibrated; a fresh start is made by the skip section",
        )
        tokens = ("tokens_statistics", "tokens_selection", "tokens_search")
        expect_limits(self, "start", "must be at least 1", *tokens)
        expect(0.0 <= self.own_text < 1.0, f"start.own_text is a share below 1, got {self.own_text}")
        expect_limits(self, "start", "is a share from 0 to 1", "min_share")

    @property
    def threshold_scope(self) -> str:
        """``site`` or ``model``."""
        if self.thresholds != "auto":
            return self.thresholds
        return "site" if self.method == "calibrated" else "model"


@dataclass(kw_only=True)
class AdaptConfig:
    """What is trained, and how fast. The base itself never is.

    Learning rates are shares of `train.learning_rate`; 0 freezes. A group whose ``begin`` (a share of the run) has not
    come stands still: two stages are ``lora_begin: 0.5``.

    Attributes:
        lora_rank, lora_alpha, lora_dropout, lora_targets: of the LoRA adapter (Hu et al. 2022); rank 0 = none.
        lora_begin: see above.
        router_rate, router_begin: of the routers. A calibrated router (default) stays as it is.
        skip_rate, skip_begin: of the skip paths.
    """

    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.05
    lora_targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    lora_begin: float = 0.0
    router_rate: float = 0.0
    router_begin: float = 0.0
    skip_rate: float = 1.0
    skip_begin: float = 0.0

    def __post_init__(self) -> None:
        expect_limits(self, "adapt", "must not be negative", "lora_rank", "router_rate", "skip_rate")
        expect(bool(self.lora_targets) or not self.lora_rank, "adapt.lora_targets is empty; name some")
        expect_limits(self, "adapt", "is a share, 0 <= share < 1", "lora_dropout")
        begins = ("lora_begin", "router_begin", "skip_begin")
        expect_limits(self, "adapt", "is a share of the run, 0 <= share < 1", *begins)


@dataclass(kw_only=True)
class SkippingObjectiveConfig:
    """The training loss of layer skipping: a weighted sum, each term of which is logged apart.

    ce·CE + kd·T²·KL(full model ‖ routed) + activity·mean p(run) + budget·(mean p(run) - rate)², and where asked for a
    Lagrangian or a policy gradient. The teacher is the same model with router and adapter off. Validation is CE alone.

    Attributes:
        ce_weight, kd_weight: of cross-entropy and distillation (Hinton et al. 2015).
        kd_temperature: T.
        kd_begin: share of the run before which there is no distillation.
        activity_weight: λ, of the mean probability to run over tokens and sites (a per-layer L1); with a policy
            gradient, of the share that runs in its cost.
        budget_weight: μ, of the squared distance of the cost-weighted mean probability to run from the rate.
        budget_begin: share of the run in which λ and μ rise from 0.
        lagrangian_step: of the multiplier's ascent (0 = no Lagrangian).
        policy_weight: of REINFORCE with a moving-average baseline, for `skip.routing.estimator: reinforce`; its cost is
            CE + λ·share that runs.
        budgets: skip budgets, one of which is drawn for each batch: one checkpoint then serves them all and what lies
            between. Default: only `skip.routing.rate`.
        temperature: τ of the training-time softmax.
        rate: the way to `skip.routing.rate`.
    """

    ce_weight: float = 0.3
    kd_weight: float = 0.7
    kd_temperature: float = 2.0
    kd_begin: float = 0.0
    activity_weight: float = 0.0
    budget_weight: float = 0.0
    budget_begin: float = 0.0
    lagrangian_step: float = 0.0
    policy_weight: float = 0.0
    budgets: list[float] = field(default_factory=list)
    temperature: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(start=1.0, end=0.5))
    rate: RateScheduleConfig = field(default_factory=RateScheduleConfig)

    def __post_init__(self) -> None:
        weights = "ce_weight kd_weight activity_weight budget_weight lagrangian_step policy_weight"
        expect_limits(self, "objective", "must not be negative", *weights.split())
        expect(
            self.ce_weight + self.kd_weight > 0.0,
            "objective.ce_weight and kd_weight are both 0: there is nothing to learn from",
        )
        expect_limits(self, "objective", "must be above 0", "kd_temperature")
        expect_limits(self, "objective", "is a share of the run, 0 <= share < 1", "kd_begin", "budget_begin")
        for budget in self.budgets:
            expect(0.0 < budget < 1.0, f"objective.budgets are shares to skip, between 0 and 1, got {budget}")
        expect_limits(self.temperature, "objective.temperature", "must be above 0", "start", "end")
