"""What `pullback train`, `cache` and `sweep` do with their options."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from math import inf, prod
from pathlib import Path
from typing import Any

from pullback._util.amounts import amount
from pullback.training.cache import cache_activations
from pullback.training.cached import CachedActivations
from pullback.training.config import TrainConfig
from pullback.training.documents import Documents
from pullback.training.from_cache import train_on_cache
from pullback.training.loggers import LoggingConfig
from pullback.training.names import sparsify
from pullback.training.plan import H100, MODELS, Dictionary, Model, costs
from pullback.training.several import runs_table
from pullback.training.shards import MANIFEST
from pullback.training.source import Batch, Tokens, token_batches
from pullback.training.sweep import summary, sweep
from pullback.training.team import is_launched, speaks
from pullback.training.tokenfile import TOKEN_FILES, TokenFile
from pullback.training.trainer import train

# Settings that decide what is read of the model.
OF_READING = ("layers", "hook_name", "hook_name_out", "context_size", "exclude_special_tokens", "autocast_lm")
OpenModel = Callable[[], Any]


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that say something. Raises ValueError where none does."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one a line")
    return prompts


def run_train(
    args: Namespace, open_model: OpenModel, grid: Sequence[Mapping[str, Any]], of_sparsify: Mapping[str, Any]
) -> None:
    """Train from text, tokens or a cache, with checkpoints where they are asked for; a run for each of the `grid` of
    settings that go to TrainConfig, under its names or, for all runs, those of sparsify."""
    read = {name: getattr(args, name) for name in OF_READING}
    length = {} if args.context_size is None else {"context_size": args.context_size}
    translated, notes = sparsify.from_sparsify({**length, **of_sparsify}, TrainConfig.__dataclass_fields__)
    for note in notes:
        print(note)
    for name in OF_READING:
        setattr(args, name, translated.get(name, read[name]))
    configs = [
        TrainConfig(**{**read, **settings, "parallel": _parallel(settings["parallel"]), **translated})
        for settings in grid
    ]
    which: dict[str, Any] = {"config": configs[0]} if len(configs) == 1 else {"configs": configs}
    if is_launched() and configs[0].parallel != "none":
        from pullback.training.distributed import join

        join()  # before the model is opened, so that each process has its own GPU for it
    if args.resume and args.checkpoint is None:
        raise ValueError("--resume needs --checkpoint DIR, the folder to go on from")
    if args.checkpoint_every_tokens is not None and args.checkpoint is None:
        raise ValueError("--checkpoint-every-tokens needs --checkpoint DIR, the folder for them")
    if args.cache is None and (args.cache_tokens, args.cache_dtype) != (None, "float32"):
        raise ValueError("--cache-tokens and --cache-dtype are of the cache that --cache DIR names: give it, too")
    where: dict[str, Any] = {
        "output_path": args.out,
        "checkpoint_path": args.checkpoint,
        "checkpoint_every_tokens": args.checkpoint_every_tokens,
        "resume": args.resume,
        "logger": LoggingConfig(tensorboard_path=args.tensorboard, log_to_wandb=args.wandb),
    }
    if args.cache is not None:
        train_on_cache(_cache(args, args.cache, open_model), **which, **where)
    else:
        tokens = read_tokens(args, args.data)  # what is wrong with the file is said before the model is opened
        train(open_model(), tokens, **which, **where)
    if not speaks():
        return
    if len(configs) > 1:
        for row in runs_table(configs):
            print(f"{row['run']}: {', '.join(f'{name}={value}' for name, value in row['differs'].items())}")
    print(f"wrote {args.out}")


def _parallel(said: str | None) -> str | list[int] | None:
    """A word of TrainConfig, or "4x2"."""
    sizes = [] if said is None else said.split("x")
    return [int(size) for size in sizes] if len(sizes) == 2 and all(map(str.isdecimal, sizes)) else said


def run_plan(args: Namespace) -> None:
    """Say what a run would cost; raises ValueError for a model that is neither known nor described, or settings that no
    run can have."""
    given = args.n_layers, args.d_model, args.parameters
    if args.model in MODELS and given != (None, None, None):
        raise ValueError(f"--n-layers, --d-model and --parameters are known of {args.model}: leave them out")
    if args.model not in MODELS and None in given:
        raise ValueError(f"name one of {', '.join(MODELS)}, or give --n-layers, --d-model and --parameters")
    known = MODELS.get(args.model) or Model(*given)
    for name, value in {**known._asdict(), "processes": args.processes}.items():
        if value is not None and not 0 < value < inf:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
    dictionary = Dictionary(known.n_layers, known.d_model, args.d_sae, args.k, args.cross_layer)
    batch, parallel = args.train_batch_size_tokens, _parallel(args.parallel)
    divided = prod(parallel) if isinstance(parallel, list) else None
    processes = args.processes or divided or 1
    parallel = parallel or ("features" if args.cross_layer or processes > known.n_layers else "layers")
    TrainConfig(  # refuses what cannot be
        d_sae=args.d_sae,
        k=args.k,
        cross_layer=args.cross_layer,
        parallel=parallel,
        training_tokens=args.training_tokens,
        train_batch_size_tokens=batch,
    )
    if divided not in (None, processes):
        raise ValueError(f"--parallel {args.parallel} is for {divided} processes, --processes says {processes}")
    if parallel == "none" and processes > 1:
        raise ValueError("--parallel none is a whole run in each process: leave --processes out to see what one takes")
    rows = processes if parallel == "layers" else parallel[0] if isinstance(parallel, list) else 1
    if rows > known.n_layers:
        raise ValueError(f"{known.n_layers} layers cannot be divided among {rows} processes: --parallel features")
    found = costs(dictionary, known.parameters, batch=batch, processes=processes, parallel=parallel)
    hours = found.seconds() * args.training_tokens / batch * processes / 3600
    machine = f"{H100.flops / 1e12:.0f} TFLOP/s, {H100.bandwidth / 1e12:.1f} TB/s, network {H100.link / 1e9:.0f} GB/s"
    lines = {
        "weights": amount(dictionary.weights, ""),
        "memory of each process": f"{amount(found.trained, 'B')} of weights and moments, {amount(found.buffer, 'B')} "
        f"of rows to be mixed, {amount(2 * known.parameters, 'B')} of the model in 16 bit",
        "a step of each": f"{amount(found.flops, 'FLOP')}; {amount(found.traffic, 'B')} of weights and moments read "
        f"and written; received: {amount(found.rows, 'B')} of rows, {amount(found.exchange, 'B')} inside the step",
        "the run": f"at least {float(f'{hours:.3g}'):,} GPU-hours for {args.training_tokens:,} tokens "
        f"({machine} sustained)",
    }
    print("\n".join(f"{name}: {said}" for name, said in lines.items()))


def run_cache(args: Namespace, open_model: OpenModel) -> None:
    """Write a cache, or what is missing of it."""
    print(f"wrote {_made(args, args.out, open_model)!r}")


def _cache(args: Namespace, path: Path, open_model: OpenModel) -> CachedActivations:
    """A complete cache as it is, whatever the data; else one that is made of them."""
    if (path / MANIFEST).exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an incomplete one is about to be completed
            cache = CachedActivations(path)
        if cache.complete:
            if speaks():
                print(f"training on {cache!r}")
            return cache
    if is_launched():
        raise ValueError(f"{path} is no complete cache; make it with `pullback cache`, in one process, before torchrun")
    return _made(args, path, open_model)


def _made(args: Namespace, path: Path, open_model: OpenModel) -> CachedActivations:
    tokens = read_tokens(args, args.data)
    return cache_activations(
        open_model(),
        tokens,
        path,
        layers=args.layers,
        hook_name=args.hook_name,
        hook_name_out=args.hook_name_out,
        n_tokens=args.cache_tokens,
        dtype=args.cache_dtype,
        context_size=args.context_size,
        exclude_special_tokens=args.exclude_special_tokens,
        autocast_lm=args.autocast_lm,
        seed=args.seed if isinstance(args.seed, int) else args.seed[0],
    )


def run_sweep(args: Namespace, open_model: OpenModel) -> None:
    """Train and measure a grid, and print it."""
    from pullback.lens import as_lens

    if args.eval_prompts < 1:
        raise ValueError(f"--eval-prompts must be at least 1, got {args.eval_prompts}")
    tokens = read_tokens(args, args.data, beside=args.eval_data)
    held_out = read_tokens(args, args.eval_data or args.data, beside=args.data)
    lens = as_lens(open_model())
    config = TrainConfig(
        d_sae=args.d_sae,
        k=1,  # the grid sets it
        layers=args.layers,
        hook_name=args.hook_name,
        hook_name_out=args.hook_name_out,
        training_tokens=args.training_tokens,
        train_batch_size_tokens=args.train_batch_size_tokens,
        context_size=args.context_size,
        lr=args.lr,
        exclude_special_tokens=args.exclude_special_tokens,
        autocast_lm=args.autocast_lm,
        skip_connection=args.skip_connection,
    )
    found = sweep(
        lens,
        tokens,
        args.out,
        config,
        evaluation=_first_prompts(lens, held_out, args),
        kinds=args.kinds,
        architectures=args.architectures,
        k=args.k,
        l1_coefficient=args.l1_coefficient,
        l0_coefficient=args.l0_coefficient,
        seeds=args.seeds,
        per_layer=args.per_layer,
        cache_tokens=args.cache_tokens,
        cache_dtype=args.cache_dtype,
        at_once=args.at_once,
    )
    print("\n".join(summary(found)))
    print(f"wrote {args.out / 'sweep.json'}")


def _first_prompts(lens: Any, tokens: Tokens, args: Namespace) -> list[Batch]:
    """Batches of prompts until there are enough."""
    size = min(32, args.eval_prompts)
    batches = token_batches(lens, tokens, batch_size=size, context_size=args.context_size)
    return list(islice(batches, -(-args.eval_prompts // size)))


# What says how a file is read, and the files that are read so.
OF_FILES = {"column": ".jsonl", "token_dtype": ".bin"}


def read_tokens(args: Namespace, path: Path | None, *, beside: Path | None = None) -> Tokens:
    """What a file given as `--data` holds; `beside`: another file that the same options may be meant for. Raises
    ValueError where no file is given, and for options that say something of neither."""
    if path is None:
        raise ValueError("--data FILE is needed: a .txt, .jsonl, .npy or .bin file")
    for option, suffix in OF_FILES.items():
        if getattr(args, option) is not None and all(file.suffix != suffix for file in (path, beside or path)):
            raise ValueError(f"--{option.replace('_', '-')} is for {suffix} files, and {path} is none: leave it out")
    if path.suffix in TOKEN_FILES:
        return TokenFile(path, dtype=args.token_dtype if path.suffix == ".bin" else None)
    if path.suffix == ".jsonl" or (path.suffix == ".txt" and args.context_size is not None):
        return Documents(path, column=args.column if path.suffix == ".jsonl" else None)
    return read_prompts(path)
