"""Two small models written by hand, of two layers of attention and ReLU MLPs: induction, and matching brackets.

Each has one planted path to its answer, and distractors: idle neurons and heads that the path does not read, and faint
neurons that write a hundredth of what the path writes, to its own axes. MLPs are their own exact transcoders.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pullback.lens import Lens, as_lens
from pullback.transcoders import TranscoderSet
from pullback.zoo.by_hand import Axes, Head, Neuron, Plan, consecutive, ones
from pullback.zoo.exact import exact_transcoders

D_MODEL, D_HEAD, N_CTX, N_NEURONS = 128, 32, 12, 48
LOGIT, MATCH, FAINT, OFF = 10.0, 80.0, 0.005, 0.02
"""The answer's logit; scores of wanted keys; shares of faint neurons; what is taken off, so that 0 stays silent."""


@dataclass(frozen=True)
class Analogue:
    """A model in float64, its transcoders, its words and the names of its features."""

    lens: Lens
    sets: TranscoderSet
    words: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]  # layer -> neuron

    def tokens(self, text: str) -> torch.Tensor:
        return torch.tensor([self.words.index(word) for word in text.split()])

    def node(self, layer: int, name: str, pos: int) -> str:
        """A feature, as graphs name it."""
        return f"{layer}_{self.names[layer].index(name)}_{pos}"


def _made(
    words: Sequence[str], groups: Sequence[range], says: Axes, told: Sequence[list[Neuron]], heads: list[list[Head]]
) -> Analogue:
    """The model with its distractors. groups: axes of tokens, of positions, then those of the path."""
    token, position, *path = groups
    idle = range(path[-1].stop, D_MODEL)
    written = [axis for group in path for axis in group]
    generator = torch.Generator().manual_seed(0)

    def idles(layer: int, count: int) -> list[Neuron]:
        def some(axes: range, n: int) -> list[int]:
            return [axes[at] for at in torch.randperm(len(axes), generator=generator)[:n].tolist()]

        return [
            Neuron(
                f"idle {n}",
                ones(some(token, len(token) // 2) if layer == 0 else some(idle, 4)),
                -0.4,
                ones(some(idle, 4)),
            )
            for n in range(count)
        ]

    def faint(layer: int) -> list[Neuron]:
        alternating = {axis: 2 * FAINT * LOGIT * (-1) ** axis for axis in path[-1]}
        writes = {axis: 2 * FAINT for axis in written} if layer == 0 else alternating
        return [Neuron(f"faint {n}", ones(token), -0.5, writes) for n in range(2)]

    neurons = []
    for layer, own in enumerate(told):
        listed = [*own, *faint(layer)]
        listed += idles(layer, N_NEURONS - len(listed))
        neurons.append([listed[(7 * n + 5) % N_NEURONS] for n in range(N_NEURONS)])  # kinds are scattered over the ids
    idle_words = Head((), [(axis, idle[n], 1.0) for n, axis in enumerate(token)])
    plan = Plan(
        d_model=D_MODEL,
        d_head=D_HEAD,
        token=token,
        position=position,
        says={int(id): int(axis) for id, axis in says.items()},
        neurons=neurons,
        heads=[[*own, idle_words] for own in heads],
        bias=dict.fromkeys(idle, 0.05),
    )
    model = plan.load("by hand", dtype=torch.float64)
    return Analogue(
        as_lens(model), exact_transcoders(model), tuple(words), tuple(tuple(n.name for n in own) for own in neurons)
    )


def _reading(name: str, axis: int, writes: Axes) -> Neuron:
    return Neuron(name, {axis: 1.0}, -OFF, writes)


@functools.cache
def induction() -> Analogue:
    """`a b ... a`: b.

    layer 0   head 0: the token before    MLP: "word x" at x, "behind x" at what follows x
    layer 1   head 0: from a word to where it is the one before; moves the word there    MLP: "say x"
    """
    words = ("<bos>", *"abcdefghijkl")
    V = len(words)
    groups = consecutive(V, N_CTX, V, V, V, V, V)
    token, position, previous, word, behind, here, says = groups
    before = [([position[n]], [position[n - 1]], MATCH) for n in range(1, N_CTX)]
    told = [
        [_reading(f"word {w}", token[n], {word[n]: 1.0}) for n, w in enumerate(words)]
        + [_reading(f"behind {w}", previous[n], {behind[n]: 1.0}) for n, w in enumerate(words)],
        [_reading(f"say {w}", here[n], {says[n]: LOGIT}) for n, w in enumerate(words)],
    ]
    heads = [
        [Head(before, [(token[n], previous[n], 1.0) for n in range(V)])],
        [
            Head(
                [*(([word[n]], [behind[n]], MATCH) for n in range(V)), (None, [token[0]], MATCH / 2)],
                [(word[n], here[n], 1.0) for n in range(1, V)],
            )
        ],
    ]
    return _made(words, groups, dict(enumerate(says)), told, heads)


@functools.cache
def brackets() -> Analogue:
    """`( x [ y`: the closer of the last bracket that is open, at most two deep.

    layer 0   head 0: openers less closers so far    MLP: "opener (", and "deep" where two are open
    layer 1   head 0: to the last opener that is as deep; moves its kind    MLP: "close )"
    """
    words = ("<bos>", "(", "[", ")", "]", "x", "y", "z")
    groups = consecutive(len(words), N_CTX, 1, 1, 2, 2, 2)
    token, position, count, deep, kind, here, says = groups
    openers, closers = token[1:3], token[3:5]
    share = 1000.0  # <bos> takes nearly all of what is attended, so that any other token is seen with weight 1 / 1000
    told = [
        [_reading(f"opener {words[1 + n]}", openers[n], {kind[n]: 1.0}) for n in range(2)]
        + [Neuron("deep", {count[0]: 1.0}, -1.5, {deep[0]: 2.0})],
        [_reading(f"close {words[3 + n]}", here[n], {says[n]: LOGIT}) for n in range(2)],
    ]
    counting = [*((axis, count[0], share) for axis in openers), *((axis, count[0], -share) for axis in closers)]
    as_deep = [([deep[0]], [deep[0]], MATCH), (None, [deep[0]], -MATCH / 2)]
    recent = [(None, [position[n]], 1.5 * n) for n in range(N_CTX)]
    heads = [
        [Head([(None, [token[0]], math.log(share))], counting)],
        [Head([*as_deep, (None, list(kind), MATCH / 2), *recent], [(kind[n], here[n], 1.0) for n in range(2)])],
    ]
    return _made(words, groups, {3: says[0], 4: says[1]}, told, heads)
