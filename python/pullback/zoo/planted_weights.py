"""The weights of the planted model, by formula.

The residual stream has named axes; every neuron and head is written down as what it reads and what it writes there.
At the end the axes are turned into the rows of a Hadamard matrix, so that in the model every direction is dense and a
transposed or permuted weight cannot go unnoticed. There is no norm.

    layer 0   MLP, at the subject:      city or state word -> state            (z = 1/2, writes 1 on the state's axis)
              MLP, at "capital", "in":  the word           -> relation
    layer 1   head STATE_HEAD:          state, from the subject to "is" and "in"
              head RELATION_HEAD:       "capital", from that word to "is"
    layer 2   MLP, last position:       state and relation -> the answer's axis  (both are needed: 1 + 1 > 3/2)

Everything else distracts. *Idle* neurons and heads are active, read each other, and write to axes that no part of the
circuit reads. *Faint* ones write a few hundredths of what the circuit writes to the circuit's own axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.zoo.planted_words import ANSWERS, IDS, WORDS
from pullback.zoo.tinymix.vocab import BOS, STATES

N_LAYERS, D_MODEL, N_HEADS, D_HEAD, D_MLP, N_CTX, D_VOCAB = 3, 256, 4, 32, 48, 12, len(WORDS)
STATE_HEAD, RELATION_HEAD = (1, 2), (1, 1)
ANSWER_LOGIT = 10.0
FAINT = 0.02  # share of what the circuit writes to the same axis
MATCH, SINK = 80.0, 40.0  # attention scores of the wanted key and of <bos>: all else is below exp(-40)
SEED = 0

Axes = Mapping[int, float]
"""{axis: weight}"""


def _consecutive(*sizes: int) -> list[range]:
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


TOKEN, POSITION, STATE, ARRIVED, RELATION, CONTEXT, ANSWER = _consecutive(
    D_VOCAB, N_CTX, len(STATES), len(STATES), 3, 1, len(ANSWERS)
)
IDLE = range(ANSWER.stop, D_MODEL)
ASKS_CAPITAL, ASKS_STATE, ASKS_CAPITAL_HERE = RELATION
RELATIONS = {"capital": ASKS_CAPITAL, "in": ASKS_STATE}


@dataclass(frozen=True)
class Neuron:
    """z = ReLU(sum of reads + bias), written as z times `writes`.

    name: its kind and what it stands for: "state texas", "asks capital", "answer austin", "faint 0", "idle 3".
    """

    name: str
    reads: Axes
    bias: float
    writes: Axes


@dataclass(frozen=True)
class Head:
    """Attends from queries to keys by the sum of matched scores, and copies axes.

    matches: (query axes, key axes, score), None as query axes meaning every position. moves: (read, write, weight).
    """

    matches: Sequence[tuple[list[int] | None, list[int], float]] = ()
    moves: Sequence[tuple[int, int, float]] = ()


# What there is -------------------------------------------------------------------------------------------------------


def subject_words(state: str) -> list[str]:
    """The words whose state is `state`: its cities and its own name."""
    return [*STATES[state][1], state]


def circuit_neurons(layer: int) -> list[Neuron]:
    if layer == 0:
        # CONTEXT is 1/20 everywhere (head 0.0), so a word that is read lifts the sum to 1/2, and no other does.
        states = [
            Neuron(f"state {s}", _ones([TOKEN[IDS[w]] for w in subject_words(s)], CONTEXT[0]), -0.55, {STATE[n]: 2.0})
            for n, s in enumerate(STATES)
        ]
        asks = [
            Neuron(f"asks {w}", _ones([TOKEN[IDS[w]]], CONTEXT[0]), -0.55, {axis: 2.0}) for w, axis in RELATIONS.items()
        ]
        return [*states, *asks]
    if layer == 2:
        asked = [ASKS_CAPITAL_HERE] * len(STATES) + [ASKS_STATE] * len(STATES)
        return [
            Neuron(
                f"answer {word}",
                _ones([ARRIVED[n % len(STATES)], asked[n]]),
                -1.5 - 5 * FAINT,  # five faint contributions reach ARRIVED
                {ANSWER[n]: 2 * ANSWER_LOGIT},
            )
            for n, word in enumerate(ANSWERS)
        ]
    return []


def faint_neurons(layer: int) -> list[Neuron]:
    """Active at every token with z = 1/2."""
    state = dict.fromkeys([*STATE, *ARRIVED], 2 * FAINT)
    answer = {axis: 2 * FAINT * ANSWER_LOGIT * (-1) ** n for n, axis in enumerate(ANSWER)}
    written: list[Axes] = [[state, state], [dict.fromkeys(ARRIVED, 2 * FAINT), answer], [answer, answer]][layer]
    return [Neuron(f"faint {n}", _ones(TOKEN), -0.5, writes) for n, writes in enumerate(written)]


def idle_neurons(layer: int, n: int, generator: torch.Generator) -> list[Neuron]:
    """Layer 0 reads half of all words each, later layers read four idle axes each; all write to four idle axes."""

    def some(axes: range, count: int, weight: float) -> Axes:
        chosen = torch.randperm(len(axes), generator=generator)[:count].tolist()
        signs = torch.randint(0, 2, (count,), generator=generator).tolist()
        return {axes[c]: weight * (2 * s - 1) for c, s in zip(chosen, signs, strict=True)}

    def half_of_the_words() -> Axes:
        return _ones([TOKEN[w] for w in torch.randperm(D_VOCAB, generator=generator)[: D_VOCAB // 2].tolist()])

    return [
        Neuron(
            f"idle {i}",
            half_of_the_words() if layer == 0 else some(IDLE, 4, 1.0),
            -0.5 if layer == 0 else 0.25,
            some(IDLE, 4, 1.0),
        )
        for i in range(n)
    ]


def neurons(layer: int) -> list[Neuron]:
    """All D_MLP neurons of a layer, in the order of their feature ids: kinds are scattered over the ids."""
    told = [*circuit_neurons(layer), *faint_neurons(layer)]
    generator = torch.Generator().manual_seed(SEED + layer)
    listed = [*told, *idle_neurons(layer, D_MLP - len(told), generator)]
    return [listed[(7 * i + 5 * (layer + 1)) % D_MLP] for i in range(D_MLP)]  # 7 and 48 share no factor


def heads(layer: int) -> list[Head]:
    bos, ends = TOKEN[IDS[BOS]], [TOKEN[IDS["is"]], TOKEN[IDS["in"]]]
    subjects = [TOKEN[IDS[w]] for s in STATES for w in subject_words(s)]
    sink = (None, [bos], SINK)
    previous = [([POSITION[n]], [POSITION[n - 1]], MATCH) for n in range(1, N_CTX)]
    idle_words = [(TOKEN[n], IDLE[n], 1.0) for n in range(D_HEAD)]
    idle_axes = [(IDLE[n + layer], IDLE[n + 2 * D_HEAD], 0.5) for n in range(D_HEAD)]
    distracting = [Head(previous, idle_words), Head((), idle_words), Head((), idle_axes), Head(previous, idle_axes)]
    if layer == 0:
        return [Head([sink], [(bos, CONTEXT[0], 0.05)]), *distracting[:3]]
    if layer == 1:
        to_answers = [(bos, axis, FAINT * ANSWER_LOGIT * (-1) ** n) for n, axis in enumerate(ANSWER)]
        return [
            Head([sink], to_answers),
            Head(
                [(ends[:1], [TOKEN[IDS["capital"]]], MATCH), sink],
                [(ASKS_CAPITAL, ASKS_CAPITAL_HERE, 1.0)],
            ),
            Head([(ends, subjects, MATCH), sink], [(STATE[n], ARRIVED[n], 1.0) for n in range(len(STATES))]),
            distracting[3],
        ]
    return distracting


def _ones(axes: range | list[int], *more: int) -> Axes:
    return dict.fromkeys([*axes, *more], 1.0)


# As tensors ----------------------------------------------------------------------------------------------------------


def state_dict() -> dict[str, Tensor]:
    """All weights in float64, named as `TransformerBridge.boot_native` names them."""
    Q = hadamard(D_MODEL)
    embedding = torch.zeros(D_VOCAB, D_MODEL, dtype=torch.float64)
    embedding[range(D_VOCAB), TOKEN] = 1.0
    positions = torch.zeros(N_CTX, D_MODEL, dtype=torch.float64)
    positions[range(N_CTX), POSITION] = 1.0
    unembedding = torch.zeros(D_VOCAB, D_MODEL, dtype=torch.float64)
    unembedding[[IDS[word] for word in ANSWERS], ANSWER] = 1.0
    weights = {"tok_embed.weight": embedding @ Q, "pos.weight": positions @ Q, "head.weight": unembedding @ Q}
    for layer in range(N_LAYERS):
        weights |= {f"layers.{layer}.mlp.{name}": w for name, w in _mlp(neurons(layer), Q).items()}
        weights |= {f"layers.{layer}.attn.{name}": w for name, w in _attention(heads(layer), Q).items()}
    return weights


def hadamard(n: int) -> Tensor:
    """Float[Tensor, 'n n']: Sylvester's matrix over sqrt(n), orthogonal; n is a power of two."""
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H / n**0.5


