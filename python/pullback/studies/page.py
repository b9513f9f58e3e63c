"""The page of a study, readable from top to bottom: question, prompts, main curve, features, heads, check, limits."""

from __future__ import annotations

from typing import Any

from pullback.studies.control import KILLED, SPARED
from pullback.viz.report import report_page

TITLES = {
    "greater-than": "Greater-than: which later year?",
    "ioi": "Indirect objects: to whom?",
    "induction": "Induction: what came next the first time?",
    "brackets": "Brackets: which one closes?",
}
KINDS = {"head": "heads", "feature": "MLP features", "error": "MLP errors", "bias": "biases", "skip": "skip paths"}
FEATURES_SHOWN, PATHS_SHOWN = 16, 6
SHOWN_FROM = 0.01  # of the margin: heads with less are left out


def html(report: dict[str, Any]) -> str:
    """From a report of `run_study`."""
    sections = [_prompts(report)]
    if "years" in report:
        sections += [_years(report["years"]), _thresholds(report["years"])]
    sections += [_sizes(report), _check(report)]
    sections += [_features(check) for check in report["checks"]]
    sections.append(_shares(report["shares"]))
    if report["circuits"]:
        sections.append(_circuits(report["circuits"]))
    if "years" in report:
        sections.append(_paths(report["years"]["paths"]))
        if "reference" in report["years"]:
            sections.append(_reference(report["years"]["reference"]))
    sections.append(_limits(report))
    return report_page(
        {
            "title": f"{TITLES[report['study']]} A study of {report['model']}",
            "lead": report["question"],
            "note": " ".join(_verdict(check) for check in report["checks"]),
            "sections": sections,
        }
    )


def _verdict(check: dict[str, Any]) -> str:
    return (
        f"{check['arm']}: {check['k']} of them, ablated, take {check['dropped']:.0%} of the margin; "
        f"as many random ones {check['spared']:.0%}."
    )


def _prompts(report: dict[str, Any]) -> dict[str, Any]:
    prompts = report["prompts"]
    counts = prompts["counts"]
    text = (
        f"{counts['test']} prompts are tested, {counts['size']} others say how many features to ablate, and on "
        f"{counts['choose']} more, which share no prompt with these, the features are chosen. The mean margin is "
        f"{prompts['mean_margin']:.2f}; it is positive on {prompts['positive']:.0%} of the prompts tested."
    )
    rows = [["".join(_spaced(one["text"])), one["right"].strip(), one["margin"]] for one in prompts["examples"]]
    return {
        "title": "Prompts",
        "parts": [{"text": text}, {"columns": ["prompt", "answer (or one of them)", "margin"], "table": rows}],
    }


def _spaced(tokens: list[str]) -> list[str]:
    """Tokens with a space between those of a tokenizer of words."""
    return tokens if any(token.startswith(" ") for token in tokens) else [f"{token} " for token in tokens]


def _years(years: dict[str, Any]) -> dict[str, Any]:
    curve = years["curve"]
    counts = list(range(len(curve["features"])))
    series = [
        {"name": "features kept", "x": counts, "y": curve["features"]},
        {"name": "neurons kept", "x": list(range(len(curve["neurons"]))), "y": curve["neurons"]},
        {"name": "the model", "x": [0, counts[-1]], "y": [curve["original"]] * 2, "dashed": True},
        {"name": "all features", "x": [0, counts[-1]], "y": [curve["full"]] * 2, "dashed": True},
    ]
    text = (
        f"Of MLP {curve['layer']}, the k features of its transcoder, or the k neurons, whose activations vary most "
        "over the prompts at the last token are kept, and all others are zero at every position; output biases stay. "
        "The figure is the probability of the later years less that of the others, among two-digit years, averaged "
        f"over first years: {years['summary']}."
    )
    without = max(curve["without"].items(), key=lambda item: item[1])
    more = (
        f"Without feature {without[0]} alone the transcoder would give {without[1]:.3f}, more than without any other "
        f"of the first {len(curve['without'])}."
    )
    chart = {
        "title": f"MLP {curve['layer']}: how few carry the answer",
        "x": "features or neurons kept",
        "y": "probability difference",
        "series": [one for one in series if one["x"]],
    }
    return {"title": "Main curve", "parts": [{"text": text}, {"charts": [chart]}, {"text": more}]}


