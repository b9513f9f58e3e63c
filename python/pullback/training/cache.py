"""Activations of all layers on disk, from one forward pass: written shard by shard, continued where it stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from pullback._util.atomic import atomic_path
from pullback._util.version import version
from pullback.training import shards
from pullback.training.cached import CachedActivations
from pullback.training.harvest import Harvested, Harvester, Position, chosen_layers
from pullback.training.masks import Excluded
from pullback.training.source import Tokens, is_packed, token_batches

SHARD_BYTES = 512 << 20


def cache_activations(
    model: Any,
    tokens: Tokens,
    path: str | os.PathLike[str],
    *,
    layers: Sequence[int] | None = None,
    hook_name: str = "mlp.hook_in",
    hook_name_out: str = "hook_mlp_out",
    n_tokens: int | None = None,
    dtype: str = "float32",
    shard_tokens: int | None = None,
    mask: Tensor | None = None,
    context_size: int | None = None,
    store_batch_size_prompts: int = 32,
    exclude_bos: bool = True,
    bos_token_id: int | None = None,
    exclude_padding: bool = True,
    exclude_special_tokens: bool | Sequence[int] = False,
    autocast_lm: bool = False,
    seed: int = 0,
    verbose: bool = True,
) -> CachedActivations:
    """Write inputs and targets of transcoders to a folder, to train on them as often as wanted.

    A shard appears when it is complete; a call with the same arguments continues behind the last one, after a kill or a
    full disk, and does nothing where all is there.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        tokens: prompts or batches, as for `train`; used once, prompts in an order drawn from `seed`.
        path: folder of the cache.
        layers, hook_name, hook_name_out, context_size, store_batch_size_prompts, autocast_lm: as in TrainConfig, and so
            are the tokens to exclude.
        n_tokens: tokens to keep, counted after masking; None for all that `tokens` has, once.
        dtype: "float32", "bfloat16", "float16", or "int8" with a scale for each row.
        shard_tokens: tokens of a shard, to the next whole batch of prompts; None for about 512 MiB.
        mask: Bool[Tensor, 'n_prompts T'], true where a token of a tensor of prompts counts.
        seed: of the order of prompts.
        verbose: say what it takes, and show a progress bar.

    Returns:
        The cache, open.

    Raises:
        ValueError: the folder holds a cache of something else, tokens that cannot be read, activations that are NaN,
            infinite or beyond `dtype`.
        OSError: of the file system, a full disk for instance; the shards before are complete.
    """
    from pullback.lens import as_lens

    if dtype not in shards.STORED:
        raise ValueError(f"cache_activations: dtype must be one of {', '.join(shards.STORED)}, got {dtype!r}")
    for name, value in (("n_tokens", n_tokens), ("shard_tokens", shard_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"cache_activations: {name} must be at least 1 or None, got {value}")
    lens = as_lens(model)
    chosen = chosen_layers(lens, layers)
    excluded = Excluded.chosen(
        lens,
        exclude_bos=exclude_bos,
        bos_token_id=bos_token_id,
        exclude_padding=exclude_padding,
        exclude_special_tokens=exclude_special_tokens,
        packed=is_packed(tokens),
    )
    per_token = shards.bytes_per_token(len(chosen), lens.d_model, lens.d_model, dtype)
    settings = {
        "layers": chosen,
        "hook_name": hook_name,
        "hook_name_out": hook_name_out,
        "n_tokens": n_tokens,
        "dtype": dtype,
        "shard_tokens": shard_tokens or max(1, SHARD_BYTES // per_token),
        "context_size": context_size,
        "store_batch_size_prompts": store_batch_size_prompts,
        "excluded": {"bos": excluded.bos, "pad": excluded.pad, "special": list(excluded.special)},
        "autocast_lm": autocast_lm,
        "seed": seed,
    }
    readings = {str(layer): lens.reading(layer).to_dict() for layer in chosen}
    writer = _Writer(Path(path), settings, readings)
    if not writer.complete:
        if verbose:
            amount = "" if n_tokens is None else f", about {n_tokens * per_token / 2**20:,.0f} MiB in all"
            tqdm.write(f"caching {len(chosen)} layers to {path}: {per_token:,} bytes a token{amount}")
        batches = token_batches(
            lens,
            tokens,
            batch_size=store_batch_size_prompts,
            mask=mask,
            context_size=context_size,
            generator=torch.Generator().manual_seed(seed),
        )
        harvester = Harvester(lens.unhooked(), chosen, hook_name, hook_name_out, excluded, None, autocast_lm)
        writer.write(harvester.harvest(batches, writer.position), verbose)
    return CachedActivations(path)


class _Writer:
    """The manifest of a cache that is being made, and the shards behind the last complete one."""

    def __init__(self, path: Path, settings: dict[str, Any], readings: dict[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        begun = {
            "format": shards.FORMAT,
            "pullback_version": version(),
            "complete": False,
            "settings": settings,
            "readings": readings,
            "shards": [],
        }
        if (path / shards.MANIFEST).exists():
            self.manifest = self._continued(settings, readings)
        else:
            self.manifest = begun
            shards.write_manifest(path, begun)
        for leftover in path.glob(".shard_*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)

    @property
    def complete(self) -> bool:
        return bool(self.manifest["complete"])

    @property
    def position(self) -> Position:
        done = self.manifest["shards"]
        return Position(**done[-1]["position"]) if done else Position()

    @property
    def n_tokens(self) -> int:
        return sum(shard["rows"] for shard in self.manifest["shards"])

    def write(self, source: Iterator[Harvested], verbose: bool) -> None:
        settings, wanted = self.manifest["settings"], self.manifest["settings"]["n_tokens"]
        bar = tqdm(
            total=wanted, initial=self.n_tokens, unit="tok", unit_scale=True, desc="caching", disable=not verbose
        )
        with bar:
            for shard in self._gathered(source, settings["shard_tokens"], wanted):
                bar.update(self._add(*shard))
        if not self.manifest["shards"]:
            raise ValueError("nothing to cache: the source of tokens is empty, or every token is masked or BOS")
        self.manifest["complete"] = True
        shards.write_manifest(self.path, self.manifest)
        if verbose and wanted is not None and self.n_tokens < wanted:
            tqdm.write(f"the source of tokens ended after {self.n_tokens:,} of {wanted:,} tokens")

    def _gathered(
        self, source: Iterator[Harvested], shard_tokens: int, wanted: int | None
    ) -> Iterator[tuple[dict[str, Tensor], Position]]:
        parts: list[dict[str, Tensor]] = []
        rows, position, room = 0, self.position, None if wanted is None else wanted - self.n_tokens
        for item in source:
            parts.append(self._stored(item, room))
            taken = len(parts[-1][shards.TOKEN_IDS])
            rows, position, room = rows + taken, item.position, None if room is None else room - taken
            if rows >= shard_tokens or room == 0:
                yield _joined(parts), position
                parts, rows = [], 0
            if room == 0:
                return
        if parts:
            yield _joined(parts), position

    def _stored(self, item: Harvested, room: int | None) -> dict[str, Tensor]:
        settings = self.manifest["settings"]
        tensors = {shards.TOKEN_IDS: item.token_ids[:room].int().cpu()}
        for i, layer in enumerate(settings["layers"]):
            for which, rows in zip("xy", item.rows[2 * i : 2 * i + 2], strict=True):
                tensors |= shards.stored(shards.site(layer, which), rows[:room], settings["dtype"])
        return tensors

    def _add(self, tensors: dict[str, Tensor], position: Position) -> int:
        """Write a shard, then the manifest that knows it; returns its rows."""
        done = self.manifest["shards"]
        file = self.path / shards.shard_name(len(done))
        try:
            with atomic_path(file) as temporary:
                save_file(tensors, temporary)
                size, digest = temporary.stat().st_size, shards.sha256(temporary)
        except SafetensorError as error:  # what a full disk looks like from there
            raise OSError(f"could not write {file}: {error}; the {len(done)} shards before it are complete") from error
        rows = len(tensors[shards.TOKEN_IDS])
        done.append({"file": file.name, "rows": rows, "bytes": size, "sha256": digest, "position": position._asdict()})
        shards.write_manifest(self.path, self.manifest)
        return rows

    def _continued(self, settings: dict[str, Any], readings: dict[str, Any]) -> dict[str, Any]:
        manifest = shards.read_manifest(self.path)
        if not _same_model(readings, manifest["readings"]):
            raise ValueError(
                f"{self.path} holds a cache of another model or other layers; give another folder, or remove it"
            )
        for name, new in settings.items():
            old = manifest["settings"].get(name)
            if new != old:
                raise ValueError(
                    f"{self.path} holds a cache with {name} {old!r}, not {new!r}; give another folder, or remove it"
                )
        good = 0
        while good < len(manifest["shards"]) and shards.has_size(self.path, manifest["shards"][good]):
            good += 1
        if good < len(manifest["shards"]):  # written again, with all behind it
            manifest |= {"complete": False, "shards": manifest["shards"][:good]}
            shards.write_manifest(self.path, manifest)
        return manifest


def _same_model(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether readings {layer: ...} are of one model, whichever version of TransformerLens opened it."""
    from pullback.lens.fingerprint import same_weight

    def plain(readings: dict[str, Any]) -> dict[str, Any]:
        ignored = ("tl_version", "mlp_fingerprint")
        return {layer: {k: v for k, v in one.items() if k not in ignored} for layer, one in readings.items()}

    def weight(readings: dict[str, Any], layer: str) -> str:
        return readings[layer]["mlp_fingerprint"] or ""

    return plain(new) == plain(old) and all(
        weight(new, layer) == weight(old, layer) or same_weight(weight(new, layer), weight(old, layer)) for layer in new
    )


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
