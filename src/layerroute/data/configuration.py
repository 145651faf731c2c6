"""What text to train on, how to tokenize it and how to split it: the ``data`` section of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from layerroute.data.copies import CopiesConfig
from layerroute.data.kinds import KindConfig, check_kinds
from layerroute.data.recall.configuration import CurriculumConfig, RecallConfig
from layerroute.errors import UserError, nearest
from layerroute.folders import cache_folder

SourceName = Literal[
    "python-stdlib",
    "files",
    "hub",
    "installed-packages",
    "recall",
    "kinds",
    "python-code",
    "python-docs",
    "python-reference",
]
SOURCES: tuple[str, ...] = get_args(SourceName)

BPE = "bpe"
"""The ``tokenizer`` value that trains a byte-level BPE on the training documents of the source."""

MINIMUM_VOCABULARY = 257
"""A byte-level BPE holds the 256 bytes and the end-of-text token before its first merge."""

MAXIMUM_VOCABULARY = 1 << 20


@dataclass(kw_only=True, frozen=True)
class DataConfig:
    """Where documents come from and how they become tokens.

    Attributes:
        source: ``python-stdlib`` (the running interpreter's own library; no download), ``files``, ``hub`` (a
            Hugging Face dataset, streamed), ``installed-packages``, ``recall`` (generated; see ``recall``), ``kinds``
            (a mixture; see ``kinds``), or one kind of the embedded mixture: ``python-code``, ``python-docs`` (of
            modules that are not in ``python-code``), ``python-reference``.
        kinds: of the source ``kinds``: by name, ``paths`` or ``dataset``, and ``share``. Documents come in turn, so
            that each kind has its share of the characters, until the first kind runs out. Empty: the embedded mixture
            (code, docs, reference).
        copies: which tokens of the validation text count as copied from far back. A run then measures their loss apart
            from that of the rest, and the bytes of caches that a token reads. None: it does not.
        recall: the task of the source ``recall``. Loss and accuracy are then those of the answers alone.
        paths: files, folders and globs for ``files``; relative ones start at the working directory.
        validation_paths: files, folders and globs of the validation documents. Every other document then
            trains, and ``validation_share`` is not used. Empty: the source itself is split.
        text_field: key (JSON Lines) or column (parquet, hub) that holds the text.
        document_separator: cuts every plain text file into documents at this string. None: one a file.
        dataset, subset, split, revision: name of the hub dataset, and which part of it.
        packages: names of installed distributions for ``installed-packages``.
        tokenizer: ``bpe``, or the name or local folder of a pretrained tokenizer (``gpt2``).
        vocabulary_size: entries of the ``bpe`` tokenizer, end-of-text included. A pretrained tokenizer brings
            its own; read ``PreparedData.vocabulary_size`` for what came out.
        sequence_length: tokens of a window.
        validation_share: expected share of *documents* held out for validation, in (0, 1).
        split_seed: draws another split. It is not the training seed: arms and seeds share their data.
        max_documents, max_characters: read no further than this, in the source's order; the document that
            crosses ``max_characters`` is cut there. Validation documents of ``validation_paths`` do not count.
        cache_dir: None for ``$LAYERROUTE_CACHE``, or else ``~/.cache/layerroute``.

    Raises:
        UserError: values out of range, or settings of one source given to another.
    """

    source: SourceName = "python-stdlib"
    copies: CopiesConfig | None = None
    recall: RecallConfig | None = None
    kinds: dict[str, KindConfig] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    validation_paths: list[str] = field(default_factory=list)
    text_field: str = "text"
    document_separator: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    packages: list[str] = field(default_factory=list)
    tokenizer: str = BPE
    vocabulary_size: int = 4096
    sequence_length: int = 256
    validation_share: float = 0.1
    split_seed: int = 0
    max_documents: int | None = None
    max_characters: int | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        recall: object = self.recall
        if isinstance(recall, Mapping):  # read back from a record
            plan = recall.get("curriculum")
            curriculum = CurriculumConfig(**plan) if isinstance(plan, Mapping) else plan
            object.__setattr__(self, "recall", RecallConfig(**{**recall, "curriculum": curriculum}))
        copies: object = self.copies
        if isinstance(copies, Mapping):
            object.__setattr__(self, "copies", CopiesConfig(**copies))
        kinds = {
            name: KindConfig(**kind) if isinstance(kind, Mapping) else kind
            for name, kind in self.kinds.items()
        }
        object.__setattr__(self, "kinds", kinds)
        self._check_source()
        self._check_ranges()

    def _check_source(self) -> None:
        if self.source not in SOURCES:
            raise UserError(
                f"data.source is {self.source!r}, which is not a source.{nearest(str(self.source), SOURCES)}"
            )
        for name in ("paths", "validation_paths", "packages"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
                raise UserError(f"data.{name} must be a list of non-empty strings, got {value!r}")
        owners = (
            ("paths", "files"),
            ("dataset", "hub"),
            ("packages", "installed-packages"),
            ("recall", "recall"),
            ("kinds", "kinds"),
        )
        for name, owner in owners:
            given = bool(getattr(self, name))
            if given and self.source != owner:
                raise UserError(
                    f"data.{name} is set but data.source is {self.source!r}; "
                    f"set data.source to {owner!r}, or leave data.{name} out"
                )
            if not given and self.source == owner and name != "kinds":
                raise UserError(f"data.source is {owner!r} but data.{name} is empty; set data.{name}")
        for name in ("subset", "split", "revision"):
            if self.source != "hub" and getattr(self, name) != type(self).__dict__[name]:
                raise UserError(
                    f"data.{name} is set but data.source is {self.source!r}; "
                    f"set data.source to 'hub', or leave data.{name} out"
                )
        if self.validation_paths and self.source == "recall":
            raise UserError(
                "data.validation_paths is set but data.source is 'recall', which makes its own validation sequences; "
                "leave data.validation_paths out"
            )
        read = self.source in ("files", "hub") or bool(self.validation_paths)
        if not read and self.text_field != type(self).__dict__["text_field"]:
            instead = "set it in data.kinds" if self.source == "kinds" else "leave it out"
            raise UserError(
                f"data.text_field is for data.source files and hub, and not for {self.source!r}; {instead}"
            )
        if self.document_separator is not None and self.source != "files":
            raise UserError(
                f"data.document_separator is for data.source files, and not for {self.source!r}; leave it out"
            )
        if self.copies is not None and self.source == "recall":
            raise UserError(
                "data.copies is set but data.source is 'recall', which is no text; leave data.copies out"
            )
        check_kinds(self.kinds)
        streams = self.source == "hub" or any(kind.dataset for kind in self.kinds.values())
        if streams and self.max_documents is None and self.max_characters is None:
            raise UserError(
                "a dataset of the hub streams without an end; set data.max_documents or data.max_characters"
            )
        for name in ("text_field", "split", "tokenizer"):
            if not getattr(self, name):
                raise UserError(f"data.{name} is empty; its default is {type(self).__dict__[name]!r}")
        if self.document_separator == "":
            raise UserError("data.document_separator is empty; leave it out for one document a file")

    def _check_ranges(self) -> None:
        if self.tokenizer == BPE and not MINIMUM_VOCABULARY <= self.vocabulary_size <= MAXIMUM_VOCABULARY:
            raise UserError(
                f"data.vocabulary_size is {self.vocabulary_size}; a byte-level BPE needs "
                f"{MINIMUM_VOCABULARY} to {MAXIMUM_VOCABULARY}"
            )
        if self.sequence_length < 2:
            raise UserError(
                f"data.sequence_length is {self.sequence_length}; a window needs 2 tokens or more to predict one"
            )
        curriculum = self.recall.curriculum if self.recall is not None else None
        if curriculum is not None and (curriculum.shortest or 0) > self.sequence_length:
            raise UserError(
                f"data.recall.curriculum.shortest is {curriculum.shortest}, more than data.sequence_length "
                f"({self.sequence_length}); leave it out to have all sequences of that length"
            )
        if not 0.0 < self.validation_share < 1.0:
            raise UserError(
                f"data.validation_share is {self.validation_share}; it must lie between 0 and 1, "
                "both excluded (0.1 holds out a tenth of the documents)"
            )
        for name in ("max_documents", "max_characters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}; it must be 1 or more, or left out for no limit")

    def cache_folder(self) -> Path:
        """Return the folder of all caches: ``cache_dir``, ``$LAYERROUTE_CACHE`` or ``~/.cache/layerroute``."""
        return cache_folder(self.cache_dir)
