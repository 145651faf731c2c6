"""Speed of a routed model against the same model at full depth, on one prompt."""

from functools import partial
from typing import TYPE_CHECKING, Any

from layerroute.errors import UserError

if TYPE_CHECKING:
    from layerroute.evaluation.loading import LoadedModel

ROUTED, FULL = "routed", "full depth"


def time_generation(loaded: "LoadedModel", prompt: str, *, new_tokens: int, rounds: int) -> dict[str, Any]:
    """Prove first that masked execution gives the tokens that are served, then time greedy continuations in turn.

    Returns:
        ``new_tokens`` of each continuation, ``rounds`` of both, ``tokens_per_second`` by ``routed`` and ``full depth``
        (medians; the prompt's time is in them), and ``speedup``: the spread of the routed one's, by rounds.

    Raises:
        UserError: a model without a layer router; execution that is not equal: nothing is timed then.
    """
    import torch

    from layerroute.benchmark.timing import measure
    from layerroute.evaluation.generation import prompt_ids
    from layerroute.skipping import compilation_disabled, executed, get_router, router_disabled

    model: Any = loaded.model
    get_router(model)
    ids = prompt_ids(loaded.tokenizer, prompt).to(loaded.device)

    def routed() -> list[int]:
        with torch.no_grad(), loaded.in_precision():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=new_tokens,  # as many in all rounds, whatever the text would be
                max_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                tokenizer=loaded.tokenizer,  # stop strings of its configuration are looked for in text
                pad_token_id=loaded.tokenizer.pad_token_id,
            )
        return [int(token) for token in out[0, ids.shape[1] :]]

    def full() -> None:
        with router_disabled(model):
            routed()

    with executed(model, "masked"), compilation_disabled(model):
        reference = routed()
    if routed() != reference:
        raise UserError("masked and served execution give other tokens for this prompt: nothing is timed")
    cuda = loaded.device.type == "cuda"
    timings = measure(
        {FULL: full, ROUTED: routed},
        repeats=rounds,
        warmup=1,
        synchronize=partial(torch.cuda.synchronize, loaded.device) if cuda else lambda: None,
    )
    return {
        "new_tokens": new_tokens,
        "rounds": rounds,
        "tokens_per_second": {name: new_tokens / timings.spread(name).median for name in (ROUTED, FULL)},
        "speedup": timings.speedup(ROUTED, FULL).to_dict(),
    }


def describe(timed: dict[str, Any]) -> str:
    """What `time_generation` found, in one line."""
    speeds = ", ".join(f"{name} {value:.1f} tokens/s" for name, value in timed["tokens_per_second"].items())
    spread = timed["speedup"]
    return (
        f"timed: {speeds}: {spread['median']:.2f}× (quartiles {spread['q1']:.2f} to {spread['q3']:.2f}; "
        f"{timed['rounds']} rounds in turn of the prompt and {timed['new_tokens']} tokens; masked execution gave the "
        "same tokens)"
    )
