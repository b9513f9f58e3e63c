"""The `pullback` command: a thin mirror of the Python API."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pullback.commands import dashboard, features, graph, hierarchical, paths, sheet, study, train_options
from pullback.commands.opening import MODEL_HELP, command, model_and_set, open_model, open_set

SWEPT = ("topk", "batchtopk", "standard", "jumprelu")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. What the user got wrong is a sentence on stderr, not a traceback."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"pullback {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\npullback {args.command}: interrupted; what was written before is intact", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="pullback", description="Train sparse transcoders fast and turn them into circuits at scale."
    )
    parser.add_argument("--version", action="version", version=f"pullback {version('pullback')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _demo(commands)
    _train(commands)
    _plan(commands)
    _cache(commands)
    _sweep(commands)
    _eval(commands)
    graph.add(commands)
    paths.add(commands)
    hierarchical.add(commands)
    features.add(commands)
    dashboard.add(commands)
    sheet.add(commands)
    _intervene(commands)
    study.add(commands)
    _serve(commands)
    _convert(commands)
    _doctor(commands)
    return parser


def _demo(commands: Any) -> None:
    parser = command(
        commands,
        "demo",
        _run_demo,
        "train transcoders of a small trained model, explain one answer, test the explanation",
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for graph.html and report.json")
    parser.add_argument("--shipped", action="store_true", help="use the shipped transcoders instead of training some")
    parser.add_argument("--city", default="dallas", help="the prompt's city")
    parser.add_argument("--source-city", default="oakland", help="the city whose state features are put in")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: about two minutes' worth)")
    parser.add_argument("--seed", type=int, default=0, help="seed of training and of the drawn pairs")


def _run_demo(args: argparse.Namespace) -> None:
    from pullback import demo

    steps = demo.TRAINING_STEPS if args.steps is None else args.steps
    demo.run(args.out, city=args.city, source_city=args.source_city, shipped=args.shipped, steps=steps, seed=args.seed)


def _train(commands: Any) -> None:
    parser = command(commands, "train", _run_train, "train transcoders for every layer of a model at once")
    _harvest(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the transcoders; of several runs, for run_0, run_1, ..."
    )
    parser.add_argument("--force", action="store_true", help="replace transcoders that are there already")
    parser.add_argument(
        "--cache", type=Path, default=None, help="folder of cached activations: used, or made of --data"
    )
    parser.add_argument("--checkpoint", type=Path, default=None, help="folder for checkpoints and log.jsonl")
    parser.add_argument("--checkpoint-every-tokens", type=int, default=None, help="(default: a tenth of the run)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    parser.add_argument("--tensorboard", type=Path, default=None, help="folder for TensorBoard")
    parser.add_argument("--wandb", action="store_true", help="log to Weights & Biases")
    train_options.add_arguments(parser)


def _harvest(parser: argparse.ArgumentParser) -> None:
    """What is run through the model, and what is read of it."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="file of prompts or documents a line (.txt), .jsonl, or token ids (.npy, .bin)",
    )
    parser.add_argument(
        "--context-size",
        type=int,
        default=None,
        help="tokens of a context; packs the lines of a .txt "
        "file into contexts, where each would be a prompt of its own",
    )
    parser.add_argument("--column", default=None, help="of a .jsonl file (default: input_ids, tokens, text or content)")
    parser.add_argument("--token-dtype", default=None, help="of a .bin file, uint16 for instance")
    parser.add_argument("--layers", type=int, nargs="+", default=None, help="layers to use (default: all)")
    parser.add_argument("--hook-name", default="mlp.hook_in", help="where the input is read, inside blocks.{l}")
    parser.add_argument(
        "--hook-name-out",
        default="hook_mlp_out",
        help="where the target is read, inside blocks.{l}; the same as --hook-name makes autoencoders",
    )
    parser.add_argument("--exclude-special-tokens", action="store_true", help="leave out all special tokens")
    parser.add_argument("--autocast-lm", action="store_true", help="let the model multiply in bfloat16")
    parser.add_argument(
        "--cache-tokens",
        type=int,
        default=None,
        help="tokens to cache (default: all, once; of a sweep, as many as it trains on)",
    )
    parser.add_argument("--cache-dtype", default="float32", help="float32, bfloat16, float16 or int8")


def _run_train(args: argparse.Namespace) -> None:
    from pullback.training.command import run_train

    _claim(args.out, args.force)
    grid = list(train_options.settings(args))
    run_train(args, lambda: open_model(args.model), grid, train_options.of_sparsify(args))


def _plan(commands: Any) -> None:
    parser = command(commands, "plan", _run_plan, "say what memory, arithmetic and network a training run would take")
    parser.add_argument("model", nargs="?", help="gpt2-small, gemma-2-2b, llama-3.1-8b or llama-3.1-70b; or give sizes")
    parser.add_argument("--n-layers", type=int, default=None, help="of another model")
    parser.add_argument("--d-model", type=int, default=None, help="of another model")
    parser.add_argument("--parameters", type=float, default=None, help="of another model, without embeddings")
    parser.add_argument("--k", type=int, default=32, help="features active per token")
    parser.add_argument("--cross-layer", action="store_true", help="features write to all later layers")
    parser.add_argument("--processes", type=int, default=1, help="as many GPUs")
    divisions = "layers, features, data, or 4x2 (default: layers; of a cross-layer one, features)"
    parser.add_argument("--parallel", default=None, help=divisions)
    parser.add_argument("--d-sae", type=int, default=1024, help="features per layer")
    parser.add_argument("--training-tokens", type=int, default=1_000_000, help="tokens to train on")
    parser.add_argument("--train-batch-size-tokens", type=int, default=1024, help="tokens per step")


