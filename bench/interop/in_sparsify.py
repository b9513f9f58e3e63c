"""Run where eai-sparsify is installed: loads what pullback wrote, and writes dictionaries of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sizes import D, F, fill, finish
from sparsify import SparseCoder, SparseCoderConfig

WRITTEN = {
    "transcoder": {"transcode": True},
    "skip transcoder": {"transcode": True, "skip_connection": True},
    "autoencoder": {},
    "expansion factor": {"transcode": True, "num_latents": 0, "expansion_factor": 4},
}


@torch.no_grad()
def main(folder: Path) -> None:
    x = load_file(folder / "inputs.safetensors")["x"]
    outputs = {}
    for case in sorted((folder / "ours").iterdir()):
        for name, coder in SparseCoder.load_many(str(case), local=True).items():
            outputs[f"{case.name}/{name.split('.')[1]}"] = coder(x).sae_out
    save_file(outputs, folder / "outputs_of_ours.safetensors")
    outputs = {}
    torch.manual_seed(0)
    for case, changes in WRITTEN.items():
        coder = SparseCoder(D, SparseCoderConfig(**({"num_latents": F, "k": 16} | changes)))
        fill(coder)
        coder.save_to_disk(folder / "theirs" / case / "layers.3.mlp")
        outputs[f"{case}/3"] = coder(x).sae_out
    finish(folder, "eai-sparsify", outputs, {case: {} for case in WRITTEN})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
