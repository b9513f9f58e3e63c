"""Run where SAELens is installed: loads what pullback wrote, and writes dictionaries of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from safetensors.torch import load_file, save_file
from sizes import D, F, fill, finish

WRITTEN = {
    "transcoder": {"d_out": 48},
    "skip_transcoder": {"d_out": D},
    "jumprelu_transcoder": {"d_out": D},
    "jumprelu_skip_transcoder": {"d_out": D},
    "standard": {"apply_b_dec_to_input": True},
    "jumprelu": {"apply_b_dec_to_input": True},
    "topk": {"k": 16, "apply_b_dec_to_input": True},
    "topk rescaled": {"k": 16, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False},
}


@torch.no_grad()
def main(folder: Path) -> None:
    x = load_file(folder / "inputs.safetensors")["x"]
    outputs = {}
    for case in sorted((folder / "ours").iterdir()):
        for one in sorted(case.iterdir()):
            layer = one.name.split(".")[1]
            outputs[f"{case.name}/{layer}"] = SAE.load_from_disk(one)(x)
    save_file(outputs, folder / "outputs_of_ours.safetensors")
    outputs = {}
    torch.manual_seed(0)
    for case, changes in WRITTEN.items():
        sae_class, config_class = get_sae_class(case.split()[0])
        config = config_class(d_in=D, d_sae=F, **({"apply_b_dec_to_input": False} | changes))
        config.metadata.hook_name = "blocks.3.ln2.hook_normalized"
        config.metadata.hook_name_out = "blocks.3.hook_mlp_out"
        sae = sae_class(config)
        fill(sae)
        sae.save_model(folder / "theirs" / case)
        outputs[f"{case}/3"] = sae(x)
    finish(folder, "sae-lens", outputs, {case: {} for case in WRITTEN})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
