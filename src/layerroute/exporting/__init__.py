"""Folders that stand alone, for transformers and for vLLM. Importing this teaches transformers to open them."""

from layerroute.exporting.configuration import RoutedConfig

__all__ = ["RoutedConfig"]
