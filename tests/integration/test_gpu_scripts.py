"""What a GPU sitting runs, rehearsed; a phase that is killed; packs that arrive damaged; records that come home."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from layerroute.cli.main import _parse, command_parser
from layerroute.errors import UserError
from layerroute.recipe import load_recipe
from scripts.gpu import collecting, packing, sitting
from scripts.gpu.phases import PHASES, Place, Step

ROOT = Path(__file__).parents[2]
RUN = ROOT / "scripts" / "gpu" / "run.sh"
MOST = 3600  # seconds: only against a test that never ends


def start(phase: str, out: Path) -> subprocess.Popen[bytes]:
    command = [str(RUN), "--rehearse", "--out", str(out), "--archive", str(out / "records.tar.gz"), phase]
    return subprocess.Popen(command, env=os.environ | {"PYTHON": sys.executable, "PYTEST_ADDOPTS": ""})


def kill(process: subprocess.Popen[bytes]) -> None:
    """It and all that it started, at once."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.wait()


def files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*.json*")
        if not path.name.startswith(".") and path.name != sitting.STEPS
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sitting")


@pytest.mark.parametrize("rehearse", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_commands_of_a_phase_are_understood(phase: str, rehearse: bool, tmp_path: Path) -> None:
    """With their options, recipes and keys: minutes before anything runs."""
    pack = tmp_path / "pack"
    for name in ("text/train", "text/validation", "model", "tokenizer"):
        (pack / name).mkdir(parents=True)
        (pack / name / "text.txt").write_text("a text")
    found = 0
    for one in PHASES[phase](Place(out=tmp_path, pack=pack, rehearse=rehearse)):
        if list(one.command[1:3]) != ["-m", "layerroute"]:
            continue
        found += 1
        module, parser = command_parser(one.command[3])
        arguments = _parse(parser, module, list(one.command[4:]))
        if one.command[3] == "train":
            load_recipe(arguments.recipe, arguments.overrides)
    assert found or phase == "tests"


@pytest.mark.slow
@pytest.mark.parametrize(
    "phase", [pytest.param(name, marks=[] if name == "kernels" else pytest.mark.walk) for name in PHASES]
)
def test_a_phase_is_rehearsed_to_its_end_after_it_was_killed_in_the_middle(phase: str, out: Path) -> None:
    process = start(phase, out)
    end = time.monotonic() + MOST
    while not files(out / phase):  # until it has written the first of a record
        assert process.poll() is None and time.monotonic() < end, (out / phase / "log.txt").read_text()[
            -3000:
        ]
        time.sleep(0.05)
    kill(process)
    for path in [*files(out), out / phase / sitting.STEPS]:
        for line in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(line)
    before = {name for name, step in steps(out, phase).items() if step["status"] == "done"}
    with tarfile.open(out / "records.tar.gz") as tar:
        assert f"{phase}/{sitting.STEPS}" in tar.getnames()

    assert start(phase, out).wait(MOST) == 0, (out / phase / "log.txt").read_text()[-3000:]
    after = steps(out, phase)
    assert {step["status"] for step in after.values()} == {"done"} and before < set(after)
    with tarfile.open(out / "records.tar.gz") as tar:
        assert {str(path.relative_to(out)) for path in collecting.records_of(out / phase)} <= set(
            tar.getnames()
        )
    with pytest.raises(UserError, match="rehearsal"):
        collecting.collect(out)


def steps(out: Path, phase: str) -> dict[str, Any]:
    return json.loads((out / phase / sitting.STEPS).read_text())["steps"]


def step(name: str, program: str) -> Step:
    return Step(name=name, command=[sys.executable, "-c", program])


CLEAN = {"revision": "f00d", "dirty": False, "versions": {}, "hardware": {}}


def test_a_phase_ends_at_its_limit_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sitting, "provenance", lambda: CLEAN)
    archive = tmp_path / "records.tar.gz"
    saved, sign = tmp_path / "saved", tmp_path / "sign"
    saves = f"""
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path({str(saved)!r}).write_text("whole")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path({str(sign)!r}).touch()
time.sleep({MOST})
"""
    ours = [step("quick", "print('said')"), step("long", saves), step("last", "")]

    def deadline_at_the_sign() -> float:
        """Time passes only once the step has come so far that it can be told to stop."""
        return time.monotonic() + (2 * MOST if sign.exists() else 0.0)

    monkeypatch.setattr(sitting, "clock", deadline_at_the_sign)
    assert sitting.Phase("tests", Place(out=tmp_path / "out"), archive).run(ours, MOST) == 143
    found = steps(tmp_path / "out", "tests")
    assert {name: one["status"] for name, one in found.items()} == {
        "quick": "done", "long": "cut off", "last": "not begun"
    }  # fmt: skip
    assert saved.read_text() == "whole"
    sign.unlink()

    again = [step("quick", "raise SystemExit(7)"), step("long", ""), step("last", "raise SystemExit(3)")]
    assert sitting.Phase("tests", Place(out=tmp_path / "out"), archive).run(again, MOST) == 1
    found = steps(tmp_path / "out", "tests")
    assert [found[name]["status"] for name in ("quick", "long", "last")] == ["done", "done", "failed"]
    with tarfile.open(archive) as tar:
        told = json.load(tar.extractfile(f"tests/{sitting.STEPS}"))
    assert told["steps"] == found
    # Another revision does all of it anew.
    monkeypatch.setattr(sitting, "provenance", lambda: CLEAN | {"revision": "another"})
    assert sitting.Phase("tests", Place(out=tmp_path / "out"), None).run(again[:1], MOST) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tset"], "there is no phase tset; phases: tests kernels"),
        (["--out"], "--out needs a value"),
        (["--pack", "nowhere"], "nowhere is no pack"),
    ],
)
def test_run_refuses_in_one_line(words: list[str], message: str) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run([str(RUN), *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A pack of several parts: text and a model, no wheels."""
    monkeypatch.setattr(packing, "provenance", lambda: CLEAN)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(os.urandom(5000))
    texts = []
    for name in ("train", "validation"):
        texts.append(tmp_path / f"{name}.jsonl")
        texts[-1].write_text('{"text": "one word and another one"}\n' * 40)
    given = ["--text", str(texts[0]), "--validation", str(texts[1]), "--model", str(tmp_path / "model")]
    folder = tmp_path / "pack"
    sizes = ["--vocabulary", "300", "--part-mb", "0.01"]
    assert packing.main(["pack", str(folder), *given, *sizes, "--wheels"]) == 0
    assert len(list(folder.glob("part-*"))) > 2
    assert all(part.stat().st_size <= 10_000 for part in folder.glob("part-*"))
    capsys.readouterr()
    return folder


def test_a_pack_arrives_whole(packed: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    assert packing.main(["unpack", str(packed), "--to", str(ready)]) == 0
    assert (ready / "model" / "weights").read_bytes() == (tmp_path / "model" / "weights").read_bytes()
    assert (ready / "text" / "train" / "train.jsonl").read_text() == (tmp_path / "train.jsonl").read_text()
    assert json.loads((ready / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert packing.revision(ready) == "f00d"


@pytest.mark.parametrize("harm", ["missing", "damaged", "other code", "changes", "large part", "half a text"])
def test_a_pack_that_does_not_fit_is_refused(
    packed: Path,
    tmp_path: Path,
    harm: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, message = ["unpack", str(packed), "--to", str(tmp_path / "ready")], harm
    part = packed / "part-001"
    if harm == "missing":
        part.unlink()
        message = "lacks part-001 of"
    elif harm == "damaged":
        part.write_bytes(part.read_bytes()[:-1] + b"x")
    elif harm == "other code":
        monkeypatch.setattr(packing, "code_fingerprint", lambda root: "another")
        words, message = ["revision", str(packed)], "pack anew"
    elif harm == "changes":
        monkeypatch.setattr(packing, "provenance", lambda: CLEAN | {"dirty": True})
        words, message = ["pack", str(tmp_path / "new"), "--wheels"], "changes that are not committed"
    elif harm == "large part":
        words, message = ["pack", str(tmp_path / "new"), "--part-mb", "61"], "at most 60 MB"
    else:
        words, message = (
            ["pack", str(tmp_path / "new"), "--text", str(tmp_path / "train.jsonl")],
            "go together",
        )
    assert packing.main(words) == 2
    assert message in capsys.readouterr().err


def sat(folder: Path, revision: str, card: str | None = "NVIDIA H100 80GB HBM3") -> Path:
    """A sitting as it comes back: tests, a benchmark, a run."""
    hardware = {
        "accelerator": card,
        "driver": "580.1",
        "cpu": "x",
        "cores": 1,
        "memory_gib": 1.0,
        "platform": "x",
    }
    source = {"revision": revision, "dirty": False, "versions": {"torch": "2.11.0"}, "hardware": hardware}
    arm = {"seconds": {}, "speedup": {"median": 1.5}, "share_of_limit": {"median": 0.9}}
    row = {"title": "1x2048", "baseline": "dense", "arms": {"dense": arm, "sparse": arm}}
    bench = {"kind": "benchmark", "finished": None, "rows": [row], **source}
    metrics = {"validation_loss": 3.25}
    trained = {"status": "completed", "metrics": metrics, "timing": {"tokens_per_second": 1e6}, **source}
    gap = {"mean": -0.02, "low": -0.08, "high": 0.04}
    judged = {
        "kind": "transfer",
        "rows": [{"kind": "prose", "arms": {"greedy": {"at_equal_cost": gap}}}],
        **source,
    }
    done = {"status": "done"}
    content = {
        "machine.json": source,
        "inference/steps.json": {
            **source,
            "steps": {"decode-8b": {"status": "done"}, "hybrid": {"status": "not begun"}},
        },
        "inference/decode-8b.json": bench,
        "original/steps.json": {**source, "steps": {"static-seed1": done}},
        "original/static-seed1/record.json": trained,
        "skipping/steps.json": {**source, "steps": {"judged-1m": done}},
        "skipping/judged-1m.json": judged,
        "tests/steps.json": {**source, "steps": {"tests": {"status": "failed"}}},
    }
    for name, one in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(one))
    lines = [
        {"test": "a", "outcome": "failed"},
        {"test": "b", "outcome": "passed"},
        {"test": "a", "outcome": "passed"},
    ]
    lines.append({"test": "c", "outcome": "skipped", "why": "needs fla"})
    (folder / "tests" / "tests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def head() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_records_come_home_and_the_page_quotes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "CODE", ("LICENSE",))  # a checkout with changes is no other revision here
    page = tmp_path / "gpu.md"
    page.write_text(f"before\n{collecting.BEGIN}\n\nold\n{collecting.END}\nafter\n")
    monkeypatch.setattr(collecting, "PAGE", page)
    results = tmp_path / "results"
    collecting.collect(sat(tmp_path / "sitting", head()), results)
    card = results / "nvidia-h100-80gb-hbm3"
    tested = json.loads((card / "tests" / "tests.json").read_text())
    assert (tested["passed"], tested["failed"], tested["skipped"]) == (2, 0, 1)
    assert json.loads((card / "original" / "static-seed1.json").read_text())["status"] == "completed"
    collecting.renew(results, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    for told in (
        "### NVIDIA H100 80GB HBM3, driver 580.1, torch 2.11.0, revision ",
        "| done | 1x2048: sparse | 1.50× as fast as dense, 90% of the limit |",
        "| inference | hybrid | not begun |  |  |",
        "| done |  | loss 3.2500, 1,000,000 tokens/s |",
        "| done | prose: routed less greedy | -0.0200 nats (-0.0800 to +0.0400) at equal FLOPs |",
        "| kernels | | has not run | | |",
        "| failed |  | 2 passed, 0 failed, 1 skipped |",
    ):
        assert told in text


@pytest.mark.parametrize("harm", ["another revision", "a rehearsal", "changes", "empty"])
def test_what_says_nothing_of_this_code_is_not_collected(tmp_path: Path, harm: str) -> None:
    folder, message = tmp_path / "sitting", "whose code is not the code here"
    sat(folder, "1" * 40, card=None if harm == "a rehearsal" else "H100")
    if harm == "a rehearsal":
        message = "a rehearsal"
    elif harm == "changes":
        for path in folder.glob("*/steps.json"):
            path.write_text(path.read_text().replace('"dirty": false', '"dirty": true'))
        message = "not committed"
    elif harm == "empty":
        message = "there is no"
        folder = tmp_path
    with pytest.raises(UserError, match=message):
        collecting.collect(folder, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_the_page_says_what_the_records_say() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert f"{collecting.BEGIN}\n\n{collecting.shown()}\n{collecting.END}" in text
