"""The result record of a training run, from its first second to its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerroute.provenance import provenance
from layerroute.records import KILLED, SCHEMA_VERSION, utc_now, write_record


class RunRecord:
    """A record that is written anew, whole, whenever something is added.

    Args:
        earlier: the record of the part of the run before it was interrupted, if there is one: its start counts.
        note: what there is to say about where it goes on.
        step: of the checkpoint from which it goes on, None if there is none.
    """

    def __init__(
        self,
        path: Path,
        recipe: Mapping[str, Any],
        *,
        command: str,
        earlier: Mapping[str, Any] | None = None,
        note: str = "",
        step: int | None = None,
    ) -> None:
        self.path = path
        resumptions = list((earlier or {}).get("resumptions") or [])
        if earlier is not None:
            # A process that was killed could not say so itself.
            killed = earlier["status"] == "running"
            resumptions.append(
                {
                    "at": utc_now(),
                    "step": step,
                    "status_before": "interrupted" if killed else earlier["status"],
                    "error_before": earlier.get("error") or (KILLED if killed else None),
                    "note": note or None,
                }
            )
        self.content: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "run": f"{recipe['name']}-seed{recipe['seed']}",
            "arm": recipe["name"],
            "capability": recipe["capability"],
            "seed": recipe["seed"],
            "status": "running",
            "error": None,
            "command": command,
            "started": (earlier or {}).get("started") or utc_now(),
            "finished": None,
            "recipe": dict(recipe),
            "curves": "curves.jsonl",
            "token_routes": None,
            "routing": None,
            **provenance(),
        }
        if resumptions:
            self.content["resumptions"] = resumptions

    def update(self, sections: Mapping[str, Any]) -> None:
        """Merge sections (one level deep) into the record and write it."""
        for name, value in sections.items():
            here = self.content.get(name)
            merge = isinstance(value, Mapping) and isinstance(here, Mapping)
            self.content[name] = {**here, **value} if merge else value  # type: ignore[dict-item]
        write_record(self.path, self.content)

    def finish(self, status: str, error: str | None = None) -> None:
        """Write how the run ended."""
        self.update({"status": status, "error": error, "finished": utc_now()})
