"""Synthetic graph payloads for the page: realistic, large, and awkward ones."""

from __future__ import annotations

import random
from typing import Any

PROMPT = ["<bos>", " the", " capital", " of", " the", " state", " containing", " dallas", " is"]
LABELS = {
    (0, 7): ["dallas", "texan cities", "large US cities", "sports towns"],
    (1, 7): ["city → state lookup", "texas", "southern states"],
    (0, 2): ["capital (of a place)", "capital / money"],
    (1, 2): ["capital-of relation"],
    (0, 5): ["state (region)"],
    (2, 8): ["say a capital", "texas at last token", "state name expected"],
    (3, 8): ["say austin", "say a texan city", "suppress the named city"],
    (1, 6): ["containing → city follows"],
}
LOGITS = [("austin", 0.62), ("houston", 0.14), ("sacramento", 0.07), ("atlanta", 0.04), ("dallas", 0.03)]
FEATURES_AT = {0: 0, 1: 3, 2: 7, 3: 2, 4: 3, 5: 6, 6: 5, 7: 9, 8: 12}


def cantor(layer: int, feature: int) -> int:
    """The pairing by which a graph file stores (layer, feature) as one integer."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def node(node_id: str, kind: str, layer: str, pos: int, **extra: Any) -> dict[str, Any]:
    """One node with every required field; `extra` overrides."""
    feature_type = {
        "feature": "cross layer transcoder",
        "error": "mlp reconstruction error",
        "embedding": "embedding",
        "logit": "logit",
    }.get(kind, kind)
    base = {
        "node_id": node_id,
        "feature": None,
        "layer": layer,
        "ctx_idx": pos,
        "feature_type": feature_type,
        "jsNodeId": f"{node_id}-0",
        "clerp": "",
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "influence": None,
        "activation": 1.0,
        "preactivation": None,
        "kind": kind,
    }
    return base | extra


def payload(nodes: list[dict], links: list[dict], tokens: list[str], **metadata: Any) -> dict[str, Any]:
    """The four top-level keys around `nodes` and `links`."""
    meta = {
        "slug": "graph",
        "scan": "tiny-mix",
        "prompt_tokens": tokens,
        "prompt": "".join(tokens),
        "node_threshold": 0.8,
        "schema_version": 1,
        "transcoder_list": [],
    }
    params = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": meta | metadata, "qParams": params, "nodes": nodes, "links": links}


def leaves(tokens: list[str]) -> list[dict]:
    """Embedding and position nodes of a prompt."""
    out = []
    for pos, token in enumerate(tokens):
        out.append(node(f"E_{100 + pos}_{pos}", "embedding", "E", pos, feature=pos, clerp=f'Emb: "{token}"'))
        out.append(node(f"P_{pos}", "position", "E", pos))
    return out


def capital(n_layers: int = 4, seed: int = 0) -> dict[str, Any]:
    """The two-hop story: about 150 nodes, four layers, errors, biases, own leaves, five logits."""
    rng = random.Random(seed)
    nodes = leaves(PROMPT)
    for layer in range(n_layers):
        for pos, count in FEATURES_AT.items():
            named = LABELS.get((layer, pos), [])
            for i in range(max(len(named), round(count * rng.uniform(0.25, 0.85)))):
                feature = rng.randrange(1024)
                z = rng.expovariate(0.5) + (2 if i < len(named) else 0)
                nodes.append(
                    node(
                        f"{layer}_{feature}_{pos}",
                        "feature",
                        str(layer),
                        pos,
                        feature=cantor(layer, feature),
                        clerp=named[i] if i < len(named) else "",
                        activation=z,
                        preactivation=z,
                    )
                )
            if pos:
                nodes.append(node(f"{layer}_-1_{pos}", "error", str(layer), pos, feature=-1, activation=rng.random()))
                nodes.append(node(f"{layer}_bias_mlp_{pos}", "bias", str(layer), pos))
    nodes = list({n["node_id"]: n for n in nodes}.values())
    for i, (token, p) in enumerate(LOGITS):
        nodes.append(
            node(
                f"{n_layers + 1}_{200 + i}_8",
                "logit",
                str(n_layers + 1),
                8,
                feature=200 + i,
                token_prob=p,
                is_target_logit=i == 0,
                clerp=f'Output "{token}" (p={p:.3f})',
                activation=p,
                preactivation=12.0 - 2 * i,
            )
        )
    nodes += [
        node(f"own_{n['node_id']}", "own", n["layer"], n["ctx_idx"]) for n in nodes if n["kind"] in ("feature", "logit")
    ]
    links = wire(nodes, rng, keep=0.4)
    rank_by_weight(nodes, links)
    graph = payload(nodes, links, PROMPT, scores={"replacement": 0.713, "completeness": 0.902}, check_max_error=3.1e-7)
    named = {n["clerp"]: n["node_id"] for n in nodes}
    graph["qParams"]["supernodes"] = [["Texas", named["texas"], named["texas at last token"], named["texan cities"]]]
    return graph


def depth(n: dict) -> int:
    """Height of a node in the network; a leaf of layer l lies just under its features."""
    if n["layer"] == "E":
        return -1
    return 2 * int(n["layer"]) + (n["kind"] in ("feature", "logit"))


def wire(nodes: list[dict], rng: random.Random, keep: float) -> list[dict]:
    """Signed causal links: upwards in layer, never backwards in position; labelled nodes get the heavy ones."""
    targets = [n for n in nodes if n["kind"] in ("feature", "logit")]
    links = []
    for t in targets:
        for s in nodes:
            if s["kind"] == "own":
                continue
            upward = depth(s) < depth(t) and s["ctx_idx"] <= t["ctx_idx"] and (s["layer"] != t["layer"])
            if upward and s["kind"] != "logit" and rng.random() < keep:
                story = 5.0 if s["clerp"] and t["clerp"] else 1.0
                local = 1.5 if s["ctx_idx"] == t["ctx_idx"] else 0.6
                links.append(
                    {
                        "source": s["node_id"],
                        "target": t["node_id"],
                        "weight": rng.gauss(0.12 * story, 0.35) * story * local * rng.random(),
                    }
                )
    ids = {n["node_id"] for n in nodes}
    links += [
        {"source": f"own_{t['node_id']}", "target": t["node_id"], "weight": -0.2}
        for t in targets
        if f"own_{t['node_id']}" in ids
    ]
    return links


def rank_by_weight(nodes: list[dict], links: list[dict]) -> None:
    """Fill the cumulative `influence` of every non-logit node from a crude flow of absolute weights to the logits."""
    total: dict[str, float] = {}
    for e in links:
        total[e["target"]] = total.get(e["target"], 0.0) + abs(e["weight"])
    flow = {n["node_id"]: n["token_prob"] for n in nodes if n["kind"] == "logit"}
    into: dict[str, list[dict]] = {}
    for e in links:
        into.setdefault(e["target"], []).append(e)
    for t in sorted(nodes, key=depth, reverse=True):
        for e in into.get(t["node_id"], []):
            share = abs(e["weight"]) / total[t["node_id"]]
            flow[e["source"]] = flow.get(e["source"], 0.0) + share * flow.get(t["node_id"], 0.0)
    ranked = sorted((n for n in nodes if n["kind"] != "logit"), key=lambda n: -flow.get(n["node_id"], 0.0))
    mass, running = sum(flow.get(n["node_id"], 0.0) for n in ranked) or 1.0, 0.0
    for n in ranked:
        running += flow.get(n["node_id"], 0.0)
        n["influence"] = min(1.0, running / mass)


def large(
    n_nodes: int = 3000, n_links: int = 100_000, n_tokens: int = 24, n_layers: int = 12, seed: int = 1
) -> dict[str, Any]:
    """A graph of the size at which viewers start to suffer."""
    rng = random.Random(seed)
    tokens = [f" tok{i}" for i in range(n_tokens)]
    nodes = leaves(tokens)
    logits = [
        node(
            f"{n_layers + 1}_{i}_{n_tokens - 1}",
            "logit",
            str(n_layers + 1),
            n_tokens - 1,
            token_prob=0.1,
            clerp=f'Output "out{i}" (p=0.100)',
        )
        for i in range(10)
    ]
    seen: set[tuple[int, int, int]] = set()
    while len(nodes) + len(seen) + len(logits) < n_nodes:
        seen.add((rng.randrange(n_layers), rng.randrange(24576), rng.randrange(n_tokens)))
    for layer, feature, pos in sorted(seen):
        nodes.append(
            node(
                f"{layer}_{feature}_{pos}",
                "feature",
                str(layer),
                pos,
                feature=cantor(layer, feature),
                activation=rng.random(),
                influence=rng.random(),
            )
        )
    nodes += logits
    links: dict[tuple[str, str], float] = {}
    while len(links) < n_links:
        s, t = rng.choice(nodes), rng.choice(nodes)
        if depth(s) < depth(t) and s["ctx_idx"] <= t["ctx_idx"] and t["kind"] in ("feature", "logit"):
            links[s["node_id"], t["node_id"]] = rng.gauss(0.05, 0.3)
    return payload(nodes, [{"source": s, "target": t, "weight": w} for (s, t), w in links.items()], tokens)


def awkward() -> dict[str, Any]:
    """Tokens and labels that break careless pages: closing tags, quotes, emoji, right-to-left, control, long."""
    tokens = [
        "</script><script>document.title='owned'</script>",
        "<!--<script>",
        " שלום",
        " مرحبا",
        "👩‍👩‍👧‍👦",
        "\n",
        "",
        "x" * 400,
        "\u202edesrever",
        "&lt;b&gt; \"quoted\" 'single'",
        " ",
        "{{data}}",
    ]
    nodes = leaves(tokens)
    for pos, token in enumerate(tokens):
        nodes.append(
            node(
                f"0_{pos}_{pos}",
                "feature",
                "0",
                pos,
                feature=cantor(0, pos),
                clerp=f"<img src=x onerror=alert(1)> {token}",
                influence=0.1,
            )
        )
    last = len(tokens) - 1
    nodes.append(node(f"2_7_{last}", "logit", "2", last, token_prob=1.0, clerp='Output "</script>" (p=1.000)'))
    links = [{"source": f"0_{p}_{p}", "target": f"2_7_{last}", "weight": 1.0 - p / 4} for p in range(len(tokens))]
    return payload(nodes, links, tokens)


def bare(tokens: list[str] | None = None) -> dict[str, Any]:
    """No features and no links: embeddings only."""
    tokens = ["hello"] if tokens is None else tokens
    return payload(leaves(tokens), [], tokens)
