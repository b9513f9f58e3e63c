"""`python -m bench.interop.graphs`: the same weights and prompt in circuit-tracer and here, compared edge for edge.

circuit-tracer zeroes features and errors of the first position and knows no biases, positions or own constants; the
graph here is made with `zero_positions=slice(0, 1)` and compared on the nodes that both have. Its files are read here,
that of the pruned graph too, and ours there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import pullback as pb
from bench.interop.__main__ import TRACER, offline
from bench.interop.models import MODELS, PROMPT, dictionaries, random_model
from pullback._util.atomic import atomic_save
from pullback.attribution import Graph
from pullback.attribution.exchange.dense import DenseGraph, dense
from pullback.attribution.influence import counts_in_scores

HERE = Path(__file__).parent
TOLERANCE = 1e-4  # of the largest edge of a target; float32, the same sums in another order
SETTINGS = {"max_n_logits": 5, "desired_logit_prob": 0.9, "batch_size": 64}
PRUNING = {"node_threshold": 0.8, "edge_threshold": 0.98}
TARGETS, SOURCES = ("features", "logits"), ("features", "errors", "tokens")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.interop.graphs", description=__doc__)
    parser.add_argument(
        "--python", type=Path, default=TRACER, help="interpreter that has circuit-tracer's requirements"
    )
    parser.add_argument("--out", type=Path, default=HERE / "graphs.json", help="where the figures go")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cases = write_cases(Path(folder))
        run_there(options.python, Path(folder))
        there = json.loads((Path(folder) / "there.json").read_text())
        for case, graph in cases.items():
            rows.append(compare(case, graph, there["cases"][case], Path(folder) / case))
            print(in_words(rows[-1]))
    report = {"circuit_tracer": there["version"], "tolerance": TOLERANCE, "settings": SETTINGS, "rows": rows}
    atomic_save(options.out, json.dumps(report, indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


def write_cases(folder: Path) -> dict[str, Graph]:
    """A folder a case: model, transcoders, settings, and the graph made here as circuit-tracer's file."""
    cases = {}
    for name, config in MODELS.items():
        model = random_model(config)
        for kind, sets in dictionaries(pb.as_lens(model)).items():
            case = f"{name}, {kind}"
            place = folder / case
            (place / "model").mkdir(parents=True)
            weights = {key: value.detach().contiguous() for key, value in model.tl_named_parameters()}
            save_file(weights, place / "model/weights.safetensors")
            sets.save(place / "transcoders", "pullback")
            settings = {"config": config, "prompt": PROMPT, "attribution": SETTINGS, "pruning": PRUNING}
            (place / "case.json").write_text(json.dumps(settings))
            graph = pb.attribute(model, sets, PROMPT, zero_positions=slice(0, 1), **SETTINGS)
            graph.to_circuit_tracer(place / "ours.pt", model=model)
            cases[case] = graph
    return cases


def run_there(python: Path, folder: Path) -> None:
    command = [str(python), str(HERE / "graphs_in_circuit_tracer.py"), str(folder)]
    subprocess.run(command, check=True, env=offline(folder), stdout=sys.stderr)


def compare(case: str, graph: Graph, there: dict[str, Any], place: Path) -> dict[str, Any]:
    theirs = Graph.from_circuit_tracer(place / "theirs.pt")
    here, other = dense(graph), dense(theirs)
    same_nodes = torch.equal(here.features, other.features) and torch.equal(here.logit_tokens, other.logit_tokens)
    edges = differences(here, other) if same_nodes else {}
    # Of our graph and theirs, as each tool scores it.
    scores = torch.tensor([graph.scores(), theirs.scores(), there["scores_of_ours"], there["scores"]])
    apart = float((scores[:3] - scores[3]).abs().max())
    kept = edges_among_known(graph.prune(**PRUNING))
    shown = edges_among_known(Graph.from_neuronpedia(place / "theirs.json"))
    largest = max(map(abs, shown.values()))
    pruned = max(abs(kept.get(ends, 0.0) - weight) for ends, weight in shown.items()) / largest
    return {
        "case": case,
        "n_features": len(here.features),
        "n_edges": int(other.adjacency.count_nonzero()),
        "same_nodes": same_nodes,
        "largest_difference": edges,
        "scores": dict(zip(("replacement", "completeness"), scores[3].tolist(), strict=True)),
        "scores_apart": apart,
        "edges_kept": len(shown),
        "edges_pruned_otherwise": len(kept.keys() ^ shown.keys()),
        "pruned_apart": pruned,
        "ok": same_nodes and kept.keys() == shown.keys() and max(apart, pruned, *edges.values()) <= TOLERANCE,
    }


def differences(here: DenseGraph, there: DenseGraph) -> dict[str, float]:
    """{"features from errors": largest |difference| of such an edge, of the largest edge of its target, ...}"""
    scale = there.adjacency.abs().amax(1, keepdim=True).clamp(min=1e-30)
    apart = (here.adjacency - there.adjacency).abs() / scale
    spans = there.spans
    return {f"{t} from {s}": float(apart[spans[t], spans[s]].max()) for t in TARGETS for s in SOURCES}


def edges_among_known(graph: Graph) -> dict[tuple[str, str], float]:
    """{(source, target): weight} among the kinds of nodes that circuit-tracer has."""
    ids, known = graph.node_ids(), counts_in_scores(graph).tolist()
    ends = zip(graph.sources.tolist(), graph.rows().tolist(), graph.weights.tolist(), strict=True)
    return {(ids[s], ids[t]): weight for s, t, weight in ends if known[s]}


def in_words(row: dict[str, Any]) -> str:
    worst = max(row["largest_difference"].values(), default=float("nan"))
    verdict = "ok" if row["ok"] else "DIFFERS"
    size = f"{row['n_features']} features, {row['n_edges']} edges"
    pruned = f"{row['edges_pruned_otherwise']} of {row['edges_kept']} pruned otherwise"
    return f"{row['case']:34} {size:29} edges {worst:.1e}, scores {row['scores_apart']:.1e}, {pruned}  {verdict}"


if __name__ == "__main__":
    sys.exit(main())
