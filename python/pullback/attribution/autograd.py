"""The autograd engine: the same edges through the model, hooks and torch autograd. Slow; the linear engine's oracle."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pullback.attribution.gather import Rows
from pullback.attribution.local import LocalModel
from pullback.attribution.targets import ATTENTION, BEFORE_BLOCK, FINAL, SITES, Targets, site_index
from pullback.lens import Lens
from pullback.lens import record as rec
from pullback.ops.edges import from_dense


class AutogradEngine:
    """One differentiable forward pass of the local replacement model, kept for a backward pass per target."""

    def __init__(self, lens: Lens, local: LocalModel) -> None:
        self.lens, self.local = lens, local
        t = local.trace
        self.embed = t.embed.clone().requires_grad_()
        self.pos_embed = None if t.pos_embed is None else t.pos_embed.clone().requires_grad_()
        # Features, errors and bias of one layer enter as one leaf: they share its gradient.
        self.written = {i: self._constant_part(i).requires_grad_() for i in range(local.n_layers)}
        self.attn_written = {i: t.layers[i].attn_out.clone().requires_grad_() for i in local.attention.acts}
        self.attn_live: dict[int, Tensor] = {}
        with torch.enable_grad():
            self._forward()

    def _constant_part(self, i: int) -> Tensor:
        """MLP output less what a skip connection computes from the (live) stream."""
        out = self.local.trace.layers[i].mlp_out
        W_skip = self._skip(i)
        if W_skip is None:
            return out.clone()
        return out - self.local.trace.layers[i].read(self.local.sets.hook_in(i)) @ W_skip.T

    def _skip(self, i: int) -> Tensor | None:
        return self.local.sets.skip(i) if i in self.local.sets else None

    def _forward(self) -> None:
        lens, local = self.lens, self.local
        L = local.n_layers
        hook_in = {i: local.sets.hook_in(i) if i in local.sets else "mlp.hook_in" for i in range(L)}
        sites = {i: (lens.input_site(i, hook_in[i]), f"blocks.{i}.hook_mlp_out") for i in range(L)}

        def leaf(value: Tensor) -> rec.Edit:
            return lambda _t: value[None]

        def write(i: int):  # noqa: ANN202
            W_skip = self._skip(i)

            def fn(x: Tensor, _y: Tensor) -> Tensor:
                return self.written[i][None] + (0 if W_skip is None else x @ W_skip.T)

            return fn

        def attend(i: int):  # noqa: ANN202
            def fn(_x: Tensor, y: Tensor) -> Tensor:
                self.attn_live[i] = y[0]
                return self.attn_written[i][None]

            return fn

        frozen = [(f"blocks.{i}.attn.hook_pattern", torch.Tensor.detach) for i in range(L)]
        frozen += rec.detached_norms(lens.model)
        at_attn = {i: (attn := f"blocks.{i}.hook_attn_out", attn) for i in self.attn_written}
        edits = [("hook_embed", leaf(self.embed)), *frozen, *rec.patch_edits({i: write(i) for i in range(L)}, sites)]
        edits += rec.patch_edits({i: attend(i) for i in at_attn}, at_attn)
        if self.pos_embed is not None:
            edits.append(("hook_pos_embed", leaf(self.pos_embed)))
        attn = [f"blocks.{i}.hook_attn_out" for i in range(L)]
        before = [f"blocks.{i}.hook_resid_pre" for i in range(L)] + [f"blocks.{L - 1}.hook_resid_post"]
        inputs = [sites[i][0] for i in range(L)]
        _, seen = rec.record(lens.model, local.trace.tokens[None], [*attn, *before, *inputs], edits)
        self.attn_out = [self.attn_written[i][None] if i in at_attn else seen[s] for i, s in enumerate(attn)]
        self.attn_leaves = [self.attn_written.get(i, out) for i, out in enumerate(self.attn_out)]
        self.before = [seen[s][0] for s in before]
        self.inputs = {i: (hook_in[i], seen[s][0]) for i, s in enumerate(inputs)}

    def rows(self, targets: Targets) -> Rows:
        """As `linear_rows`."""
        with torch.enable_grad():
            rows = [self._row(targets, b) for b in range(len(targets))]
        edges, zeroed = (torch.stack(column).cpu() for column in zip(*rows, strict=True))
        return Rows(targets.depth.cpu(), targets.own.cpu(), zeroed, from_dense(edges))

    def _read(self, layer: int, site: int) -> Tensor:
        """The (live) value at a site, (T, d)."""
        t = self.local.trace
        if site == FINAL:
            return t.ln_final(self.before[layer], t.final_scale)
        if site == BEFORE_BLOCK:
            return self.before[layer]
        if site == ATTENTION:
            return self.attn_live[layer]
        hook_in, value = self.inputs[layer]
        if site == site_index(hook_in):
            return value
        live = replace(t.layers[layer], x_pre=self.before[layer], attn_out=self.attn_out[layer][0])
        return live.read(SITES[site])

    def _row(self, targets: Targets, b: int) -> tuple[Tensor, Tensor]:
        layer, site, pos, row = (int(column[b]) for column in (targets.layer, targets.site, targets.pos, targets.row))
        value = self._read(layer, site)[pos] @ targets.table[row]
        local, layout = self.local, self.local.layout
        L = local.n_layers
        leaves = [self.embed, *(self.written[i] for i in range(L)), *self.attn_leaves]
        leaves += [] if self.pos_embed is None else [self.pos_embed]
        grads = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        at_embed, at_mlp = grads[0], grads[1 : L + 1]
        at_attn = [g.view_as(local.trace.embed) for g in grads[L + 1 : 2 * L + 1]]
        edges = self.embed.new_zeros(layout.n_sources)
        zeroed = self.embed.new_zeros(())
        edges[layout.embedding] = (at_embed * local.trace.embed).sum(-1)
        if local.trace.pos_embed is not None:
            edges[layout.position] = (grads[-1] * local.trace.pos_embed).sum(-1)
        for i in range(L):
            for src in local.sets.sources(i):
                acts = local.acts[src]
                rows = local.sets.decoder(src, i)[acts.indices.long()]
                edges[layout.features[src]] += acts.values * (at_mlp[i][acts.rows()] * rows).sum(-1)
            if i in self.attn_written:
                zeroed = zeroed + self._through_attention(i, at_attn[i], edges)
            edges[layout.errors[i]] = (at_mlp[i] * local.errors[i]).sum(-1)
            edges[layout.attn_bias[i]] = (at_attn[i] * local.attn_bias[i]).sum(-1)
            if i in local.mlp_bias:
                edges[layout.mlp_bias[i]] = (at_mlp[i] * local.mlp_bias[i]).sum(-1)
            if local.zeroed is not None:
                zeroed = zeroed + (at_mlp[i] * local.zeroed[i]).sum()
        return edges, zeroed

    def _through_attention(self, i: int, gradient: Tensor, edges: Tensor) -> Tensor:
        """Edges from what autoencoders make of one attention output; returns what zeroed positions would have given."""
        found, layout = self.local.attention, self.local.layout
        acts = found.acts[i]
        rows = found.sets.decoder(i, i)[acts.indices.long()]
        edges[layout.attn_features[i]] = acts.values * (gradient[acts.rows()] * rows).sum(-1)
        edges[layout.attn_errors[i]] = (gradient * found.errors[i]).sum(-1)
        return (gradient * found.zeroed[i]).sum() if i in found.zeroed else gradient.new_zeros(())
