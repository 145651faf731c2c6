"""The budget at which a router that knows several is to serve."""

import argparse


def add_budget_argument(parser: argparse.ArgumentParser) -> None:
    """``--budget``."""
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SHARE",
        help="share of routed compute to skip, for a layer router that serves several budgets (default: its own)",
    )