def _thresholds(years: dict[str, Any]) -> dict[str, Any]:
    x = [int(name) for name in years["names"]]
    charts = [
        {
            "title": f"Feature {one['feature']}, through head {one['head'][0]}.{one['head'][1]}",
            "x": "year",
            "y": "both from 0 to 1",
            "series": [
                {"name": "reads (de-embedding)", "x": x, "y": _unit(one["deembedding"])},
                {"name": "says (logit effect)", "x": x, "y": _unit(one["dla"])},
            ],
        }
        for one in years["thresholds"]
    ]
    text = (
        "What a feature reads of the first year, through the head that carries most of it, against what it says of the "
        "second. A feature of the textbook kind reads the years below a threshold and says the years above it."
    )
    return {"title": "Thresholds", "parts": [{"text": text}, {"charts": charts}]}


def _unit(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / ((high - low) or 1) for value in values]


def _sizes(report: dict[str, Any]) -> dict[str, Any]:
    series = [
        {"name": c["arm"], "x": [int(k) for k in c["curve"]], "y": list(c["curve"].values())} for c in report["checks"]
    ]
    bar = {"name": "the bar", "x": series[0]["x"], "y": [KILLED] * len(series[0]["x"]), "dashed": True}
    text = (
        "For each thing that can be asked for, features are ranked on prompts that ask for it: round by round those "
        "without which the margin would lose most, to first order, with the ones before ablated already. An ablated "
        "feature writes nothing, at every position, wherever it is active; errors stay, and patterns, norms and later "
        "features run on."
    )
    chart = {
        "title": "How many features the answer hangs on",
        "x": "features ablated for each key",
        "y": "share of the margin that is lost, on the prompts that say how many",
        "series": [*series, bar],
        "log": True,
    }
    return {"title": "Features that the answer hangs on", "parts": [{"text": text}, {"charts": [chart]}]}


def _check(report: dict[str, Any]) -> dict[str, Any]:
    rows = [
        [
            c["arm"],
            c["k"],
            c["per_prompt"],
            f"{c['dropped']:.1%}",
            f"{c['spared']:.1%} ± {c['spread']:.1%}",
            f"{min(c['control']):.1%} to {max(c['control']):.1%}",
            f"{c['killed']:.0%}",
            {"value": "holds" if c["holds"] else "does not hold", "good": c["holds"]},
        ]
        for c in report["checks"]
    ]
    columns = [
        "features of",
        "k",
        "of them active in a prompt",
        "margin lost",
        "as many random ones",
        f"lowest and highest of {len(report['checks'][0]['control'])} draws",
        "prompts that lose 80 %",
        "verdict",
    ]
    text = (
        f"On the {report['checks'][0]['n_prompts']} test prompts. Random features are drawn, for each prompt, from "
        "those active there that are not chosen: in each layer at each position as many as are chosen there, and where "
        "fewer are active, the rest elsewhere in the prompt. Mean and standard deviation are over draws. The check "
        f"holds where the chosen take at least {KILLED:.0%} of the mean margin, and random ones at most {SPARED:.0%} "
        "in the mean."
    )
    return {"title": "Causal check", "parts": [{"text": text}, {"columns": columns, "table": rows}]}


def _features(check: dict[str, Any]) -> dict[str, Any]:
    rows = [
        [
            f"{'attention' if card['kind'] == 'attention' else 'MLP'} {card['layer']}",
            card["feature"],
            len(card["keys"]),
            " ".join(card["keys"][:8]),
            " ".join(word.strip() for word in card.get("reads", [])),
            " ".join(word.strip() for word in card["writes"]),
        ]
        for card in check["cards"][:FEATURES_SHOWN]
    ]
    columns = ["layer", "feature", "keys", "the first of them", "reads", "raises directly"]
    text = (
        f"Of the {len(check['features'])} different features that are chosen for some key, those chosen for most keys. "
        "Tokens that a feature reads are given in layer 0: those at its own position, by their embeddings alone."
    )
    return {"title": f"{check['arm']}: which", "parts": [{"text": text}, {"columns": columns, "table": rows}]}


