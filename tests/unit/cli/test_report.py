"""The arguments of ``layerroute report``."""

from __future__ import annotations

import argparse

from layerroute.cli.report import add_arguments


def test_benchmark_records_add_up_however_they_are_given() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    found = parser.parse_args(["runs", "--bench", "a.json", "b.json", "--bench", "c.json"])
    assert found.bench == ["a.json", "b.json", "c.json"]
    assert parser.parse_args(["runs"]).bench == []
