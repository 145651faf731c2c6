"""layerroute: dynamic per-token layer routing for language models."""

__version__ = "0.1.0"
