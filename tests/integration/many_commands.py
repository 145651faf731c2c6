"""Runs commands one after the other in one process, each with files for stdout and stderr: see test_surroundings.py.

``python -m tests.integration.many_commands CALLS.json``: a list of ``{"words", "stdout", "stderr", "env"}``; the exit
codes go to ``CALLS.json.codes``. One process, because importing torch costs more than most commands. A call may name
modules that it is to go ``without``: it then runs in a copy of the process in which they cannot be imported.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path


def call(words: list[str], stdout: str, stderr: str, env: dict[str, str], without: Sequence[str] = ()) -> int:
    if without:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.modules.update(dict.fromkeys(without))
        os._exit(call(words, stdout, stderr, env))
    from layerroute.cli.main import main

    sys.stdout.flush()
    sys.stderr.flush()
    for number, name in ((1, stdout), (2, stderr)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(env)
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99


if __name__ == "__main__":
    calls = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if any(one.get("without") for one in calls):
        import layerroute.training.run  # noqa: F401 (for all copies)
    codes = [call(**one) for one in calls]
    Path(f"{sys.argv[1]}.codes").write_text(json.dumps(codes), encoding="utf-8")
