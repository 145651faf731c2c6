"""Lists of tasks: what a file may say, and what a command makes of it."""

from pathlib import Path

import pytest

from layerroute.errors import UserError
from layerroute.evaluation.recall_tasks import recall_task
from layerroute.evaluation.task_list import TaskConfig, expand, load_task_list


def test_the_original_suite_has_its_shots() -> None:
    found = {task.task: task.shots for task in load_task_list("evaluation/original")}
    assert found == {"mmlu": 5, "arc_challenge": 5, "gsm8k": 5, "wikitext": 0}


def test_files_are_relative_to_the_list_and_names_are_not(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("tasks: [own.jsonl, {task: arc_easy, shots: 3}, piqa]\n")
    assert expand([str(path)]) == [
        TaskConfig(task=str(tmp_path / "own.jsonl")),
        TaskConfig(task="arc_easy", shots=3),
        TaskConfig(task="piqa"),
    ]
    assert [task.shots for task in expand([str(path), "boolq"], shots=1)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("tasks: []", "tasks is empty"),
        ("tasks: [{task: mmlu, shots: -1}]", "shots of mmlu is -1"),
        ("tasks: [{tasc: mmlu}]", "tasc"),
        ("tasks: [mmlu]\nshots: 5", "shots is not a key of task lists"),
        ("arms: [x]", "arms is not a key of task lists"),
    ],
)
def test_what_is_no_list_is_told_with_its_file(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(content + "\n")
    with pytest.raises(UserError) as error:
        load_task_list(path)
    assert str(path) in str(error.value) and words in str(error.value)


def test_a_task_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("tasks: [piqa]\n")
    with pytest.raises(UserError, match="piqa comes twice"):
        expand(["piqa", str(path)])


def test_recall_tasks_are_named_with_their_options() -> None:
    task = recall_task("recall:needle,pairs=2,filler=7,documents=3")
    assert (task.task, task.pairs, task.filler, task.documents, task.seed) == ("needle", 2, 7, 3, 0)
    assert task.name == "needle-2-pairs-7-filler" and len(task.rows()) == 3


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("recall:needel", "Did you mean 'needle'"),
        ("recall:needle,pair=3", "Did you mean 'pairs'"),
        ("recall:needle,pairs=few", "pairs is 'few'"),
        ("recall:needle,pairs", "it must be a whole number"),
        ("recall:needle,pairs=²", "it must be a whole number"),
        ("recall:needle,pairs=2,pairs=3", "pairs comes twice"),
    ],
)
def test_recall_tasks_that_are_none_are_told(word: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        recall_task(word)
    assert told in str(error.value)
