"""Sources of documents: one file each, made from a :class:`DataConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerroute.data.kinds import default_kinds
from layerroute.data.sources.base import Document, Source
from layerroute.data.sources.files import FilesSource
from layerroute.data.sources.hub import HubSource
from layerroute.data.sources.mixture import EMBEDDED, Mixture
from layerroute.data.sources.python_code import installed_packages
from layerroute.errors import UserError

if TYPE_CHECKING:
    from layerroute.data.configuration import DataConfig

__all__ = ["Document", "Source", "make_source", "make_validation_source"]


def make_source(config: DataConfig) -> Source:
    """Return the source of ``config``, whose inputs are looked up now and read later."""
    if config.source == "kinds":
        return Mixture(config.kinds or default_kinds())
    if config.source in EMBEDDED:
        return EMBEDDED[config.source]()
    if config.source == "installed-packages":
        return installed_packages(config.packages)
    if config.source == "hub":
        return HubSource(config)
    if config.source == "recall":
        raise UserError(
            "data.source 'recall' is generated while it is trained on: there is nothing to prepare"
        )
    return _files(config, config.paths)


def make_validation_source(config: DataConfig) -> Source | None:
    """Return the source of ``validation_paths``, or None where the source itself is to be split."""
    return _files(config, config.validation_paths) if config.validation_paths else None


def _files(config: DataConfig, paths: list[str]) -> Source:
    return FilesSource(paths, text_field=config.text_field, separator=config.document_separator)
