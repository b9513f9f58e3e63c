"""circuit-tracer's files against look-alikes of its classes; the real ones are in bench/interop/graphs.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import pullback as pb
from pullback.attribution import Graph
from pullback.attribution import nodes as k
from pullback.attribution.exchange.dense import dense
from pullback.lens import as_lens
from pullback.viz import validate_payload
from tests import models
from tests.attribution.test_graph import by_hand
from tests.attribution.test_identities import tokens_of


class LogitTarget(NamedTuple):
    token_str: str
    vocab_idx: int


class UnifiedConfig:
    n_layers: int
    d_vocab: int
    dtype: Any


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their package, as far as a pickle looks for it."""
    for name, member in (
        ("circuit_tracer.attribution.targets", LogitTarget),
        ("circuit_tracer.utils.tl_nnsight_mapping", UnifiedConfig),
    ):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        setattr(sys.modules[name], member.__name__, member)
        monkeypatch.setattr(member, "__module__", name)


@pytest.fixture(scope="module")
def graph() -> Graph:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    return pb.attribute(lens, models.random_set(lens), tokens_of(6), max_n_logits=3, zero_positions=slice(0, 1))


def test_the_matrix_by_hand() -> None:
    d = dense(by_hand())
    # Features a, b; errors of positions 0, 1; tokens 0, 1; logits 0, 1. The bias is not among them.
    expected = torch.zeros(8, 8)
    expected[0, 4], expected[1, 4], expected[1, 5], expected[1, 3] = 4, 1, 1, 2
    expected[6, 0], expected[6, 1], expected[7, 1] = 3, -1, 2
    assert torch.equal(d.adjacency, expected)
    assert d.features.tolist() == [[0, 1, 3], [0, 1, 5]]
    assert d.logit_tokens.tolist() == [2, 4]
    assert d.spans == {"features": slice(0, 2), "errors": slice(2, 4), "tokens": slice(4, 6), "logits": slice(6, 8)}


@pytest.mark.parametrize("pruned", [False, True])
def test_what_is_written_is_read(graph: Graph, tmp_path: Path, pruned: bool) -> None:
    graph = graph.prune() if pruned else graph
    graph.to_circuit_tracer(tmp_path / "g.pt")
    back = Graph.from_circuit_tracer(tmp_path / "g.pt")
    assert torch.equal(dense(back).adjacency, dense(graph).adjacency)
    shared = graph.of_kind(k.EMBEDDING, k.FEATURE, k.LOGIT)
    names = [name for name, here in zip(graph.node_ids(), shared.tolist(), strict=True) if here]
    assert [name for name in back.node_ids() if "_-1_" not in name] == names
    assert back.scores() == pytest.approx(graph.scores())
    assert back.answers() == graph.answers()
    assert torch.isnan(torch.tensor(back.check())), "nobody can tell what these rows should sum to"
    validate_payload(back.to_neuronpedia())
    back.save(tmp_path / "g.safetensors")
    assert Graph.load(tmp_path / "g.safetensors").node_ids() == back.node_ids()


def test_their_loader_finds_its_own_classes(graph: Graph, theirs: Any, tmp_path: Path) -> None:
    graph.to_circuit_tracer(tmp_path / "g.pt", model=models.build("LN-gqa-standard-plain"), scan="owner/set")
    content = torch.load(tmp_path / "g.pt", weights_only=False)
    assert content["logit_targets"] == [LogitTarget(label, i) for label, i in _targets(graph)]
    assert type(content["logit_targets"][0]) is LogitTarget
    assert type(content["cfg"]) is UnifiedConfig
    config = vars(content["cfg"])
    assert (config["n_layers"], config["d_model"], config["d_vocab"]) == (3, models.D_MODEL, models.VOCAB)
    assert set(config) == {
        *("n_layers", "d_model", "d_head", "n_heads", "d_mlp", "d_vocab", "tokenizer_name", "model_name"),
        *("original_architecture", "n_key_value_heads", "dtype"),
    }
    assert (content["scan"], content["vocab_size"]) == ("owner/set", models.VOCAB)


def _targets(graph: Graph) -> list[tuple[str, int]]:
    return list(zip(graph.meta["logit_labels"], graph.nodes.feature[graph.of_kind(k.LOGIT)].tolist(), strict=True))


