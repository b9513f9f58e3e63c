"""Running a TransformerLens model with hooks: the only place that calls it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

Edit = Callable[[Tensor], Tensor | None]
"""What happens to a tensor at a site: a replacement, or None to leave it."""


def hook_names(model: Any) -> set[str]:
    return set(model.hook_dict)


def _as_hook(edit: Edit) -> Callable[..., Tensor | None]:
    def hook_fn(tensor: Tensor, hook: Any = None) -> Tensor | None:  # noqa: ARG001
        return edit(tensor)

    return hook_fn


def _mlp_input_hook(edit: Edit) -> Callable[..., Any]:
    def pre_hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = edit(args[0])
        return None if new is None else (new, *args[1:])

    return pre_hook


@contextmanager
def hooked(model: Any, edits: Sequence[tuple[str, Edit]]) -> Iterator[None]:
    """Attach edits to sites; whatever happens inside, the model leaves as it came.

    Raises ValueError for a site the model does not have. `mlp.hook_in`, which HookedTransformer lacks,
    becomes a torch hook on the MLP module.
    """
    names = hook_names(model)
    native: list[tuple[str, Callable[..., Any]]] = []
    handles: list[Any] = []
    try:
        for site, edit in edits:
            if site in names:
                native.append((site, _as_hook(edit)))
            elif site.endswith(".mlp.hook_in"):
                mlp = model.blocks[int(site.split(".")[1])].mlp
                handles.append(mlp.register_forward_pre_hook(_mlp_input_hook(edit)))
            else:
                raise ValueError(f"lens: this model has no hook '{site}'; it has {_similar(names, site)}")
        with model.hooks(fwd_hooks=native), warnings.catch_warnings():
            # The bridge warns that an edited norm scale takes its own norm path: that path is the one wanted.
            warnings.filterwarnings("ignore", message=".*hook_scale/hook_normalized.*")
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inside, dropout is off; afterwards each module is in the mode it was in.

    A frozen run is compared with the run it was frozen at: two draws of dropout would be two models.
    """
    # The bridge keeps the model it wraps outside its own module tree. Walking either costs as much as a small layer.
    roots = [m for m in (model, getattr(model, "original_model", None)) if isinstance(m, torch.nn.Module)]
    training = [m for root in roots if root.training for m in root.modules() if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _similar(names: set[str], site: str) -> str:
    prefix = ".".join(site.split(".")[:2]) + "."
    return ", ".join(sorted(n for n in names if n.startswith(prefix))) or "none like it"


def exact_norms(model: Any) -> list[tuple[str, Edit]]:
    """Edits that make every norm compute in the model's own dtype from its own scale.

    A float64 bridge computes weighted RMSNorm in float32 unless a hook returns a new scale tensor (METHODS 0.3).
    """
    return [(name, lambda t: t.clone()) for name in sorted(hook_names(model)) if _is_norm_scale(name)]


def detached_norms(model: Any) -> list[tuple[str, Edit]]:
    """Edits that make the scale of every norm a constant to gradients."""
    # clone: a new tensor is what makes the bridge compute on with it
    return [(name, lambda s: s.detach().clone()) for name, _ in exact_norms(model)]


def _is_norm_scale(name: str) -> bool:
    return name.endswith("hook_scale") and (".ln" in name or name.startswith("ln_final") or is_qk_norm(name))


def is_qk_norm(name: str) -> bool:
    """Whether a hook belongs to a norm of queries or keys."""
    return ".attn.q_norm." in name or ".attn.k_norm." in name


def record(
    model: Any,
    tokens: Tensor,
    sites: Sequence[str],
    edits: Sequence[tuple[str, Edit]] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward pass without dropout: logits (B, T, V), and the tensor at each site as it was after the edits.

    Raises ValueError where a site never fired.
    """
    seen: dict[str, Tensor] = {}
    logits = _forward(model, tokens, sites, edits, seen.__setitem__)
    _must_have_fired(sites, seen)
    return logits, seen


class _SeenAll(Exception):
    """Ends a forward pass that has nothing more to show."""


def record_only(
    model: Any, tokens: Tensor, sites: Sequence[str], edits: Sequence[tuple[str, Edit]] = ()
) -> dict[str, Tensor]:
    """The tensors of `record` without the logits: the pass ends at the last site, so later layers and the unembedding
    cost nothing."""
    seen: dict[str, Tensor] = {}
    waiting = set(sites)

    def store(site: str, t: Tensor) -> None:
        seen[site] = t
        waiting.discard(site)
        if not waiting:
            raise _SeenAll

    with suppress(_SeenAll):
        _forward(model, tokens, sites, edits, store)
    _must_have_fired(sites, seen)
    return seen


def _forward(
    model: Any,
    tokens: Tensor,
    sites: Sequence[str],
    edits: Sequence[tuple[str, Edit]],
    store: Callable[[str, Tensor], None],
) -> Tensor:
    # Edits come first, so that what is recorded is what the model went on with.
    with hooked(model, [*edits, *((site, partial(store, site)) for site in sites)]), evaluating(model):
        return model(tokens)


def _must_have_fired(sites: Sequence[str], seen: Mapping[str, Tensor]) -> None:
    silent = [s for s in sites if s not in seen]
    if silent:
        raise ValueError(f"lens: these hooks never fired in the forward pass: {', '.join(silent)}")


def patch_edits(
    fns: Mapping[int, Callable[[Tensor, Tensor], Tensor]],
    sites: Mapping[int, tuple[str, str]],
) -> list[tuple[str, Edit]]:
    """Edits that replace each layer's MLP output y by fn(x, y), x read at the layer's input site."""
    held: dict[int, Tensor] = {}

    def hold(layer: int) -> Edit:
        def edit(x: Tensor) -> None:
            held[layer] = x

        return edit

    def write(layer: int) -> Edit:
        def edit(y: Tensor) -> Tensor:
            if layer not in held:
                raise ValueError(f"lens: {sites[layer][0]} did not fire before {sites[layer][1]}")
            return fns[layer](held.pop(layer), y).to(y)

        return edit

    return [pair for layer in fns for pair in ((sites[layer][0], hold(layer)), (sites[layer][1], write(layer)))]