def _rows(written: list[Axes]) -> Tensor:
    out = torch.zeros(len(written), D_MODEL, dtype=torch.float64)
    for row, axes in enumerate(written):
        out[row, list(axes)] = torch.tensor(list(axes.values()), dtype=torch.float64)
    return out


def _idle_bias(Q: Tensor) -> Tensor:
    """An output bias that nothing in the circuit reads: bias leaves are not empty."""
    return _rows([dict.fromkeys(IDLE, 0.05)])[0] @ Q


def _mlp(listed: list[Neuron], Q: Tensor) -> dict[str, Tensor]:
    return {
        "fc_in.weight": _rows([n.reads for n in listed]) @ Q,
        "fc_in.bias": torch.tensor([n.bias for n in listed], dtype=torch.float64),
        "fc_out.weight": (_rows([n.writes for n in listed]) @ Q).T,
        "fc_out.bias": _idle_bias(Q),
    }


def _attention(listed: list[Head], Q: Tensor) -> dict[str, Tensor]:
    """One query-key channel per match, one value channel per move."""
    q, k, v, o = (torch.zeros(N_HEADS, D_HEAD, D_MODEL, dtype=torch.float64) for _ in range(4))
    b_q = torch.zeros(N_HEADS, D_HEAD, dtype=torch.float64)
    for h, head in enumerate(listed):
        for c, (query, key, score) in enumerate(head.matches):
            if query is None:
                b_q[h, c] = 1.0
            else:
                q[h, c, query] = 1.0
            k[h, c, key] = score * D_HEAD**0.5
        for c, (read, write, weight) in enumerate(head.moves):
            v[h, c, read] = 1.0
            o[h, c, write] = weight

    def flat(w: Tensor) -> Tensor:
        return w.reshape(N_HEADS * D_HEAD, D_MODEL) @ Q

    nothing = torch.zeros(N_HEADS * D_HEAD, dtype=torch.float64)
    return {
        "q.weight": flat(q),
        "q.bias": b_q.flatten(),
        "k.weight": flat(k),
        "k.bias": nothing.clone(),
        "v.weight": flat(v),
        "v.bias": nothing.clone(),
        "o.weight": flat(o).T,
        "o.bias": _idle_bias(Q),
    }
