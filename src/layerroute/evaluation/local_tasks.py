"""Tasks of lm-evaluation-harness from local files: no hub, no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layerroute.errors import UserError

_FORMS = "context and target; question, choices and gold; or prompt and answer"


def local_task(path: str | Path) -> Any:
    """A task of the harness from a JSON Lines file, named after the file.

    Its form is told by its keys:

    ``context``, ``target``: the target's likelihood after the context and a blank, and whether it is the most likely
    continuation (LAMBADA's last-word accuracy and perplexity).
    ``question``, ``choices``, ``gold``: multiple choice, each choice after a blank; ``acc`` by likelihood, ``acc_norm``
    by likelihood a character.
    ``prompt``, ``answer``: greedy generation to the end of the line, which must be the answer.

    Raises:
        UserError: the file cannot be read or holds something else; the message names the line.
    """
    path = Path(path)
    return task_of_rows(path.stem, _read(path), path)


def task_of_rows(name: str, rows: list[dict[str, Any]], path: Path | None = None) -> Any:
    """A task of the harness from rows of one of these forms; ``path`` is named where they are of none."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **_form(path or Path(name), rows),
    }
    return ConfigurableTask(config=config)


def _form(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    keys = set(rows[0])
    if {"context", "target"} <= keys:
        return {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{' ' + target}}",
            "target_delimiter": "",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
        }
    if {"question", "choices", "gold"} <= keys:
        for number, row in enumerate(rows, start=1):
            if not 0 <= row["gold"] < len(row["choices"]):
                raise UserError(
                    f"{path}, line {number}: gold is {row['gold']}, of {len(row['choices'])} choices"
                )
        return {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True}
                for metric in ("acc", "acc_norm")
            ],
        }
    if {"prompt", "answer"} <= keys:
        return {
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 32},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    raise UserError(f"{path} is no task: its lines have {', '.join(sorted(keys))}; they must have {_FORMS}")


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the task {path}: {error}") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict) or (rows and set(row) != set(rows[0])):
            raise UserError(f"{path}, line {number}: each line must be an object with the keys of the first")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty; a task needs lines with {_FORMS}")
    return rows
