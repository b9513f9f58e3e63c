"""Training and measuring a grid of arms, resumable at any point."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from pullback._util.atomic import atomic_save
from pullback.training.cache import cache_activations
from pullback.training.cached import CachedActivations
from pullback.training.config import TrainConfig
from pullback.training.evaluation import Report, evaluate
from pullback.training.from_cache import train_on_cache
from pullback.training.harvest import chosen_layers
from pullback.training.run import Trained
from pullback.training.several import given_configs
from pullback.training.source import Batch, Tokens, token_batches
from pullback.training.sweep.grid import KINDS, Arm, grid
from pullback.training.sweep.published import published_curves
from pullback.training.sweep.record import Record
from pullback.training.team import is_launched
from pullback.viz import pareto
from pullback.viz.sweep import sweep_page


def sweep(
    model: Any,
    tokens: Tokens,
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    evaluation: Tokens | Mapping[str, Tokens],
    kinds: Sequence[str] = KINDS,
    architectures: Sequence[str] | None = None,
    k: Sequence[int] = (),
    l1_coefficient: Sequence[float] = (),
    l0_coefficient: Sequence[float] = (),
    seeds: Sequence[int] = (0, 1, 2),
    mask: Tensor | None = None,
    per_layer: bool = False,
    cache: str | os.PathLike[str] | None = None,
    cache_tokens: int | None = None,
    cache_dtype: str = "float32",
    at_once: int = 8,
    verbose: bool = True,
) -> dict[str, Any]:
    """Train a grid of transcoders and autoencoders on the same activations, and measure each on the same tokens.

    Activations are cached once. Arms of one seed then train on the same batches, `at_once` of them together; each ends
    with the weights it would have reached alone. After every such group their figures are in `out`/sweep.json, and the
    dictionaries in `out`/sets/NAME. Called again, the sweep goes on where it stopped and leaves finished arms alone, so
    values and seeds may be added later.

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        tokens, mask: to train on, as for `cache_activations`.
        out: folder for sweep.json, the page sweep.html, the plot sweep.png (where matplotlib is installed), sets and
            checkpoints.
        config: what all arms have in common. Its hooks are those of a transcoder; kind "sae" is an autoencoder at its
            `hook_name_out`.
        evaluation: tokens to measure on, or {name: tokens} for several sources, each with figures of its own.
        kinds: "transcoder", "sae" or both.
        architectures: sparsity rules, each with every value of its setting; None for that of `config`.
        k: values of topk and batchtopk.
        l1_coefficient, l0_coefficient: values of standard and of jumprelu.
        seeds: of weights and of the order of batches.
        per_layer: also measure each layer replaced on its own (see `evaluate` for what it costs).
        cache: folder of the activations; None for `out`/cache. It stays: remove it when the sweep is done.
        cache_tokens: tokens to cache; None for `config.training_tokens`. Fewer are used again, reshuffled.
        cache_dtype: how they are stored, see `cache_activations`.
        at_once: arms that train together: memory.
        verbose: show progress, say what is written.

    Returns:
        The content of sweep.json: `arms` with settings and figures; `matched`, transcoders against autoencoders at
        equal L0; `versions`, `model`.

    Raises:
        ValueError: a grid that makes no sense, or a folder that holds another sweep.
        TrainingDiverged: the finished arms stay.
    """
    from pullback.lens import as_lens

    lens, folder, (config,) = as_lens(model), Path(out), given_configs("sweep", config, None, ())
    if at_once < 1:
        raise ValueError(f"sweep: at_once must be at least 1, got {at_once}")
    if is_launched() and config.parallel != "none":
        raise ValueError(
            "sweep: trains in one process; start it without torchrun, or give each process a part of the grid, a "
            'folder of its own and parallel="none"'
        )
    values = {"k": k, "l1_coefficient": l1_coefficient, "l0_coefficient": l0_coefficient}
    arms = grid(config, kinds, architectures, values, seeds)
    layers = chosen_layers(lens, config.layers)
    named = evaluation if isinstance(evaluation, Mapping) else {"tokens": evaluation}
    measured_on = {name: list(token_batches(lens, source, batch_size=32)) for name, source in named.items()}
    for name, batches in measured_on.items():
        if not any(bool((keep[:, :-1] & keep[:, 1:]).any()) for _, keep in batches):
            raise ValueError(f"sweep: evaluation {name!r} has no two tokens in a row that count, so no loss to measure")
    readings = {str(layer): lens.reading(layer).to_dict() for layer in layers}
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder / "sweep.json", arms, readings, measured_on)
    groups = _groups([arm for arm in arms if not record.has(arm)], at_once)
    if groups:
        activations = cache_activations(
            lens,
            tokens,
            cache or folder / "cache",
            layers=layers,
            hook_name=arms[0].config.hook_name if len(set(kinds)) == 1 else config.hook_name,
            hook_name_out=config.hook_name_out,
            n_tokens=cache_tokens or config.training_tokens,
            dtype=cache_dtype,
            mask=mask,
            context_size=config.context_size,
            store_batch_size_prompts=config.store_batch_size_prompts,
            exclude_bos=config.exclude_bos,
            bos_token_id=config.bos_token_id,
            exclude_padding=config.exclude_padding,
            exclude_special_tokens=config.exclude_special_tokens,
            autocast_lm=config.autocast_lm,
            verbose=verbose,
        )
        for number, group in enumerate(groups):
            if verbose:
                tqdm.write(f"group {number + 1} of {len(groups)}: {', '.join(arm.name for arm in group)}")
            sets = _trained(group, activations, folder, verbose)
            reports = {
                name: _measured(lens, sets, batches, config, per_layer, verbose)
                for name, batches in measured_on.items()
            }
            record.add(group, reports)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    published = published_curves(record.content)
    atomic_save(folder / "sweep.html", sweep_page(record.content, published=published))
    if pareto.can_draw():
        pareto.draw(record.content, folder / "sweep.png", published)
    elif verbose:
        tqdm.write(f"no plot: {pareto.NEEDED}")
    return record.content


def _groups(arms: Sequence[Arm], at_once: int) -> list[list[Arm]]:
    """Arms that train together: of one seed, which orders their batches, so who trains beside whom does not matter."""
    by_seed: dict[int, list[Arm]] = {}
    for arm in arms:
        by_seed.setdefault(arm.config.seed, []).append(arm)
    return [own[i : i + at_once] for own in by_seed.values() for i in range(0, len(own), at_once)]


def _trained(group: Sequence[Arm], activations: CachedActivations, folder: Path, verbose: bool) -> list[Trained]:
    """Trained to the end, or from the group's checkpoint on, and saved."""
    name = f"{zlib.crc32(' '.join(arm.name for arm in group).encode()):08x}"
    sets = train_on_cache(
        activations,
        configs=[arm.config for arm in group],
        verbose=verbose,
        checkpoint_path=folder / "checkpoints" / name,
        keep_checkpoints=1,
        resume=True,
    )
    assert isinstance(sets, list)
    for arm, one in zip(group, sets, strict=True):
        one.save(folder / "sets" / arm.name)
    return sets


def _measured(
    lens: Any, sets: Sequence[Trained], batches: Sequence[Batch], config: TrainConfig, per_layer: bool, show: bool
) -> list[Report]:
    first, *others = sets
    report = evaluate(
        lens,
        first,
        batches,
        compare={str(i): one for i, one in enumerate(others)},
        per_layer=per_layer,
        bos_token_id=config.bos_token_id,
        verbose=show,
    )
    return [replace(report, compared={}), *report.compared.values()]
