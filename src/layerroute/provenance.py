"""Where a result comes from: versions, revision of the code, machine. Nothing here imports torch."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NotRequired, TypedDict


class Hardware(TypedDict):
    """The machine. ``accelerator`` is None on a CPU run, and a ``driver`` is named with an NVIDIA GPU only."""

    cpu: str
    cores: int
    memory_gib: float
    accelerator: str | None
    platform: str
    driver: NotRequired[str]


def provenance() -> dict[str, Any]:
    """Return the versions, the code's revision and the hardware, for a record.

    ``revision`` is the commit of the checkout that the package runs from, or of the version-control URL that it was
    installed from, or what the variable ``LAYERROUTE_REVISION`` says of a copy without history, or None. ``dirty``
    says whether sources or recipes differ from that commit. The accelerator is named only if torch is imported
    already: this function never imports it.
    """
    revision, dirty = _revision()
    return {"versions": _versions(), "revision": revision, "dirty": dirty, "hardware": _hardware()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    packages = "layerroute torch transformers peft accelerate datasets tokenizers numpy triton flash-linear-attention"
    for name in packages.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _revision() -> tuple[str | None, bool | None]:
    package = Path(__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    # An installed package may lie inside somebody else's repository, whose revision says nothing about this code.
    if top is not None and Path(top).resolve() / "src" / "layerroute" == package:
        status = _git(package, "status", "--porcelain", "--", str(package), str(Path(top) / "recipes"))
        return _git(package, "rev-parse", "HEAD"), None if status is None else bool(status)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        origin = json.loads(
            importlib.metadata.distribution("layerroute").read_text("direct_url.json") or "{}"
        )
        return str(origin["vcs_info"]["commit_id"]), False
    told = os.environ.get("LAYERROUTE_REVISION")
    return (told, False) if told else (None, None)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], check=False, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _hardware() -> Hardware:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: Hardware = {
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "accelerator": _accelerator(),
        "platform": platform.platform(),
    }
    if found["accelerator"] is not None and (driver := _driver()) is not None:
        found["driver"] = driver
    return found


def _driver() -> str | None:
    """The version of NVIDIA's driver: the first number of this form in the kernel's own words."""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"\b\d+\.\d+(\.\d+)?\b", text):
            return found.group()
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.split()
        return told[0] if told else None
    return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _accelerator() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    if torch.backends.mps.is_available():
        return "Apple GPU"
    return None
