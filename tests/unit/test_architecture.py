"""The house's own rules: which part may import which, what stays free of torch, how long a file may be."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import layerroute
from layerroute.cli.main import COMMANDS
from layerroute.lab.question import questions

SOURCE = Path(layerroute.__file__).parent
LONGEST_FILE = 500

LEAVES = {
    "process",
    "argument_types",
    "errors",
    "few_units",
    "integrity",
    "liveness",
    "outcomes",
    "precision",
    "provenance",
    "records",
    "registration",
}
ROUTING = {"routing", "objectives", "ops"}
MODELS = {"hybrid", "skipping", "exporting"}
WORK = {"training", "evaluation", "benchmark"}

ALLOWED: dict[str, set[str]] = {
    # Names with no part of ours below them.
    "argument_types": set(),
    "errors": set(),
    "few_units": set(),
    "outcomes": set(),
    "provenance": set(),
    "process": set(),
    "precision": {"errors"},
    "registration": set(),
    "integrity": {"errors"},
    "folders": {"errors", "integrity"},
    "liveness": set(),
    "records": {"errors", "integrity", "liveness", "provenance"},
    "recipe": {"errors"},
    "data": {"folders", "errors", "integrity"},
    # The core: it knows of no model, no data and no run.
    "routing": {"errors"},
    "ops": {"errors"},
    "objectives": {"errors", "routing"},
    "hybrid": {"errors", *ROUTING},
    "skipping": {
        "folders",
        "data",
        "errors",
        "few_units",
        "integrity",
        "outcomes",
        "precision",
        "registration",
        *ROUTING,
    },
    "exporting": {"errors", "registration", "routing", "skipping"},
    "vllm": {"process", "errors", "exporting", "registration", "routing", "skipping"},
    # What is done with models. Within this row there is no order; modules must still not import in a circle.
    **{
        part: {*LEAVES, "folders", "recipe", "data", *ROUTING, *MODELS, "vllm", *WORK, "lab"}
        for part in sorted(WORK)
    },
    "studies": {*LEAVES, "recipe", "data", *ROUTING, *MODELS, *WORK, "lab", "lab.report"},
    "serving": {*LEAVES, "evaluation"},
    # The top level: what `layerroute.NAME` and the commands call.
    "api": {*LEAVES, "data", *ROUTING, *MODELS, *WORK, "lab", "lab.report"},
    # Over records alone.
    "lab": LEAVES,
    "lab.report": {*LEAVES, "lab"},
    # Found by their folder: no other part imports one by name.
    "capabilities": {*LEAVES, "lab", "lab.report"},
}

TORCH_FREE = [
    "argument_types",
    "errors",
    "few_units",
    "integrity",
    "folders",
    "liveness",
    "outcomes",
    "precision",
    "provenance",
    "records",
    "registration",
    "recipe",
    "data",
    "lab",
    "lab.report",
    "capabilities",
]


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, *, at_import_only: bool) -> Iterator[str]:
    """Yield the modules that are imported; with ``at_import_only`` not those that a function imports when it runs."""
    for node in ast.iter_child_nodes(tree):
        if is_for_type_checkers(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            # `from package import module` imports the module, `from module import name` does not.
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in whole)
        elif not (at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from imports(node, at_import_only=at_import_only)


def part_of(module: str) -> str:
    """The part that a module is of: the longest name in ``ALLOWED`` that it starts with, else its first."""
    _, *names = module.split(".")
    starts = [".".join(names[:length]) for length in range(len(names), 1, -1)]
    return next((start for start in starts if start in ALLOWED), "".join(names[:1]))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_part_has_its_place() -> None:
    found = {part_of(module) for module in MODULES} - {"", "__main__", "cli"}
    assert found <= set(ALLOWED), f"say in ALLOWED what {sorted(found - set(ALLOWED))} may import"


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part: str) -> None:
    for module, path in MODULES.items():
        if part_of(module) != part:
            continue
        for imported in imports(parse(path), at_import_only=False):
            if imported.partition(".")[0] != "layerroute" or part_of(imported) in ("", part):
                continue
            assert part_of(imported) in ALLOWED[part], f"{module} imports {imported}: {part} must not know it"


def test_no_modules_import_in_a_circle() -> None:
    graph = {
        module: {
            name for name in imports(parse(path), at_import_only=False) if name in MODULES and name != module
        }
        for module, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > len(graph), "the graph must hold the imports, or it proves nothing"
    # What a package's own __init__ gathers is not a dependency of the modules inside it.
    acyclic = {
        module: {name for name in names if not module.startswith(f"{name}.")}
        for module, names in graph.items()
    }
    graphlib.TopologicalSorter(acyclic).prepare()


def test_imports_are_seen_wherever_they_hide() -> None:
    code = """
