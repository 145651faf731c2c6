"""Clients that leave before their answer: what would be generated for them is not, and others wait for it no longer.

transformers stops a stream whose reader has gone. An answer in one piece would be finished for nobody, while all other
requests wait behind it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_DISCONNECT = "http.disconnect"
_gone: ContextVar[threading.Event | None] = ContextVar("gone", default=None)


def client_gone() -> threading.Event | None:
    """Set once the client of the request that is handled here has left; None outside of a request."""
    return _gone.get()


class Watched:
    """An ASGI application whose requests can tell that their clients have left (`client_gone`)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Handle a connection as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        waiting: asyncio.Queue[Message] = asyncio.Queue()
        gone = threading.Event()

        async def watch() -> None:
            while not gone.is_set():
                message = await receive()
                if message["type"] == _DISCONNECT:
                    gone.set()
                waiting.put_nowait(message)

        async def read() -> Message:
            # A client that has gone is gone for everyone who asks.
            if gone.is_set() and waiting.empty():
                return {"type": _DISCONNECT}
            return await waiting.get()

        _gone.set(gone)
        watcher = asyncio.create_task(watch())
        try:
            await self.app(scope, read, send)
        finally:
            watcher.cancel()


class Left(StoppingCriteria):
    """Stops once the client has gone."""

    def __init__(self, gone: threading.Event) -> None:
        self.gone = gone

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.gone.is_set(), device=input_ids.device)
