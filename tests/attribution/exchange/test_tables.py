"""networkx graphs and Arrow tables."""

from __future__ import annotations

import sys
from pathlib import Path

import networkx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import pullback as pb
from pullback.attribution import Graph
from pullback.lens import as_lens
from tests import models
from tests.attribution.test_graph import by_hand
from tests.attribution.test_identities import _dense, tokens_of


@pytest.fixture(scope="module")
def graph() -> Graph:
    lens = as_lens(models.build("LN-gqa-standard-plain"))
    return pb.attribute(lens, models.random_set(lens), tokens_of(6), max_n_logits=3)


def test_networkx_by_hand() -> None:
    made = by_hand().to_networkx()
    assert sorted(made.nodes) == sorted(by_hand().node_ids())
    assert made.edges["0_3_1", "2_2_1"] == {"weight": 3.0}
    assert made.nodes["2_2_1"]["token"] == "p"
    assert (made.nodes["0_5_1"]["layer"], made.nodes["0_5_1"]["kind"]) == (0, "feature")
    assert networkx.is_directed_acyclic_graph(made)
    assert made.graph["prompt"] == "x y"
    assert set(networkx.ancestors(made, "2_4_1")) == {"0_5_1", "0_-1_1", "E_7_0", "E_8_1"}


@pytest.mark.parametrize("pruned", [False, True])
def test_arrow_and_parquet_round_trip(graph: Graph, tmp_path: Path, pruned: bool) -> None:
    graph = graph.prune() if pruned else graph
    nodes, edges = graph.to_arrow()
    pq.write_table(nodes, tmp_path / "nodes.parquet")
    pq.write_table(edges, tmp_path / "edges.parquet")
    back = Graph.from_arrow(pq.read_table(tmp_path / "nodes.parquet"), pq.read_table(tmp_path / "edges.parquet"))
    assert back.node_ids() == graph.node_ids()
    assert torch.equal(_dense(back), _dense(graph))
    assert back.check() == graph.check()
    assert back.to_neuronpedia() == graph.to_neuronpedia()


def test_rows_may_come_in_any_order(graph: Graph) -> None:
    nodes, edges = graph.to_arrow()
    back = Graph.from_arrow(nodes.sort_by([("kind", "descending")]), edges.sort_by("weight"))
    assert back.check() == pytest.approx(graph.check(), abs=1e-12)
    assert back.scores() == pytest.approx(graph.scores())
    assert back.edge("E_45_0", back.node_ids()[40]) == graph.edge("E_45_0", back.node_ids()[40])


def test_other_tables_get_a_sentence(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, edges = graph.to_arrow()
    with pytest.raises(ValueError, match="lacks dropped"):
        Graph.from_arrow(nodes.drop_columns(["dropped"]), edges)
    with pytest.raises(ValueError, match="lacks the metadata"):
        Graph.from_arrow(nodes.replace_schema_metadata(None), edges)
    with pytest.raises(ValueError, match="is there more than once"):
        Graph.from_arrow(nodes, pa.concat_tables([edges, edges.slice(0, 1)]))
    with pytest.raises(ValueError, match="no node is called"):
        Graph.from_arrow(nodes.slice(5), edges)
    flipped = edges.rename_columns(["target", "source", "weight"])
    with pytest.raises(ValueError, match="backwards"):
        Graph.from_arrow(nodes, flipped)
    assert pa.types.is_floating(edges.schema.field("weight").type)
    for package, method in (("networkx", "to_networkx"), ("pyarrow", "to_arrow")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"pip install {package}"):
            getattr(graph, method)()
