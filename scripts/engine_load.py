"""Load on vLLM with the plugin: many streams at once, a tenth of them cancelled midway, again and again.

    python scripts/engine_load.py EXPORT --minutes 10

Every finished answer must be that of the lone request, and memory must stay flat. Prints JSON; exit code 1 if not so.
"""

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

GROWTH = 1.02
"""Resident memory in the end, as a multiple of that after the first two rounds, that counts as flat."""


def resident() -> float:
    """MB of this process that are in memory."""
    fields = Path("/proc/self/status").read_text(encoding="utf-8").split("VmRSS:")[1]
    return int(fields.split()[0]) / 1024


def one_round(
    engine: Any, texts: list[list[int]], new: int, number: int
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Serve all texts at once, and cancel each tenth after half of its answer: answers, and what was cancelled."""
    from layerroute.vllm.engine import Session

    for index, text in enumerate(texts):
        engine.add_request(f"{number}-{index}", {"prompt_token_ids": text}, Session._sampling(new))
    finished: dict[int, list[int]] = {}
    cancelled: dict[int, list[int]] = {}
    while engine.has_unfinished_requests():
        for out in engine.step():
            index, tokens = int(out.request_id.split("-")[1]), list(out.outputs[0].token_ids)
            if index % 10 == 3 and index not in cancelled and len(tokens) >= new // 2:
                engine.abort_request([out.request_id])
                cancelled[index] = tokens
            elif out.finished and index not in cancelled:
                finished[index] = tokens
    return finished, cancelled


def load(folder: Path, texts: list[list[int]], *, new: int, seconds: float, **options: Any) -> dict[str, Any]:
    """Rounds until the time is up, at least three."""
    from layerroute.vllm.engine import opened

    with opened(folder, dtype="float32", requests=len(texts), **options) as session:
        lone = [session.generate([text], new)[0] for text in texts]
        begin, rounds, wrong, memory = time.monotonic(), 0, 0, []
        finished = cancelled = 0
        while rounds < 3 or time.monotonic() - begin < seconds:
            done, cut = one_round(session.llm.llm_engine, texts, new, rounds)
            wrong += sum(tokens != lone[index] for index, tokens in done.items())
            wrong += sum(tokens != lone[index][: len(tokens)] for index, tokens in cut.items())
            finished, cancelled, rounds = finished + len(done), cancelled + len(cut), rounds + 1
            memory.append(round(resident(), 1))
        return {
            "streams": len(texts),
            "rounds": rounds,
            "seconds": round(time.monotonic() - begin, 1),
            "finished": finished,
            "cancelled": cancelled,
            "unlike_the_lone_request": wrong,
            "rates": session.rates(),
            "memory_mb": {"after two rounds": memory[1], "at the end": memory[-1], "most": max(memory)},
            "flat": memory[-1] <= GROWTH * memory[1],
        }


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path, help="folder of `layerroute export --to vllm`")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    from layerroute.data.configuration import DataConfig
    from layerroute.data.sources import make_source

    tokenizer = AutoTokenizer.from_pretrained(given.export)
    documents = make_source(DataConfig(source="python-docs")).documents()
    ids = tokenizer("".join(document.text for document in islice(documents, 40))[:40_000])["input_ids"]
    texts = [ids[80 * index : 80 * index + 5 + 7 * index % 60] for index in range(given.streams)]
    found = load(given.export, texts, new=given.new, seconds=60 * given.minutes, length=256)
    print(json.dumps(found, indent=2))
    return 0 if found["flat"] and not found["unlike_the_lone_request"] else 1


if __name__ == "__main__":
    sys.exit(main())
