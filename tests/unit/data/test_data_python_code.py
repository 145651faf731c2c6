"""The standard library and installed packages as documents."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from layerroute.data.sources.python_code import PythonCode, installed_packages, standard_library
from layerroute.errors import UserError


def test_the_standard_library_is_itself_and_nothing_beside_it() -> None:
    names = [document.name for document in standard_library().documents()]
    assert {"json/decoder.py", "argparse.py", "asyncio/tasks.py"} <= set(names)
    assert names == sorted(names)
    modules = {name.split("/")[0].removesuffix(".py") for name in names}
    assert modules <= sys.stdlib_module_names
    assert len(modules) > 100
    assert not [name for name in names if "test" in name.split("/")[:-1] or "site-packages" in name]
    assert not [name for name in names if "sysconfigdata" in name or name == "sitecustomize.py"]


def test_its_text_is_that_of_the_files_and_reading_twice_is_the_same() -> None:
    documents = list(standard_library().documents())
    text = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_text(encoding="utf-8")
    assert dict(document[:2] for document in documents)["argparse.py"] == text
    assert list(standard_library().documents()) == documents
    assert standard_library().fingerprint() == standard_library().fingerprint()
    version = ".".join(map(str, sys.version_info[:3]))
    assert standard_library().describe() == f"python-stdlib {version}"
    assert sum(len(document.text) for document in documents) > 5_000_000


def test_a_python_without_source_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "argparse.pyc").write_bytes(b"")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match="carries no source files of its standard library"):
        standard_library()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib.zip")})
    with pytest.raises(UserError, match=r"use data\.source 'files'"):
        standard_library()


def test_files_decode_as_they_declare_or_are_left_out(tmp_path: Path) -> None:
    contents = {
        "latin.py": "# -*- coding: latin-1 -*-\n# é\n".encode("latin-1"),
        "bom.py": b"\xef\xbb\xbf# bom\r\n",
        "broken.py": b"# \xff\n",
        "unknown.py": b"# -*- coding: klingon -*-\n",
        "empty.py": b"",
    }
    files = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        files.append((name, tmp_path / name))
    found = {document.name: document.text for document in PythonCode("code", files).documents()}
    assert found == {"latin.py": "# -*- coding: latin-1 -*-\n# é\n", "bom.py": "# bom\r\n"}


def test_fingerprints_follow_names_and_content(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("x = 1\n")
    prints = {PythonCode("", [("a", path)]).fingerprint(), PythonCode("", [("b", path)]).fingerprint()}
    path.write_text("x = 2\n")
    prints.add(PythonCode("", [("a", path)]).fingerprint())
    assert len(prints) == 3
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        PythonCode("", [("a", path)]).fingerprint()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions, first on the import path."""
    (tmp_path / "a.py").write_text("# outside\n")
    tmp_path = tmp_path / "site"
    tmp_path.mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, listed: list[str]) -> None:
        folder = tmp_path / f"{name}-1.5.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (folder / "RECORD").write_text("".join(f"{file},,\n" for file in listed))

    (tmp_path / "zq_probe").mkdir()
    for file in ("zq_probe/b.py", "zq_probe/a.py", "zq_probe/types.pyi", "zq_probe/data.bin"):
        (tmp_path / file).write_text(f"# {file}\n")
    install(
        "zq_probe",
        [*(f"zq_probe/{file}" for file in ("b.py", "a.py", "types.pyi", "data.bin", "gone.py")), "../a.py"],
    )
    install("zq_editable", ["zq_editable.pth"])
    return tmp_path


def test_packages_give_their_source_files_sorted(site: Path) -> None:
    found = installed_packages(["ZQ.Probe", "zq-probe"])
    assert [(document.name, document.text) for document in found.documents()] == [
        ("zq-probe/zq_probe/a.py", "# zq_probe/a.py\n"),
        ("zq-probe/zq_probe/b.py", "# zq_probe/b.py\n"),
        ("zq-probe/zq_probe/types.pyi", "# zq_probe/types.pyi\n"),
    ]
    assert found.describe() == "installed-packages zq-probe 1.5"


def test_packages_that_cannot_be_used_are_told(site: Path) -> None:
    with pytest.raises(UserError, match=r"'zq-prove', which is not installed\. Did you mean 'zq-probe'\?"):
        installed_packages(["zq_prove"])
    with pytest.raises(UserError, match="lists no Python source files"):
        installed_packages(["zq_editable"])