def their_file(**changes: Any) -> dict[str, Any]:
    """Two of three active features, one layer, two tokens, one logit."""
    config = UnifiedConfig()
    config.n_layers, config.d_vocab, config.dtype = 1, 50, torch.float32
    content = {
        "input_string": "a b",
        "input_tokens": torch.tensor([7, 8]),
        "active_features": torch.tensor([[0, 0, 1], [0, 1, 2], [0, 1, 9]]),
        "selected_features": torch.tensor([0, 2]),
        "activation_values": torch.tensor([1.0, 2.0, 3.0]),
        "adjacency_matrix": torch.zeros(7, 7).index_put_(
            (torch.tensor([6, 1]), torch.tensor([1, 4])), torch.tensor(2.0)
        ),
        "logit_targets": [LogitTarget(" c", 4)],
        "logit_probabilities": torch.tensor([0.5]),
        "vocab_size": 50,
        "cfg": config,
        "scan": "x",
    }
    return content | changes


def test_their_file_is_read(theirs: Any, tmp_path: Path) -> None:
    torch.save(their_file(), tmp_path / "g.pt")
    graph = Graph.from_circuit_tracer(tmp_path / "g.pt")
    assert graph.node_ids() == ["E_7_0", "E_8_1", "0_1_0", "0_9_1", "0_-1_0", "0_-1_1", "2_4_1"]
    assert (graph.edge("0_9_1", "2_4_1"), graph.edge("E_7_0", "0_9_1"), graph.n_edges) == (2.0, 2.0, 2)
    assert graph.nodes.activation[graph.of_kind(k.FEATURE)].tolist() == [1.0, 3.0]
    assert graph.answers() == [(" c", 0.5)]
    assert graph.meta["scan"] == "x"
    torch.save(their_file(scan=["set of layer 0", "set of layer 1"]), tmp_path / "list.pt")
    metadata = Graph.from_circuit_tracer(tmp_path / "list.pt").to_neuronpedia()["metadata"]
    assert metadata["transcoder_list"] == ["set of layer 0", "set of layer 1"]
    assert metadata["scan"] == "custom-9dee0a1736dd48be", "the same in every process"
    named = Graph.from_circuit_tracer(tmp_path / "g.pt", tokenizer=models.tokenizer())
    assert named.meta["str_tokens"] == ["w7", "w8"]


@pytest.mark.parametrize(
    "home", ["transformer_lens.HookedTransformerConfig", "transformer_lens.config.HookedTransformerConfig"]
)
def test_files_of_its_first_versions_are_read(
    home: str, theirs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Token ids for targets, and the configuration of TransformerLens."""
    old_config = type("HookedTransformerConfig", (), {"__module__": home})
    monkeypatch.setitem(sys.modules, home, ModuleType(home))
    sys.modules[home].HookedTransformerConfig = old_config  # type: ignore[attr-defined]
    cfg = old_config()
    vars(cfg).update(n_layers=1, model_name="gpt2", initializer_range=np.float64(0.02), dtype=torch.float32)
    content = their_file(logit_tokens=torch.tensor([4]), cfg=cfg)
    del content["logit_targets"]
    torch.save(content, tmp_path / "old.pt")
    graph = Graph.from_circuit_tracer(tmp_path / "old.pt")
    assert graph.answers() == [("4", 0.5)]
    assert (graph.meta["model_name"], graph.n_edges) == ("gpt2", 2)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scan": Evil()}, "refused because loading it could run code"),
        ({"adjacency_matrix": torch.zeros(8, 8)}, "make 7 nodes, but its matrix is"),
        ({"adjacency_matrix": torch.full((7, 7), torch.nan)}, "NaN or infinite"),
        ({"active_features": None}, "is no graph of circuit-tracer"),
    ],
)
def test_other_files_are_refused(changes: dict, sentence: str, theirs: Any, tmp_path: Path, capsys: Any) -> None:
    torch.save(their_file(**changes), tmp_path / "g.pt")
    with pytest.raises(ValueError, match=sentence):
        Graph.from_circuit_tracer(tmp_path / "g.pt")
    assert not capsys.readouterr().out
