"""Freed memory is kept where a command runs, and only there."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
if sys.argv[1] == "kept":
    from layerroute.allocator import keep_freed_memory
    if not keep_freed_memory():
        print("no glibc"); raise SystemExit
elif sys.argv[1] == "given back":
    from layerroute.allocator import give_freed_memory_back, keep_freed_memory
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
    from layerroute.allocator import keep_freed_memory

    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
