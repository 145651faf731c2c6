"""A Hugging Face dataset, streamed: only the part that is asked for is downloaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerroute.data.sources.base import Document, clean_text
from layerroute.data.sources.files import files_below
from layerroute.errors import UserError, nearest, one_line, require
from layerroute.integrity import file_sha256

if TYPE_CHECKING:
    from layerroute.data.configuration import DataConfig
    from layerroute.data.kinds import KindConfig

_PROBE_SECONDS = 15.0


class HubSource:
    """Rows of a dataset on the Hugging Face hub (or a local dataset folder), in the dataset's order.

    Args:
        config: ``dataset`` is ``owner/name``, or a local folder that ``datasets.load_dataset`` reads. ``subset`` None
            is its only configuration, ``revision`` None its default branch.
    """

    def __init__(self, config: DataConfig | KindConfig) -> None:
        assert config.dataset is not None  # held by both
        self._dataset, self._subset = os.path.expanduser(config.dataset), config.subset
        self._local = os.path.isdir(self._dataset)
        self._split, self._revision, self._text_field = config.split, config.revision, config.text_field

    def describe(self) -> str:
        name = Path(self._dataset).name if self._local else self._dataset
        subset = f"/{self._subset}" if self._subset else ""
        revision = f"@{self._revision}" if self._revision else ""
        return f"hub {name}{subset}:{self._split}{revision}"

    def fingerprint(self) -> str:
        """Return a digest of the name and not of the content, which would need the network.

        What was prepared once stays usable without it. Set ``revision`` to a commit to pin the content. A local
        folder counts by its content.
        """
        content = None
        if self._local:
            files = files_below(Path(self._dataset))
            content = [(name, file_sha256(path)) for path, name in files]
        identity = content or self._dataset
        named = [identity, self._subset, self._split, self._revision, self._text_field]
        return hashlib.sha256(f"hub {json.dumps(named)}".encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        try:
            for index, row in enumerate(self._rows()):
                if text := self._text(row, index):
                    yield Document(f"{self._dataset}:{self._split}[{index}]", text)
        except UserError:
            raise
        except Exception as error:
            raise hub_user_error(f"the dataset {self._dataset!r}", error) from error

    def _rows(self) -> Iterable[dict[str, Any]]:
        require("datasets", extra="data")
        import datasets
        from huggingface_hub import HfApi

        revision = self._revision
        if not self._local:  # fails in seconds where `load_dataset` would retry for half a minute
            asked = HfApi().dataset_info(self._dataset, revision=revision, timeout=_PROBE_SECONDS)
            revision = asked.sha
        return datasets.load_dataset(
            self._dataset, self._subset, split=self._split, revision=revision, streaming=True
        )

    def _text(self, row: dict[str, Any], index: int) -> str:
        if self._text_field not in row:
            raise UserError(
                f"the dataset {self._dataset!r} has no column {self._text_field!r}; set data.text_field."
                f"{nearest(self._text_field, row)}"
            )
        text = row[self._text_field]
        if text is None:
            return ""
        if not isinstance(text, str):
            raise UserError(
                f"column {self._text_field!r} of the dataset {self._dataset!r} holds {type(text).__name__} in row "
                f"{index}, not text; set data.text_field to a column of strings"
            )
        return clean_text(text)


def hub_user_error(
    what: str,
    error: Exception,
    *,
    instead: str = "local files: data.source 'files', a local tokenizer folder",
) -> UserError:
    """Return the :class:`UserError` for ``error``, met while reading ``what`` (a noun phrase) from the hub.

    ``instead`` is what needs no hub.
    """
    from huggingface_hub import errors

    reason = one_line(error) or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{what} is gated; ask for access on its page and log in with `hf auth login`")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(f"{what} does not exist on the Hugging Face hub, or is private; check its name")
    if isinstance(error, (errors.RevisionNotFoundError, errors.HFValidationError)):
        return UserError(f"{what} cannot be named so: {reason[:200]}")
    if isinstance(error, errors.OfflineModeIsEnabled) or _is_network(error):
        return UserError(
            f"{what} needs the Hugging Face hub, which cannot be reached from here ({type(error).__name__}); "
            f"connect (and unset HF_HUB_OFFLINE), or use {instead}"
        )
    return UserError(f"{what} cannot be read: {reason}")


def _is_network(error: BaseException | None) -> bool:
    """Whether a connection failed anywhere in the chain of causes.

    The HTTP libraries below the hub's change (requests, httpx, its forks): their classes are told by name.
    """
    transport = {"TransportError", "RequestException", "ClientConnectionError", "LocalEntryNotFoundError"}
    while error is not None:
        if isinstance(error, (ConnectionError, TimeoutError)):
            return True
        if transport.intersection(cls.__name__ for cls in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False