def _run_plan(args: argparse.Namespace) -> None:
    from pullback.training.command import run_plan

    run_plan(args)


def _cache(commands: Any) -> None:
    parser = command(commands, "cache", _run_cache, "write activations to disk, to train on them as often as wanted")
    _harvest(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache; continued if it is begun")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of prompts")


def _run_cache(args: argparse.Namespace) -> None:
    from pullback.training.command import run_cache

    run_cache(args, lambda: open_model(args.model))


def _sweep(commands: Any) -> None:
    summary = "train a grid of transcoders and autoencoders on the same activations, and compare them at equal L0"
    parser = command(commands, "sweep", _run_sweep, summary)
    _harvest(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for sweep.json, sweep.html, sweep.png and the sets; continued if it is begun",
    )
    parser.add_argument(
        "--eval-data", type=Path, default=None, help="file of tokens to measure on (default: those of --data)"
    )
    parser.add_argument("--eval-prompts", type=int, default=256, help="measure on so many of its prompts")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=("transcoder", "sae"),
        default=["transcoder", "sae"],
        help="transcoders, autoencoders of what they write, or both",
    )
    parser.add_argument("--architectures", nargs="+", choices=SWEPT, default=["topk"], help="sparsity rules")
    parser.add_argument("--k", type=int, nargs="+", default=[], help="topk, batchtopk: features active per token")
    parser.add_argument("--l1-coefficient", type=float, nargs="+", default=[], help="standard: weights of its penalty")
    parser.add_argument("--l0-coefficient", type=float, nargs="+", default=[], help="jumprelu: weights of its penalty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and the order of batches")
    parser.add_argument("--per-layer", action="store_true", help="also measure each layer replaced on its own")
    parser.add_argument("--at-once", type=int, default=8, help="arms that train together: memory")
    train_options.add_arguments(parser, train_options.SIZES)


def _run_sweep(args: argparse.Namespace) -> None:
    from pullback.training.command import run_sweep

    run_sweep(args, lambda: open_model(args.model))


def _claim(out: Path, force: bool) -> None:
    """The folder a long run will write to: there, writable, and not somebody's set, before the run and not after."""
    if any((out / name).exists() for name in ("config.yaml", "runs.json")) and not force:
        raise ValueError(f"{out} holds transcoders already; give --out another folder, or --force to replace them")
    out.mkdir(parents=True, exist_ok=True)


def _eval(commands: Any) -> None:
    parser = command(
        commands, "eval", _run_eval, "measure transcoders or autoencoders: L0, FVU, dead share, CE recovered, KL"
    )
    model_and_set(parser)
    parser.add_argument("--data", type=Path, required=True, help="text file, one prompt a line")
    parser.add_argument("--compare", default=None, help="folder or hub id of another set, measured beside it")
    parser.add_argument("--per-layer", action="store_true", help="also replace each layer on its own: slower")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here as well")


def _run_eval(args: argparse.Namespace) -> None:
    from pullback._util.atomic import atomic_save
    from pullback.training import evaluate
    from pullback.training.command import read_prompts
    from pullback.transcoders import load_transcoders

    report = evaluate(
        open_model(args.model),
        open_set(args),
        read_prompts(args.data),
        compare=None if args.compare is None else {args.compare: load_transcoders(args.compare, lazy=args.lazy)},
        per_layer=args.per_layer,
        verbose=True,
    )
    print(report)
    if args.json is not None:
        atomic_save(args.json, json.dumps(report.to_dict(), indent=2))


def _intervene(commands: Any) -> None:
    parser = command(commands, "intervene", _run_intervene, "set features of a prompt and see what the model says then")
    model_and_set(parser)
    parser.add_argument("prompt", help="the prompt, in quotes")
    feature = "LAYER_FEATURE_POSITION"
    parser.add_argument("--set", nargs="+", default=[], metavar=f"{feature}=VALUE", help="values of features")
    parser.add_argument("--scale", nargs="+", default=[], metavar=f"{feature}=FACTOR", help="factors on what they are")
    parser.add_argument("--freeze", choices=("attention", "all", "none"), default="attention", help="what is held")
    parser.add_argument("--top", type=int, default=5, help="say so many next tokens")
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="and write on for N tokens")


def _run_intervene(args: argparse.Namespace) -> None:
    from pullback.causal.command import run_intervene

    run_intervene(args, open_model(args.model), open_set(args))


def _serve(commands: Any) -> None:
    from pullback import serve

    summary = "show the graphs of a folder in a browser, and keep what is noted on them"
    serve.add_arguments(command(commands, "serve", serve.run, summary))


def _convert(commands: Any) -> None:
    from pullback import convert

    summary = "convert transcoders between layouts: SAELens, sparsify, circuit-tracer and others"
    convert.add_arguments(command(commands, "convert", _run_convert, summary), MODEL_HELP)


def _run_convert(args: argparse.Namespace) -> None:
    from pullback import convert
    from pullback.training.command import read_prompts

    convert.run(args, open_model, read_prompts)


def _doctor(commands: Any) -> None:
    command(commands, "doctor", _run_doctor, "say which kernels this machine will use, and why")


def _run_doctor(_args: argparse.Namespace) -> None:
    from pullback.doctor import report

    print(report())


if __name__ == "__main__":
    sys.exit(main())
