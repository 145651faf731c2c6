"""Configuration of the hybrid model: any pattern of Gated DeltaNet, softmax and routed layers."""

from dataclasses import asdict, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from layerroute.errors import UserError, check_keys, expect, expect_limits, nearest
from layerroute.hybrid.execution import HybridProfitability
from layerroute.routing.execution import EXECUTIONS
from layerroute.routing.module import RoutingConfig
from layerroute.routing.serving import check_serve

LAYER_KINDS = ("gdn", "softmax", "window", "routed")
PATHS = ("gdn", "softmax")
CHOICES = {
    "router_mode": ("parallel", "sequential"),
    "granularity": ("token", "head"),
    "routed_unit": ("mixer", "block"),
    "context": ("full_context", "own_context"),
    "execution": EXECUTIONS,
}
# transformers builds the right cache layer for each of these names.
_CACHE_KINDS = {
    "gdn": "linear_attention",
    "softmax": "full_attention",
    "window": "full_attention",
    "routed": "hybrid",
}


@strict
class HybridConfig(PreTrainedConfig):
    """A decoder in which each layer mixes tokens by Gated DeltaNet, by softmax attention, or by either, per token.

    Attributes:
        vocab_size: entries of the vocabulary. Default 50,257 (GPT-2).
        hidden_size: D. Default 768.
        layer_pattern: one of ``gdn``, ``softmax``, ``window``, ``routed`` for each layer, of any length. Default
            ``[gdn, routed, routed, softmax]``, the original experiment. ``window`` is softmax attention that sees the
            last ``window`` tokens alone.
        window: tokens that a ``window`` layer sees, the token itself among them. Older keys stay in the cache and are
            not read.
        num_attention_heads: H; must divide ``hidden_size``. Default 12.
        num_key_value_heads: heads of K and V of softmax attention (grouped queries). Default H.
        head_dim: of softmax heads and of GDN keys. Default ``hidden_size / H`` (64).
        gdn_expand_v: width of a GDN value head over ``head_dim``. Default 1, which keeps a GDN mixer at 5/4 of the
            parameters of an attention mixer (the fifth matrix is the output gate).
        gdn_conv_size: taps of the short causal convolution on q, k and v. Default 4.
        mlp_ratio: the SwiGLU MLP has the parameters of a two-matrix MLP of this ratio. Default 4.
        intermediate_size: width of the MLP; default 2/3 * ratio * hidden_size, rounded up to a multiple of 64.
        router_mode: ``parallel`` (default: all decisions from the output of the layer before the first routed one,
            or of layer ``router_layer``) or ``sequential`` (each routed layer decides from its own input).
        router_layer: index of the layer whose output the parallel router reads. Default: the layer before the first
            routed one (layer 0 in the original).
        granularity: ``token`` (default) or ``head``: one choice for each token, layer and head.
        routed_unit: what a choice is about: ``mixer`` (default; both paths share norms and MLP) or ``block`` (each
            path has its own norms, mixer and MLP).
        context: ``full_context`` (default): every token writes K/V and updates the GDN state, routing decides what it
            *reads*. ``own_context``: each path sees only its own tokens.
        normalize_paths: RMS-normalise each path's output before they are combined. Default False (the original).
        execution: ``auto`` (default), ``masked`` (both paths of every token are computed, the choice selects) or
            ``sparse`` (only the chosen path is). ``auto`` is sparse where that pays, by ``profitability``.
        profitability: fields of ``execution.HybridProfitability``, the thresholds of ``auto``.
        serve: ``threshold`` (default): the trained thresholds decide, and the rate is what they give on the text at
            hand, at its length. ``rate``: each sequence is held at ``routing.rate``, whatever the text and however
            long: a token's thresholds depend on what earlier tokens of its sequence took. ``rate:0.05``: within 0.05 at
            512 tokens where ``rate`` is within 0.01, which costs less.
        routing: fields of ``routing.RoutingConfig``.
        initializer_range: standard deviation of the weights at the start. Default 0.02.
        residual_init_scale: multiply the start of output projections by 1/sqrt(2 * layers) (GPT-2). Default True.
        max_position_embeddings: recorded for other libraries; nothing here depends on it.
        rope_parameters: rotary embedding of softmax heads, in the form of transformers. Default base 10,000.
        use_rope: rotary embedding on softmax heads. Default True.
        rms_norm_eps: Default 1e-6.
        use_cache: keep keys, values and states for generation. Default True.
        tie_word_embeddings: share embedding and output matrix. Default False.
        pad_token_id, bos_token_id, eos_token_id: ids of the tokenizer's padding, begin and end tokens; a run sets them.

    Raises:
        UserError: for values that do not fit together; the message says what would.
    """

    model_type = "layerroute_hybrid"
    keys_to_ignore_at_inference = ["past_key_values", "decision"]

    vocab_size: int = 50257
    hidden_size: int = 768
    layer_pattern: list[str] | None = None
    window: int | None = None
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    gdn_expand_v: int | float = 1
    gdn_conv_size: int = 4
    mlp_ratio: int | float = 4
    intermediate_size: int | None = None
    router_mode: str = "parallel"
    router_layer: int | None = None
    granularity: str = "token"
    routed_unit: str = "mixer"
    context: str = "full_context"
    normalize_paths: bool = False
    execution: str = "auto"
    profitability: dict[str, Any] | None = None
    serve: str = "threshold"
    routing: dict[str, Any] | None = None
    initializer_range: int | float = 0.02
    residual_init_scale: bool = True
    max_position_embeddings: int = 32768
    rope_parameters: dict[str, Any] | None = None
    use_rope: bool = True
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.layer_pattern is None:
            self.layer_pattern = ["gdn", "routed", "routed", "softmax"]
        expect(
            self.num_attention_heads >= 1,
            f"model.num_attention_heads: {self.num_attention_heads} must be at least 1",
        )
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"model.num_attention_heads: {self.num_attention_heads} heads do not divide hidden_size "
                    f"{self.hidden_size}; choose a divisor, or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            expect_limits(self, "model", "must be a positive number", "mlp_ratio")
            self.intermediate_size = -(-int(self.hidden_size * self.mlp_ratio * 2 / 3) // 64) * 64
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0}
        self._check()
        # Kept complete, so that a saved checkpoint says every value that it was trained with.
        self.routing = asdict(self.routing_config)
        self.profitability = asdict(HybridProfitability.of(self.profitability))
        super().__post_init__(**kwargs)
        self.validate_rope()  # transformers does so too, and would wrap what is raised

    def validate_rope(self) -> None:
        """Check the rotary embedding, if there is one.

        Raises:
            UserError: its type needs what is not there.
        """
        try:
            if self.use_rope:
                super().validate_rope()
        except KeyError as error:
            raise UserError(f"model.rope_parameters: {error.args[0]}") from None

    def _check(self) -> None:
        pattern = self.layer_pattern or []
        if not pattern:
            raise UserError("model.layer_pattern is empty; give at least one of gdn, softmax, window, routed")
        for kind in pattern:
            if kind not in LAYER_KINDS:
                raise UserError(
                    f"model.layer_pattern: unknown layer {kind!r}.{nearest(str(kind), LAYER_KINDS)}"
                )
        if ("window" in pattern) != (self.window is not None) or (
            self.window is not None and self.window < 1
        ):
            raise UserError(
                f"model.window is {self.window}; it is the number of tokens that `window` layers see, 1 or more, and "
                f"model.layer_pattern has {pattern.count('window') or 'none'} of them"
            )
        for key, valid in CHOICES.items():
            if getattr(self, key) not in valid:
                value = getattr(self, key)
                raise UserError(f"model.{key}: {value!r} is not known.{nearest(str(value), valid)}")
        for key in (
            "vocab_size",
            "hidden_size",
            "head_dim",
            "intermediate_size",
            "gdn_conv_size",
        ):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key}: {getattr(self, key)} must be at least 1")
        expect_limits(self, "model", "must be a positive number", "gdn_expand_v", "rms_norm_eps")
        expect_limits(self, "model", "must not be negative", "initializer_range")
        rope = self.rope_parameters or {}
        kinds = ("default", *ROPE_INIT_FUNCTIONS)
        if rope.get("rope_type", "default") not in kinds:
            told = nearest(str(rope["rope_type"]), kinds)
            raise UserError(f"model.rope_parameters: rope_type {rope['rope_type']!r} is not known.{told}")
        theta = rope.get("rope_theta", 10_000.0)
        if not (isinstance(theta, int | float) and theta > 0):
            raise UserError(f"model.rope_parameters: rope_theta is {theta}; it must be a number above 0")
        assert self.head_dim is not None and self.num_key_value_heads is not None
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"model.num_key_value_heads: {self.num_key_value_heads} must divide "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.use_rope and self.head_dim % 2:
            raise UserError(
                f"model.head_dim: {self.head_dim} must be even for rotary embeddings (or use_rope: false)"
            )
        if self.gdn_value_dim != self.head_dim * self.gdn_expand_v:
            raise UserError(
                f"model.gdn_expand_v: {self.gdn_expand_v} * head_dim {self.head_dim} is not a whole number"
            )
        self._check_routed(pattern)

    def _check_routed(self, pattern: list[str]) -> None:
        routed = self.routed_layers
        HybridProfitability.of(self.profitability)
        check_serve(self.serve, "model.serve", obstacle=self.serve_obstacle)
        if self.execution == "sparse" and self.sparse_obstacle is not None:
            raise UserError(
                f"model.execution: sparse is not possible: {self.sparse_obstacle}; use auto or masked"
            )
        if not routed:
            return
        if self.router_mode == "parallel":
            if routed[0] == 0:
                raise UserError(
                    "model.layer_pattern: the first layer is routed, but a parallel router reads the output of an "
                    "earlier layer; begin with gdn or softmax, or set router_mode: sequential"
                )
            if self.router_layer is not None and not 0 <= self.router_layer < routed[0]:
                raise UserError(
                    f"model.router_layer: {self.router_layer} must lie before the first routed layer, "
                    f"in 0..{routed[0] - 1}"
                )
        elif self.router_layer is not None:
            raise UserError("model.router_layer has no effect with router_mode: sequential; remove it")
        if self.granularity == "head":
            if self.routed_unit == "block":
                raise UserError(
                    "model.granularity: head needs routed_unit: mixer; a block has no heads to choose from"
                )
            if self.num_key_value_heads != self.num_attention_heads and self.context == "own_context":
                raise UserError(
                    "model.granularity: head with own_context needs num_key_value_heads = num_attention_heads, since "
                    "heads that share keys cannot own different ones"
                )

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers, the length of ``layer_pattern``."""
        return len(self.layer_pattern or [])

    @property
    def layer_types(self) -> list[str]:
        """The pattern in the words with which transformers chooses cache layers."""
        kinds = [_CACHE_KINDS[kind] for kind in self.layer_pattern or []]
        if set(kinds) == {"linear_attention"}:
            kinds[0] = "hybrid"  # some layer of the cache must know how many tokens have passed
        return kinds

    @property
    def routed_layers(self) -> list[int]:
        """Indices of the routed layers."""
        return [index for index, kind in enumerate(self.layer_pattern or []) if kind == "routed"]

    @property
    def gdn_value_dim(self) -> int:
        """V: width of one GDN value head."""
        assert self.head_dim is not None
        return int(self.head_dim * self.gdn_expand_v)

    @property
    def routing_config(self) -> RoutingConfig:
        """``routing`` as an object; unknown keys raise UserError with the nearest valid one."""
        check_keys(self.routing or {}, (field.name for field in fields(RoutingConfig)), "model.routing")
        return RoutingConfig(**(self.routing or {}))

    @property
    def sparse_obstacle(self) -> str | None:
        """Why this model's layers can only be executed masked, or None."""
        if self.granularity == "head" and self.context == "own_context":
            return "with granularity: head and own_context each head has tokens of its own"
        return None

    @property
    def serve_obstacle(self) -> str | None:
        """Why the rate cannot be held while serving, or None."""
        if not self.routed_layers:
            return "model.layer_pattern has no routed layer"
        control = self.routing_config.control
        return (
            None
            if control is None
            else f"the decisions of routing.control: {control} have no margins to move"
        )

    def sites_of(self, layer: int) -> list[str]:
        """Names of the sites of one routed layer."""
        if self.granularity == "head":
            return [f"layer{layer}.head{head}" for head in range(self.num_attention_heads)]
        return [f"layer{layer}.{self.routed_unit}"]

    @property
    def sites(self) -> list[str]:
        """Names of all sites, in order."""
        return [site for layer in self.routed_layers for site in self.sites_of(layer)]
