"""Recording what MLPs read and write without hooks, where that gives what the hooks give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback.lens.heads import ROTARY_HOOKS, rotary_tables
from pullback.lens.plain import NotPlain, PlainPass, Rotary, TurnedHalves, TurnedNeighbours, plain_pass
from pullback.lens.record import hook_names
from pullback.lens.structure import relative_error, tolerance
from pullback.lens.tokens import check_ids

if TYPE_CHECKING:
    from pullback.lens.adapter import Lens


class Unhooked:
    """`mlp_io` of a lens, several times as fast for small models, and without attention patterns in memory.

    It runs a plain forward pass made of the model's weights, as they are now. The first prompt, and the first one of
    every greater length, also goes through the model itself; where the two differ by more than rounding, or where the
    model is of another kind, or has hooks attached, the model is run as it is.
    """

    def __init__(self, lens: Lens) -> None:
        self.lens = lens
        self._pass: PlainPass | None = None
        self._known_length = 0
        self._differs = False

    @property
    def device(self) -> torch.device:
        return self.lens.device

    @torch.no_grad()
    def mlp_io(
        self, tokens: Tensor, layers: Iterable[int], hook_in: str = "mlp.hook_in", hook_out: str = "hook_mlp_out"
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """As `Lens.mlp_io`."""
        layers = list(layers)
        if self._differs or any(point.fwd_hooks for point in self.lens.model.hook_dict.values()):
            return self.lens.mlp_io(tokens, layers, hook_in, hook_out)
        check_ids(self.lens, tokens, "tokens")
        tokens = tokens.to(self.lens.device)
        if tokens.shape[1] > self._known_length:
            self._differs = not self._agrees(tokens[:1], layers, hook_in, hook_out)
            self._known_length = tokens.shape[1]
            return self.mlp_io(tokens, layers, hook_in, hook_out)
        return self._plainly(tokens, layers, hook_in, hook_out)

    def _plainly(
        self, tokens: Tensor, layers: list[int], hook_in: str, hook_out: str
    ) -> dict[int, tuple[Tensor, Tensor]]:
        assert self._pass is not None
        sites = {i: (f"blocks.{i}.{hook_in}", f"blocks.{i}.{hook_out}") for i in layers}
        found = self._pass(tokens, {site for pair in sites.values() for site in pair})
        return {i: (found[a], found[b]) for i, (a, b) in sites.items()}

    def _agrees(self, tokens: Tensor, layers: list[int], hook_in: str, hook_out: str) -> bool:
        """Whether the plain pass, made anew, does what the model does with these tokens."""
        model_does = self.lens.mlp_io(tokens, layers, hook_in, hook_out)
        try:
            self._pass = plain_pass(self.lens, _rotary(self.lens, tokens))
            plainly = self._plainly(tokens, layers, hook_in, hook_out)
        except (NotPlain, RuntimeError, KeyError):  # parts are missing, or do not fit together
            return False
        allowed = tolerance(self._products(tokens))
        return all(
            ours.dtype == theirs.dtype and relative_error(ours, theirs) <= allowed
            for layer in layers
            for ours, theirs in zip(plainly[layer], model_does[layer], strict=True)
        )

    def _products(self, tokens: Tensor) -> torch.dtype:
        """What the model multiplies in."""
        kind = tokens.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.lens.dtype


def _rotary(lens: Lens, tokens: Tensor) -> Rotary | None:
    """The model's own tables, for as many positions as these tokens have."""
    if not lens.rotary:
        return None
    attn, sites = lens.model.blocks[0].attn, {name: f"blocks.0.attn.{name}" for name in ROTARY_HOOKS}
    shown = set(sites.values()) <= hook_names(lens.model)
    seen = lens.record_only(tokens, list(sites.values())) if shown else {}
    tables = rotary_tables(lens, attn, {name: seen[site] for name, site in sites.items() if shown})
    if tables is None:
        raise NotPlain("rotary")
    *turns, adjacent = tables
    if not adjacent:
        return TurnedHalves(*(table.to(lens.dtype).chunk(2, dim=-1)[0] for table in turns))
    if lens.dtype.itemsize < 4:
        raise NotPlain("complex numbers of 16 bits")
    return TurnedNeighbours(torch.complex(*(table[:, ::2].to(lens.dtype) for table in turns)))
