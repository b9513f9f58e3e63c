"""Edge scores between heads and MLPs (METHODS 5.6): by how much the margin falls where an edge carries what it does on
the corrupted prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.causal.edges.components import Components, Input, Seen
from pullback.causal.gradients import output_gradients
from pullback.lens import Lens
from pullback.lens import record as rec


@dataclass(frozen=True)
class Pairs:
    """Prompts (N, T) and their corrupted versions, and the two tokens (N) of each whose logits are compared."""

    lens: Lens
    clean: Tensor
    corrupted: Tensor
    target: Tensor
    other: Tensor
    steps: int
    batch_size: int

    @property
    def parts(self) -> Components:
        return Components(self.lens)

    def margin(self, logits: Tensor) -> Tensor:
        """(..., N, T, V) -> (..., N)"""
        last = logits[..., -1, :]

        def of(tokens: Tensor) -> Tensor:
            return last.gather(-1, tokens.expand(last.shape[:-1])[..., None])[..., 0]

        return of(self.target) - of(self.other)

    def unembed(self, x: Tensor) -> Tensor:
        """Behind the last norm (..., d) -> logits (..., V)"""
        return self.lens.capped(x @ self.lens.W_U + self.lens.b_U)

    def see(self, tokens: Tensor) -> Seen:
        parts = self.parts
        return Seen(parts, self.lens.record(tokens, parts.record_sites())[1])

    def differences(self) -> Tensor:
        """What sources write on corrupted prompts less what they write on clean ones, (n_sources, N, T, d)."""
        return self.see(self.corrupted).outputs() - self.see(self.clean).outputs()


def gradients(pairs: Pairs, tokens: Tensor, edits: Sequence[tuple[str, rec.Edit]] = ()) -> list[Tensor]:
    """Of the margin with respect to each target's own input, (N, T, d) each, on one run of tokens (N, T)."""
    parts = pairs.parts
    inner = [t for t in parts.targets if t.kind != "logits"]
    sites = list(dict.fromkeys(parts.site(t) for t in inner))
    _, found, at = output_gradients(
        pairs.lens, tokens, {s: s for s in sites}, pairs.margin, edits=edits, sites=parts.record_sites()
    )
    seen = Seen(parts, at)

    def at_norm(target: Input) -> Tensor:
        if target.kind == "logits":
            return _at_logits(pairs, seen.behind(target))
        g = found[parts.site(target)]
        return g if target.kind == "m" else g[..., target.head, :] @ parts.projection(target).T

    return [seen.pullback(t, at_norm(t)) for t in parts.targets]


def _at_logits(pairs: Pairs, x: Tensor) -> Tensor:
    """Of the margin with respect to what the unembedding reads, (N, T, d): nothing but at the last position."""
    last = x[:, -1:].detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(pairs.margin(pairs.unembed(last)).sum(), last)
    return torch.cat([torch.zeros_like(x[:, :-1]), gradient], 1)


def _along(pairs: Pairs, runs: Iterator[list[Tensor]]) -> Tensor:
    """-<what sources write differently, mean over runs of the gradient at each target>, mean over pairs, (n_edges)."""
    differences, parts = pairs.differences(), pairs.parts
    mean = [torch.stack(per_run).mean(0) for per_run in zip(*runs, strict=True)]
    scores = [
        -torch.einsum("untd,ntd->u", differences[: parts.n_read(t)], g) / len(pairs.clean)
        for t, g in zip(parts.targets, mean, strict=True)
    ]
    return torch.cat(scores)


def eap(pairs: Pairs) -> Tensor:
    """Gradients of the clean run."""
    return _along(pairs, iter([gradients(pairs, pairs.clean)]))


def clean_corrupted(pairs: Pairs) -> Tensor:
    """Mean of the gradients of both runs."""
    return _along(pairs, (gradients(pairs, tokens) for tokens in (pairs.clean, pairs.corrupted)))


