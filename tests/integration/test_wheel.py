"""The wheel, installed alone: it carries all that it needs, recipes and templates included."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.stand_in import write_stand_in

ROOT = Path(__file__).resolve().parents[2]
WHAT_IS_BUILT = (
    "src",
    "recipes",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
)

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command as a user without our checkout would: nothing of it on the path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build sdist and wheel from a copy of the sources; return the ``bin`` of an environment that has the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in WHAT_IS_BUILT:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, sources / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        else:
            shutil.copy(path, sources / name)
    # Without isolation, so that nothing is downloaded. The wheel is built from the sdist, which must be complete.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", sources, cwd=folder)
    shutil.rmtree(sources)
    (wheel,) = (folder / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    # The dependencies are borrowed. A folder on the path does not have its .pth files read, so the editable layerroute
    # of this environment stays out of sight.
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return programs


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path) -> None:
    out = run(installed / "python", "-c", "import layerroute; print(layerroute.__file__)", cwd=tmp_path)
    assert Path(out.strip()).is_relative_to(installed.parent)
    assert run(installed / "layerroute", "--help", cwd=tmp_path).startswith("usage: layerroute")
    assert run(installed / "layerroute", "--version", cwd=tmp_path).startswith("layerroute ")


def test_its_top_level_works(installed: Path, tmp_path: Path) -> None:
    """Its doctor is asked by `make dist`, in an environment that has nothing else."""
    (tmp_path / "router").mkdir()
    model = write_stand_in(tmp_path)
    code = (
        "import layerroute\n"
        f"model, tokenizer = layerroute.load({str(model)!r})\n"
        "made = layerroute.calibrate(\n"
        "    model, tokenizer, data='python-docs', tokens=512, length=64, rank=4, own_text=0, progress=False,\n"
        "    controls=['random'],\n"
        ")\n"
        "print(made.save('router'), made.verdict)\n"
    )
    assert "random" in run(installed / "python", "-c", code, cwd=tmp_path)
    made = run(
        installed / "layerroute", "generate", "router", "the router", "--max-new-tokens", "3", cwd=tmp_path
    )
    assert made.startswith("the router")


def test_shipped_recipes_are_found_by_name(installed: Path, tmp_path: Path) -> None:
    names = ("attention_routing/dynamic", "recipes/attention_routing/dynamic.yaml")
    entries = json.loads(run(installed / "layerroute", "validate", *names, "--json", cwd=tmp_path))
    assert len(entries) == len(names)
    for entry in entries:
        assert entry["name"] == "dynamic"
        assert Path(entry["file"]).is_relative_to(installed.parent)


def test_every_recipe_of_the_checkout_is_in_it(installed: Path, tmp_path: Path) -> None:
    entries = json.loads(run(installed / "layerroute", "validate", "--json", cwd=tmp_path))
    assert len(entries) == len(list((ROOT / "recipes").rglob("*.yaml"))) > 0
    assert all(entry["valid"] for entry in entries)


def test_templates_and_type_marker_are_in_it(installed: Path) -> None:
    (package,) = (installed.parent / "lib").glob("python*/site-packages/layerroute")
    source = ROOT / "src" / "layerroute"
    templates = [path for path in source.rglob("templates/**/*") if path.is_file()]
    assert len({path.parent for path in templates}) >= 3, "of the lab, and of capabilities"
    for path in templates:
        assert (package / path.relative_to(source)).is_file(), path
    assert (package / "py.typed").is_file()
