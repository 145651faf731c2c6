"""Which key or column of records is the text, for every command that reads text."""

import argparse

from layerroute.data.configuration import DataConfig


def add_text_field(parser: argparse.ArgumentParser) -> None:
    """``--text-field``."""
    parser.add_argument(
        "--text-field",
        default=DataConfig.text_field,
        metavar="NAME",
        help="key or column of the text in jsonl, json, csv, tsv and parquet (default: %(default)s)",
    )
