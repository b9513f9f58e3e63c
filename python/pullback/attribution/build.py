"""`attribute`: one prompt to one graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tqdm.auto import tqdm

from pullback.attribution import nodes as k
from pullback.attribution.asked import Asked
from pullback.attribution.assemble import assemble
from pullback.attribution.batches import Batches
from pullback.attribution.explained import Explained, explained
from pullback.attribution.graph import Graph
from pullback.attribution.local import LocalModel, local_model
from pullback.attribution.memory import estimated
from pullback.attribution.offload import out_of_memory
from pullback.attribution.settings import CHECK_TOLERANCE, Settings
from pullback.attribution.source_nodes import source_nodes
from pullback.lens import Lens, as_lens, offloaded
from pullback.lens.tokens import Prompt
from pullback.transcoders import LayeredDictionary


def attribute(
    model: Any,
    sets: LayeredDictionary,
    prompt: Prompt,
    *,
    attribution_targets: Asked = None,
    position: int = -1,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    batch_size: int = 512,
    max_feature_nodes: int | None = None,
    update_interval: int = 4,
    edge_mass: float = 1.0,
    edges_per_target: int | None = None,
    zero_positions: slice | None = None,
    attention_saes: LayeredDictionary | None = None,
    offload: str | None = None,
    engine: str = "linear",
    precision: str | None = None,
    strict: bool = True,
    verbose: bool = False,
) -> Graph:
    """Attribution graph of the model's next-token answer to one prompt, or of whatever else of it is asked (argument
    names are circuit-tracer's).

    Method: Ameisen et al. 2025, "Circuit Tracing", with every leaf kept, so that rows sum (O1).

    Args:
        model: a TransformerLens model, or a `Lens` on one.
        sets: transcoders, per-layer or cross-layer, for any subset of its layers; a layer without one is an error node
            at every position.
        prompt: a string (BOS by the model's default), token ids (T,), taken as given, or the messages of a chat, by the
            tokenizer's template.
        attribution_targets: what to explain, one or several: token ids, one-token strings, `LogitTarget`,
            `LogitDifference`, `FeatureTarget`, `DirectionTarget`; None: the likely next tokens.
        position: where logits and directions are explained that do not say it themselves; negative ones count from the
            end.
        max_n_logits, desired_logit_prob: at most so many logits, as few as reach that probability.
        batch_size: targets pulled back together at most; fewer where the prompt is so long that they would take more
            than 2 GiB of working memory, and half as many whenever memory runs out all the same.
        max_feature_nodes: keep so many features, the explained ones and others chosen by influence; None: all active
            ones that something explained can depend on.
        update_interval: batches between two rankings by influence, where features are chosen.
        edge_mass, edges_per_target: keep, of each target's edges, the fewest that cover this share of their absolute
            mass, and at most so many; memory follows what is kept, and the rest is dropped mass. Scores are then of the
            edges kept.
        zero_positions: positions whose features and errors are left out (`slice(0, 1)` is circuit-tracer's BOS rule).
        attention_saes: autoencoders of attention outputs (hook_attn_out), of any subset of the layers: their features
            and errors are nodes too, and stand in for what attention writes.
        offload: once the prompt has been read, the model gives way to the graph, and comes back afterwards: "cpu" takes
            it from its device, "disk" puts it, and on a CPU what is frozen of the prompt too, into temporary files, of
            which a layer at a time is read. The forward pass takes what it takes.
        engine: "linear", or "autograd", its oracle: the same edges through the model and torch autograd, slower.
        precision: "bfloat16": the linear engine multiplies gradients in bfloat16 and sums in float32: faster where the
            processor does so, and the graph misses its sums by some 1e-2. None for the precision of the model, float32
            at least.
        strict: False accepts transcoders of a fine-tuned sibling.
        verbose: print a memory estimate and show a progress bar.

    Returns:
        A graph whose every target sums: pre-activation = edges + dropped mass (`graph.check()`).

    Raises:
        ValueError: a prompt the model cannot read, targets that it does not have, transcoders of another model,
            autoencoders, NaN activations, or a model whose frozen map does not add up to its own activations.
    """
    settings = Settings(
        attribution_targets=attribution_targets,
        position=position,
        max_n_logits=max_n_logits,
        desired_logit_prob=desired_logit_prob,
        batch_size=batch_size,
        max_feature_nodes=max_feature_nodes,
        update_interval=update_interval,
        edge_mass=edge_mass,
        edges_per_target=edges_per_target,
        engine=engine,
        precision=precision,
        offload=offload,
        verbose=verbose,
    )
    lens = as_lens(model)
    products = settings.products(lens)
    local = local_model(
        lens,
        sets,
        lens.to_tokens(prompt),
        zero_positions=zero_positions,
        strict=strict,
        precision=products,
        attention_saes=attention_saes,
    )
    text = {"prompt": prompt} if isinstance(prompt, str) else {}
    return attribute_local(lens, local, settings, text)


@torch.no_grad()
def attribute_local(lens: Lens, local: LocalModel, settings: Settings, meta: Mapping[str, Any] | None = None) -> Graph:
    """The graph of one prompt's local model; `meta` is added to what the graph says of itself.

    Raises ValueError for targets that this prompt does not have, and where edges do not add up.
    """
    what = _explained(lens, local, settings)
    if settings.verbose:
        tqdm.write(str(estimated(lens, local, settings.batch_size, settings.max_feature_nodes)))
    with offloaded(lens.model, settings.offload):
        batches = Batches(lens, local if settings.offload is None else out_of_memory(local), what, settings)
        batches.run()
    return finish(lens, batches, source_nodes(batches.local.stack)[0], meta)


def begin(lens: Lens, local: LocalModel, settings: Settings) -> Batches:
    """What is explained of a prompt, and the rows of its graph, which are still to be computed."""
    return Batches(lens, local, _explained(lens, local, settings), settings)


def _explained(lens: Lens, local: LocalModel, settings: Settings) -> Explained:
    return explained(
        lens,
        local,
        settings.attribution_targets,
        position=settings.position,
        max_n_logits=settings.max_n_logits,
        desired_logit_prob=settings.desired_logit_prob,
    )


@torch.no_grad()
def finish(lens: Lens, batches: Batches, sources: k.Nodes, meta: Mapping[str, Any] | None = None) -> Graph:
    """The graph of all the rows, whose edges come from these sources. Raises ValueError where edges do not add up."""
    local, what = batches.local, batches.explained
    settings = {"generation_settings": batches.settings.written(local.precision)}
    dtype = lens.dtype
    told = _meta(lens, local, what) | {"dtype": str(dtype).removeprefix("torch.")} | settings | dict(meta or {})
    graph = assemble(sources, what, batches.edges, batches.chosen, told)
    _must_add_up(graph, lens, dtype, local.precision)
    return graph


def _meta(lens: Lens, local: LocalModel, what: Explained) -> dict[str, Any]:
    str_tokens = local.trace.str_tokens
    return {
        "prompt": "".join(str_tokens),
        "tokens": local.trace.tokens.tolist(),
        "str_tokens": str_tokens,
        "model_name": lens.model_name,
        "n_layers": lens.n_layers,
        "logit_labels": what.labels_of(k.LOGIT),
        "direction_labels": what.labels_of(k.DIRECTION),
        "attention_layers": sorted(local.attention.acts),
        "hook_in": local.sets.hook_in(local.sets.layers[0]),
    }


def _must_add_up(graph: Graph, lens: Lens, dtype: torch.dtype, products: torch.dtype) -> None:
    """A freeze that silently does not hold gives a graph that looks reasonable: the sums tell."""
    error = graph.check()
    allowed = max(CHECK_TOLERANCE.get(one, 5e-2) for one in (dtype, products))
    if not error <= allowed:
        raise ValueError(
            f"attribute: the edges of a target miss its pre-activation by {error:.1e} of their size "
            f"(allowed {allowed:.0e} in {dtype}); something in {lens.model_name} is not frozen "
            "or not linear, so this graph would be wrong"
        )
