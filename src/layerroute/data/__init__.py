"""Documents, tokenizers and packed token caches. Importing it imports neither torch nor transformers."""

from layerroute.data.configuration import DataConfig
from layerroute.data.prepare import PreparedData, find_prepared, list_prepared, prepare_data
from layerroute.data.sequence import TokenSequence, document_ids, require_windows

__all__ = [
    "DataConfig",
    "PreparedData",
    "TokenSequence",
    "document_ids",
    "find_prepared",
    "list_prepared",
    "prepare_data",
    "require_windows",
]