def eap_ig_inputs(pairs: Pairs) -> Tensor:
    """Embeddings at corrupted + (k / m) (clean - corrupted), k = 0 .. m - 1."""
    shares = [k / pairs.steps for k in range(pairs.steps)]
    return _along(pairs, (gradients(pairs, pairs.clean, [_between(pairs, "hook_embed", s)]) for s in shares))


def eap_ig_activations(pairs: Pairs) -> Tensor:
    """The embeddings, then the output of attention or MLP in one layer after the other, at (k / m) clean +
    (1 - k / m) corrupted, k = 1 .. m."""
    sites = ["hook_embed"]
    for i in range(pairs.lens.n_layers):
        sites += [f"blocks.{i}.hook_attn_out", f"blocks.{i}.hook_mlp_out"]
    shares = [(k + 1) / pairs.steps for k in range(pairs.steps)]
    runs = (gradients(pairs, pairs.clean, [_between(pairs, site, share)]) for site in sites for share in shares)
    return _along(pairs, runs)


def _between(pairs: Pairs, site: str, share: float) -> tuple[str, rec.Edit]:
    """The clean run with what it has at a site moved towards the corrupted run's, of which it keeps `share`.

    Moved, not replaced by a constant: gradients pass on to what feeds the site.
    """
    clean, corrupted = (pairs.lens.record_only(tokens, [site])[site] for tokens in (pairs.clean, pairs.corrupted))
    move = (1 - share) * (corrupted - clean)
    return site, lambda y: y + move


def exact(pairs: Pairs) -> Tensor:
    """Activation patching of edges, one by one."""
    parts, seen, differences = pairs.parts, pairs.see(pairs.clean), pairs.differences()
    clean = pairs.margin(pairs.lens.logits(pairs.clean))
    scores = []
    for target in parts.targets:
        for some in differences[: parts.n_read(target)].split(max(1, pairs.batch_size // len(pairs.clean))):
            change = seen.change_behind(target, some)  # (u, N, T, d)
            scores.append((clean - _patched(pairs, seen, target, change)).mean(-1))
    return torch.cat(scores)


def _patched(pairs: Pairs, seen: Seen, target: Input, change: Tensor) -> Tensor:
    """Margins (u, N) of the clean prompts where what a target reads behind its norm changes by (u, N, T, d)."""
    parts, lens = pairs.parts, pairs.lens
    if target.kind == "logits":
        return pairs.margin(pairs.unembed(seen.behind(target) + change))
    flat = change.flatten(0, 1)

    def edit(y: Tensor) -> Tensor:
        if target.kind == "m":
            return y + flat
        y = y.clone()
        y[..., target.head, :] += flat @ parts.projection(target)
        return y

    logits, _ = lens.record(pairs.clean.repeat(len(change), 1), [], [(parts.site(target), edit)])
    return pairs.margin(logits.unflatten(0, change.shape[:2]))


def ifr(pairs: Pairs) -> Tensor:
    """Information flow routes, of the clean run alone: how near a source lies to what a target reads,
    max(0, |x|_1 - |source - x|_1), as a share of all sources; mean over positions and prompts."""
    parts, seen = pairs.parts, pairs.see(pairs.clean)
    outputs, scores = seen.outputs(), []
    for target in parts.targets:
        x = seen.stream(target)
        near = (x.abs().sum(-1) - (outputs[: parts.n_read(target)] - x).abs().sum(-1)).clamp(min=0)
        scores.append((near / near.sum(0).clamp(min=torch.finfo(near.dtype).tiny)).mean((1, 2)))
    return torch.cat(scores)


EDGE_METHODS: dict[str, Callable[[Pairs], Tensor]] = {
    "exact": exact,
    "eap": eap,
    "eap_ig_inputs": eap_ig_inputs,
    "eap_ig_activations": eap_ig_activations,
    "clean_corrupted": clean_corrupted,
    "ifr": ifr,
}
