"""Run where circuit-tracer is installed: makes the graph of every case, and reads the one that pullback wrote."""

from __future__ import annotations

import json
import sys
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from circuit_tracer import Graph, ReplacementModel, __version__, attribute
from circuit_tracer.graph import compute_graph_scores
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from circuit_tracer.utils.create_graph_files import create_graph_files
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast
from yaml import safe_load

CPU = torch.device("cpu")
warnings.filterwarnings("ignore", message="Full backward hook is firing")


def tokenizer(n_words: int, bos: int) -> PreTrainedTokenizerFast:
    """Token i is the word w{i}, but for BOS. Its settings keep TransformerLens from asking the hub for it."""
    words = {"<bos>" if i == bos else f"w{i}": i for i in range(n_words)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<bos>"))
    special = dict.fromkeys(("bos_token", "unk_token", "pad_token", "eos_token"), "<bos>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, add_bos_token=True, name_or_path="local", **special)


def transcoders(folder: Path) -> Any:
    config = safe_load((folder / "config.yaml").read_text())
    hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook")}
    named = "scan_name" if "scan_name" in signature(load_transcoder_set).parameters else "scan"  # of its later versions
    common = {named: "random", "device": CPU, "dtype": torch.float32, "lazy_decoder": False, **hooks}
    if (folder / "W_enc_0.safetensors").exists():
        return load_clt(str(folder), **common)
    paths = {int(file.stem.split("_")[1]): str(file) for file in folder.glob("layer_*.safetensors")}
    loaded = load_transcoder_set(paths, **common)
    if config["activation"] == "topk":  # its loader of local files knows thresholds only
        for one in loaded:
            one.activation_function = TopK(config["k"])
    return loaded


def replacement_model(folder: Path, config: dict[str, Any], bos: int = 0) -> Any:
    words = tokenizer(config["d_vocab"], bos)
    words.save_pretrained(folder / "tokenizer")
    named = {"model_name": "random", "original_architecture": "random", "tokenizer_name": str(folder / "tokenizer")}
    cfg = HookedTransformerConfig(**config, device="cpu", **named)
    model = ReplacementModel.from_config(cfg, transcoders(folder / "transcoders"), tokenizer=words)
    own = model.state_dict()
    weights = {}
    for name, value in load_file(folder / "model/weights.safetensors").items():
        name = name.replace(".mlp.", ".mlp.old_mlp.").replace("unembed.", "unembed.old_unembed.")
        grouped = name.replace("attn.", "attn._")  # keys and values that several heads share, once
        if grouped in own:
            name, value = grouped, value[:: value.shape[0] // own[grouped].shape[0]]
        weights[name] = value
    missing, unexpected = model.load_state_dict(weights, strict=False)
    of_weights = {name for name, _ in model.named_parameters() if not name.startswith("transcoders")}
    if unexpected or of_weights & set(missing):
        raise ValueError(f"weights do not fit: {unexpected} unknown, {of_weights & set(missing)} missing")
    return model


def main(folder: Path) -> None:
    report = {}
    for case in sorted(path.parent for path in folder.glob("*/case.json")):
        settings = json.loads((case / "case.json").read_text())
        model = replacement_model(case, settings["config"])
        graph = attribute(torch.tensor(settings["prompt"]), model, **settings["attribution"])
        graph.to_pt(str(case / "theirs.pt"))
        ours = Graph.from_pt(str(case / "ours.pt"))
        create_graph_files(graph, "theirs", str(case), "random", **settings["pruning"])
        report[case.name] = {"scores": compute_graph_scores(graph), "scores_of_ours": compute_graph_scores(ours)}
    (folder / "there.json").write_text(json.dumps({"version": __version__, "cases": report}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
