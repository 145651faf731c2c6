"""`layerroute serve --engine vllm` as clients meet it: answers, rates in /metrics, and an end on a signal.

Needs vLLM, which has an environment of its own: ``make vllm``.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make vllm` runs these")

from layerroute.routing import RoutingConfig
from tests.parity.engine_models import export, prompts, reference

NEW, STARTS = 8, 300


def asked(address, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


@contextlib.contextmanager
def running(folder, log):
    """The command in a process of its own, once it answers; yields its address, and ends it as Ctrl-C does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [
        "serve",
        str(folder),
        "--engine",
        "vllm",
        "--name",
        "routed",
        "--precision",
        "fp32",
        "--port",
        port,
    ]
    more = ["--vllm", "--max-model-len", "256", "--enforce-eager"]
    with log.open("w") as told:
        server = subprocess.Popen(
            [sys.executable, "-m", "layerroute", *words, *more],
            stdout=told,
            stderr=subprocess.STDOUT,
            # Its engine is a process of its own, as where people serve.
            env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            start_new_session=True,
        )
    address, began = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                asked(f"{address}/health")
                break
            assert server.poll() is None and time.monotonic() - began < STARTS, log.read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def test_a_client_gets_the_router_s_answers_and_reads_its_rates(tmp_path):
    routing = RoutingConfig(router="linear", rate=0.6)
    folder = export(tmp_path, vocabulary=300, granularity="per_layer", routing=routing)
    texts, answers = prompts(6), []
    with running(folder, tmp_path / "log.txt") as address:
        assert [one["id"] for one in json.loads(asked(f"{address}/v1/models"))["data"]] == ["routed"]
        for text in texts:
            body = {
                "model": "routed",
                "prompt": text,
                "max_tokens": NEW,
                "temperature": 0,
                "ignore_eos": True,
            }
            answer = json.loads(asked(f"{address}/v1/completions", {**body, "return_token_ids": True}))
            answers.append(answer["choices"][0]["token_ids"])
        metrics = asked(f"{address}/metrics")
    expected, (count, run) = reference(folder, texts, answers)
    assert answers == [own for own, _ in expected]
    counted = dict(re.findall(r'^layerroute_tokens_run_total\{.*?site="(.+?)".*?\} (\S+)$', metrics, re.M))
    total = re.search(r"^layerroute_tokens_total(?:\{.*\})? (\S+)$", metrics, re.M)
    assert total is not None and float(total[1]) == count
    assert {site: float(number) for site, number in counted.items()} == run
