"""Make the trained models of the zoo again.

    python -m pullback.zoo.make tiny-mix --out DIR                   the model (about three minutes, one CPU thread)
    python -m pullback.zoo.make tiny-mix --out DIR --transcoders     the transcoders of the model in DIR (four minutes)
    python -m pullback.zoo.make tiny-mix --out DIR --saes            autoencoders of attention outputs (three minutes)

The same seed, torch version, processor family and thread count give the same weights. An interrupted model run
continues when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from pullback.zoo.tinymix import DATA

CHECKPOINT = "training.checkpoint"


def make_model(out: Path, seed: int, threads: int, steps: int | None) -> list[str]:
    """Train tiny-mix into `out`. Returns a sentence for every held-out figure that falls short of what ships."""
    from pullback.zoo.tinymix import evaluate, files
    from pullback.zoo.tinymix.train import Recipe, train

    recipe = Recipe() if steps is None else Recipe(steps=steps)
    start = time.process_time()
    model = train(recipe, seed, checkpoint=out / CHECKPOINT)
    about = run_record(seed, threads, time.process_time() - start) | {"recipe": dataclasses.asdict(recipe)}
    measured = evaluate.figures(model)
    files.save(model, measured, about, out)
    show(measured)
    print(f"tiny-mix written to {out} after {about['cpu_seconds']:.0f} CPU seconds")
    return evaluate.shortfalls(measured)


def make_transcoders(out: Path, seed: int, threads: int, steps: int | None) -> list[str]:
    """Train the transcoders of the model in `out` into `out`/transcoders, as bfloat16. Returns as `make_model` does.

    The figures are those of the files, read back, and not of the float32 weights they were rounded from.
    """
    import torch

    from pullback.zoo.tinymix import files, load, transcoders

    model = load(out)
    n_steps = transcoders.N_STEPS if steps is None else steps
    start = time.process_time()
    sets = transcoders.train_transcoders(model, seed, n_steps)
    about = run_record(seed, threads, time.process_time() - start) | {"steps": n_steps}
    sets.to(dtype=torch.bfloat16).save(out / files.TRANSCODERS)
    measured = transcoders.figures(model, transcoders.load_transcoders(out), out)
    files.save_transcoder_figures(measured, about, out)
    for table in ("fvu", "dead", "l0", "agreement", "interchange"):
        print(table)
        show(measured[table])
    print(f"transcoders written to {out / files.TRANSCODERS} after {about['cpu_seconds']:.0f} CPU seconds")
    return transcoders.shortfalls(measured)


def make_saes(out: Path, seed: int, threads: int, steps: int | None) -> list[str]:
    """Train autoencoders of the attention outputs of the model in `out` into `out`/attention_saes, as bfloat16. Returns
    as `make_model` does."""
    import torch

    from pullback.training import evaluate
    from pullback.zoo.tinymix import files, load, saes, tasks

    model, start = load(out), time.process_time()
    saes.train_saes(model, seed, saes.N_STEPS if steps is None else steps).to(dtype=torch.bfloat16).save(
        out / files.ATTENTION_SAES
    )
    report = evaluate(model, saes.load_saes(out), list(tasks.training_batches(seed=99, n_batches=30)))
    print(report, run_record(seed, threads, time.process_time() - start), sep="\n")
    return [
        f"fvu of {layer} is {fvu:.4f}, at most {saes.LARGEST_FVU} is required"
        for layer, fvu in report.fvu.items()
        if not fvu <= saes.LARGEST_FVU
    ]


def run_record(seed: int, threads: int, seconds: float) -> dict[str, Any]:
    """What a run depends on, and what it cost."""
    import torch

    return {"seed": seed, "threads": threads, "torch": torch.__version__, "cpu_seconds": round(seconds, 1)}


def show(measured: dict[str, float]) -> None:
    for name, value in measured.items():
        print(f"  {name:30s} {value:.4f}")


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 when what was made is not good enough to ship (it is written nevertheless)."""
    import torch

    parser = argparse.ArgumentParser(
        prog="python -m pullback.zoo.make", description="Make a trained model of the zoo again."
    )
    parser.add_argument("name", choices=["tiny-mix"], help="which model to make")
    parser.add_argument("--transcoders", action="store_true", help="train transcoders of the model that is in --out")
    parser.add_argument("--saes", action="store_true", help="train autoencoders of its attention outputs")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write (default: the package's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; part of what makes a run repeatable")
    parser.add_argument("--steps", type=int, default=None, help="fewer steps than the recipe's, to try it out")
    parser.add_argument("--force", action="store_true", help="replace what is already there")
    args = parser.parse_args(argv)
    if args.saes and args.transcoders:
        parser.error("--saes and --transcoders are two runs; give one of them")
    folder = "attention_saes" if args.saes else "transcoders"
    product = args.out / (f"{folder}/config.yaml" if args.saes or args.transcoders else "model.safetensors")
    if product.exists() and not args.force:
        parser.error(f"{product} exists; give --out another folder, or --force to replace it")
    torch.set_num_threads(args.threads)
    make = make_saes if args.saes else make_transcoders if args.transcoders else make_model
    short = make(args.out, args.seed, args.threads, args.steps)
    for sentence in short:
        print(f"not good enough to ship: {sentence}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
