"""Documents, tokenizers and packed token caches. Importing it imports neither torch nor transformers."""

from layerroute.data.configuration import DataConfig
from layerroute.data.prepare import PreparedData, find_prepared, list_prepared, prepare_data
from layerroute.data.sequence import TokenSequence, require_windows

__all__ = [
    "DataConfig",
    "PreparedData",
    "TokenSequence",
    "find_prepared",
    "list_prepared",
    "prepare_data",
    "require_windows",
]
