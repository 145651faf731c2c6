"""Lossless decoding: the routed path drafts, full depth verifies, and what comes out is full depth's own text.

Self-speculative decoding (Zhang et al. 2023, arXiv:2309.08168; Elhoushi et al. 2024, arXiv:2404.16710) with one set of
weights and one cache. The routed model, which skips layers, proposes a few tokens one by one; one pass of full depth
over them says which it would have chosen itself. The draft's keys and values are taken back before that pass, which
writes its own: the cache never keeps what the routed path computed.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache

from layerroute.errors import UserError
from layerroute.skipping.model import get_router, router_disabled


@dataclass(kw_only=True)
class LosslessGeneration:
    """What came out, and what drafting was worth.

    Attributes:
        tokens: the new tokens.
        drafted: tokens that the routed path proposed.
        accepted: of these, tokens that full depth chose too.
        passes: of full depth, the prompt's among them.
    """

    tokens: list[int] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    passes: int = 0

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that were accepted; None if none was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def tokens_per_pass(self) -> float:
        """New tokens for each pass of full depth."""
        return len(self.tokens) / self.passes


@torch.inference_mode()
def generate_lossless(
    model: nn.Module,
    input_ids: Int[Tensor, "B T"],
    *,
    max_new_tokens: int = 64,
    draft_tokens: int = 4,
    confidence: float = 0.5,
    eos_token_ids: Collection[int] = (),
    on_tokens: Callable[[list[int]], None] = lambda tokens: None,
) -> LosslessGeneration:
    """Continue one prompt exactly as greedy decoding at full depth would.

    Full depth is the model with its router switched off, adapters included. Verification computes several tokens at
    once, so that a tie within round-off may fall the other way; in fp32 these are rare.

    Args:
        model: routed, in inference mode, with ``kv: project``.
        input_ids: the prompt, one row, without padding.
        max_new_tokens: at most so many tokens are added.
        draft_tokens: at most so many are proposed at a time.
        confidence: drafting stops after a token to which the draft gives less probability (0: never).
        eos_token_ids: generation stops after one of these.
        on_tokens: called with the tokens of each pass as soon as they are certain.

    Raises:
        UserError: if the model cannot do this, or the arguments make no sense.
    """
    router = get_router(model)
    if router.config.kv != "project":
        raise UserError(
            "lossless decoding needs kv: project; with evict the draft's cache has no keys for full depth to read"
        )
    if input_ids.shape[0] != 1 or input_ids.shape[1] < 1:
        raise UserError(
            f"lossless decoding continues one prompt of at least one token, got {tuple(input_ids.shape)}"
        )
    if max_new_tokens < 1 or draft_tokens < 1:
        raise UserError("max_new_tokens and draft_tokens must be at least 1")
    # Without the model's configuration no layer forgets what is beyond a sliding window (its mask hides that), so
    # that tokens can be taken back.
    cache = DynamicCache()
    result = LosslessGeneration()
    ends = set(eos_token_ids)
    last = _verify(model, input_ids, cache, result)[-1:].tolist()
    while True:
        finished = _deliver(last, result, ends, max_new_tokens, on_tokens)
        if finished:
            return result
        pending = torch.tensor([result.tokens[-1:]], device=input_ids.device)
        room = max_new_tokens - len(result.tokens) - 1
        draft = _draft(model, pending, cache, min(draft_tokens, room), confidence)
        block = torch.cat([pending, draft], dim=1)
        chosen = _verify(model, block, cache, result).tolist()
        proposed = draft[0].tolist()
        same = 0
        while same < len(proposed) and proposed[same] == chosen[same]:
            same += 1
        result.drafted += len(proposed)
        result.accepted += same
        if same < len(proposed):
            cache.crop(same - len(proposed))
        last = chosen[: same + 1]


def _deliver(
    tokens: list[int],
    result: LosslessGeneration,
    ends: set[int],
    most: int,
    on_tokens: Callable[[list[int]], None],
) -> bool:
    """Hand over certain tokens up to an end; whether there is one."""
    certain: list[int] = []
    for token in tokens:
        certain.append(token)
        if token in ends or len(result.tokens) + len(certain) == most:
            break
    result.tokens += certain
    on_tokens(certain)
    return certain[-1] in ends or len(result.tokens) >= most


def _verify(model: Any, ids: Tensor, cache: DynamicCache, result: LosslessGeneration) -> Int[Tensor, "T"]:
    """What full depth chooses after each of these tokens; the cache holds full depth's keys and values of them."""
    first = result.passes == 0
    result.passes += 1
    with router_disabled(model):
        output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1 if first else 0)
    return output.logits[0].argmax(dim=-1)


def _draft(
    model: Any, pending: Int[Tensor, "1 1"], cache: DynamicCache, most: int, confidence: float
) -> Int[Tensor, "1 N"]:
    """Tokens that the routed path would add. What it wrote into the cache is taken back."""
    drafted: list[Tensor] = []
    token, read = pending, 0
    while len(drafted) < most:
        logits = model(token, past_key_values=cache, use_cache=True).logits[:, -1]
        read += 1
        token = logits.argmax(dim=-1, keepdim=True)
        drafted.append(token)
        if confidence > 0 and float(logits.float().softmax(dim=-1).max()) < confidence:
            break
    if read:
        cache.crop(-read)
    return torch.cat(drafted, dim=1) if drafted else pending[:, :0]
