"""``import layerroute``: cheap, complete, and transformers knows our models whichever comes first."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import layerroute
from layerroute import EXPORTS, MOVED

KINDS_OF_CHANGE = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
"""Of Keep a Changelog."""


def run(code: str, *, folder: Path | None = None) -> str:
    """Run ``code`` in an interpreter of its own; ``folder`` is searched for modules first."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=folder, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_resolves(name: str) -> None:
    value = getattr(layerroute, name)
    assert value.__name__ == name
    assert name in dir(layerroute)
    assert name in layerroute.__all__


def test_what_type_checkers_see_is_what_there_is() -> None:
    source = Path(layerroute.__file__).read_text(encoding="utf-8")
    declared = {
        line.split()[-1]: line.split()[1]
        for line in source.splitlines()
        if line.startswith("    from layerroute") and " as " in line
    }
    assert declared == EXPORTS
    assert "if not TYPE_CHECKING" in source, "else a name that is not there would pass"


@pytest.mark.parametrize("name", MOVED)
def test_names_of_before_stay_one_release_with_a_warning(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"write: from {MOVED[name]} import {name}$") as caught:
        value = getattr(layerroute, name)
    assert value.__name__ == name
    assert caught[0].filename == __file__, "it must point at who used the name"
    assert name not in layerroute.__all__


def test_the_top_level_fits_on_one_screen() -> None:
    assert len(EXPORTS) <= 24 and not EXPORTS.keys() & MOVED.keys()


def test_changelog_and_citation_are_of_this_version() -> None:
    root = Path(layerroute.__file__).parents[2]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\S+)\] - (\d{4}-\d{2}-\d{2}|unreleased)$", changelog, flags=re.MULTILINE)
    assert len(versions) == len(re.findall(r"^## ", changelog, flags=re.MULTILINE))
    assert versions[0][0] == layerroute.__version__
    assert set(re.findall(r"^### (\w+)", changelog, flags=re.MULTILINE)) <= KINDS_OF_CHANGE
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == layerroute.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'HybridConfg'"):
        _ = layerroute.HybridConfg  # type: ignore[attr-defined]
    assert not hasattr(layerroute, "nonsense")


def test_import_costs_neither_torch_nor_transformers() -> None:
    out = run(
        "import sys, layerroute; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    assert out == "[]"


ROUND_TRIP = """
config = AutoConfig.for_model("layerroute_hybrid", vocab_size=11, hidden_size=32, num_attention_heads=2)
folder = tempfile.mkdtemp()
AutoModelForCausalLM.from_config(config).save_pretrained(folder)
print(type(AutoModelForCausalLM.from_pretrained(folder)).__name__, type(AutoConfig.from_pretrained(folder)).__name__)
"""
ORDERS = {
    "ours first": "import layerroute\nfrom transformers import AutoConfig, AutoModelForCausalLM",
    "theirs first": "from transformers import AutoConfig, AutoModelForCausalLM\nimport layerroute",
    "theirs first, Auto classes later": "import transformers, layerroute\n"
    "from transformers import AutoConfig, AutoModelForCausalLM",
    "in the middle of another model": "import layerroute\nfrom transformers import LlamaForCausalLM\n"
    "from transformers import AutoConfig, AutoModelForCausalLM",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_open_our_checkpoints(order: str) -> None:
    out = run(f"import tempfile\n{ORDERS[order]}\n{ROUND_TRIP}")
    assert out == "HybridForCausalLM HybridConfig"


# The rest is about the mechanism alone: a transformers of a few lines, whose Auto configuration is loaded in the
# middle of another module, as the real one's is, and a model package that needs that other module whole.
FAKE = {
    "transformers/__init__.py": "",
    "transformers/models/__init__.py": "",
    "transformers/models/auto/__init__.py": "",
    "transformers/models/auto/configuration_auto.py": "registered = []",
    "transformers/modeling_utils.py": "import transformers.models.auto.configuration_auto\nclass PreTrainedModel: ...",
    "fake_models.py": "from transformers.modeling_utils import PreTrainedModel\n"
    "from transformers.models.auto.configuration_auto import registered\nregistered.append('fake')",
}
WAIT = """
import sys
from layerroute import registration
sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, registration._AwaitTransformers)]
registration.MODEL_PACKAGES = ("fake_models",)
"""
WAITING = "print(any(isinstance(f, registration._AwaitTransformers) for f in sys.meta_path))"


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    for name, text in FAKE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_registration_waits_for_the_outermost_import(fake: Path) -> None:
    out = run(
        f"""{WAIT}
registration.register_models()
registration.register_models()
import transformers
print("fake_models" in sys.modules)
{WAITING}
import transformers.modeling_utils
print(transformers.models.auto.configuration_auto.registered)
{WAITING}
import inspect
print("class PreTrainedModel" in inspect.getsource(transformers.modeling_utils))
""",
        folder=fake,
    )
    assert out.splitlines() == ["False", "True", "['fake']", "False", "True"]


def test_an_import_that_fails_does_not_end_the_waiting(fake: Path) -> None:
    (fake / "transformers" / "broken.py").write_text(
        "import transformers.models.auto.configuration_auto\n1 / 0"
    )
    out = run(
        f"""{WAIT}
registration.register_models()
try:
    import transformers.broken
except ZeroDivisionError:
    print("theirs to tell")
{WAITING}
import transformers.modeling_utils
print(transformers.models.auto.configuration_auto.registered)
""",
        folder=fake,
    )
    assert out.splitlines() == ["theirs to tell", "True", "['fake']"]


def test_models_that_cannot_be_imported_are_a_warning_not_a_broken_transformers(fake: Path) -> None:
    (fake / "fake_models.py").write_text("import no_such_module")
    out = run(
        f"""{WAIT}
registration.register_models()
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import transformers.modeling_utils
print([str(warning.message) for warning in caught])
""",
        folder=fake,
    )
    assert "could not register the models of fake_models: No module named 'no_such_module'" in out