import layerroute.data as d
from layerroute import hybrid
from layerroute.errors import UserError
if TYPE_CHECKING:
    from layerroute.training import trainer
class C:
    def f(self):
        from layerroute.ops import gated_delta
"""
    eager = {"layerroute.data", "layerroute.hybrid", "layerroute.errors"}
    assert set(imports(ast.parse(code), at_import_only=True)) == eager
    assert set(imports(ast.parse(code), at_import_only=False)) == {*eager, "layerroute.ops.gated_delta"}


def test_nothing_but_the_command_line_writes_to_stdout_or_exits() -> None:
    for module, path in MODULES.items():
        if part_of(module) in ("cli", "__main__"):
            continue
        for call in (node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert name not in ("sys.exit", "exit", "quit"), f"{module}, line {call.lineno}: raise instead"
            elsewhere = any(keyword.arg == "file" for keyword in call.keywords)
            # Results as data (--json) share stdout with nothing.
            assert name != "print" or elsewhere, f"{module}, line {call.lineno}: return it, or log it"


@pytest.mark.parametrize("part", TORCH_FREE)
def test_torch_free_parts_load_without_torch(part: str) -> None:
    names = [module for module in MODULES if part_of(module) == part]
    if not names:
        pytest.skip(f"there is no {part} yet")
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n{REPORT}"
    assert loaded(code) == []


def test_the_package_and_its_help_load_without_torch() -> None:
    assert loaded(f"import sys, layerroute\n{REPORT}") == []
    code = (
        "import sys\nfrom layerroute.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    )
    assert loaded(code + REPORT) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_loads_without_torch(command: str) -> None:
    code = "import sys\nfrom layerroute.cli.main import main\n"
    assert loaded(f"{code}try: main([{command!r}, '--help'])\nexcept SystemExit: pass\n{REPORT}") == []


REPORT = "print('LOADED', [name for name in ('torch', 'transformers') if name in sys.modules])"


def loaded(code: str) -> list[str]:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found: list[str] = ast.literal_eval(result.stdout.rpartition("LOADED ")[2])
    return found


def test_the_check_for_torch_can_fail() -> None:
    assert loaded(f"import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n{REPORT}") == [
        "torch"
    ]


@pytest.mark.parametrize("name", ["lab", "lab.report", "capabilities"])
def test_the_lab_names_torch_nowhere(name: str) -> None:
    for module, path in MODULES.items():
        if part_of(module) == name:
            used = {imported.partition(".")[0] for imported in imports(parse(path), at_import_only=False)}
            assert not used & {"torch", "transformers"}, module


def test_the_lab_names_no_capability() -> None:
    names = {question.capability for question in questions()} | {
        f"capabilities.{folder.name}" for folder in (SOURCE / "capabilities").iterdir() if folder.is_dir()
    }
    assert {"attention_routing", "layer_skipping"} < names
    for module, path in MODULES.items():
        if part_of(module) in ("lab", "lab.report"):
            text = path.read_text(encoding="utf-8")
            assert not [name for name in names if name in text], module


def test_every_command_has_its_module_and_every_module_its_command() -> None:
    helpers = {"main"}
    files = {path.stem for path in (SOURCE / "cli").glob("*.py")} - {"__init__", *helpers}
    commands = {
        name for name in files if "def run(" in (SOURCE / "cli" / f"{name}.py").read_text(encoding="utf-8")
    }
    assert {name: f"layerroute.cli.{name}" for name in commands} == {
        name: module for name, (module, _) in COMMANDS.items()
    }


def test_no_file_is_too_long() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert max(lengths.values()) > 100
    assert {module: length for module, length in lengths.items() if length > LONGEST_FILE} == {}


def test_the_map_in_contributing_has_every_part() -> None:
    if not (SOURCE.parents[1] / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in SOURCE.iterdir():
        if (path / "__init__.py").is_file():
            assert f"`src/layerroute/{path.name}/`" in text, f"say in CONTRIBUTING.md what {path.name} is for"
