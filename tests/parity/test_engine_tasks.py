"""Tasks scored by the engine have the scores, answers and rates that transformers gives them.

Needs vLLM, which has an environment of its own: ``make vllm``.
"""

import json

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make vllm` runs these")

from layerroute.cli.main import main
from tests.parity.engine_models import export

TASKS = {
    "words": [{"context": f"The router reads token {n}", "target": f"and token {n + 1}"} for n in range(12)],
    "choices": [
        {"question": f"Which layer runs? {n}", "choices": ["the first", "no", "all of them"], "gold": n % 3}
        for n in range(12)
    ],
    "lines": [{"prompt": f"{'token ' * n}is", "answer": "x"} for n in range(1, 7)],
}


def test_scores_answers_and_rates_are_those_of_transformers(tmp_path, capsys):
    folder = export(tmp_path, vocabulary=300)
    files = []
    for name, rows in TASKS.items():
        files.append(str(tmp_path / f"{name}.jsonl"))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = {}
    for engine in ("transformers", "vllm"):
        out = tmp_path / engine
        words = ["evaluate", str(folder), "--tasks", *files, "--out", str(out), "--engine", engine]
        more = ["--device", "cpu", "--execution", "masked"] if engine == "transformers" else []
        assert main([*words, *more]) == 0
        found[engine] = (
            json.loads((out / "results.json").read_text()),
            {name: (out / f"{name}.csv").read_text() for name in TASKS},
        )
    (own, texts), (theirs, answers) = found["transformers"], found["vllm"]
    assert own["tasks"].keys() == theirs["tasks"].keys() == TASKS.keys()
    for name, metrics in own["tasks"].items():
        assert theirs["tasks"][name] == pytest.approx(metrics, rel=1e-4, abs=1e-4)
    assert answers["lines"] == texts["lines"]
    assert len(set(answers["lines"].splitlines())) > 3, "the model must say different things"
    assert 0 < theirs["routing"]["mean_rate"] < 1
    for site, rate in own["routing"]["rate"].items():
        assert theirs["routing"]["rate"][site] == pytest.approx(rate, abs=0.02)
