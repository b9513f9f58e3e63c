"""Run where circuit-tracer is installed: loads what pullback wrote as it loads a local set, writes one of its own, and
loads GemmaScope files as it understands them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    TranscoderSet,
    load_gemma_scope_2_transcoder,
    load_gemma_scope_transcoder,
    load_transcoder_set,
)
from safetensors.torch import load_file, save_file
from sizes import D, F, fill, finish

CPU, LAYERS = torch.device("cpu"), 2
HOOKS = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}


@torch.no_grad()
def main(folder: Path) -> None:
    x = load_file(folder / "inputs.safetensors")["x"]
    outputs = {}
    for case in sorted((folder / "ours").iterdir()):
        # What its loader of local sets does, which itself needs an older hub client than the other neighbours have.
        config = yaml.safe_load((case / "config.yaml").read_text())
        hooks = {name: config[name] for name in HOOKS}
        if (case / "W_enc_0.safetensors").exists():
            clt = load_clt(str(case), scan="toy", device=CPU, dtype=torch.float32, lazy_decoder=False, **hooks)
            outputs |= {f"{case.name}/{layer}": y for layer, y in enumerate(clt(x.expand(clt.n_layers, *x.shape)))}
            continue
        paths = {int(file.stem.split("_")[1]): str(file) for file in case.glob("layer_*.safetensors")}
        loaded = load_transcoder_set(paths, scan=config["scan"], device=CPU, lazy_decoder=False, **hooks)
        outputs |= {f"{case.name}/{layer}": loaded[layer](x) for layer in range(len(loaded))}
    save_file(outputs, folder / "outputs_of_ours.safetensors")
    outputs = {}
    torch.manual_seed(0)
    for case, rule, skip in (
        ("relu", torch.nn.functional.relu, False),
        ("relu skip", torch.nn.functional.relu, True),
        ("jumprelu", JumpReLU(torch.linspace(-1, 2, F), 0.1), False),
    ):
        one = SingleLayerTranscoder(D, F, rule, 0, skip_connection=skip, dtype=torch.float32)
        fill(one, but="threshold")
        place = folder / "theirs" / case
        place.mkdir(parents=True)
        TranscoderSet({0: one}, scan="toy", **HOOKS).to_safetensors(str(place))
        (place / "config.yaml").write_text(yaml.safe_dump({"model_kind": "transcoder_set", **HOOKS}))
        outputs[f"{case}/0"] = one(x)
    for rule in ("relu", "jump_relu"):
        clt = CrossLayerTranscoder(LAYERS, F, D, activation_function=rule, lazy_decoder=False, dtype=torch.float32)
        fill(clt)
        place = folder / "theirs" / f"cross-layer, {rule}"
        place.mkdir(parents=True)
        clt.to_safetensors(str(place))
        (place / "config.yaml").write_text(yaml.safe_dump({"model_kind": "cross_layer_transcoder", **HOOKS}))
        outputs |= {f"{place.name}/{layer}": y for layer, y in enumerate(clt(x.expand(LAYERS, *x.shape)))}
    options = {place.name: {} for place in (folder / "theirs").iterdir()}
    theta = torch.rand(F)
    weights = {
        "W_enc": torch.randn(D, F) / D**0.5,
        "W_dec": torch.randn(F, D) / D**0.5,
        "b_enc": torch.randn(F) / D**0.5,
        "b_dec": torch.randn(D) / D**0.5,
        "threshold": theta,
    }
    place = folder / "theirs" / "gemmascope" / "layer_3"
    place.mkdir(parents=True)
    np.savez(place / "params.npz", **{name: tensor.numpy() for name, tensor in weights.items()})
    outputs["gemmascope/3"] = load_gemma_scope_transcoder(str(place / "params.npz"), 3, device=CPU)(x)
    options["gemmascope"] = {"hook_in": "ln2.hook_normalized", "hook_out": "hook_mlp_out"}
    place = folder / "theirs" / "gemmascope 2" / "layer_3_width_1k_l0_small_affine"
    place.mkdir(parents=True)
    lower = {"w_enc": weights["W_enc"], "w_dec": weights["W_dec"]}
    lower |= {name: weights[name] for name in ("b_enc", "b_dec", "threshold")}
    save_file(lower | {"affine_skip_connection": torch.randn(D, D) / D**0.5}, place / "params.safetensors")
    (place / "config.json").write_text(
        json.dumps(
            {
                "architecture": "jump_relu",
                "affine_connection": True,
                "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
                "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
            }
        )
    )
    outputs["gemmascope 2/3"] = load_gemma_scope_2_transcoder(str(place / "params.safetensors"), 3, device=CPU)(x)
    options["gemmascope 2"] = {}
    finish(folder, "circuit-tracer", outputs, options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
