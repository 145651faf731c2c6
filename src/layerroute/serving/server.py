"""``transformers serve`` for one routed model.

Its server finds models by a name on the hub and a class in transformers' own namespace, so that it can open neither a
checkpoint of ours nor a router folder. Here its application, handlers and generation threads run as they are; only the
part that loads models is replaced: it hands out the one model that was loaded at the start, and loads nothing that a
request names. Requests are generated one after the other by ``model.generate()`` on one thread, with the routing that
``layerroute generate`` uses.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from layerroute.errors import UserError
from layerroute.evaluation.loading import LoadedModel

if TYPE_CHECKING:
    from fastapi import FastAPI

_INSTALL = "pip install 'layerroute[serving]'"


def build_app(loaded: LoadedModel, *, name: str) -> FastAPI:
    """The application: ``/v1/completions``, ``/v1/chat/completions``, ``/v1/responses``, ``/v1/models``, ``/health``.

    Args:
        loaded: in inference mode; it computes in its own precision.
        name: by which requests call it; a request may also leave the model out.

    Raises:
        UserError: the server's packages are missing, or this version of transformers has another server.
    """
    try:
        from transformers.cli.serving.chat_completion import ChatCompletionHandler
        from transformers.cli.serving.completion import CompletionHandler
        from transformers.cli.serving.model_manager import ModelManager, TimedModel
        from transformers.cli.serving.response import ResponseHandler
        from transformers.cli.serving.server import build_server
        from transformers.cli.serving.systemone import SystemOneHandler
        from transformers.cli.serving.transcription import TranscriptionHandler
        from transformers.cli.serving.utils import GenerationState
    except ImportError as error:
        raise UserError(f"serving needs packages that are not installed ({error}); {_INSTALL}") from error
    from fastapi import HTTPException

    _compute_in_precision(loaded)

    class OneModel(ModelManager):
        """Knows the one model; ``/reset`` and ``/load_model`` change nothing."""

        def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
            return loaded.model, loaded.tokenizer

        @staticmethod
        def process_model_name(model_id: str) -> str:
            # Every way to a model leads through here.
            if model_id != name:
                told = f"this server has the model {name!r} and no other; it loads none on request"
                raise HTTPException(404, told)
            return model_id

        def shutdown(self) -> None:
            """Keep the model: whoever may send a request must not take it from the others."""

        @staticmethod
        def get_gen_models(cache_dir: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
            return [{"id": name, "object": "model", "created": started, "owned_by": "layerroute"}]

    class Chat(ChatCompletionHandler):
        """Says what is missing where a model knows no conversations."""

        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            if not loaded.tokenizer.chat_template:
                raise HTTPException(400, f"{name!r} has no chat template; send its prompt to /v1/completions")
            return await super().handle_request(body, request_id)

    started = int(time.time())
    manager = OneModel(device=str(loaded.device))
    manager.force_model = name
    # In its cache from the start, as the server expects of a pinned model.
    tokenizer: Any = loaded.tokenizer
    manager.loaded_models[name] = TimedModel(loaded.model, -1, tokenizer)
    manager.loaded_models[name]._timer.cancel()
    state = GenerationState()
    handlers: dict[str, Any] = {"model_manager": manager, "generation_state": state}
    return build_server(
        manager,
        Chat(**handlers),
        completion_handler=CompletionHandler(**handlers),
        response_handler=ResponseHandler(**handlers),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(**handlers),
        generation_state=state,
    )


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
