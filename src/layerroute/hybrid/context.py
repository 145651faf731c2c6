"""What every mixer needs to know of the tokens of one forward call."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import Cache

from layerroute.ops.routed_attention import Padding, Sight, sight_of
from layerroute.ops.tokens import TokenIndex


@dataclass(frozen=True, kw_only=True)
class TokenContext:
    """The tokens of one call, shared by all layers.

    Attributes:
        valid: (B, T) False at padding, or None if nothing is padded.
        key_valid: (B, past + T) the same for cached tokens too, or None.
        positions: (B, T) position in the sequence or document, 0 for the first real token.
        document_ids: (B, T) which packed document a token belongs to, or None; only without a cache.
        rotary: cosine and sine (B, T, D) of the rotary embedding, or None.
        past: tokens already in the cache.
    """

    valid: Bool[Tensor, "B T"] | None
    key_valid: Bool[Tensor, "B S"] | None
    positions: Int[Tensor, "B T"]
    document_ids: Int[Tensor, "B T"] | None
    rotary: tuple[Tensor, Tensor] | None
    cache: Cache | None
    past: int

    def attention_mask(self, keys: int) -> Bool[Tensor, "B 1 T S"] | None:
        """Which of ``keys`` cached and new tokens each token may see; None where plain causal attention will do.

        Every token sees itself, padding too: a row of the softmax without any key would be NaN, and NaN spreads.
        """
        time = self.positions.shape[1]
        if (
            self.key_valid is None
            and self.document_ids is None
            and (self.past == 0 or time == 1)
            and keys == self.past + time
        ):
            return None
        device = self.positions.device
        query = torch.arange(self.past, self.past + time, device=device)[:, None]
        key = torch.arange(keys, device=device)[None, :]
        visible = (key <= query)[None]
        if self.key_valid is not None:
            known = torch.nn.functional.pad(self.key_valid, (0, keys - self.key_valid.shape[1]))
            visible = visible & known[:, None, :]
        if self.document_ids is not None:
            visible = visible & (self.document_ids[:, :, None] == self.document_ids[:, None, :])
        return (visible | (key == query)).unsqueeze(1)

    @cached_property
    def padding(self) -> Padding:
        """Padding among cached and new tokens. Reading it the first time copies the mask to the CPU."""
        return Padding() if self.key_valid is None else Padding.of(self.key_valid)

    @cached_property
    def everyone(self) -> TokenIndex:
        """All new tokens."""
        on_host = torch.arange(self.positions.numel())
        device = self.positions.device
        here = on_host if device.type == "cpu" else on_host.to(device, non_blocking=True)
        return TokenIndex.of(here, on_host, self.positions.shape[1])

    def sight(self, index: TokenIndex, keys: int, heads: int = 1, window: int | None = None) -> Sight:
        """What gathered tokens see of ``keys`` cached and new ones; with ``heads`` the index is over row and head."""
        return sight_of(
            index, self.padding, keys, past=self.past, window=window, documents=self.document_ids, heads=heads
        )

    def own_mask(self, member: Bool[Tensor, "B T M"]) -> Bool[Tensor, "B M T T"]:
        """Among the new tokens: causal, the key is a member (or the token itself), of the same document."""
        time = self.positions.shape[1]
        index = torch.arange(time, device=member.device)
        visible = (index[None, :] <= index[:, None]) & member.transpose(1, 2)[:, :, None, :]
        if self.document_ids is not None:
            visible = visible & (self.document_ids[:, :, None] == self.document_ids[:, None, :]).unsqueeze(1)
        return visible | (index[None, :] == index[:, None])
