"""The tables of docs/SCALE.md.

python tools/scale.py            prints the tables of plans
python tools/scale.py --write    writes them into the page
python tools/scale.py --measure  trains small dictionaries, and prints their peak memory beside the formula
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pullback.training.plan import H100, MODELS, Costs, Dictionary, costs

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "SCALE.md"
BATCH, BUFFER = 4096, 8


class Plan(NamedTuple):
    model: str
    d_sae: int
    k: int
    cross_layer: bool
    tokens: float
    processes: int
    parallel: str | tuple[int, int]

    @property
    def dictionary(self) -> Dictionary:
        model = MODELS[self.model]
        return Dictionary(model.n_layers, model.d_model, self.d_sae, self.k, self.cross_layer)

    @property
    def costs(self) -> Costs:
        parameters = MODELS[self.model].parameters
        settings = {"batch": BATCH, "buffer_batches": BUFFER, "processes": self.processes, "parallel": self.parallel}
        return costs(self.dictionary, parameters, **settings)


PLANS = [
    Plan("gpt2-small", 24_576, 32, False, 60e6, 1, "layers"),
    Plan("gpt2-small", 24_576, 32, False, 60e6, 4, "layers"),
    Plan("gpt2-small", 24_576, 32, True, 300e6, 1, "features"),
    Plan("gpt2-small", 24_576, 32, True, 300e6, 4, "features"),
    Plan("gemma-2-2b", 16_384, 64, False, 500e6, 1, "layers"),
    Plan("gemma-2-2b", 65_536, 64, False, 500e6, 2, "layers"),
    Plan("gemma-2-2b", 65_536, 64, False, 500e6, 8, "layers"),
    Plan("gemma-2-2b", 16_384, 64, True, 1e9, 4, "features"),
    Plan("gemma-2-2b", 65_536, 64, True, 1e9, 16, "features"),
    Plan("llama-3.1-8b", 32_768, 64, False, 1e9, 4, "layers"),
    Plan("llama-3.1-8b", 131_072, 64, False, 1e9, 8, "layers"),
    Plan("llama-3.1-8b", 131_072, 64, False, 1e9, 16, (8, 2)),
    Plan("llama-3.1-8b", 32_768, 64, True, 1e9, 16, "features"),
    Plan("llama-3.1-70b", 131_072, 64, False, 1e9, 40, "layers"),
    Plan("llama-3.1-70b", 131_072, 64, False, 1e9, 80, "layers"),
    Plan("llama-3.1-70b", 16_384, 64, True, 1e9, 128, "features"),
]


def plans() -> str:
    """The table of plans, in Markdown."""
    lines = [
        "| model | dictionary | processes | weights | memory of each, GB | read and written a step, GB "
        "| TFLOP a step: model, dictionary | received a step, MB: rows, exchange | tokens | GPU-hours, at least |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for plan in PLANS:
        found, cells = plan.costs, []
        of_model = 2 * MODELS[plan.model].parameters * BATCH / 1e12
        kind = "cross-layer" if plan.cross_layer else "per layer"
        said = plan.parallel if isinstance(plan.parallel, str) else " x ".join(map(str, plan.parallel))
        hours = found.seconds() * plan.tokens / BATCH * plan.processes / 3600
        dictionary = found.flops * plan.processes / 1e12 - of_model
        cells = [
            plan.model,
            f"{kind}, F={plan.d_sae:,}",
            "1" if plan.processes == 1 else f"{plan.processes}, {said}",
            f"{plan.dictionary.weights / 1e9:.1f}e9",
            f"{found.trained / 1e9:,.1f} + {found.buffer / 1e9:.1f}",
            f"{found.traffic / 1e9:,.1f}",
            f"{of_model:,.1f}, {dictionary:,.1f}",
            f"{found.rows / 1e6:,.0f}, {found.exchange / 1e6:,.0f}",
            f"{plan.tokens / 1e6:,.0f}e6",
            f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def assumed() -> str:
    """The machine that hours are of."""
    return (
        f"N={BATCH} tokens a step, a buffer of {BUFFER} batches, float32 weights, rows in 16 bit; "
        f"{H100.flops / 1e12:.0f} TFLOP/s, {H100.bandwidth / 1e12:.1f} TB/s of memory and {H100.link / 1e9:.0f} GB/s "
        "of network, sustained"
    )


# One run of a made-up model in a process of its own: what the process grew by from before it to its peak.
CHILD = """
import ctypes, gc, json, sys
import torch
import pullback.lens
from pullback.training import TrainConfig, train
n_layers, d, F, n, buffered = map(int, sys.argv[1:])
class Lens:
    n_layers, d_model, d_vocab, n_ctx = int(sys.argv[1]), d, 50, 64
    device = torch.device("cpu")
    model = type("Model", (), {"tokenizer": None})()
    def reading(self, layer): return None
    def unhooked(self): return self
    def mlp_io(self, tokens, layers, *hooks):
        x = torch.randn(*tokens.shape, d)
        return {layer: (x, x) for layer in layers}
def resident(what):
    lines = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Vm"))
    return int(lines[what].split()[0]) * 1024
pullback.lens.as_lens = lambda model: model
def run(F, tokens):
    config = TrainConfig(d_sae=F, k=16, training_tokens=tokens, train_batch_size_tokens=n, n_batches_in_buffer=buffered,
        store_batch_size_prompts=4, exclude_bos=False, exclude_padding=False)
    train(Lens(), torch.randint(50, (64, 64)), config, verbose=False)
run(64, n)  # what libraries take once
gc.collect()  # of that run nothing is left, not even memory that the C library keeps
ctypes.CDLL(None).malloc_trim(0)
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
run(F, 3 * n)
print(json.dumps(resident("VmHWM") - before))
"""
MEASURED = [(1, 512, 32_768, 256, 4), (2, 512, 16_384, 512, 16), (4, 768, 8_192, 256, 32)]


def measured(n_layers: int, d: int, d_sae: int, batch: int, buffered: int) -> tuple[float, Costs]:
    """Bytes that such a run takes at its peak, and what the formula says."""
    arguments = map(str, (n_layers, d, d_sae, batch, buffered))
    ended = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
    said = costs(Dictionary(n_layers, d, d_sae, 16), batch=batch, buffer_batches=buffered)
    return json.loads(ended.stdout), said


def written(page: str) -> str:
    """The page with the tables as they are now."""
    for name, text in {"plans": plans(), "assumed": assumed()}.items():
        begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
        before, _, rest = page.partition(begin)
        page = before + begin + text + end + rest.partition(end)[2]
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    if args.measure:
        print("| layers | d | F | N | batches in the buffer | peak, MB | formula, MB | ratio |\n|" + "---:|" * 8)
        for sizes in MEASURED:
            peak, said = measured(*sizes)
            shown = " | ".join(f"{size:,}" for size in sizes)
            print(f"| {shown} | {peak / 1e6:.0f} | {said.memory / 1e6:.0f} | {peak / said.memory:.2f} |")
    elif args.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(plans())


if __name__ == "__main__":
    main()