def _shares(shares: dict[str, Any]) -> dict[str, Any]:
    heads = [(f"{h['layer']}.{h['head']}", h["share"]) for h in shares["heads"] if abs(h["share"]) >= SHOWN_FROM]
    n_layers = 1 + max(one["layer"] for one in shares["layers"])
    table = {(one["kind"], one["layer"]): one["share"] for one in shares["layers"]}
    there = {kind for kind, _ in table}
    kinds = {kind: name for kind, name in KINDS.items() if kind in there}
    rows = [
        [str(layer), *(f"{table[kind, layer]:+.1%}" if (kind, layer) in table else "" for kind in kinds)]
        for layer in range(n_layers)
    ]
    text = (
        "Shares of the margin by what is written directly to the last position, the last norm held. They sum to 1 with "
        f"the embedding and constants ({shares['rest']:+.1%}). What a head brings for a feature to read counts for the "
        "feature here."
    )
    return {
        "title": "Heads and layers",
        "parts": [
            {"text": text},
            {"columns": ["layer", *kinds.values()], "table": rows},
            {"text": f"Heads (layer.head) that write at least {SHOWN_FROM:.0%} of it:"},
            {"tokens": heads},
        ],
    }


REST = {"zero": "at zero", "mean": "at its mean over the prompts that features are chosen on"}
ERRORS = {
    "nodes": "errors of transcoders are nodes as features are",
    "kept": "features are nodes, and errors of transcoders stay",
    "dropped": "features are nodes, and errors of transcoders go from every circuit, that of all features too",
}


def _circuits(circuits: list[dict[str, Any]]) -> dict[str, Any]:
    found, curves = circuits[0]["circuit"], circuits[0]["faithfulness"]
    text = (
        "Single prompts whose margin is near the mean. Each token's share of the margin is what its embedding, errors "
        "and biases contribute along all paths of the attribution graph. The circuit is what hierarchical attribution "
        f"leaves: nodes that carry at least {found['tau']:.0%} of the margin through others "
        "that do. The share of a feature, and of a head, is what comes through it along these paths; one path can lead "
        "through several of them, so shares do not sum to 1. What a feature of layer 0 reads are the tokens whose "
        "embeddings it reads most, at its own position or through the head that brings it more. The curves are of "
        f"circuits of the best nodes, everything else {REST[curves['ablation']]}; {ERRORS[curves['errors']]}. They "
        "measure the difference of two tokens, 1 like the whole model."
    )
    parts: list[dict[str, Any]] = [{"text": text}]
    for one in circuits:
        parts += _circuit(one)
    return {"title": "Circuits of single prompts", "parts": parts}


def _circuit(one: dict[str, Any]) -> list[dict[str, Any]]:
    found, check = one["circuit"], one["check"]
    ranked = "features and errors" if one["faithfulness"]["errors"] == "nodes" else "features"
    text = (
        f"The circuit has {found['n_features']} features of {one['faithfulness_nodes']} {ranked}, and "
        f"{found['edges']} edges of {one['edges']}; {found['recovery']:.0%} of the margin of {check['margin']:.2f} "
        f"comes through it. Ablating its features takes {check['dropped']:.0%} of the margin, as many random ones of "
        f"this prompt {check['spared']:.0%} ± {check['spread']:.0%} in {len(check['control'])} draws."
    )
    heads = [(f"{h['layer']}.{h['head']}", h["share"]) for h in found["heads"] if abs(h["share"]) >= SHOWN_FROM]
    rows = [
        [
            f"MLP {f['layer']}",
            f["feature"],
            f"{one['tokens'][f['pos']].strip()}\N{NO-BREAK SPACE}({f['pos']})",
            f"{f['share']:+.0%}",
            _reads(f),
            " ".join(word.strip() for word in f["writes"]),
        ]
        for f in found["features"]
    ]
    columns = ["layer", "feature", "at", "share", "reads", "raises directly"]
    return [
        {"heading": f"Key {one['key']}"},
        {"tokens": list(zip(one["tokens"], one["token_shares"], strict=True))},
        {"text": text},
        {"text": "Heads (layer.head), with their shares:"},
        {"tokens": heads},
        {"columns": columns, "table": rows},
        {"charts": _curves(one)},
    ]


def _reads(feature: dict[str, Any]) -> str:
    through = f"through {feature['through'][0]}.{feature['through'][1]}: " if feature["through"] else ""
    return through + " ".join(word.strip() for word in feature.get("reads", []))


