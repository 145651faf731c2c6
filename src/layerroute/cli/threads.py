"""How torch's threads wait for each other."""

import os


def wait_patiently() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the user has said how they are to wait.

    Spinning threads lose most of their time where they share cores with other processes: with two busy neighbours a
    training step on 2 threads took 20 times as long. This has an effect only before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
