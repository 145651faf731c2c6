"""``layerroute.calibrate``: a routed model from a pretrained one, with what it is worth."""

import html
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from layerroute.api.texts import Data, texts_of
from layerroute.data.progress import stages
from layerroute.data.texts import Texts
from layerroute.errors import UserError
from layerroute.records import SCHEMA_VERSION, provenance, utc_now
from layerroute.skipping.calibration import (
    CONTROLS,
    TABLE,
    CalibrationConfig,
    FittedArms,
    compare_arms,
    fit_arms,
    install_for_budgets,
    journal_of,
    result,
    result_sections,
    save_controls,
    save_routed,
    score_budgets,
)
from layerroute.skipping.calibration.configure import LEAST, MOST, config_for, draw
from layerroute.skipping.calibration.memory import memory_told
from layerroute.skipping.devices import is_offloaded
from layerroute.skipping.model import find_router, remove_router
from layerroute.skipping.storage import load_router

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(eq=False, kw_only=True)
class Calibration:
    """What a calibration made, and what it is worth on held-out text. It draws itself in a notebook.

    Attributes:
        model: with its router; the object that was given to ``calibrate``.
        config: the settings.
        record: all of it as plain data, as ``layerroute calibrate --json`` prints it.
        fitted: the router and its controls, to be installed again.
        statistics: windows (N, T) of token ids that the fits saw.
        documents: digests of the texts that were drawn from ``data``, hexadecimal.
    """

    model: Any = field(repr=False)
    config: CalibrationConfig
    record: dict[str, Any] = field(repr=False)
    fitted: FittedArms = field(repr=False)
    statistics: Tensor = field(repr=False)
    documents: list[str] = field(repr=False)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row an arm, as numbers: the full model, the routed one, and the controls; ``pandas.DataFrame`` takes it.

        Keys: ``arm``, ``skipped`` and ``saved`` (shares of routed compute and of the layers' FLOPs), ``loss`` and
        ``above_full`` (nats per token), ``difference``, ``low`` and ``high`` (routed less this arm at equal executed
        FLOPs, and its 95 % interval), ``as_served`` (the same at unequal cost). What there is none of is None.
        """
        return result.rows(self.record)

    @property
    def verdict(self) -> str:
        """What the table comes to, at equal executed FLOPs: wins, losses, and what cannot be told apart."""
        return result.verdict(self.record["arms"])

    @property
    def skipped(self) -> float:
        """Share of routed compute that the router skips on held-out text."""
        return float(self.record["arms"]["routed"]["skipped"])

    @property
    def cost(self) -> float:
        """What that costs: cross-entropy above that of the full model on held-out text, in nats per token."""
        arms = self.record["arms"]
        return float(arms["routed"]["loss"] - arms["dense"]["loss"])

    @cached_property
    def figure(self) -> "Figure":
        """What every arm saves and loses, and the routed arm at the cost of each control: a matplotlib figure.

        Raises:
            UserError: matplotlib is not installed (the extra ``report``).
        """
        from layerroute.lab.report.calibration import calibration_figure

        return calibration_figure(self.table)

    def save(self, folder: str | Path, *, controls: bool = False) -> Path:
        """Write the router to a folder; ``layerroute.load`` opens it, and all commands do.

        Args:
            folder: made if needed; a router and controls that are in it are replaced.
            controls: write each control as a router folder, too, to ``controls/``.

        Returns:
            The folder.
        """
        kinds = self.record["data"]["kinds"]
        # By their digests, so that `transfer` judges on none of them, whatever file they come in.
        notes = {"calibration": self.config.to_dict(), "kinds": kinds, "documents": self.documents}
        folder = Path(folder)
        save_routed(self.model, folder, notes=notes)
        if controls:
            remove_router(self.model)
            try:
                save_controls(self.model, self.fitted, folder, notes=notes)
            finally:
                load_router(self.model, folder, trainable=True)
        return folder

    def __str__(self) -> str:
        lines = [result.HEADINGS, *map(result.cells, self.table)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        ]
        return "\n".join([result.title(self.record), "", *rows, "", self.verdict])

    def _repr_html_(self) -> str:
        """For notebooks: title, verdict, table, and the figure where matplotlib is there."""
        lines = [result.HEADINGS, *map(result.cells, self.table)]
        rows = [
            f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in line)}</tr>"
            for tag, line in zip(("th", *("td",) * len(self.table)), lines, strict=True)
        ]
        texts = [f"<p>{html.escape(text)}</p>" for text in (result.title(self.record), self.verdict)]
        return f"{texts[0]}<table>{''.join(rows)}</table>{texts[1]}{self._picture()}"

    def _picture(self) -> str:
        try:
            from layerroute.lab.report.calibration import as_svg
        except UserError:  # without matplotlib the table says it all
            return ""
        return as_svg(self.figure)


def calibrate(
    model: Any,
    tokenizer: Any,
    *,
    data: Data = None,
    budget: float = 0.25,
    also: Sequence[float] = (),
    heldout: Data = None,
    tokens: int | None = None,
    router: str = "per_layer",
    controls: Sequence[str] = TABLE,
    text_field: str = "text",
    progress: bool = True,
    name: str | None = None,
    **settings: Any,
) -> Calibration:
    """Fit a router to a pretrained model by forward passes alone, put it in, and measure it on held-out text.

    A call that was cut off goes on when it is made again: what was found lies in the cache folder meanwhile.

    >>> model, tokenizer = layerroute.load("smollm2-135m")
    >>> calibration = layerroute.calibrate(model, tokenizer, budget=0.25, tokens=4096)
    >>> [row["arm"] for row in calibration.table][:2]
    ['full depth', 'routed per token']
    >>> calibration.verdict.split(" ")[0] in ("At", "No")  # "At equal executed FLOPs …", "No verdict …"
    True

    Args:
        model: a transformers causal LM without a router. The router is put into it.
        tokenizer: its own.
        data: text to calibrate on. A file, folder or glob (txt, jsonl, json, csv, tsv, parquet, compressed or not), a
            list of them, or a mapping of kinds of text to them; or records in memory with the field ``text_field``,
            as data sets of ``datasets`` are. Default: text that every machine with Python has.
        budget: share of routed compute to skip, between 0 and 1. Default 0.25.
        also: further budgets that the router is to serve (``load(folder, budget=…)``).
        heldout: text to measure on, in the same forms. Default: further documents of ``data``.
        tokens: of text to fit on. Default: 36,864, or what the text has, 9,216 at least. Where it is given, the sizes
            of all other steps are a part of it: 4096 is enough to see an effect in a minute or two.
        router: ``per_layer`` (default): each layer's own input decides; ``token``: one decision for all layers;
            ``sequence``: one choice of layers a sequence, from its first tokens.
        controls: what to compare with, of ``layerroute.skipping.calibration.CONTROLS``.
        text_field: key of the text in records.
        progress: show bars on stderr, or in the notebook.
        name: what the record calls the model. Default: the name that it was loaded by.
        settings: further fields of ``CalibrationConfig``: ``unit``, ``layers``, ``rank``, ``length``, ``seed``, …

    Returns:
        The table, the verdict and the figure; ``save(folder)`` writes the router.

    Raises:
        UserError: text that is not there or too short, a setting that does not exist, a model whose layers cannot be
            found, or one that has a router already.
    """
    if find_router(model) is not None:
        raise UserError("the model has a router already; layerroute.remove_router(model) takes it off")
    if "granularity" in settings:
        raise UserError("calibration.granularity is the argument router here")
    if tokens is not None:
        settings = {**sizes(tokens, settings.get("length", CalibrationConfig.length)), **settings}
    unknown = [one for one in controls if one not in CONTROLS]
    if unknown:
        raise UserError(f"there is no control {unknown[0]!r}; there are {', '.join(CONTROLS)}")
    least = LEAST if settings.get("tokens_statistics") is None else None
    if least is not None:
        settings["tokens_statistics"] = MOST
    started = utc_now()
    texts = texts_of(data, text_field=text_field)
    heldout_texts = texts if heldout is None else texts_of(heldout, text_field=text_field)
    shared = None if heldout_texts is texts else texts.shared_with(heldout_texts)
    if shared is not None:
        raise UserError(
            f"the text to judge on is text to calibrate on, too ({shared}); leave heldout (--heldout) out, and further "
            "documents of the same text are judged on"
        )
    texts.seen = heldout_texts.seen = texts.seen | heldout_texts.seen  # single documents may be in both
    config = config_for(
        model,
        tokenizer,
        budget=budget,
        also=list(also),
        granularity=router,
        checked=[budget, *also],
        **settings,
    )
    with stages(progress) as stage:
        advance = stage("text")
        selection = draw(texts, tokenizer, config, config.tokens_selection, 0)
        unseen = draw(heldout_texts, tokenizer, config, config.tokens_heldout, 2)
        # Last, since they may take all that is left.
        statistics = draw(texts, tokenizer, config, config.tokens_statistics, 1, least=least)
        config = replace(config, tokens_statistics=statistics.tokens)
        advance(1.0)
        seen, judged = statistics.ids.to(model.device), unseen.ids.to(model.device)
        if progress:
            print(f"layerroute: {memory_told(model, config)}", file=sys.stderr)
        if is_offloaded(model):  # reading its weights takes long
            stage("what an earlier call has found")
        journal = journal_of(model, config, seen, selection.ids, judged, also=list(controls))
        if progress and journal.begun:
            print("layerroute: goes on where the same calibration was cut off", file=sys.stderr)
        fitted = fit_arms(
            model,
            config,
            statistics=seen,
            selection=selection.ids.to(model.device),
            controls=controls,
            journal=journal,
            stage=stage,
        )
        scores, against = compare_arms(model, fitted, judged, journal=journal, stage=stage)
        others = score_budgets(model, fitted, seen, judged, journal=journal, stage=stage)
        stage("router")
        install_for_budgets(model, fitted, seen)
        journal.discard()
    unit = "" if config.unit == "block" else f"{config.unit}-"
    record = head(
        "calibration",
        model=name or str(model.config._name_or_path),
        command="layerroute.calibrate",
        started=started,
        recipe=config.to_dict(),
        texts=texts,
    )
    record["run"] = f"calibrate-{unit}{round(100 * config.budget)}"
    record["capability"] = "layer_skipping"
    record["data"] |= {
        "heldout_source": heldout_texts.name,
        "heldout_fingerprint": unseen.fingerprint,
        "windows": {
            "statistics": len(statistics.ids),
            "selection": len(selection.ids),
            "heldout": len(unseen.ids),
        },
    }
    record |= result_sections(fitted, scores, against)
    record["budgets"] = {
        f"{budget:g}": {"loss": one.loss, "skipped": one.skipped, "saved": one.saved}
        for budget, one in others.items()
    }
    return Calibration(
        model=model,
        config=config,
        record=record,
        fitted=fitted,
        statistics=seen,
        documents=sorted(digest.hex() for digest in texts.taken),
    )


def sizes(tokens: int, length: int = CalibrationConfig.length) -> dict[str, int]:
    """All sizes of a calibration on so many tokens, none above its default, but for windows that are longer."""
    usual = CalibrationConfig(budget=0.5)
    least = max(length, usual.length)
    parts = {"tokens_selection": 4, "tokens_search": 8, "tokens_heldout": 2}
    found = {key: max(least, min(getattr(usual, key), tokens // part)) for key, part in parts.items()}
    found["tokens_heldout"] = max(2 * least, found["tokens_heldout"])  # one window has no interval
    return {"tokens_statistics": tokens, **found}


def head(
    kind: str, *, model: str, command: str, started: str, recipe: Mapping[str, Any], texts: Texts
) -> dict[str, Any]:
    """What the records of `calibrate`, `headroom` and `transfer` begin with."""
    return {
        "schema": SCHEMA_VERSION,
        "kind": kind,
        "model": model,
        "command": command,
        "started": started,
        "finished": utc_now(),
        "recipe": dict(recipe),
        "data": {"source": texts.name, "fingerprint": texts.fingerprint, "kinds": texts.describe()},
        **provenance(),
    }
