"""At which budget a router is to serve, and how it keeps to it."""

import argparse


def add_budget_argument(parser: argparse.ArgumentParser) -> None:
    """``--budget``."""
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SHARE",
        help="share of routed compute to skip, for a layer router that serves several budgets (default: its own)",
    )


def add_serve_argument(parser: argparse.ArgumentParser) -> None:
    """``--serve``."""
    parser.add_argument(
        "--serve",
        choices=("threshold", "rate"),
        help="threshold: saved thresholds decide, and the rate is what they give on this text; rate: hold each "
        "sequence at the rate asked for (default: as the model's configuration says)",
    )
