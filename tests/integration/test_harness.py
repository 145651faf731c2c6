"""lm-evaluation-harness over routed models: scores, the routing served, equality with the harness called alone."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from layerroute.cli.main import main
from layerroute.errors import UserError
from layerroute.skipping import SkipConfig, add_router, get_router, save_router
from layerroute.skipping.layer import plain_class
from layerroute.skipping.pretrained import load_pretrained
from layerroute.vllm.engine import Scored
from tests.parity.skipping_models import sharpen
from tests.tiny_pretrained import SENTENCE, write_pretrained

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from layerroute.evaluation.engine_harness import EngineLM  # noqa: E402
from layerroute.evaluation.harness import LayerrouteLM, run_tasks, score, score_tasks  # noqa: E402
from layerroute.evaluation.local_tasks import local_task  # noqa: E402
from layerroute.evaluation.task_list import is_file_name, make_tasks  # noqa: E402

WORDS = SENTENCE.split()
NO_TASKS = TaskManager(include_defaults=False)
FEW: dict[str, Any] = {"device": "cpu", "bootstrap_iterations": 10}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, a router for it, and a task file of each form; all small."""
    folder = tmp_path_factory.mktemp("harness")
    draw = random.Random(0)

    def phrase(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    (folder / "corpus.txt").write_text(phrase(600))
    write_pretrained(folder / "model", folder / "corpus.txt", pads=True, max_position_embeddings=128)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    add_router(model, SkipConfig(layers=[2, 3, 4, 5], router_layer=2, execution="sparse"))
    sharpen(model)
    save_router(model.eval(), folder / "router")
    rows: dict[str, list[dict[str, Any]]] = {
        "words": [{"context": phrase(draw.randint(4, 12)), "target": draw.choice(WORDS)} for _ in range(8)],
        "choices": [
            {
                "question": f"{phrase(6)}:",
                "choices": [phrase(n) for n in (1, 3, 2)],
                "gold": draw.randrange(3),
            }
            for _ in range(6)
        ],
        "answers": [{"prompt": phrase(draw.randint(3, 9)), "answer": "layer"} for _ in range(3)],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def tasks(files: Path, *names: str) -> list[Any]:
    return [local_task(files / f"{name}.jsonl") for name in names]


def alone(files: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The harness's own model class on the base model."""
    model = HFLM(pretrained=str(files / "model"), device="cpu", dtype="float32", batch_size=3)
    found = lm_eval.simple_evaluate(
        model=model, tasks=tasks(files, *names), bootstrap_iters=10, task_manager=NO_TASKS
    )
    assert found is not None
    return found


def test_at_full_depth_scores_are_the_harness_s_own_to_the_last_digit(files: Path) -> None:
    names = ("words", "choices", "answers")
    expected = alone(files, names)
    found = run_tasks(
        files / "router",
        tasks(files, *names),
        batch_size=3,
        full_depth=True,
        **FEW,
    )
    assert found["routing"] is None
    for name in names:
        for metric, value in found["tasks"][name].items():
            assert value == expected["results"][name][f"{metric},none"], (name, metric)
        responses = [row["filtered_resps"] for row in found["samples"][name]]
        assert responses == [row["filtered_resps"] for row in expected["samples"][name]]
    routed = run_tasks(files / "router", tasks(files, "words"), batch_size=3, **FEW)
    assert routed["tasks"]["words"]["perplexity"] != found["tasks"]["words"]["perplexity"], (
        "routing does something"
    )


class Engine:
    """What ``layerroute.vllm.engine.Session`` does, by a model of transformers, one text at a time."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = load_pretrained(str(folder))
        self.read: list[int] = []
        self.open = True

    def score(self, texts: list[list[int]]) -> list[Scored]:
        found = []
        for text in map(torch.tensor, texts):
            self.read.append(len(text))
            with torch.no_grad():
                told = self.model(text[None]).logits[0, :-1].log_softmax(dim=-1)
            own = told.gather(1, text[1:, None]).squeeze(1)
            found.append(Scored(own.tolist(), (told.argmax(dim=-1) == text[1:]).tolist()))
        return found

    def complete(
        self, texts: list[list[int]], new: int, stop: list[str], temperature: float
    ) -> list[list[int]]:
        assert temperature == 0.0
        answers = []
        for text in texts:
            options = {"max_new_tokens": new, "stop_strings": stop, "do_sample": False}
            row = self.model.generate(torch.tensor([text]), **options, tokenizer=self.tokenizer)[0]
            answers.append(row[len(text) :].tolist())
        return answers

    def rates(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.open = False


def test_an_engine_is_asked_for_the_same_tokens_as_a_model(files: Path) -> None:
    names, engine = ("words", "choices", "answers"), Engine(files / "model")

    def opened() -> EngineLM:
        told = {"config": engine.model.config, "tokenizer": engine.tokenizer}
        return EngineLM(engine, **told, length=127, batch_size=2)

    found = score_tasks(opened, tasks(files, *names), shots=[0, 2, None], bootstrap_iterations=10)
    expected = run_tasks(files / "router", tasks(files, *names), full_depth=True, shots=[0, 2, None], **FEW)
    assert not engine.open
    assert found["routing"] is None
    assert found["n_samples"] == expected["n_samples"]
    for name in names:
        assert found["tasks"][name] == pytest.approx(expected["tasks"][name], rel=1e-5)
        answers, wanted = ([row["resps"] for row in one["samples"][name]] for one in (found, expected))
        if name == "answers":
            assert answers == wanted

    engine.read.clear()
    long = [("", [1] * 100, [2] * 60)]
    assert len(opened()._loglikelihood_tokens(long)) == 1
    assert engine.read == [128]  # the last of which an engine reads, too, and there are 128 positions
    with pytest.raises(UserError, match="num_beams"):
        opened()._model_generate(
            torch.ones(1, 4, dtype=torch.long), 8, [], attention_mask=torch.ones(1, 4), num_beams=3
        )


def test_rates_are_told_and_do_not_depend_on_the_batch(files: Path) -> None:
    one, three = (
        run_tasks(
            files / "router",
            tasks(files, "words", "choices"),
            batch_size=size,
            **FEW,
        )
        for size in (1, 3)
    )
    assert one["routing"]["rate"] == three["routing"]["rate"], "padding is counted nowhere"
    assert one["routing"]["tokens"] == three["routing"]["tokens"]
    assert len(one["routing"]["rate"]) == 4
    assert 0 < one["routing"]["mean_rate"] < 1
    # Without padding every token that a layer skips is one that its MLP never saw.
    assert one["routing"]["executed_share"] == pytest.approx(one["routing"]["mean_rate"], abs=1e-9)
    for name, metrics in one["tasks"].items():
        for metric, value in metrics.items():
            assert value == pytest.approx(three["tasks"][name][metric], rel=1e-4), (name, metric)


def test_generation_is_routed_too(files: Path) -> None:
    found = run_tasks(files / "router", tasks(files, "answers"), batch_size=2, **FEW)
    assert found["routing"]["tokens"] > 3 * 32, "generated tokens are decided on"
    assert set(found["tasks"]["answers"]) >= {"exact_match"}
    assert 0 < found["routing"]["executed_share"] < 1


def test_the_registry_knows_our_models(files: Path, finished_run: Path) -> None:
    assert lm_eval.api.registry.get_model("layerroute") is LayerrouteLM
    found = lm_eval.simple_evaluate(
        model="layerroute",
        model_args={"pretrained": str(finished_run)},
        tasks=tasks(files, "words"),
        batch_size=2,
        device="cpu",
        bootstrap_iters=10,
        task_manager=NO_TASKS,
    )
    assert found is not None and 0 <= found["results"]["words"]["acc,none"] <= 1


def test_hybrid_models_tell_their_rates(files: Path, finished_run: Path) -> None:
    found = run_tasks(finished_run, tasks(files, "words", "answers"), batch_size=2, **FEW)
    assert set(found["routing"]["rate"]) == {"layer1.mixer", "layer2.mixer"}
    assert found["routing"]["executed_share"] is None
    assert found["execution"] == "auto"
    assert run_tasks(finished_run, tasks(files, "words"), execution="masked", **FEW)["execution"] == "masked"
    with pytest.raises(UserError, match="nothing to switch off"):
        LayerrouteLM(finished_run, full_depth=True)


def test_a_routed_model_that_decides_nothing_is_not_scored_as_one(files: Path) -> None:
    model = LayerrouteLM(files / "router", device="cpu")
    with pytest.raises(RuntimeError, match="no decision was made"):
        model.routing()


@pytest.mark.parametrize("execution", ["auto", "sparse"])
def test_layers_that_ignore_the_router_are_not_scored_as_routed(files: Path, execution: str) -> None:
    """As when adapters were merged and the router was left behind: it decides, and every layer runs for every token."""
    model = LayerrouteLM(files / "router", device="cpu", execution=execution)
    router = get_router(model.model)
    router.all_routings()[0].thresholds.value.fill_(1e9)  # nobody is to run
    for layer in model.watch.layers:
        layer.__class__ = plain_class(type(layer))
    model.model(torch.arange(1, 30).view(1, -1))
    with pytest.raises(RuntimeError, match="scores at full depth"):
        model.routing()
    model.watch.layers = []
    with pytest.raises(RuntimeError, match="no layer that does what it decides"):
        model.routing()


def test_what_is_computed_follows_the_execution_that_was_asked_for(files: Path) -> None:
    found = {
        execution: run_tasks(
            files / "router", tasks(files, "words"), batch_size=2, execution=execution, **FEW
        )
        for execution in ("sparse", "masked")
    }
    assert {name: result["execution"] for name, result in found.items()} == {
        "sparse": "sparse",
        "masked": "masked",
    }
    sparse, masked = found["sparse"]["routing"], found["masked"]["routing"]
    assert sparse["rate"] == masked["rate"]
    assert 0 < sparse["executed_share"] < 1 == masked["executed_share"]
    assert found["sparse"]["tasks"]["words"]["perplexity"] == pytest.approx(
        found["masked"]["tasks"]["words"]["perplexity"], rel=1e-4
    )


def test_attention_that_is_skipped_is_counted_by_attention(files: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(files / "model", dtype=torch.float32)
    add_router(model, SkipConfig(layers=[2, 3, 4, 5], router_layer=2, unit="attention", execution="sparse"))
    sharpen(model)
    save_router(model.eval(), tmp_path / "router")
    found = run_tasks(tmp_path / "router", tasks(files, "words"), batch_size=1, **FEW)["routing"]
    assert found["executed_share"] == pytest.approx(found["mean_rate"], abs=1e-9)
    assert found["executed_share"] < 1


def test_the_command_prints_and_writes_scores(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(files / "router"), "--tasks", str(files / "words.jsonl"), "--batch-size", "2"]
    assert main([*command, "--limit", "4", "--out", str(tmp_path), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "acc" in shown and "(4 documents)" in shown and "run " in shown and "(sparse execution)" in shown
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["execution"] == "sparse"
    assert content["n_samples"] == {"words": 4}
    rows = list(csv.DictReader((tmp_path / "words.csv").read_text().splitlines()))
    assert len(rows) == 4 and set(rows[0]) == {"document", "target", "responses", "acc", "perplexity"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("not json\n", "task.jsonl:1 is not valid JSON"),
        ('{"text": "x"}\n', "is not a task: its lines have text"),
        (
            '{"context": "a", "target": "b"}\n{"context": "a"}\n',
            "task.jsonl:2 has no target; each line must have context, target",
        ),
        ('{"question": "a", "choices": ["b"], "gold": 1}\n', "task.jsonl:1: gold is 1, of 1 choices"),
        (
            '{"question": "a", "choices": ["b"], "gold": "B"}\n',
            "task.jsonl:1: gold is 'B'; it must be the number",
        ),
        ('{"question": "a", "choices": ["b"], "gold": true}\n', "gold is True; it must be the number"),
        ('{"question": "a", "choices": "b", "gold": 0}\n', "choices is 'b'; it must be a list"),
        ('{"question": "a", "choices": ["b", null], "gold": 0}\n', "choices[1] is null; it must be text"),
        ('{"context": "a", "target": null}\n', "task.jsonl:1: target is null; it must be text"),
        ('{"context": "a", "target": " "}\n', "target is empty"),
        ('{"prompt": "a", "answer": ["b"]}\n', "answer is list; it must be text"),
        ('{"prompt": "a", "answer": "b\\nc"}\n', "answer goes over several lines"),
    ],
)
def test_files_that_are_no_tasks_are_told(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        local_task(path)
    assert words in str(error.value)


def documents(task: Any) -> list[dict[str, Any]]:
    return list(task.test_docs())


def test_task_files_as_people_write_them(tmp_path: Path) -> None:
    """Separators inside strings, a byte order mark, numbers as text and text as numbers, other keys of any type."""
    path = tmp_path / "task.jsonl"
    path.write_text(
        '\ufeff{"prompt": "one\u2028two\x85three", "answer": 4, "other": 1}\n'
        '{"prompt": "2 + 2 =", "answer": " 4.5 ", "other": ["x"]}\n'
        '{"prompt": "x", "answer": "[1, 2]"}\n',
        encoding="utf-8",
    )
    found = documents(local_task(path))
    assert [row["prompt"] for row in found] == ["one\u2028two\x85three", "2 + 2 =", "x"]
    assert [local_task(path).doc_to_target(row) for row in found] == ["4", "4.5", "[1, 2]"]
    rows = [{"question": "q", "choices": ["a", 7], "gold": gold} for gold in (1, "1", 1.0)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert documents(local_task(path)) == [{"question": "q", "choices": ["a", "7"], "gold": 1}] * 3
    path.write_text('{"context": 5, "target": 6}\n{"context": "a", "target": "b"}\n')
    assert documents(local_task(path)) == [{"context": "5", "target": "6"}, {"context": "a", "target": "b"}]


@pytest.mark.parametrize("name", ["task.json", "task.csv", "task.parquet", "task.jsonl.gz"])
def test_tasks_in_every_format_of_records(name: str, tmp_path: Path) -> None:
    rows = [{"context": "the router", "target": "reads"}, {"context": "a, b", "target": "c"}]
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith("csv"):
        path.write_text('context,target\nthe router,reads\n"a, b",c\n')
    elif name.endswith("gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    else:
        path.write_text(json.dumps(rows))
    assert is_file_name(str(path))
    (task,) = make_tasks([str(path)])
    assert (task.config.task, documents(task)) == ("task", rows)


class Says(lm_eval.api.model.LM):
    """Answers every prompt alike."""

    def __init__(self, reply: str) -> None:
        super().__init__()
        self.reply = reply

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self.reply] * len(requests)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.mark.parametrize(
    ("reply", "right"), [(" layer", 4), ("layer ", 4), ("layer", 4), ("Layer", 0), ("a", 0)]
)
def test_answers_match_as_the_harness_s_own_tasks_match_them(tmp_path: Path, reply: str, right: int) -> None:
    """Beside a task of the harness's own over the same file, with the filter that its question-answering tasks use."""
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q {n}:", "answer": "layer"}) + "\n" for n in range(4)))
    own = lm_eval.api.task.ConfigurableTask(
        config={
            "task": "own",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"]},
            "filter_list": [
                {"name": "clean", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
            ],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    found = score(
        Says(reply), [own, local_task(path)], limit=None, shots=None, bootstrap_iterations=0, manager=NO_TASKS
    )["results"]
    assert found["answers"]["exact_match,none"] == found["own"]["exact_match,clean"] == right / 4


def test_files_of_the_same_name_are_both_scored(files: Path, tmp_path: Path) -> None:
    for folder, rows in (("one", 3), ("two", 5)):
        (tmp_path / folder).mkdir()
        lines = (files / "words.jsonl").read_text().splitlines()[:rows]
        (tmp_path / folder / "words.jsonl").write_text("\n".join(lines))
    words = [str(tmp_path / folder / "words.jsonl") for folder in ("one", "two")]
    command = [
        "evaluate",
        str(files / "router"),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
        "--tasks",
    ]
    assert main([*command, *words]) == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["n_samples"] == {"one/words": 3, "two/words": 5}
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {"one_words.csv", "two_words.csv"}
    with pytest.raises(UserError, match="comes twice"):
        make_tasks([words[0], f"{tmp_path}/two/../one/words.jsonl"])
    with pytest.raises(UserError, match="comes twice"):
        make_tasks(["arc_easy", "arc_easy"])
    named = make_tasks(["words", words[0]])
    assert named[0] == "words"
    assert named[1].config.task == "one/words", "a task of the harness keeps its name"


def test_rates_do_not_count_rows_that_have_stopped(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "model", tmp_path / "model")
    # Ends that come often: rows of a batch stop at different places.
    GenerationConfig(eos_token_id=list(range(0, 290, 6))).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    add_router(model, SkipConfig(layers=[2, 3, 4, 5], router_layer=2))
    sharpen(model)
    save_router(model.eval(), tmp_path / "router")
    draw = random.Random(1)
    path = tmp_path / "task.jsonl"
    rows = [{"prompt": " ".join(draw.choices(WORDS, k=draw.randint(2, 9))), "answer": "x"} for _ in range(7)]
    path.write_text("\n".join(map(json.dumps, rows)))
    one, three, seven = (
        run_tasks(tmp_path / "router", [local_task(path)], batch_size=size, **FEW) for size in (1, 3, 7)
    )
    texts = [row["resps"][0][0] for row in one["samples"]["task"]]
    assert len({len(text) for text in texts}) > 2, "rows must stop at different places"
    for other in (three, seven):
        assert [row["resps"][0][0] for row in other["samples"]["task"]] == texts
        assert other["routing"]["tokens"] == one["routing"]["tokens"]
        assert other["routing"]["rate"] == one["routing"]["rate"]


def test_the_harness_prints_nothing_before_json(
    files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no repository
    command = ["evaluate", str(files / "router"), "--tasks", str(files / "words.jsonl"), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["tasks"]["words"]["perplexity"] > 0
    assert "not a git repository" not in err
    assert "gemm_4bit" not in err
    assert "model kwarg" not in err, "advice on the harness's own command line"
    assert main(command) == 0
    assert "bootstrapping" not in capfd.readouterr().out


@pytest.mark.slow
def test_a_task_of_the_hub_without_a_network_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before the model is looked for."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert main(["evaluate", str(tmp_path / "no-model"), "--tasks", "arc_easy"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "--tasks: the data of arc_easy needs the Hugging Face hub" in told
    assert "or use a JSON Lines file" in told


def test_a_list_gives_each_task_its_shots(files: Path, tmp_path: Path) -> None:
    listed = files / "list.yaml"
    listed.write_text("tasks:\n  - words.jsonl\n  - {task: choices.jsonl, shots: 2}\n")
    command = ["evaluate", str(files / "router"), "--tasks", str(listed), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "scores")]) == 0
    content = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert content["shots"] == {"words": 0, "choices": 2}
    assert content["n_samples"] == {"words": 8, "choices": 6}
    both = run_tasks(files / "router", tasks(files, "words", "choices"), shots=[0, 2], **FEW)
    assert both["shots"] == content["shots"]
    apart = [
        run_tasks(files / "router", tasks(files, name), shots=count, **FEW)
        for name, count in (("words", 0), ("choices", 2))
    ]
    assert content["routing"]["tokens"] == sum(found["routing"]["tokens"] for found in apart)
    for found in apart:
        for name, metrics in found["tasks"].items():
            for metric, value in metrics.items():
                if not metric.endswith("_stderr"):  # from another number of bootstrap draws
                    assert content["tasks"][name][metric] == both["tasks"][name][metric] == value, metric


def test_recall_in_text_is_an_evaluation_of_any_model(files: Path, tmp_path: Path) -> None:
    words = ["recall:needle,pairs=1,filler=1,documents=2", "recall:mqar,pairs=2,filler=1,documents=3"]
    command = [
        "evaluate",
        str(files / "router"),
        "--tasks",
        *words,
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["n_samples"] == {"needle-1-pairs-1-filler": 2, "mqar-2-pairs-1-filler": 3}
    assert all(0 <= metrics["acc"] <= 1 for metrics in content["tasks"].values())
    assert content["routing"]["tokens"] > 0


@pytest.mark.slow
def test_the_harness_s_own_command_knows_the_model(files: Path, tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text(
        f"""
task: local_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {files / "words.jsonl"}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{' ' + target}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: perplexity}}]
"""
    )
    arguments = f"pretrained={files / 'router'},execution=masked"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "layerroute.evaluation", "run", "--model", "layerroute"),
            *("--model_args", arguments, "--include_path", str(tmp_path), "--tasks", "local_words"),
            *("--device", "cpu", "--batch_size", "2", "--output_path", str(tmp_path / "out")),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]["local_words"]
    ours = run_tasks(files / "router", tasks(files, "words"), batch_size=2, execution="masked", **FEW)
    assert scores["perplexity,none"] == ours["tasks"]["words"]["perplexity"]
    assert scores["acc,none"] == ours["tasks"]["words"]["acc"]
