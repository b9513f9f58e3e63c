"""Two attribution graphs of one model on one page: what only one of them has, and by how much their links differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, Literal

from .cards import cards_of, feature_name
from .page import assemble, heading_of, packed, short
from .schema import validate_payload

Align = Literal["tokens", "positions"]


def diff_page(
    a: dict[str, Any],
    b: dict[str, Any],
    *,
    title: str | None = None,
    align: Align = "tokens",
    cards: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """A page that shows two graphs as one: switch between A, B and their difference.

    A node of A and one of B are the same if their ids are, up to the position, and their positions are aligned.

    Args:
        a: a graph in the JSON form that `graph_page` takes.
        b: another one, of the same model and transcoders: a feature must mean the same in both.
        title: heading and window title; both prompts if None.
        cards: as for `graph_page`, by "{layer}_{feature}".
        align: "tokens" matches the prompts' equal tokens and, between them, pairs off what was exchanged, so that
            dallas stands over oakland; "positions" takes equal positions for the same, which matches nodes by id.

    Raises:
        ValueError: if a payload does not have its form, or the two are of different models.
    """
    for payload in (a, b):
        validate_payload(payload)
    models = a["metadata"]["scan"], b["metadata"]["scan"]
    if models[0] != models[1]:
        raise ValueError(
            f"diff_page: graphs of different models have no features in common, got {models[0]!r} and {models[1]!r}"
        )
    heading = title if title is not None else f"{heading_of(a, None)} | {heading_of(b, None)}"
    merged = merge(a, b, align)
    data = packed(merged, title or "Two graphs and their difference")
    data["links"]["other"] = [short(link["other"]) for link in merged["links"]]
    data["compared"] = merged["compared"]
    if cards is not None:
        data["cards"] = cards_of(merged["nodes"], cards)
    return assemble(data, heading)


def align_positions(
    a: Sequence[str], b: Sequence[str], align: Align = "tokens"
) -> tuple[list[int], list[int], list[str]]:
    """Columns of two prompts: the column of each position of `a`, of each of `b`, and what is written below each.

    Equal tokens share a column; of what stands between them, the last token of one goes with the last of the other,
    and so on backwards, since the end of a name is what a model reads on.
    """
    if align not in ("tokens", "positions"):
        raise ValueError(f"align must be 'tokens' or 'positions', got {align!r}")
    blocks = (
        SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
        if align == "tokens"
        else [("replace", 0, len(a), 0, len(b))]
    )
    in_a, in_b, names = [0] * len(a), [0] * len(b), []
    for _, start_a, end_a, start_b, end_b in blocks:
        length_a, length_b = end_a - start_a, end_b - start_b
        length = max(length_a, length_b)
        # Positions count from the front.
        late_a, late_b = (0, 0) if align == "positions" else (length - length_a, length - length_b)
        for k in range(length):
            here = []
            for columns, start, late, tokens, end in (
                (in_a, start_a, late_a, a, end_a),
                (in_b, start_b, late_b, b, end_b),
            ):
                at = start + k - late
                if start <= at < end:
                    columns[at] = len(names)
                    here.append(tokens[at])
            names.append(here[0] if here[0] == here[-1] else " / ".join(here))
    return in_a, in_b, names


def merge(a: dict[str, Any], b: dict[str, Any], align: Align = "tokens") -> dict[str, Any]:
    """One payload of both: `side` on nodes that one lacks, `other` on those of both (B's values) and on every link."""
    in_a, in_b, names = align_positions(a["metadata"]["prompt_tokens"], b["metadata"]["prompt_tokens"], align)
    names_a, names_b = _names(a["nodes"], b["nodes"])
    ids_a, ids_b = _merged_ids(a["nodes"], names_a, in_a), _merged_ids(b["nodes"], names_b, in_b)
    nodes = {ids_a[node["node_id"]]: _placed(node, ids_a, in_a, a) | {"side": "a"} for node in a["nodes"]}
    for node in b["nodes"]:
        name = ids_b[node["node_id"]]
        token = b["metadata"]["prompt_tokens"][node["ctx_idx"]]
        if name in nodes:
            first = nodes[name]
            ranks = [n["influence"] for n in (first, node) if n.get("influence") is not None]
            kept = {key: node.get(key) for key in ("activation", "preactivation", "token_prob")}
            nodes[name] = first | {
                "side": None,
                "other": kept | {"token": token},
                "influence": min(ranks, default=None),
            }
        else:
            nodes[name] = _placed(node, ids_b, in_b, b) | {"side": "b"}
    links: dict[tuple[str, str], list[float]] = {}
    for side, (graph, ids) in enumerate(((a, ids_a), (b, ids_b))):
        for link in graph["links"]:
            links.setdefault((ids[link["source"]], ids[link["target"]]), [0.0, 0.0])[side] += link["weight"]
    sides = [node["side"] for node in nodes.values()]
    known = {key: value for key, value in a["metadata"].items() if key not in ("scores", "check_max_error", "info")}
    notes = _notes(a["qParams"], ids_a), _notes(b["qParams"], ids_b)
    return {
        "metadata": known
        | {"prompt_tokens": names, "slug": f"{a['metadata']['slug']}-and-{b['metadata']['slug']}"[:120]},
        "qParams": a["qParams"]
        | {"pinnedIds": list(dict.fromkeys(notes[0]["pinnedIds"] + notes[1]["pinnedIds"])), "clickedId": ""}
        | {"supernodes": notes[0]["supernodes"], "clerps": None},
        "nodes": list(nodes.values()),
        "links": [{"source": s, "target": t, "weight": w, "other": v} for (s, t), (w, v) in links.items()],
        "compared": {
            "a": {"prompt": a["metadata"]["prompt"]},
            "b": {"prompt": b["metadata"]["prompt"]},
            "counts": {"a": sides.count("a"), "b": sides.count("b"), "both": sides.count(None)},
        },
    }


def _names(*graphs: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Of each graph: what its nodes are, by id, wherever they stand. Directions count within their own graph, so they
    are numbered anew: those that say the same of themselves have one number, and so have their own leaves."""
    numbers: dict[tuple[str, int], int] = {}
    named = []
    for nodes in graphs:
        seen: Counter[str] = Counter()
        names = {node["node_id"]: feature_name(node) for node in nodes}
        for node in nodes:
            name = node["node_id"]
            if name.startswith("D_"):
                label = (node.get("clerp") or "").split(" (p=")[0]
                names[name] = f"D_{numbers.setdefault((label, seen[label]), len(numbers))}"
                seen[label] += 1
        leaves = [name for name in names if name.startswith("own_D_")]
        named.append(names | {leaf: f"own_{names[leaf.removeprefix('own_')]}" for leaf in leaves})
    return named


def _merged_ids(nodes: Sequence[dict[str, Any]], names: Mapping[str, str], columns: Sequence[int]) -> dict[str, str]:
    """The id of each node with its column for its position, the same for what is the same in both graphs."""
    return {node["node_id"]: f"{names[node['node_id']]}_{columns[node['ctx_idx']]}" for node in nodes}


def _placed(node: dict[str, Any], ids: dict[str, str], columns: Sequence[int], graph: dict[str, Any]) -> dict[str, Any]:
    """The node under its merged id, with the token that its own prompt has there."""
    token = graph["metadata"]["prompt_tokens"][node["ctx_idx"]]
    return {"token": token} | node | {"node_id": ids[node["node_id"]], "ctx_idx": columns[node["ctx_idx"]]}


def _notes(params: dict[str, Any], ids: dict[str, str]) -> dict[str, Any]:
    """Pins and supernodes under the merged ids; nodes that are gone are left out."""
    groups = [[name, *(ids[i] for i in members if i in ids)] for name, *members in params.get("supernodes", [])]
    return {"pinnedIds": [ids[i] for i in params.get("pinnedIds", []) if i in ids], "supernodes": groups}
