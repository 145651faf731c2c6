"""Documents, tokenizers and packed token caches. Importing it imports neither torch nor transformers."""

from layerroute.data.configuration import DataConfig

__all__ = ["DataConfig"]
