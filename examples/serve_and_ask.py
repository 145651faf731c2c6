"""Serve a routed model over HTTP in the manner of OpenAI's API, ask it something, and stop it."""

import subprocess
import sys
import time
import urllib.error
import urllib.request

import openai


def main(
    router: str = "routers/mine", prompt: str = "import os\n", port: int = 8000, tokens: int = 32
) -> None:
    """Start ``layerroute serve`` as a process of its own and talk to it.

    Args:
        router: a folder that ``calibrate_and_save.py`` wrote.
        prompt: text to continue.
        port: to listen on.
        tokens: to ask for.
    """
    words = ["serve", router, "--port", str(port), "--name", "routed"]
    server = subprocess.Popen([sys.executable, "-m", "layerroute", *words])
    try:
        address = f"http://localhost:{port}"
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        else:
            raise SystemExit(server.returncode)
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        answer = client.completions.create(model="routed", prompt=prompt, max_tokens=tokens, temperature=0.0)
        print(prompt + answer.choices[0].text)
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
