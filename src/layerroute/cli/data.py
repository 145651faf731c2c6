"""Prepare and describe data sources.

    layerroute data prepare SOURCE ...   read, split and tokenize SOURCE into the token cache
    layerroute data show SOURCE ...      describe what is prepared, and the first tokens of a window
    layerroute data show                 list all that is prepared

SOURCE is python-stdlib, files, hub or installed-packages, or a recipe's YAML file, whose data section is then taken.
Options stand over the recipe. What was prepared once is taken from the cache, after its checksums are verified.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, get_type_hints

from layerroute.cli.output import print_json
from layerroute.data.configuration import SOURCES, DataConfig
from layerroute.errors import UserError, nearest

if TYPE_CHECKING:
    from layerroute.data import PreparedData

_FIELDS = {field.name: field for field in dataclasses.fields(DataConfig)}
_OPTIONS = {
    "source": {
        "paths": ("PATH", "files, folders and globs (files)"),
        "validation_paths": ("PATH", "validation documents; all others then train"),
        "text_field": ("NAME", "key or column of the text"),
        "document_separator": ("TEXT", "parts text files into documents (default: one document a file)"),
        "dataset": ("NAME", "name of the dataset (hub)"),
        "subset": ("NAME", "configuration of the dataset (hub)"),
        "split": ("NAME", "split of the dataset (hub)"),
        "revision": ("NAME", "branch, tag or commit of the dataset (hub)"),
        "packages": ("NAME", "installed packages (installed-packages)"),
        "max_documents": ("N", "read no more documents"),
        "max_characters": ("N", "read no more characters"),
    },
    "tokens": {
        "tokenizer": ("NAME", "bpe to train one, or a pretrained one's name or folder"),
        "vocabulary_size": ("N", "entries of the bpe tokenizer"),
        "sequence_length": ("N", "tokens of a window"),
        "validation_share": ("SHARE", "share of documents held out"),
        "split_seed": ("N", "draws another split"),
    },
}
"""Fields of :class:`DataConfig` that are options, by group: what stands for the value, and what it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Set the action, the source, and one option for each field of :class:`DataConfig`."""
    parser.description = __doc__
    parser.add_argument("action", metavar="ACTION", choices=("prepare", "show"), help="prepare or show")
    parser.add_argument(
        "source", metavar="SOURCE", nargs="?", help=f"{', '.join(SOURCES)}, or a recipe's YAML file"
    )
    hints = get_type_hints(DataConfig)
    for title, options in _OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, (metavar, told) in options.items():
            field = _FIELDS[name]
            default = "" if field.default in (None, dataclasses.MISSING) else f" (default: {field.default})"
            group.add_argument(
                f"--{name.replace('_', '-')}",
                metavar=metavar,
                nargs="+" if hints[name] == list[str] else None,
                type=next((kind for kind in (int, float) if hints[name] in (kind, kind | None)), str),
                help=told + default,
            )
    parser.add_argument(
        "--cache-dir", metavar="DIR", help="the cache (default: $LAYERROUTE_CACHE or ~/.cache/layerroute)"
    )
    show = parser.add_argument_group("show")
    show.add_argument("--window", type=int, default=0, metavar="N", help="which window (default: 0)")
    show.add_argument(
        "--of", choices=("train", "validation"), default="train", help="of which split (default: train)"
    )
    show.add_argument(
        "--tokens", type=int, default=16, metavar="N", help="how many of its tokens (default: 16)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def run(arguments: argparse.Namespace) -> int:
    """Prepare or show; returns the exit code."""
    if arguments.source is None:
        if arguments.action == "prepare":
            raise UserError(
                f"layerroute data prepare needs a SOURCE: {', '.join(SOURCES)}, or a recipe's YAML file"
            )
        return _list(arguments)
    config = _config(arguments)
    if arguments.action == "prepare":
        from layerroute.data import prepare_data

        prepared = prepare_data(config, progress=not arguments.no_progress)
        _print(_summary(prepared), arguments.json)
        return 0
    from layerroute.data import find_prepared

    found = find_prepared(config)
    if found is None:
        raise UserError(
            f"these data are not prepared in {config.cache_folder()}; give the same options to "
            "'layerroute data prepare' first"
        )
    _print({**_summary(found), **_window(found, arguments)}, arguments.json)
    return 0


def _config(arguments: argparse.Namespace) -> DataConfig:
    # Fields that have no option (of sources that need a recipe) keep their defaults.
    given = {name: value for name in _FIELDS if (value := getattr(arguments, name, None)) is not None}
    if arguments.source.endswith((".yaml", ".yml")):
        from layerroute.recipe import load_recipe

        del given["source"]
        return dataclasses.replace(load_recipe(arguments.source, {}).data, **given)
    if arguments.source not in SOURCES:
        raise UserError(f"there is no source {arguments.source!r}.{nearest(arguments.source, SOURCES)}")
    return DataConfig(**given)


def _summary(prepared: PreparedData) -> dict[str, Any]:
    return {
        **prepared.describe(),
        "train_documents": prepared.manifest["train"]["documents"],
        "validation_documents": prepared.manifest["validation"]["documents"],
        "sequence_length": prepared.config.sequence_length,
        "train_windows": prepared.train.windows(),
        "validation_windows": prepared.validation.windows(),
        "folder": str(prepared.folder),
    }


def _window(prepared: PreparedData, arguments: argparse.Namespace) -> dict[str, Any]:
    from layerroute.data.tokenizer import TOKENIZER_FILE, parse_tokenizer

    sequence = prepared.train if arguments.of == "train" else prepared.validation
    count = sequence.windows()
    if not 0 <= arguments.window < count:
        raise UserError(
            f"--window is {arguments.window}, but the {sequence.name} data have {count} windows of "
            f"{sequence.sequence_length} tokens, counted from 0"
        )
    if arguments.tokens < 1:
        raise UserError(f"--tokens is {arguments.tokens}; it must be 1 or more")
    ids = sequence.window(arguments.window)[: arguments.tokens].tolist()
    file = prepared.folder / TOKENIZER_FILE
    tokenizer = parse_tokenizer(file.read_bytes(), str(file))
    pieces = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    return {"split": arguments.of, "window": arguments.window, "ids": ids, "pieces": pieces}


def _list(arguments: argparse.Namespace) -> int:
    from layerroute.data import list_prepared

    cache = DataConfig(cache_dir=arguments.cache_dir).cache_folder()
    entries = [
        {
            "source": manifest["source"]["description"],
            "tokenizer": manifest["tokenizer"]["name"],
            "train_tokens": manifest["train"]["tokens"],
            "validation_tokens": manifest["validation"]["tokens"],
            "fingerprint": manifest["fingerprint"],
            "folder": str(folder),
        }
        for folder, manifest in list_prepared(cache)
    ]
    if arguments.json:
        print_json(entries, indent=2)
    elif not entries:
        print(f"nothing is prepared in {cache}")
    for entry in entries if not arguments.json else ():
        print(
            f"{entry['fingerprint'][:12]}  {entry['train_tokens']:>13,} + {entry['validation_tokens']:,} tokens  "
            f"{entry['source']}  {entry['tokenizer']}"
        )
    return 0


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts, indent=2)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(repr(item) for item in value)
    return str(value)
