"""Documents of any length, packed one behind another into contexts of one length.

Nothing is read before it is needed: a dataset of Hugging Face may be larger than memory, or a stream. It is recognised
by how it behaves; the package `datasets` is not imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.lens.tokens import bos_id

COLUMNS = ("input_ids", "tokens", "text", "content")


def is_dataset(source: Any) -> bool:
    """Whether something is a dataset of Hugging Face, map-style or streaming."""
    return hasattr(source, "column_names") and hasattr(source, "__iter__")


class Documents:
    """Documents to train on.

    Args:
        source: a dataset (map-style, then taken in random order, or streaming, as it comes); a path to a text file with
            a document a line, or to a `.jsonl` file with an object a line; or an iterable of texts, of token lists or
            of {column: text or tokens}. An iterator can be read once.
        column: where texts or tokens stand; None for the first of `input_ids`, `tokens`, `text`, `content`. With an
            `attention_mask` beside tokens, those it hides are dropped.
        prepend_bos: whether each document begins with BOS; None for texts as the model does by default, and tokens as
            they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a dictionary of splits, or a file that is neither text nor `.jsonl`.
    """

    def __init__(self, source: Any, *, column: str | None = None, prepend_bos: bool | None = None) -> None:
        if isinstance(getattr(source, "column_names", None), Mapping):
            raise ValueError(f"dataset has the splits {', '.join(source)}: give one of them, dataset[...]")
        if isinstance(source, str | os.PathLike):
            source = Lines(Path(source))
        self.source = source
        self.column = column
        self.prepend_bos = prepend_bos

    def batches(
        self, lens: Any, batch_size: int, context_size: int, generator: torch.Generator | None, repeat: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Contexts with their masks, `batch_size` at a time; see `token_batches`."""
        epoch = 0
        while True:
            if hasattr(self.source, "set_epoch"):
                self.source.set_epoch(epoch)  # what a stream shuffles, it shuffles anew
            empty = True
            for batch in self._epoch(lens, batch_size, context_size, generator):
                empty = False
                yield batch
            epoch += 1
            if not repeat or empty or (isinstance(self.source, Iterator)):
                return

    def _epoch(
        self, lens: Any, batch_size: int, context_size: int, generator: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        waiting: list[Tensor] = []
        held, wanted = 0, batch_size * context_size
        for document in self._documents(generator):
            ids = self._ids(lens, document)
            waiting.append(ids)
            held += len(ids)
            while held >= wanted:
                joined = torch.cat(waiting)
                yield _contexts(joined[:wanted], context_size)
                waiting, held = [joined[wanted:]], held - wanted
        if held:
            yield _contexts(torch.cat(waiting), context_size)

    def _documents(self, generator: torch.Generator | None) -> Iterable[Any]:
        source = self.source
        if generator is None or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            return source
        return (source[i] for i in torch.randperm(len(source), generator=generator).tolist())

    def _ids(self, lens: Any, document: Any) -> Tensor:
        shown = None
        if isinstance(document, Mapping):
            shown = document.get("attention_mask")
            document = document[self._column_of(document)]
        if isinstance(document, str):
            ids = lens.tokenize(document).cpu() if document.strip() else torch.empty(0, dtype=torch.long)
        else:
            ids = _as_ids(document)
            if shown is not None:
                ids = ids[torch.as_tensor(np.asarray(shown)).bool()]
        return ids if self.prepend_bos is None or len(ids) == 0 else self._with_bos(lens, ids)

    def _with_bos(self, lens: Any, ids: Tensor) -> Tensor:
        bos = bos_id(lens)
        if bos is None:
            raise ValueError(f"prepend_bos={self.prepend_bos} needs a tokenizer that knows a BOS token")
        if int(ids[0]) == bos:
            return ids if self.prepend_bos else ids[1:]
        return torch.cat([torch.tensor([bos]), ids]) if self.prepend_bos else ids

    def _column_of(self, document: Mapping[str, Any]) -> str:
        wanted = COLUMNS if self.column is None else (self.column,)
        found = next((name for name in wanted if name in document), None)
        if found is None:
            raise ValueError(
                f"documents have no column {' or '.join(wanted)}, they have {', '.join(map(str, document))}: "
                "say which, Documents(..., column=...)"
            )
        return found


class Lines:
    """The documents of a text file, a line each, or of a `.jsonl` file; read anew at every pass.

    Raises FileNotFoundError without a file, and ValueError for another kind of it.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in (".txt", ".jsonl"):
            raise ValueError(f"{path}: tokens come in .npy and .bin files, documents in .txt and .jsonl files")
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
        self.path = path

    def __iter__(self) -> Iterator[Any]:
        with open(self.path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                if self.path.suffix == ".txt":
                    yield line.strip()
                    continue
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{self.path}, line {number} is no JSON: {error}") from error


def _as_ids(document: Any) -> Tensor:
    try:
        ids = torch.as_tensor(np.asarray(document))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a document must be a text or a list of token ids, got {type(document).__name__}") from error
    if ids.ndim != 1 or (ids.is_floating_point() and ids.numel()) or ids.dtype == torch.bool:
        raise ValueError(f"a document must be a text or a list of token ids, got {ids.dtype} {list(ids.shape)}")
    return ids.long()


def _contexts(ids: Tensor, context_size: int) -> tuple[Tensor, Tensor]:
    """Rows of `context_size`; the last one is filled up with its own last token, and masked there."""
    missing = -len(ids) % context_size
    mask = torch.ones(len(ids) + missing, dtype=torch.bool)
    mask[len(ids) :] = False
    rows = torch.cat([ids, ids[-1:].expand(missing)])
    return rows.view(-1, context_size), mask.view(-1, context_size)
