"""``transformers serve`` for one routed model.

Its server finds models by a name on the hub and a class in transformers' own namespace, so that it can open neither a
checkpoint of ours nor a router folder. Here its application, handlers and generation threads run as they are; only the
part that loads models is replaced: it hands out the one model that was loaded at the start, and loads nothing that a
request names. Requests are generated one after the other by ``model.generate()`` on one thread, with the routing that
``layerroute generate`` uses.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from layerroute.errors import UserError, require
from layerroute.evaluation.generation import prompt_ids
from layerroute.evaluation.loading import LoadedModel
from layerroute.serving.requests import Refused, Sampling, check_messages, check_request, said

if TYPE_CHECKING:
    from fastapi import FastAPI


def build_app(loaded: LoadedModel, *, name: str) -> FastAPI:
    """The application: ``/v1/completions``, ``/v1/chat/completions``, ``/v1/responses``, ``/v1/models``, ``/health``.

    Args:
        loaded: in inference mode; it computes in its own precision.
        name: by which requests call it; a request may also leave the model out.

    Raises:
        UserError: the server's packages are missing, or this version of transformers has another server.
    """
    require("fastapi", "uvicorn", "openai", "jinja2", extra="serve")
    try:
        from transformers.cli.serving.chat_completion import ChatCompletionHandler
        from transformers.cli.serving.completion import CompletionHandler
        from transformers.cli.serving.model_manager import ModelManager, TimedModel
        from transformers.cli.serving.response import ResponseHandler
        from transformers.cli.serving.server import build_server
        from transformers.cli.serving.utils import GenerationState
    except ImportError as error:
        raise UserError(
            f"this version of transformers has another server ({error}); see its bounds"
        ) from error
    from fastapi import HTTPException
    from fastapi.responses import StreamingResponse
    from jinja2 import TemplateError

    from layerroute.serving.generating import SAMPLING, OneAtATime  # needs the server's packages
    from layerroute.serving.leaving import Watched

    _compute_in_precision(loaded)
    embeddings: Any = loaded.model.get_input_embeddings()
    vocabulary = int(embeddings.num_embeddings)

    class OneModel(ModelManager):
        """Knows the one model; ``/reset`` and ``/load_model`` change nothing."""

        def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
            return loaded.model, loaded.tokenizer

        @staticmethod
        def process_model_name(model_id: Any) -> str:
            # Every way to a model leads through here.
            if model_id != name:
                told = f"this server has the model {name!r} and no other; it loads none on request"
                raise HTTPException(404, told)
            return name

        def shutdown(self) -> None:
            """Keep the model: whoever may send a request must not take it from the others."""

        @staticmethod
        def get_gen_models(cache_dir: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
            return [{"id": name, "object": "model", "created": started, "owned_by": "layerroute"}]

    class Checked:
        """Before a handler of transformers: refuses what it would ignore, and has text drawn as was asked."""

        conversation: str | None = "messages"

        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            handler: Any = self
            if body.get("model") is not None:
                OneModel.process_model_name(body["model"])
            try:
                sampling = check_request(body, handler._valid_params_class.__mutable_keys__, vocabulary)
                asked = Body(body, sampling)
                self.check_text(asked)
                return await super().handle_request(asked, request_id)  # type: ignore[misc]
            except Refused as error:
                raise HTTPException(400, str(error)) from error
            except TemplateError as error:
                raise HTTPException(
                    400, f"{self.conversation}: the chat template refuses it: {error}"
                ) from error

        def check_text(self, body: dict[str, Any]) -> None:
            """Conversations need a template, and hold text."""
            assert self.conversation is not None
            if not loaded.tokenizer.chat_template:
                raise HTTPException(400, f"{name!r} has no chat template; send its prompt to /v1/completions")
            if not isinstance(body.get(self.conversation), str) or self.conversation == "messages":
                check_messages(self.conversation, body.get(self.conversation))
                body[self.conversation] = list(map(said, body[self.conversation]))
            own = {"messages", *inspect.signature(loaded.tokenizer.apply_chat_template).parameters}
            given = body.get("chat_template_kwargs", {})
            if not isinstance(given, dict) or not own.isdisjoint(given):
                raise Refused("chat_template_kwargs: give an object of what the chat template itself reads")

        def _build_generation_config(self, body: Any, *given: Any, **more: Any) -> Any:
            try:
                config = super()._build_generation_config(body, *given, **more)  # type: ignore[misc]
            except (TypeError, ValueError) as error:  # transformers' own checks of it
                raise Refused(f"generation_config: {error}") from error
            for key, value in body.sampling.settings.items():
                setattr(config, key, value)
            setattr(config, SAMPLING, body.sampling)
            # Whatever the model's own configuration says: one text, which comes as it is made.
            config.num_beams = config.num_return_sequences = 1
            return config

    class Chat(Checked, ChatCompletionHandler):
        """``/v1/chat/completions``."""

    class Response(Checked, ResponseHandler):
        """``/v1/responses``."""

        conversation = "input"

    class Completion(Checked, CompletionHandler):
        """``/v1/completions``."""

        def check_text(self, body: dict[str, Any]) -> None:
            """No prompt, or an empty one, begins a document, as OpenAI's API has it."""
            prompt = body.get("prompt", "")
            if isinstance(prompt, list) and len(prompt) == 1:
                prompt = prompt[0]
            if prompt == "" and not loaded.tokenizer("")["input_ids"]:
                try:
                    prompt = loaded.tokenizer.decode(prompt_ids(loaded.tokenizer, "")[0])
                except UserError as error:
                    raise Refused(f"prompt: {error}") from error
            body["prompt"] = prompt

    class Nothing:
        """What this model cannot do: it reads and writes text."""

        async def handle_request(self, *_: Any) -> Any:
            raise HTTPException(404, f"{name!r} completes text; see /v1/completions")

    started = int(time.time())
    manager = OneModel(device=str(loaded.device))
    manager.force_model = name
    # In its cache from the start, as the server expects of a pinned model.
    tokenizer: Any = loaded.tokenizer
    manager.loaded_models[name] = TimedModel(loaded.model, -1, tokenizer)
    manager.loaded_models[name]._timer.cancel()
    state = GenerationState()
    state._generate_managers[name] = OneAtATime(loaded.context_length)
    handlers: dict[str, Any] = {"model_manager": manager, "generation_state": state}
    nothing: Any = Nothing()
    app = build_server(
        manager,
        Chat(**handlers),
        completion_handler=Completion(**handlers),
        response_handler=Response(**handlers),
        transcription_handler=nothing,
        systemone_handler=nothing,
        generation_state=state,
    )
    # Its own takes a name apart before anything looks whether it is one.
    app.router.routes[:] = [one for one in app.router.routes if getattr(one, "path", "") != "/load_model"]

    @app.post("/load_model")
    async def load_model(body: dict[str, Any]) -> StreamingResponse:
        found = OneModel.process_model_name(body.get("model"))
        return StreamingResponse(manager.load_model_streaming(found), media_type="text/event-stream")

    app.add_middleware(Watched)
    return app


class Body(dict[str, Any]):
    """A checked request for a handler of transformers, without what it would misread: the draw is ours."""

    def __init__(self, body: dict[str, Any], sampling: Sampling) -> None:
        ours = {field.name for field in fields(Sampling)}
        super().__init__({key: value for key, value in body.items() if value is not None and key not in ours})
        self.sampling = sampling
        self.setdefault("stream", False)


def serve(loaded: LoadedModel, *, name: str, host: str, port: int) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: as ``build_app``, or the port is taken.
    """
    app = build_app(loaded, name=name)
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning"))
    try:
        server.run()
    except SystemExit as error:  # uvicorn has said why on stderr: most often a port that is taken
        raise UserError(f"cannot listen on {host}:{port}; give another --host or --port") from error


def _compute_in_precision(loaded: LoadedModel) -> None:
    """Let ``generate`` run in the precision in which the model was trained."""
    model: Any = loaded.model
    generate = model.generate

    def in_precision(*arguments: Any, **keywords: Any) -> Any:
        with loaded.in_precision():
            return generate(*arguments, **keywords)

    model.generate = in_precision
