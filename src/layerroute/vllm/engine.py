"""vLLM on one folder, driven from Python: for evaluation and benchmarks."""

import contextlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from layerroute.errors import UserError
from layerroute.process import keep_freed_memory, keeping_variables, waiting_by_default

INSTALL = "make install-vllm (or see docs/serving.md) makes an environment for it"
Texts = Sequence[Sequence[int]]


class Scored(NamedTuple):
    """Log-probability of each token of a text but the first, and whether it was the most likely one."""

    scores: list[float]
    hits: list[bool]


def check_installed() -> None:
    """Say how vLLM is installed, where it is not.

    Raises:
        UserError: it is not.
    """
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"vLLM is not installed here; {INSTALL}")


def check_folder(folder: str | Path) -> Path:
    """The folder, if vLLM can open it.

    Raises:
        UserError: there is none, or it is a router folder, which has to be exported first.
    """
    folder = Path(folder)
    if (folder / "router.json").is_file():
        raise UserError(
            f"{folder} is a router; vLLM serves exports: layerroute export {folder} --to vllm OUT"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no config.json; give the folder that `layerroute export --to vllm` wrote"
        )
    return folder


def server_command(
    folder: Path,
    *,
    name: str,
    host: str,
    port: int,
    dtype: str,
    full_depth_from: int | None = None,
    more: Sequence[str],
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of vLLM's server, which counts what runs in all of its processes: see ``vllm.server``.

    Raises:
        UserError: ``more`` would overrule ``full_depth_from``.
    """
    command = [sys.executable, "-m", "layerroute.vllm.server", "--model", str(folder)]
    options = {"--served-model-name": name, "--host": host, "--port": str(port), "--dtype": dtype}
    if full_depth_from is not None:
        if any(word.replace("_", "-").startswith("--additional-config") for word in more):
            raise UserError(
                "--full-depth-from is a part of vLLM's --additional-config; give one of the two: "
                f"--additional-config '{json.dumps(_plugin(full_depth_from))}' may hold more"
            )
        options["--additional-config"] = json.dumps(_plugin(full_depth_from))
    command += [word for pair in options.items() for word in pair]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **keeping_variables(), **os.environ}
    return [*command, *more], environment


def _plugin(full_depth_from: int) -> dict[str, Any]:
    """What vLLM hands on to the plugin."""
    return {"layerroute": {"full_depth_from": full_depth_from}}


class Session:
    """vLLM in this process, without batching in the background.

    Args:
        folder: an export, or any model that vLLM opens.
        dtype: of weights and states, ``auto`` (default) as in the folder.
        length: tokens of the longest request, prompt and answer.
        requests: at most so many at once.
        eager: without compilation (a routed model always is).
        full_depth_from: steps in which so many requests decode run every layer; default: none do.
        options: more arguments of ``vllm.LLM``.

    Raises:
        UserError: vLLM is not installed, or refuses the model.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str = "auto",
        length: int = 2048,
        requests: int = 16,
        eager: bool = True,
        full_depth_from: int | None = None,
        **options: Any,
    ) -> None:
        check_installed()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else the model is out of reach
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        from vllm import LLM

        settings: dict[str, Any] = {
            "skip_tokenizer_init": True,
            "enable_prefix_caching": False,
            "disable_log_stats": True,
        }
        if full_depth_from is not None:
            settings["additional_config"] = _plugin(full_depth_from)
        try:
            with _one_beyond(Path(folder), length):
                self.llm = LLM(
                    str(folder),
                    dtype=dtype,
                    max_model_len=length,
                    max_num_seqs=requests,
                    enforce_eager=eager,
                    **settings | options,
                )
        except ValueError as error:
            raise UserError(f"vLLM cannot serve {folder}: {' '.join(str(error).split())[:500]}") from error

    def score(self, texts: Texts) -> list[Scored]:
        """Log-probabilities of given texts of at least two tokens."""
        found = []
        for out in self._run(texts, 1, prompt_logprobs=1):
            steps = list(zip(out.prompt_token_ids, out.prompt_logprobs, strict=True))[1:]
            own = [step[token] for token, step in steps]
            found.append(Scored([one.logprob for one in own], [one.rank == 1 for one in own]))
        return found

    def generate(self, texts: Texts, new: int) -> list[list[int]]:
        """Greedy answers of ``new`` tokens."""
        return [list(out.outputs[0].token_ids) for out in self._run(texts, new)]

    def complete(self, texts: Texts, new: int, stop: Sequence[str], **sampling: Any) -> list[list[int]]:
        """Answers that end as the model ends them, with one of ``stop`` (which is left in), or after ``new`` tokens.

        The session needs its tokenizer: ``skip_tokenizer_init=False``.
        """
        more = {"stop": list(stop), "detokenize": True, "ignore_eos": False}
        return [list(out.outputs[0].token_ids) for out in self._run(texts, new, **more, **sampling)]

    def stream(self, texts: Texts, new: int, every: int) -> int:
        """Serve requests of which one arrives each ``every`` steps of the engine; returns the number of steps."""
        engine, steps, pending = self.llm.llm_engine, 0, list(enumerate(texts))
        while pending or engine.has_unfinished_requests():
            while pending and (steps >= every * pending[0][0] or not engine.has_unfinished_requests()):
                number, text = pending.pop(0)
                prompt = {"prompt_token_ids": list(text)}
                engine.add_request(f"stream-{steps}-{number}", prompt, self._sampling(new))
            engine.step()
            steps += 1
        return steps

    def rates(self) -> dict[str, float | None]:
        """Share of tokens that ran, by site, since the last ``clear``; empty for a plain model."""
        return self.llm.apply_model(_rates)[0]

    def tokens(self) -> int:
        """Tokens that routers decided about since then."""
        return self.llm.apply_model(_tokens)[0]

    def clear(self) -> None:
        """Begin to count anew."""
        self.llm.apply_model(_clear)

    def cut(self, texts: Texts, skip: float) -> list[float]:
        """Set all thresholds so that this share of the tokens of these texts would skip; returns them, by site."""
        self.llm.apply_model(_listen)
        self._run(texts, 1)
        return self.llm.apply_model(lambda model: _cut(model, skip))[0]

    def close(self) -> None:
        """Free the engine."""
        import gc

        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()

    def _run(self, texts: Texts, new: int, **sampling: Any) -> Any:
        prompts: Any = [{"prompt_token_ids": list(text)} for text in texts]
        return self.llm.generate(prompts, self._sampling(new, **sampling), use_tqdm=False)

    @staticmethod
    def _sampling(new: int, **more: Any) -> Any:
        from vllm import SamplingParams

        greedy = {"temperature": 0, "ignore_eos": True, "detokenize": False}
        return SamplingParams(max_tokens=new, **{**greedy, **more})