def _curves(one: dict[str, Any]) -> list[dict[str, Any]]:
    """What circuits of the best nodes give by themselves, and what the graph says they give."""
    measured = one["faithfulness"]
    full, empty = measured["full"], measured["empty"]
    alone, foretold = [], []
    for name, orders in measured["curves"].items():
        curve = orders["signed"]
        kept = [(empty + share * (full - empty)) / full for share in curve["faithfulness"]]
        alone.append({"name": name, "x": curve["sizes"], "y": kept})
        foretold.append({"name": name, "x": curve["sizes"], "y": curve["recovery"]})
    sizes = alone[0]["x"]
    alone.append({"name": "no node kept", "x": [sizes[0], sizes[-1]], "y": [empty / full] * 2, "dashed": True})
    others = {"zero": "at zero", "mean": "at their means"}[measured["ablation"]]
    axes = {"x": f"share of {one['faithfulness_nodes']} nodes kept, all others {others}", "log": True}
    axes["y"] = f"share of the difference {one['pair'][0].strip()} - {one['pair'][1].strip()}"
    return [
        {"title": "Measured: the model with these nodes alone", "series": alone} | axes,
        {"title": "Foretold: what the graph gives them", "series": foretold} | axes,
    ]


def _paths(paths: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {
            "text": f'Greedy paths to the difference {paths["root"]} on "{"".join(_spaced(paths["prompt"])).strip()}" '
            f"({paths['value']:.2f}): what reaches it through transcoder features and heads, largest first; from the "
            "last step back."
        }
    ]
    for length in sorted({len(path["nodes"]) for path in paths["paths"]}):
        here = [path for path in paths["paths"] if len(path["nodes"]) == length][:PATHS_SHOWN]
        rows = [
            [" ← ".join(_step(node, paths["prompt"]) for node in path["nodes"][1:]), path["contribution"]]
            for path in here
        ]
        parts.append({"columns": [f"{length - 1} step{'s' if length > 2 else ''}", "contribution"], "table": rows})
    return {"title": "Paths", "parts": parts}


def _step(node: str, tokens: list[str]) -> str:
    """A node of a path in words: what it is, and at which token."""
    layer, what, *rest = node.split("_")
    at = f"{tokens[int(rest[-1])].strip()}\N{NO-BREAK SPACE}({rest[-1]})"
    if what == "head":
        return f"head {layer}.{rest[0]} from {at}"
    return f"skip path of MLP {layer} at {at}" if what == "skip" else f"feature {what} of MLP {layer} at {at}"


def _reference(rows: list[Any]) -> dict[str, Any]:
    text = "Dunefsky, Chlenski and Nanda 2024, GPT-2 small, transcoder of MLP 10, beside this run."
    table = [[what, published, measured] for what, published, measured in rows]
    return {
        "title": "Published figures",
        "parts": [{"text": text}, {"columns": ["figure", "published", "measured"], "table": table}],
    }


def _limits(report: dict[str, Any]) -> dict[str, Any]:
    texts = []
    for c in report["checks"]:
        if not c["holds"]:
            texts.append(f"{c['arm']}: the check does not hold: {c['dropped']:.0%} lost, random {c['spared']:.0%}.")
        if c["displaced"] > 0.05:
            texts.append(
                f"{c['arm']}: for {c['displaced']:.0%} of the ablated entries no other feature was active at the same "
                "place; as many random ones were drawn elsewhere in the prompt."
            )
        if c["drawn"] < 0.995:
            texts.append(
                f"{c['arm']}: prompts have too few active features: {c['drawn']:.0%} of what chosen sets have."
            )
        if max(c["control"]) > SPARED:
            over = sum(share > SPARED for share in c["control"])
            texts.append(
                f"{c['arm']}: {over} of {len(c['control'])} draws of random features take more than {SPARED:.0%}, at "
                f"most {max(c['control']):.1%}."
            )
    texts.append(
        "Ablation is to zero, which can take a run away from all it has been trained on; it counts as lost what later "
        "layers make of that, too. A margin that falls by more than all of it has turned over."
    )
    texts.append(
        "Features are chosen for each key apart, so a set says what that answer hangs on, not what all answers share."
    )
    return {"title": "What falls short", "parts": [{"text": text} for text in texts]}
