"""The weights of the planted model, by formula.

Every neuron and head is written down as what it reads and what it writes on named axes of the residual stream
(`pullback.zoo.by_hand`).

    layer 0   MLP, at the subject:      city or state word -> state            (z = 1/2, writes 1 on the state's axis)
              MLP, at "capital", "in":  the word           -> relation
    layer 1   head STATE_HEAD:          state, from the subject to "is" and "in"
              head RELATION_HEAD:       "capital", from that word to "is"
    layer 2   MLP, last position:       state and relation -> the answer's axis  (both are needed: 1 + 1 > 3/2)

Everything else distracts. *Idle* neurons and heads are active, read each other, and write to axes that no part of the
circuit reads. *Faint* ones write a few hundredths of what the circuit writes to the circuit's own axes.
"""

from __future__ import annotations

import torch

from pullback.zoo.by_hand import Axes, Head, Neuron, Plan, consecutive, ones
from pullback.zoo.planted_words import ANSWERS, IDS, WORDS
from pullback.zoo.tinymix.vocab import BOS, STATES

N_LAYERS, D_MODEL, N_HEADS, D_HEAD, D_MLP, N_CTX, D_VOCAB = 3, 256, 4, 32, 48, 12, len(WORDS)
STATE_HEAD, RELATION_HEAD = (1, 2), (1, 1)
ANSWER_LOGIT = 10.0
FAINT = 0.02  # share of what the circuit writes to the same axis
MATCH, SINK = 80.0, 40.0  # attention scores of the wanted key and of <bos>: all else is below exp(-40)
SEED = 0

TOKEN, POSITION, STATE, ARRIVED, RELATION, CONTEXT, ANSWER = consecutive(
    D_VOCAB, N_CTX, len(STATES), len(STATES), 3, 1, len(ANSWERS)
)
IDLE = range(ANSWER.stop, D_MODEL)
ASKS_CAPITAL, ASKS_STATE, ASKS_CAPITAL_HERE = RELATION
RELATIONS = {"capital": ASKS_CAPITAL, "in": ASKS_STATE}


# What there is -------------------------------------------------------------------------------------------------------


def subject_words(state: str) -> list[str]:
    """The words whose state is `state`: its cities and its own name."""
    return [*STATES[state][1], state]


def circuit_neurons(layer: int) -> list[Neuron]:
    if layer == 0:
        # CONTEXT is 1/20 everywhere (head 0.0), so a word that is read lifts the sum to 1/2, and no other does.
        states = [
            Neuron(f"state {s}", ones([TOKEN[IDS[w]] for w in subject_words(s)], CONTEXT[0]), -0.55, {STATE[n]: 2.0})
            for n, s in enumerate(STATES)
        ]
        asks = [
            Neuron(f"asks {w}", ones([TOKEN[IDS[w]]], CONTEXT[0]), -0.55, {axis: 2.0}) for w, axis in RELATIONS.items()
        ]
        return [*states, *asks]
    if layer == 2:
        asked = [ASKS_CAPITAL_HERE] * len(STATES) + [ASKS_STATE] * len(STATES)
        return [
            Neuron(
                f"answer {word}",
                ones([ARRIVED[n % len(STATES)], asked[n]]),
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
    return [Neuron(f"faint {n}", ones(TOKEN), -0.5, writes) for n, writes in enumerate(written)]


def idle_neurons(layer: int, n: int, generator: torch.Generator) -> list[Neuron]:
    """Layer 0 reads half of all words each, later layers read four idle axes each; all write to four idle axes."""

    def some(axes: range, count: int, weight: float) -> Axes:
        chosen = torch.randperm(len(axes), generator=generator)[:count].tolist()
        signs = torch.randint(0, 2, (count,), generator=generator).tolist()
        return {axes[c]: weight * (2 * s - 1) for c, s in zip(chosen, signs, strict=True)}

    def half_of_the_words() -> Axes:
        return ones([TOKEN[w] for w in torch.randperm(D_VOCAB, generator=generator)[: D_VOCAB // 2].tolist()])

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


# Put together --------------------------------------------------------------------------------------------------------


def plan() -> Plan:
    """The whole model. Output biases are of what nothing in the circuit reads: bias leaves are not empty."""
    return Plan(
        d_model=D_MODEL,
        d_head=D_HEAD,
        token=TOKEN,
        position=POSITION,
        says=dict(zip((IDS[word] for word in ANSWERS), ANSWER, strict=True)),
        neurons=[neurons(layer) for layer in range(N_LAYERS)],
        heads=[heads(layer) for layer in range(N_LAYERS)],
        bias=dict.fromkeys(IDLE, 0.05),
    )