@contextlib.contextmanager
def _one_beyond(folder: Path, length: int) -> Iterator[None]:
    """Room for the last token of an answer, which vLLM wants though nothing reads it: one beyond the model's length."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if length - 1 != config.get("text_config", config).get("max_position_embeddings"):
        yield
        return
    name = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        os.environ |= {} if before is None else {name: before}


def _rates(model: Any) -> dict[str, float | None]:
    return model.rates.rates() if hasattr(model, "rates") else {}


def _tokens(model: Any) -> int:
    return model.rates.tokens if hasattr(model, "rates") else 0


def _clear(model: Any) -> None:
    if hasattr(model, "rates"):
        model.rates.clear()


def _listen(model: Any) -> None:
    for routing in model.layerroute.all_routings():
        routing.seen = []


def _cut(model: Any, skip: float) -> list[float]:
    import torch

    fixed, found = [], []
    for routing in model.layerroute.all_routings():
        margins, routing.seen = torch.cat(routing.seen), None
        routing.thresholds.value.copy_(margins.quantile(skip, dim=0))
        fixed += [
            site for site, moves in zip(routing.sites, margins.std(dim=0) > 0, strict=True) if not moves
        ]
        found += routing.thresholds.value.tolist()
    if fixed:
        # At a quantile of equal margins all tokens would skip, or none.
        raise UserError(
            f"no threshold makes {skip:.0%} of the tokens skip at {', '.join(fixed)}: the router decides alike for all "
            "tokens there; calibrate with --allocation even"
        )
    return found


class Remote:
    """A ``Session`` in a process of its own: its threads, its compiled code and its memory are apart.

    Methods are those of ``Session``. Errors there are raised here.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, str(folder), options), daemon=True)
        with waiting_by_default():
            self._process.start()
        theirs.close()
        self._answer()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._pipe.send((name, arguments))
            return self._answer()

        return call

    def _answer(self) -> Any:
        try:
            fine, value = self._pipe.recv()
        except EOFError as error:
            raise UserError("the engine's process ended; its last words are above") from error
        if not fine:
            raise UserError(value)
        return value

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def _serve(pipe: Any, folder: str, options: dict[str, Any]) -> None:
    os.dup2(2, 1)  # what vLLM prints is no result
    keep_freed_memory()
    try:
        session = Session(folder, **options)
        pipe.send((True, None))
        while True:
            name, arguments = pipe.recv()
            pipe.send((True, getattr(session, name)(*arguments)))
    except EOFError:
        return
    except UserError as error:
        pipe.send((False, str(error)))
    except Exception as error:
        traceback.print_exc()
        pipe.send((False, f"the engine failed: {type(error).__name__}: {error}"))


@contextlib.contextmanager
def opened(folder: str | Path, **options: Any) -> Iterator[Session]:
    """A session that is closed in the end."""
    session = Session(folder, **options)
    try:
        yield session
    finally:
        session.close()
