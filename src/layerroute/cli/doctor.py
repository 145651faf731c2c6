"""``layerroute doctor``: what this machine and installation can do, and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from layerroute.cli.output import print_json
from layerroute.data import DataConfig
from layerroute.provenance import provenance

_QUIET_EXTRAS = ("all", "dev", "docs")
_TRACKERS = ("tensorboard", "trackio", "wandb")
_GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``layerroute doctor``."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.epilog = "Exit code 1 if something that layerroute needs is missing or does not fit."


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if there is a problem that stands in the way."""
    report = examine()
    if arguments.json:
        print_json(report, indent=2)
    else:
        print(_text(report))
    return 1 if report["problems"] else 0


def examine() -> dict[str, Any]:
    """Look at the machine and the installation.

    Returns:
        A mapping of plain values: ``versions``, ``hardware``, ``torch``, ``devices``, ``precision``, ``gated_delta``,
        ``routed_attention``, ``processes``, ``extras``, ``trackers``, ``cache``, ``hub_cache``, ``disk``; ``problems``
        lists, one sentence each, what stands in the way, ``advice`` what would make it faster or more complete.
    """
    problems: list[str] = []
    advice: list[str] = []
    versions, extras = _requirements(problems, advice)
    for name, extra in extras.items():
        if extra["missing"]:
            advice.append(f"{name}: {', '.join(extra['missing'])} not installed; {extra['install']}")
    report: dict[str, Any] = {}
    try:
        report = _torch(advice)
    except (ImportError, OSError) as error:
        # OSError: a shared library of torch's that does not load.
        problems.append(f"torch cannot be imported ({error}); install it: pip install torch")
    # After torch, so that the GPU's name is known.
    source = provenance()
    return {
        "versions": {**source["versions"], **versions},
        "revision": source["revision"],
        "hardware": source["hardware"],
        **report,
        "extras": extras,
        "trackers": {name: _version(name) for name in _TRACKERS},
        "cache": _cache(DataConfig().cache_folder()),
        "hub_cache": _cache(_hub_cache()),
        "disk": {"here_free_gib": _free(Path.cwd()), "cache_free_gib": _free(DataConfig().cache_folder())},
        "problems": problems,
        "advice": advice,
    }


def _requirements(problems: list[str], advice: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Hold what is installed against what the package declares; return versions and the state of each extra."""
    versions: dict[str, str] = {}
    extras: dict[str, Any] = {}
    if _version("layerroute") is None:
        advice.append("layerroute is not installed, it runs from its sources: what it needs was not checked")
        return versions, extras
    for name in ("", *(importlib.metadata.metadata("layerroute").get_all("Provides-Extra") or [])):
        missing = []
        for requirement in _declared(name):
            installed = _version(requirement.name)
            fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
            if installed and (fits or not name):
                versions[requirement.name] = installed
            if not fits:
                missing.append(requirement.name)
            if not fits and not name:
                wanted = f"{requirement.name}{requirement.specifier}"
                found = f"version {installed} is installed" if installed else "it is not installed"
                problems.append(f"layerroute needs {wanted}: {found}; pip install '{wanted}'")
        if name and name not in _QUIET_EXTRAS:
            extras[name] = {"missing": missing, "install": f"pip install 'layerroute[{name}]'"}
    return versions, extras


def _declared(extra: str) -> Iterator[Requirement]:
    """What an extra brings, other extras that it names included; without a name, what is always needed."""
    for line in importlib.metadata.requires("layerroute") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always is bool(extra) or not (always or marker is None or marker.evaluate({"extra": extra})):
            continue
        if requirement.name == "layerroute":
            for name in sorted(requirement.extras):
                yield from _declared(name)
        else:
            yield requirement


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch(advice: list[str]) -> dict[str, Any]:
    import torch

    from layerroute.ops import gated_delta, routed_attention
    from layerroute.precision import choose_precision

    devices: list[dict[str, Any]] = [{"device": "cpu", "name": platform.processor() or platform.machine()}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "memory_gib": round(properties.total_memory / _GIB, 1),
                "compute_capability": f"{properties.major}.{properties.minor}",
            }
        )
    if len(devices) == 1 and shutil.which("nvidia-smi"):
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a build for CPUs"
        advice.append(f"there is an NVIDIA driver, but torch sees no GPU; torch {torch.__version__} {build}")
    kinds = ["cpu", *(["cuda"] if len(devices) > 1 else [])]
    precision = {kind: choose_precision("auto", torch.device(kind))._asdict() for kind in kinds}
    return {
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "threads": torch.get_num_threads(),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "devices": devices,
        "precision": precision,
        "gated_delta": gated_delta.backend_report(),
        "routed_attention": routed_attention.backend_report(),
        "processes": {
            name: torch.distributed.is_available() and getattr(torch.distributed, f"is_{name}_available")()
            for name in ("gloo", "nccl", "mpi")
        },
    }


def _hub_cache() -> Path:
    """Where models and data sets of the hub are kept; asked of the environment, as huggingface_hub does."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _cache(folder: Path) -> dict[str, Any]:
    sizes = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # another process may be at work there
            found = path.lstat()
            sizes += [found.st_size] if stat.S_ISREG(found.st_mode) else []
    return {"folder": str(folder), "files": len(sizes), "gib": round(sum(sizes) / _GIB, 3)}


def _free(path: Path) -> float:
    """Return the GiB that are free where ``path`` is or would be."""
    existing = next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.exists())
    return round(shutil.disk_usage(existing).free / _GIB, 1)


