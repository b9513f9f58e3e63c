"""Models whose blocks a device map keeps on disk until they run: read, checked, replaced and explained like others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pullback.attribution import attribute
from pullback.causal import intervene
from pullback.lens import as_lens
from pullback.transcoders import load_transcoders
from tests import models

TOKENS = [49, 3, 17, 3, 8, 21]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Any, Any]:
    """A Llama in memory, and the same with its blocks on disk."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24, "max_position_embeddings": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=models.VOCAB, initializer_range=0.3, **sizes, **heads))
    for norm in (p for p in model.parameters() if p.ndim == 1):
        norm.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    kept = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    device_map = dict.fromkeys(kept, "cpu") | {f"model.layers.{i}": "disk" for i in range(3)}
    away = LlamaForCausalLM.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path_factory.mktemp("away"), dtype=torch.float32
    )
    return tuple(
        TransformerBridge.boot_transformers(str(folder), hf_model=hf_model, dtype=torch.float32)
        for hf_model in (None, away)
    )


def _on_disk(model: Any) -> bool:
    return all(p.is_meta for p in model.original_model.model.layers.parameters())


def test_weights_are_read_and_go_again(pair):
    plain, away = (as_lens(model) for model in pair)
    assert _on_disk(away.model)
    for layer in range(3):
        ours, theirs = away.layer_weights(layer), plain.layer_weights(layer)
        assert torch.equal(ours.W_V, theirs.W_V)
        assert torch.equal(ours.W_O, theirs.W_O)
        assert torch.equal(ours.ln2.w, theirs.ln2.w)
        assert away.fingerprint(layer) == plain.fingerprint(layer)
    assert away.parallel == plain.parallel
    assert away.folded == plain.folded
    assert _on_disk(away.model)


@pytest.mark.parametrize("offload", [None, "disk"])
def test_the_same_graph(pair, offload, tmp_path):
    plain, away = (as_lens(model) for model in pair)
    sets = models.random_set(plain)
    sets.save(tmp_path / "set")  # with readings: the check compares fingerprints
    ours = attribute(away, load_transcoders(tmp_path / "set", lazy=True), TOKENS, offload=offload)
    theirs = attribute(plain, sets, TOKENS)
    assert torch.equal(ours.sources, theirs.sources)
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-4, atol=1e-5)
    assert _on_disk(away.model)


def test_replaced_and_intervened_on(pair):
    plain, away = (as_lens(model) for model in pair)
    sets, tokens = models.random_set(plain), torch.tensor([TOKENS])
    with plain.replace(sets), away.replace(sets):
        torch.testing.assert_close(away.logits(tokens), plain.logits(tokens), rtol=1e-4, atol=1e-4)
    changes = [(1, 2, 5, 3.0)]
    for freeze in ("all", "attention"):
        ours, theirs = (intervene(lens, sets, TOKENS, changes, freeze=freeze) for lens in (away, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
