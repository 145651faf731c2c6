"""Tasks of lm-evaluation-harness from local files: no hub, no download."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerroute.data.sources.base import clean_text
from layerroute.data.sources.readers import InputFile
from layerroute.data.sources.records import Record, holds_records, read_records
from layerroute.errors import UserError


def local_task(path: str | Path, name: str | None = None) -> Any:
    """A task of the harness from a file of records (JSON Lines, or any other), named after the file.

    Its form is told by its keys; other keys are left alone. Numbers count as the text that they are written as.

    ``context``, ``target``: the target's likelihood after the context and a blank, and whether it is the most likely
    continuation (LAMBADA's last-word accuracy and perplexity).
    ``question``, ``choices``, ``gold``: multiple choice, each choice after a blank; ``acc`` by likelihood, ``acc_norm``
    by likelihood a character. ``gold`` counts from 0.
    ``prompt``, ``answer``: greedy generation to the end of the line, which must be the answer; blanks around either do
    not count (the harness's ``exact_match`` after its filter ``remove_whitespace``).

    Raises:
        UserError: the file cannot be read or holds something else; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--tasks: there is no file {path}")
    rows = list(read_records(InputFile.of(path, path.name)))
    if not rows:
        raise UserError(f"{path} is empty; a task needs lines with {_KEYS}")
    return _task(name or task_name(path), rows, path)


def task_of_rows(name: str, rows: list[dict[str, Any]]) -> Any:
    """A task of the harness from rows of one of these forms.

    Raises:
        UserError: they are of none; the message names the row.
    """
    return _task(name, [(f"{name}[{index}]", row) for index, row in enumerate(rows)], Path(name))


def is_task_file(word: str) -> bool:
    """Whether a word names a file of records, and no task of the harness."""
    return holds_records(InputFile.of(Path(word), word))


def task_name(path: Path) -> str:
    """The file's name without its endings: ``words`` for ``words.jsonl.gz``."""
    file = InputFile.of(path, path.name)
    return path.name[: len(path.name) - len(file.ending) - len(file.compression)]


def distinct_names(paths: Sequence[Path], taken: Iterable[str] = ()) -> list[str]:
    """A name for each file that no other has: the file's, with as many folders before it as are needed.

    Raises:
        UserError: one file comes twice.
    """
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(resolved):
        if path in resolved[:index]:
            raise UserError(f"--tasks: {paths[index]} comes twice")
    used = set(taken)
    for folders in range(max((len(path.parts) for path in resolved), default=1)):
        names = [
            "/".join([*path.parts[:-1][len(path.parts) - 1 - folders :], task_name(path)])
            for path in resolved
        ]
        if len(set(names)) == len(names) and not used & set(names):
            return names
    raise UserError(f"--tasks: {', '.join(map(str, paths))} cannot be told apart; rename one")


@dataclass(frozen=True)
class _Form:
    """What the rows of a kind of task hold, and what the harness is to do with them."""

    keys: Mapping[str, Callable[[str, str, Any], Any]]
    config: Mapping[str, Any]


def _text(where: str, key: str, value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is {_named(value)}; it must be text")
    return clean_text(value)


def _some_text(where: str, key: str, value: Any) -> str:
    text = _text(where, key, value)
    if not text.strip():
        raise UserError(f"{where}: {key} is empty")
    return text


def _answer(where: str, key: str, value: Any) -> str:
    text = _text(where, key, value).strip()
    if "\n" in text:
        raise UserError(
            f"{where}: {key} goes over several lines; generation ends with the line, so none can match"
        )
    return text


def _choices(where: str, key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {key} is {_named(value)}; it must be a list of texts")
    return [_some_text(where, f"{key}[{index}]", choice) for index, choice in enumerate(value)]


def _number(where: str, key: str, value: Any) -> int:
    try:
        if isinstance(value, bool) or value is None or int(value) != float(value):
            raise ValueError
        return int(value)
    except (ValueError, TypeError, OverflowError):
        told = f"{where}: {key} is {_named(value)}; it must be the number of the right choice, counted from 0"
        raise UserError(told) from None


def _named(value: Any) -> str:
    return (
        "null"
        if value is None
        else repr(value)
        if isinstance(value, str | int | float)
        else type(value).__name__
    )


def _metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


_FORMS = (
    _Form(
        {"context": _text, "target": _some_text},
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{' ' + target}}",
            "target_delimiter": "",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                *_metrics("acc"),
            ],
        },
    ),
    _Form(
        {"question": _some_text, "choices": _choices, "gold": _number},
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
            "metric_list": _metrics("acc", "acc_norm"),
        },
    ),
    _Form(
        {"prompt": _some_text, "answer": _answer},
        {
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": "answer",  # by its name: as a template, "[1, 2]" would become a list
            "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 32},
            "filter_list": [
                # Called as results without a filter are, by the name that they have in records.
                {"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
            ],
            "metric_list": _metrics("exact_match"),
        },
    ),
)
_KEYS = "context and target; question, choices and gold; or prompt and answer"


def _task(name: str, records: Sequence[Record], path: Path) -> Any:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    first = records[0][1]
    form = next((form for form in _FORMS if set(form.keys) <= set(first)), None)
    if form is None:
        raise UserError(
            f"{path} is not a task: its lines have {', '.join(sorted(first))}; they must have {_KEYS}"
        )
    rows = []
    for where, record in records:
        if missing := [key for key in form.keys if key not in record]:
            raise UserError(f"{where} has no {missing[0]}; each line must have {', '.join(form.keys)}")
        row = {key: read(where, key, record[key]) for key, read in form.keys.items()}
        if "gold" in row and not 0 <= row["gold"] < len(row["choices"]):
            raise UserError(f"{where}: gold is {row['gold']}, of {len(row['choices'])} choices")
        rows.append(row)
    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **form.config,
    }
    return ConfigurableTask(config=config)