def _text(report: dict[str, Any]) -> str:
    hardware = report["hardware"]
    lines = [
        f"machine      {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB",
        f"platform     {hardware['platform']}, Python {report['versions']['python']}",
    ]
    if "torch" in report:
        lines += _torch_text(report)
    cache, hub, disk = report["cache"], report["hub_cache"], report["disk"]
    lines += [
        f"cache        {cache['folder']} ({cache['gib']:g} GiB in {cache['files']} files, "
        f"{disk['cache_free_gib']} GiB free)",
        f"hub cache    {hub['folder']} ({hub['gib']:g} GiB in {hub['files']} files)",
        f"disk         {disk['here_free_gib']} GiB free here",
    ]
    for name, extra in report["extras"].items():
        state = (
            f"missing {', '.join(extra['missing'])}: {extra['install']}" if extra["missing"] else "installed"
        )
        lines.append(f"extra        {name}: {state}")
    trackers = (
        f"{name} {version}" if version else f"{name} (pip install {name})"
        for name, version in report["trackers"].items()
    )
    lines.append(f"trackers     for train.report_to: {', '.join(trackers)}")
    versions = (f"{name} {version}" for name, version in report["versions"].items() if name != "python")
    lines.append(f"versions     {', '.join(versions)}")
    lines += [
        f"advice       {sentence}"
        for sentence in report["advice"]
        if not sentence.startswith(tuple(report["extras"]))
    ]
    lines += [f"PROBLEM      {sentence}" for sentence in report["problems"]]
    lines.append(
        "All that layerroute needs is here." if not report["problems"] else "See the problems above."
    )
    return "\n".join(lines)


def _torch_text(report: dict[str, Any]) -> list[str]:
    torch, gated_delta = report["torch"], report["gated_delta"]
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPU build"
    lines = [f"torch        {torch['version']} ({build}), {torch['threads']} threads"]
    for device in report["devices"]:
        kind = device["device"].partition(":")[0]
        precision = report["precision"][kind]
        memory = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
        lines.append(
            f"device       {device['device']}: {device['name']}{memory}; trains in {precision['name']} "
            f"({precision['reason']}); GDN runs on '{gated_delta['auto'][kind]}', routed attention on "
            f"'{report['routed_attention']['auto'][kind]}'"
        )
    for head, key in (("GDN backend", "gated_delta"), ("attention", "routed_attention")):
        for name, backend in report[key]["backends"].items():
            lines.append(f"{head:<12} {name}: {'available' if backend['available'] else backend['reason']}")
    connected = [name for name, there in report["processes"].items() if there]
    lines.append(f"processes    can be connected by {', '.join(connected) or 'nothing'}")
    return lines
