"""The options of `pullback train`, in tables: each is the setting of `TrainConfig` of that name.

Options with several values make a grid: a run for every combination, all on the same batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

ARCHITECTURES = ("topk", "batchtopk", "standard", "jumprelu", "matryoshka_batchtopk")
OPTIMIZERS = ("adam", "lazy_adam")
NORMALIZATIONS = ("none", "expected_average_only_in")
TYINGS = ("none", "per_source", "per_target")
SCHEDULERS = ("linear", "cosine", "constant")


class Option(NamedTuple):
    """One setting of TrainConfig.

    Attributes:
        kind: its type; bool for a switch.
        several: several values make a run each.
        as_list: it is a list itself.
    """

    name: str
    kind: Any
    default: Any
    what: str
    several: bool = False
    as_list: bool = False
    choices: tuple[str, ...] | None = None


TABLES = {
    "dictionary": (
        Option("d_sae", int, 1024, "features per layer", several=True),
        Option("expansion_factor", int, None, "instead of --d-sae: so many times the width of the inputs"),
        Option("k", int, 32, "features active per token", several=True),
        Option("architecture", str, "topk", "the sparsity rule", several=True, choices=ARCHITECTURES),
        Option("skip_connection", bool, False, "also learn a linear path around the features"),
        Option("cross_layer", bool, False, "one cross-layer transcoder: features write to all layers from theirs on"),
        Option("decoder_tying", str, "none", "its decoders: a matrix for each pair, source or target", choices=TYINGS),
        Option("seed", int, 0, "of initial weights; the first one's also of the order of batches", several=True),
    ),
    "optimisation": (
        Option("training_tokens", int, 1_000_000, "tokens to train on"),
        Option("train_batch_size_tokens", int, 1024, "tokens per batch"),
        Option("grad_acc_steps", int, 1, "batches per optimisation step"),
        Option("micro_acc_steps", int, 1, "parts in which a batch is worked through, to save memory"),
        Option("lr", float, 2e-3, "peak learning rate", several=True),
        Option("optimizer", str, "adam", "lazy_adam moves only features that fired", choices=OPTIMIZERS),
        Option("decoder_norm", bool, False, "keep decoder rows at unit norm"),
        Option("lr_scheduler_name", str, "linear", "how the rate falls", choices=SCHEDULERS),
        Option("lr_end", float, None, "rate at the end (default: 0; with cosine, a tenth of --lr)"),
        Option("lr_warm_up_steps", int, 50, "steps over which the rate rises from 0"),
        Option("lr_decay_steps", int, None, "last steps, over which it falls (default: all after the rise)"),
        Option(
            "normalize_activations", str, "none", "bring rows to one average norm; folded into the weights at the end",
            choices=NORMALIZATIONS,
        ),
        Option("act_store_dtype", str, None, "of rows that wait to be mixed", choices=("float32", "bfloat16")),
    ),
    "many processes": (
        Option(
            "parallel", str, None,
            "under torchrun: layers, features, data, none, or 4x2 for layers over 4 groups of 2 processes that share "
            "features (default: layers where there are enough, else features; cross-layer: features)",
        ),
    ),
    "sparsity rules": (
        Option("auxk_alpha", float, None, "weight of AuxK for dead features (default: 1/32; standard, jumprelu: 0)"),
        Option("auxk_k", int, 32, "dead features that AuxK uses on a token"),
        Option("dead_feature_window", int, None, "tokens after which a feature is dead (default: 1/50 of the run)"),
        Option("l1_coefficient", float, 1e-3, "standard (ReLU): weight of the L1 penalty", several=True),
        Option("l1_warm_up_steps", int, 0, "steps over which it rises from 0"),
        Option("l0_coefficient", float, 1e-3, "jumprelu: weight of the number of active features", several=True),
        Option("l0_warm_up_steps", int, 0, "steps over which it rises from 0"),
        Option("jumprelu_init_threshold", float, 0.1, "jumprelu: theta at the start", several=True),
        Option("jumprelu_bandwidth", float, 0.05, "jumprelu: width of the window around theta that moves it"),
        Option("pre_act_loss_coefficient", float, 0.0, "jumprelu: weight of what lifts dead features"),
        Option(
            "matryoshka_widths", int, None, "topk, batchtopk: features that reconstruct on their own, like 64 256",
            as_list=True,
        ),
        Option("k_start", int, None, "topk, batchtopk: k of the first step"),
        Option("k_anneal_steps", int, 0, "steps over which it moves to k"),
    ),
}  # fmt: skip
# Names of sparsify that are taken as well, and translated.
OF_SPARSIFY: dict[str, Any] = {
    "num_latents": int,
    "batch_size": int,
    "ctx_len": int,
    "lr_warmup_steps": int,
    "dead_feature_threshold": int,
    "normalize_decoder": bool,
    "hookpoints": list,
    "transcode": bool,
    "activation": str,
    "multi_topk": bool,
    "loss_fn": str,
    "k_decay_steps": int,
}
# What every dictionary of a sweep has in common.
SIZES = ("d_sae", "training_tokens", "train_batch_size_tokens", "lr", "skip_connection")
OPTIONS = tuple(option for table in TABLES.values() for option in table)


def add_arguments(parser: argparse.ArgumentParser, only: Sequence[str] = ()) -> None:
    """All of them, in groups; or `only` some, with one value each."""
    if not only:
        parser.epilog = (
            "* Several values make a grid: a run for each combination, all on the same batches. The names of "
            "EleutherAI sparsify (--num-latents, --batch-size in sequences, --ctx-len, --transcode, --hookpoints, "
            "--dead-feature-threshold, --lr-warmup-steps) are understood too."
        )
        _add_hidden(parser)
    for title, table in TABLES.items():
        chosen = [option for option in table if not only or option.name in only]
        group = parser.add_argument_group(title) if chosen else parser
        for option in chosen:
            _add(group, option._replace(several=option.several and not only))


def _add_hidden(parser: argparse.ArgumentParser) -> None:
    for name, kind in OF_SPARSIFY.items():
        how: dict[str, Any] = {"type": str, "nargs": "+"} if kind is list else {"type": kind}
        if kind is bool:
            how = {"action": "store_true"}
        flags = dict.fromkeys(("--" + name.replace("_", "-"), "--" + name))
        parser.add_argument(*flags, dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **how)


def _add(group: Any, option: Option) -> None:
    flag = "--" + option.name.replace("_", "-")
    if option.kind is bool:
        group.add_argument(flag, action="store_true", help=option.what)
        return
    group.add_argument(
        flag,
        type=option.kind,
        default=[option.default] if option.several else option.default,
        nargs="+" if option.several or option.as_list else None,
        choices=option.choices,
        metavar=None if option.choices else option.kind.__name__.upper(),
        help=option.what + (" *" if option.several else ""),
    )


def of_sparsify(args: argparse.Namespace) -> dict[str, Any]:
    """What was given under sparsify's names."""
    return {name: getattr(args, name) for name in OF_SPARSIFY if hasattr(args, name)}


def settings(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The settings of every run of the grid, the last option turning fastest."""
    given = {option.name: getattr(args, option.name) for option in OPTIONS}
    grid = [option.name for option in OPTIONS if option.several]
    for values in product(*(given[name] for name in grid)):
        yield given | dict(zip(grid, values, strict=True))
