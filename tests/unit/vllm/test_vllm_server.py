"""The process that `layerroute serve --engine vllm` becomes, around a server that only says where it counts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = """
import os, pathlib, sys
if __name__ == "__main__":
    place = pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    (place / "counter_1.db").write_text("")
    print(place, *sys.argv[1:], flush=True)
    if "--wait" in sys.argv:
        sys.stdin.read()
    if "--fail" in sys.argv:
        raise ValueError("no such model")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a process that finds that server in the place of vLLM's."""
    module = tmp_path / "stand-in/vllm/entrypoints/openai/api_server.py"
    module.parent.mkdir(parents=True)
    module.write_text(SERVER)
    for package in (module.parents[2], module.parents[1], module.parent):
        (package / "__init__.py").touch()  # without it the one that is installed would be found
    (tmp_path / "temporary").mkdir()
    path = os.pathsep.join([str(tmp_path / "stand-in"), *filter(None, sys.path)])
    own = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    return own | {"PYTHONPATH": path, "TMPDIR": str(tmp_path / "temporary")}


def started(environment: dict[str, str], *words: str) -> tuple[subprocess.Popen[str], Path]:
    """The process, once it serves, and the folder in which it counts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "layerroute.vllm.server", "--port", "1", *words],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    place, *given = process.stdout.readline().split()
    assert given == ["--port", "1", *words]
    return process, Path(place)


@pytest.mark.parametrize(("word", "code"), [("--plain", 0), ("--fail", 1)])
def test_a_server_that_ends_leaves_no_folder_behind(
    environment: dict[str, str], tmp_path: Path, word: str, code: int
) -> None:
    process, place = started(environment, word)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert place.parent == tmp_path / "temporary" and not place.exists()


def test_a_server_that_is_told_to_end_while_it_loads_leaves_none_either(environment: dict[str, str]) -> None:
    process, place = started(environment, "--wait")
    assert place.is_dir()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and not place.exists()


def test_a_folder_that_somebody_else_chose_stays(environment: dict[str, str], tmp_path: Path) -> None:
    process, place = started(environment | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, "--plain")
    process.communicate(timeout=60)
    assert place == tmp_path and (place / "counter_1.db").is_file()
