"""`attribute_many`: thousands of prompts to as many graph files and one table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm.auto import tqdm

from pullback._util.atomic import sync_directory
from pullback._util.memory import old_objects_settled, out_of_memory
from pullback.attribution.graph import Graph
from pullback.attribution.io import save
from pullback.attribution.local import fitted_saes, fitted_transcoders, local_models
from pullback.attribution.many.index import COLUMNS, OK, Journal, has_parquet, journalled, read_index, write_index
from pullback.attribution.many.plan import Numbered, batches, claim, described, numbered
from pullback.attribution.many.together import attribute_together, prompts_held_together
from pullback.attribution.many.workers import each, must_share
from pullback.attribution.settings import Settings
from pullback.lens import Lens, as_lens
from pullback.lens.tokens import Prompt
from pullback.transcoders import LayeredDictionary

if TYPE_CHECKING:
    import pandas as pd


def attribute_many(
    model: Any,
    sets: LayeredDictionary,
    prompts: Iterable[Prompt],
    out_dir: str | os.PathLike[str],
    *,
    num_shards: int = 1,
    shard_id: int = 0,
    workers: int = 1,
    prompts_at_once: int | None = None,
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
    zero_positions: slice | None = None,
    attention_saes: LayeredDictionary | None = None,
    strict: bool = True,
    verbose: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Graphs of many prompts, a file each, and a table of them (`read_index`), which is returned.

    Prompts of one length share forward passes and sweeps. A run that was stopped, by whatever, goes on where it was and
    writes the same bytes; other graphs in the folder are left alone. A prompt without a graph (empty, too long, a
    target it does not have) is a row of the table that says why, and is tried again by the next run.

    Args:
        model, sets: as in `attribute`.
        prompts: strings, token ids, or messages of a chat.
        out_dir: the folder; made if there is none. Of one model, set and settings only.
        num_shards, shard_id: do every num_shards-th prompt, beginning with number shard_id. Shards may run at the same
            time, on different machines; the table is of what all of them have done so far.
        workers: processes that share the batches of this run, on a CPU, with one thread each; model and dictionaries
            are in memory once. Files have the bytes of one process with one thread, whatever the number.
        prompts_at_once: prompts of one length that share a forward pass and a sweep; None: as many as pay. A run that
            goes on with another number writes graphs that may differ in their last bits.
        node_threshold, edge_threshold: prune what is written, as `Graph.prune`; None, both: whole graphs. Scores are
            those of whole graphs.
        zero_positions, attention_saes, strict: as in `attribute`.
        verbose: show a progress bar.
        settings: every other argument of `attribute`.

    Returns:
        The table of all shards so far.

    Raises:
        ValueError: settings without meaning, incompatible transcoders, a folder begun with other settings, several
            workers where processes cannot share the model.
        RuntimeError: a worker was killed. What else stops one, a full disk say, is raised as it is.
    """
    if not 0 <= shard_id < num_shards:
        raise ValueError(f"attribute_many: shard_id must lie in 0..num_shards - 1, got {shard_id} of {num_shards}")
    if (node_threshold is None) != (edge_threshold is None):
        raise ValueError("attribute_many: give both node_threshold and edge_threshold, or neither")
    if prompts_at_once is not None and prompts_at_once < 1:
        raise ValueError(f"attribute_many: prompts_at_once must be at least 1, got {prompts_at_once}")
    if isinstance(prompts, str):
        raise ValueError("attribute_many: prompts is one string; give a list of prompts")
    chosen = Settings(**settings)
    lens = as_lens(model)
    must_share(lens, chosen, workers)
    folder = Path(out_dir)
    pruned = None if node_threshold is None or edge_threshold is None else (node_threshold, edge_threshold)
    fitted = fitted_transcoders(lens, sets, strict=strict)
    saes = fitted_saes(lens, attention_saes, strict=strict)
    work = _Work(lens, fitted, saes, chosen, folder, zero_positions, chosen.products(lens), pruned)
    claim(folder, lens, fitted, saes, described(chosen, {"zero_positions": zero_positions, "pruned": pruned}))

    read = numbered(lens, list(prompts), shard_id, num_shards)
    done = {key for key, row in journalled(folder).items() if row["status"] == OK and (folder / key[1]).exists()}
    journal = Journal(folder, shard_id, num_shards)
    try:
        with tqdm(total=len(read), desc="graphs", unit="prompt", disable=not verbose) as bar:
            unread = [prompt for prompt in read if prompt.why]
            journal.add(_failed(prompt, prompt.why) for prompt in unread)
            bar.update(len(unread))
            made = batches([prompt for prompt in read if not prompt.why], prompts_at_once, lens)
            tasks = [_Task(batch, {p.number for p in batch if (p.number, p.file) not in done}) for batch in made]
            bar.update(sum(len(task.batch) for task in tasks if not task.wanted))
            wanted = [task for task in tasks if task.wanted]
            with old_objects_settled(), closing(each(work.rows, wanted, workers)) as finished:
                for task, rows in finished:
                    journal.add(rows)
                    bar.update(len(task.batch))
    finally:
        journal.close()
    path = write_index(folder)
    table = read_index(folder)
    if verbose:
        failed = int((table["status"] != OK).sum())
        tqdm.write(f"{path}: {len(table)} prompts, {failed} without a graph")
        if not has_parquet():
            tqdm.write("the table is a CSV file; pip install 'pullback[tables]' for Parquet")
    return table


