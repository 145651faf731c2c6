"""Serving routed models: transformers' own OpenAI-compatible server, with our loading and no other."""

from layerroute.serving.server import build_app, serve

__all__ = ["build_app", "serve"]
