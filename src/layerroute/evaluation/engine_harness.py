"""lm-evaluation-harness over an engine: the harness's own way with text, and an engine where it would ask a model."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from layerroute.errors import UserError
from layerroute.evaluation.harness import HFLM, require_end

_KNOWN = {"top_p", "top_k", "min_p", "repetition_penalty"}
"""How text may be drawn, in words that transformers and vLLM share."""


class EngineLM(HFLM):
    """A session of vLLM, as the harness wants its models.

    Texts are made, cut and read by ``HFLM``, as for a model of transformers, so that scores are those of the same
    tokens. Only what asks the model is the engine's.

    Args:
        session: ``layerroute.vllm.engine.Session`` with its tokenizer, for requests of ``length + 1`` tokens.
        config, tokenizer: of its folder.
        length: of the longest text, one less than the model reads: an engine computes a text's last token, too.
        batch_size: of the harness, which hands on so many texts to generate at once.

    Raises:
        UserError: the tokenizer has no token that ends a text.
    """

    full_depth, execution, precision = False, None, "fp32"

    def __init__(self, session: Any, *, config: Any, tokenizer: Any, length: int, batch_size: int) -> None:
        require_end(tokenizer, str(config.name_or_path))
        self.session = session
        model: Any = SimpleNamespace(config=config, device=torch.device("cpu"))
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer,
            max_length=length,
            batch_size=batch_size,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether all its tokens are the most likely ones."""
        del disable_tqdm, override_bs
        texts = [(context + answer)[-(self.max_length + 1) :] for _, context, answer in requests]
        found = []
        for (key, _, answer), scored in zip(requests, self.session.score(texts), strict=True):
            told = sum(scored.scores[-len(answer) :]), all(scored.hits[-len(answer) :])
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, told)
            found.append(told)
        return found

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
        """Rows of ``context`` (B, T), padded on the left, and what the engine writes after each."""
        real = settings.pop("attention_mask").bool()
        prompts = [row[mask].tolist() for row, mask in zip(context, real, strict=True)]
        answers = self.session.complete(prompts, max_length - context.shape[1], stop, **_drawing(settings))
        rows = [torch.tensor(answer, dtype=context.dtype) for answer in answers]
        padding = float(self.tokenizer.pad_token_id)
        written = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        return torch.cat([context, written], dim=1)

    def served(self) -> dict[str, Any] | None:
        """Rates by site over all tokens that the engine computed; None for a plain model."""
        rates = self.session.rates()
        if not rates:
            return None
        return {
            "paths": ["skip", "run"],
            "tokens": self.session.tokens(),
            "rate": rates,
            "mean_rate": sum(rates.values()) / len(rates),
            "executed_share": None,
        }

    def close(self) -> None:
        """Free the engine."""
        self.session.close()


def _drawing(settings: dict[str, Any]) -> dict[str, Any]:
    """What a task says of drawing, for vLLM; greedy where transformers would be.

    Raises:
        UserError: the task asks for what has no such word there, beams say.
    """
    samples = bool(settings.pop("do_sample", False))
    temperature = float(settings.pop("temperature", 1.0)) if samples else 0.0
    settings.pop("temperature", None)
    others = sorted(settings.keys() - _KNOWN - {"use_cache"})
    if others:
        raise UserError(
            f"--engine vllm: a task sets {', '.join(others)} for its answers, which the engine has not"
        )
    return {"temperature": temperature, **{name: settings[name] for name in _KNOWN & settings.keys()}}
