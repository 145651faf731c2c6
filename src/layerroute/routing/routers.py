"""Networks that look at a hidden state and give one logit for each site and path."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from layerroute.errors import UserError, nearest

ROUTERS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "linear": lambda hidden_size: (),
    "mlp": lambda hidden_size: (hidden_size // 2, hidden_size // 4),
}
"""By name, the widths of a router's hidden layers, from the model's D."""


class MLPRouter(nn.Module):
    """Token-level router: hidden state to logits, in fp32 whatever the dtype of the model.

    With no hidden ``widths`` it is one linear map, the ``R: R^d -> R^(L x P)`` of the attention-routing draft.

    Args:
        hidden_size: D.
        sites: R.
        paths: P. With two paths a single logit z is produced and the logits are (0, z): the softmax over them is
            the sigmoid of z, and a common shift of both logits, which no choice can see, does not exist.
        widths: hidden layer widths with GELU between; layer skipping uses (D/2, D/4).
        initial_bias: starting value of the last path's logit; above 0 the router starts near the expensive path.
        zero_init: start the last layer's weights at 0, so that all tokens are treated alike at first. By default
            they are small (std 0.02).
    """

    def __init__(
        self,
        hidden_size: int,
        sites: int,
        paths: int = 2,
        *,
        widths: Sequence[int] = (),
        initial_bias: float = 0.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if paths < 2:
            raise ValueError(f"a choice needs at least 2 paths, got {paths}")
        self.sites, self.paths = sites, paths
        self.initial_bias, self.zero_init = initial_bias, zero_init
        outputs = sites * (1 if paths == 2 else paths)
        sizes = [hidden_size, *widths, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b, dtype=torch.float32) for a, b in pairwise(sizes))
        for layer in self.linears():
            layer.started_by_parent = True  # type: ignore[assignment]  # for models that initialise every linear layer by their own rule
        self.reset_parameters()

    def linears(self) -> list[nn.Linear]:
        """The linear maps, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the starting weights (transformers calls this again when it initialises a model)."""
        for layer in self.linears():
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        last = self.linears()[-1]
        if self.zero_init:
            nn.init.zeros_(last.weight)
        last.bias.view(self.sites, -1)[:, -1] = self.initial_bias

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T R P"]:
        """Logits of every path at every site."""
        logits = self.outputs(hidden).unflatten(-1, (self.sites, -1))
        return F.pad(logits, (1, 0)) if self.paths == 2 else logits

    def outputs(self, hidden: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens O"]:
        """What the last map gives: with two paths one logit a site, else one a site and path."""
        with torch.autocast(hidden.device.type, enabled=False):
            x = hidden.float()
            for index, layer in enumerate(self.linears()):
                x = F.linear(x if index == 0 else F.gelu(x), layer.weight.float(), layer.bias.float())
        return x


def build_router(
    kind: str,
    hidden_size: int,
    sites: int,
    paths: int = 2,
    *,
    widths: Sequence[int] | None = None,
    initial_bias: float = 0.0,
    zero_init: bool = False,
) -> MLPRouter:
    """Build the router named ``kind``; see ``hidden_widths`` for the default of ``widths``."""
    hidden = hidden_widths(kind, hidden_size, widths)
    return MLPRouter(hidden_size, sites, paths, widths=hidden, initial_bias=initial_bias, zero_init=zero_init)


def hidden_widths(kind: str, hidden_size: int, widths: Sequence[int] | None) -> tuple[int, ...]:
    """Widths of a router's hidden layers: those of ``ROUTERS``, or those given in their place where there are any.

    Raises:
        UserError: for an unknown kind.
    """
    if kind not in ROUTERS:
        raise UserError(f"unknown router {kind!r}.{nearest(kind, ROUTERS)}")
    own = ROUTERS[kind](hidden_size)
    return own if widths is None or not own else tuple(widths)


def router_flops(
    kind: str, hidden_size: int, outputs: int, widths: Sequence[int] | None, *, routers: int = 1
) -> float:
    """Forward FLOPs for one token of so many routers, which have ``outputs`` logits among them."""
    sizes = [hidden_size, *hidden_widths(kind, hidden_size, widths), outputs // routers]
    return routers * 2.0 * sum(a * b for a, b in pairwise(sizes))
