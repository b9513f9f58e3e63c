"""The page of a study, readable from top to bottom: question, prompts, main curve, features, heads, check, limits."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from pullback.studies.check import KILLED, SPARED
from pullback.viz.report import report_page

TITLES = {
    "greater-than": "Greater-than: which later year?",
    "ioi": "Indirect objects: to whom?",
    "induction": "Induction: what came next the first time?",
    "brackets": "Brackets: which one closes?",
}
FEATURES_SHOWN, PATHS_SHOWN, HEADS_SHOWN = 16, 6, 12


def html(report: dict[str, Any]) -> str:
    """From a report of `run_study`."""
    sections = [_prompts(report)]
    if "years" in report:
        sections += [_years(report["years"]), _thresholds(report["years"])]
    sections += [_sizes(report), _check(report)]
    sections += [_features(check) for check in report["checks"]]
    sections += [_shares(report["shares"]), _circuits(report)]
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
        f"as many random ones {fmean(check['control']):.0%}."
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
            f"{fmean(c['control']):.1%} ({min(c['control']):.1%} to {max(c['control']):.1%})",
            f"{c['drawn']:.0%}",
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
        "random ones (range of draws)",
        "random for each chosen",
        "prompts that lose 80 %",
        "verdict",
    ]
    text = (
        f"On the {report['checks'][0]['n_prompts']} test prompts. Random features are drawn, for each prompt and "
        "position and in each layer, from those active there that are not chosen: as many as are chosen there, or as "
        f"many as there are. The check holds where the chosen take at least {KILLED:.0%} of the mean margin, and "
        f"random ones at most {SPARED:.0%}, in the mean over draws."
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
        "Tokens that a feature reads are given in layer 0, from the embeddings alone."
    )
    return {"title": f"{check['arm']}: which", "parts": [{"text": text}, {"columns": columns, "table": rows}]}


def _shares(shares: dict[str, Any]) -> dict[str, Any]:
    heads = [[f"{h['layer']}.{h['head']}", f"{h['share']:+.1%}"] for h in shares["heads"][:HEADS_SHOWN]]
    kinds = {"head": "heads", "feature": "MLP features", "error": "MLP errors", "bias": "biases", "skip": "skip paths"}
    n_layers = 1 + max(one["layer"] for one in shares["layers"])
    table = {(one["kind"], one["layer"]): one["share"] for one in shares["layers"]}
    rows = [
        [layer, *(f"{table[kind, layer]:+.1%}" if (kind, layer) in table else "" for kind in kinds)]
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
            {"heading": "Heads"},
            {"columns": ["head", "share of the margin"], "table": heads},
        ],
    }


REST = {"zero": "at zero", "mean": "at its mean over the prompts that features are chosen on"}
ERRORS = {
    "nodes": "errors of transcoders are nodes as features are",
    "kept": "features are nodes, and errors of transcoders stay",
    "dropped": "features are nodes, and errors of transcoders go from every circuit, that of all features too",
}


def _circuits(report: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {
            "text": "Single prompts. Each token's share of the margin is what its embedding, errors and "
            "biases contribute along all paths of the attribution graph."
        }
    ]
    if report["circuits"]:
        of = report["circuits"][0]["faithfulness"]
        parts[0]["text"] += (
            f" The curves are of circuits of the best nodes, everything else {REST[of['ablation']]}: 1 like the whole "
            f"model, 0 like the empty circuit; {ERRORS[of['errors']]}."
        )
    for one in report["circuits"]:
        parts.append({"heading": f"{one['pair'][0].strip()} against {one['pair'][1].strip()}"})
        parts.append({"tokens": list(zip(one["tokens"], one["token_shares"], strict=True))})
        curves = one["faithfulness"]["curves"]
        parts.append(
            {
                "charts": [
                    {
                        "title": title,
                        "x": f"share of {one['faithfulness_nodes']} nodes kept",
                        "y": "share of the margin",
                        "log": True,
                        "series": [
                            {"name": name, "x": orders["signed"]["sizes"], "y": orders["signed"][what]}
                            for name, orders in curves.items()
                        ],
                    }
                    for title, what in (("The circuit alone", "faithfulness"), ("Foretold by the graph", "recovery"))
                ]
            }
        )
    return {"title": "Circuits of single prompts", "parts": parts}


def _paths(paths: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {
            "text": f'Greedy paths to the difference {paths["root"]} on "{"".join(_spaced(paths["prompt"])).strip()}" '
            f"({paths['value']:.2f}): what reaches it through transcoder features and heads, largest first."
        }
    ]
    for length in sorted({len(path["nodes"]) for path in paths["paths"]}):
        here = [path for path in paths["paths"] if len(path["nodes"]) == length][:PATHS_SHOWN]
        rows = [[" ← ".join(path["nodes"]), path["contribution"]] for path in here]
        parts.append({"columns": [f"{length - 1} step{'s' if length > 2 else ''}", "contribution"], "table": rows})
    return {"title": "Paths", "parts": parts}


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
            texts.append(
                f"{c['arm']}: the check does not hold: {c['dropped']:.0%} lost, random {fmean(c['control']):.0%}."
            )
        if c["drawn"] < 0.95:
            texts.append(
                f"{c['arm']}: for {1 - c['drawn']:.0%} of the ablated entries no other feature was active at the same "
                "place, so the random sets are smaller by that much."
            )
        if max(c["control"]) > SPARED:
            texts.append(f"{c['arm']}: one draw of random features takes {max(c['control']):.0%}.")
    texts.append(
        "Ablation is to zero, which can take a run away from all it has been trained on; it counts as lost what later "
        "layers make of that, too. A margin that falls by more than all of it has turned over."
    )
    texts.append(
        "Features are chosen for each key apart, so a set says what that answer hangs on, not what all answers share."
    )
    return {"title": "What falls short", "parts": [{"text": text} for text in texts]}
