"""Freed memory is kept and idle threads sleep where a command runs, and only there."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from layerroute.cli import serve
from layerroute.cli.main import main
from layerroute.process import sleep_while_idle, wait_by_default, waiting_by_default
from layerroute.vllm.engine import Remote

PROGRAM = """
import resource, sys
if sys.argv[1] == "kept":
    from layerroute.process import keep_freed_memory
    if not keep_freed_memory():
        print("no glibc"); raise SystemExit
elif sys.argv[1] == "given back":
    from layerroute.process import give_freed_memory_back, keep_freed_memory
    keep_freed_memory()
    give_freed_memory_back()
elif sys.argv[1] == "command":
    from layerroute.cli.main import main
    main([])
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (int(sys.argv[2]) << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print("faults", faults())
"""


def faults(how: str, **environment: str) -> int:
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, "48"],
        capture_output=True,
        text=True,
        check=True,
        env=environment or None,
    ).stdout
    if "no glibc" in out:
        pytest.skip("this C library has nothing to set")
    return int(out.split("faults ")[1])


def test_a_large_array_costs_new_pages_the_first_time_only():
    if faults("as it is") < 1000:
        pytest.skip("this C library keeps freed memory as it is, or pages are large")
    assert faults("kept") < 100


def test_streamed_weights_are_given_back():
    usual = faults("as it is")
    if usual < 1000:
        pytest.skip("this C library keeps freed memory as it is, or pages are large")
    assert faults("given back") > usual / 2


def test_every_command_keeps_it():
    if faults("as it is") < 1000:
        pytest.skip("this C library keeps freed memory as it is, or pages are large")
    assert faults("command") < 100


def test_who_has_chosen_is_left_alone(monkeypatch):
    from layerroute.process import keep_freed_memory

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()


POLICY = "OMP_WAIT_POLICY"
TOLD = f"import os; print(os.environ.get('{POLICY}'))"


@pytest.fixture
def nothing_chosen(monkeypatch):
    """As it is before a command begins, now and after the test."""
    for name in (POLICY, f"LAYERROUTE_{POLICY}"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def told() -> str:
    """What a process that is started now is told."""
    return subprocess.run(
        [sys.executable, "-c", TOLD], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_idle_threads_sleep_in_commands_and_not_in_the_engines_that_they_start(nothing_chosen):
    sleep_while_idle()
    assert told() == "PASSIVE"
    with waiting_by_default():
        assert told() == "None"
    assert told() == "PASSIVE"
    wait_by_default()
    assert told() == "None"


@pytest.mark.parametrize("chosen", ["ACTIVE", "PASSIVE"])
def test_how_threads_wait_is_left_to_who_has_chosen(nothing_chosen, monkeypatch, chosen):
    monkeypatch.setenv(POLICY, chosen)
    sleep_while_idle()
    with waiting_by_default():
        assert told() == chosen
    assert told() == chosen


@pytest.mark.parametrize(("words", "policy"), [(["--engine", "vllm"], None), ([], "PASSIVE")])
def test_a_command_that_serves_with_vllm_leaves_its_threads_alone(nothing_chosen, monkeypatch, words, policy):
    seen = []
    monkeypatch.setattr(serve, "run", lambda arguments: seen.append(os.environ.get(POLICY)) or 0)
    assert main(["serve", "out", *words]) == 0
    assert seen == [policy]


def test_an_engine_in_a_process_of_its_own_is_not_told_to_sleep(nothing_chosen, monkeypatch):
    seen = []
    process = SimpleNamespace(start=lambda: seen.append(told()))
    pipes = SimpleNamespace(recv=lambda: (True, None)), SimpleNamespace(close=lambda: None)
    context = SimpleNamespace(Pipe=lambda: pipes, Process=lambda **_: process)
    monkeypatch.setattr("multiprocessing.get_context", lambda how: context)
    sleep_while_idle()
    Remote("out")
    assert seen == ["None"]
    assert told() == "PASSIVE"