class _Task(NamedTuple):
    """A batch, and the numbers of those of its prompts that are not done."""

    batch: Sequence[Numbered]
    wanted: set[int]


class _Work:
    """What all batches of a run have in common."""

    def __init__(
        self,
        lens: Lens,
        sets: LayeredDictionary,
        saes: LayeredDictionary | None,
        settings: Settings,
        folder: Path,
        zero_positions: slice | None,
        precision: torch.dtype,
        pruned: tuple[float, float] | None,
    ) -> None:
        self.lens, self.sets, self.saes, self.settings, self.folder = lens, sets, saes, settings, folder
        self.zero_positions, self.precision, self.pruned = zero_positions, precision, pruned

    def rows(self, task: _Task) -> list[dict[str, Any]]:
        """Explain a batch, write the files of the wanted prompts, and say what is known of them. All of the batch is
        computed even if part of it is done: so the sums come out in the same order."""
        rows = [
            _failed(prompt, graph) if isinstance(graph, str) else self._written(prompt, graph, seconds)
            for prompt, graph, seconds in self._graphs(task.batch)
            if prompt.number in task.wanted
        ]
        sync_directory(self.folder)
        return rows

    def _graphs(self, batch: Sequence[Numbered]) -> Iterator[tuple[Numbered, Graph | str, float]]:
        """Graphs of all of a batch, and the seconds that each took, or of a part of it after the other: where they
        would take too much memory together, or did so, and each prompt alone where the model fails on some."""
        start, made = time.perf_counter(), 0
        try:
            found, step = self._together(batch)
            shared = (time.perf_counter() - start) / len(batch)
            start = time.perf_counter()
            for prompt, graph in zip(batch, found, strict=False):
                made += 1
                yield prompt, graph, shared + time.perf_counter() - start
                start = time.perf_counter()
        except Exception as error:  # one prompt's failure is not the others'
            if len(batch) == 1:
                yield batch[0], str(error) or type(error).__name__, time.perf_counter() - start
                return
            step = max(1, len(batch) // 2) if out_of_memory(error) else 1
        for first in range(made, len(batch), step):
            yield from self._graphs(batch[first : first + step])

    def _together(self, batch: Sequence[Numbered]) -> tuple[Iterable[Graph | str], int]:
        """Graphs of all of a batch, or of none; and how many of its prompts are tried at a time if there are none."""
        locals = local_models(
            self.lens,
            self.sets,
            torch.tensor([prompt.tokens for prompt in batch], device=self.lens.device),
            zero_positions=self.zero_positions,
            precision=self.precision,
            attention_saes=self.saes,
        )
        step = prompts_held_together(locals[0], self.settings)
        if step < len(batch):
            return (), step
        return attribute_together(self.lens, locals, self.settings, [{"prompt": p.text} for p in batch]), step

    def _written(self, prompt: Numbered, graph: Graph, seconds: float) -> dict[str, Any]:
        scores, answers = graph.scores(), graph.answers()
        written = graph if self.pruned is None else graph.prune(*self.pruned)
        save(written, self.folder / prompt.file, one_of_many=True)
        return {
            "number": prompt.number,
            "file": prompt.file,
            "prompt": prompt.text,
            "tokens": prompt.tokens,
            "answer": max(answers, key=lambda answer: answer[1])[0] if answers else None,
            "answers": [label for label, _ in answers],
            "probabilities": [p for _, p in answers],
            "replacement": scores.replacement,
            "completeness": scores.completeness,
            "check": graph.check(),
            "n_nodes": written.n_nodes,
            "n_edges": written.n_edges,
            "seconds": seconds,
            "status": OK,
        }


def _failed(prompt: Numbered, why: str) -> dict[str, Any]:
    known = {"number": prompt.number, "file": prompt.file, "prompt": prompt.text, "tokens": prompt.tokens}
    return {**dict.fromkeys(COLUMNS), **known, "answers": [], "probabilities": [], "status": why}
