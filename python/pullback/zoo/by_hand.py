"""Models written down by hand: what each neuron and head reads and writes, on named axes of the residual stream.

At the end the axes are turned into the rows of a Hadamard matrix, so that in the model every direction is dense and a
transposed or permuted weight cannot go unnoticed. There is no norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Axes = Mapping[int, float]
"""{axis: weight}"""


def consecutive(*sizes: int) -> list[range]:
    """Groups of axes, one behind the other."""
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def ones(axes: Sequence[int], *more: int) -> Axes:
    return dict.fromkeys([*axes, *more], 1.0)


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


@dataclass(frozen=True)
class Plan:
    """A whole model. Every layer has as many neurons and as many heads.

    token, position: axes of the vocabulary and of positions. says: {vocabulary id: the axis that its logit reads}.
    bias: what attention and MLP of every layer write besides.
    """

    d_model: int  # a power of two
    d_head: int
    token: range
    position: range
    says: Mapping[int, int]
    neurons: Sequence[Sequence[Neuron]]
    heads: Sequence[Sequence[Head]]
    bias: Axes

    def state_dict(self) -> dict[str, Tensor]:
        """All weights in float64, named as `TransformerBridge.boot_native` names them."""
        Q = hadamard(self.d_model)
        unembedding = torch.zeros(len(self.token), self.d_model, dtype=torch.float64)
        unembedding[list(self.says), list(self.says.values())] = 1.0
        weights = {
            "tok_embed.weight": self._rows([{axis: 1.0} for axis in self.token]) @ Q,
            "pos.weight": self._rows([{axis: 1.0} for axis in self.position]) @ Q,
            "head.weight": unembedding @ Q,
        }
        for layer, (neurons, heads) in enumerate(zip(self.neurons, self.heads, strict=True)):
            weights |= {f"layers.{layer}.mlp.{name}": w for name, w in self._mlp(neurons, Q).items()}
            weights |= {f"layers.{layer}.attn.{name}": w for name, w in self._attention(heads, Q).items()}
        return weights

    def _rows(self, written: Sequence[Axes]) -> Tensor:
        out = torch.zeros(len(written), self.d_model, dtype=torch.float64)
        for row, axes in enumerate(written):
            out[row, list(axes)] = torch.tensor(list(axes.values()), dtype=torch.float64)
        return out

    def _mlp(self, listed: Sequence[Neuron], Q: Tensor) -> dict[str, Tensor]:
        return {
            "fc_in.weight": self._rows([n.reads for n in listed]) @ Q,
            "fc_in.bias": torch.tensor([n.bias for n in listed], dtype=torch.float64),
            "fc_out.weight": (self._rows([n.writes for n in listed]) @ Q).T,
            "fc_out.bias": self._rows([self.bias])[0] @ Q,
        }

    def _attention(self, listed: Sequence[Head], Q: Tensor) -> dict[str, Tensor]:
        """One query-key channel per match, one value channel per move."""
        H = len(listed)
        q, k, v, o = (torch.zeros(H, self.d_head, self.d_model, dtype=torch.float64) for _ in range(4))
        b_q = torch.zeros(H, self.d_head, dtype=torch.float64)
        for h, head in enumerate(listed):
            for c, (query, key, score) in enumerate(head.matches):
                if query is None:
                    b_q[h, c] = 1.0
                else:
                    q[h, c, query] = 1.0
                k[h, c, key] = score * self.d_head**0.5
            for c, (read, write, weight) in enumerate(head.moves):
                v[h, c, read] = 1.0
                o[h, c, write] = weight

        def flat(w: Tensor) -> Tensor:
            return w.reshape(H * self.d_head, self.d_model) @ Q

        nothing = torch.zeros(H * self.d_head, dtype=torch.float64)
        return {
            "q.weight": flat(q),
            "q.bias": b_q.flatten(),
            "k.weight": flat(k),
            "k.bias": nothing.clone(),
            "v.weight": flat(v),
            "v.bias": nothing.clone(),
            "o.weight": flat(o).T,
            "o.bias": self._rows([self.bias])[0] @ Q,
        }

    def load(
        self,
        name: str,
        tokenizer: Any = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> TransformerBridge:
        """The model, with ReLU MLPs and learned positions. The caller's random state is left as it was.

        Raises ValueError where this transformer_lens names the weights of a native model otherwise.
        """
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge

        config = TransformerBridgeConfig(
            n_layers=len(self.neurons),
            d_model=self.d_model,
            n_heads=len(self.heads[0]),
            d_head=self.d_head,
            d_mlp=len(self.neurons[0]),
            n_ctx=len(self.position),
            d_vocab=len(self.token),
            act_fn="relu",
            normalization_type=None,
            init_weights=False,
        )
        with torch.random.fork_rng(devices=[]):
            # transformer_lens 4.x attaches boot_native while it is imported, where a type checker cannot see it.
            model = TransformerBridge.boot_native(  # pyright: ignore[reportAttributeAccessIssue]
                config, tokenizer=tokenizer, dtype=dtype, device=device, model_name=name
            )
        weights = self.state_dict()
        parameters = {name.replace("._original_component", ""): p for name, p in model.named_parameters()}
        if parameters.keys() != weights.keys():
            differing = sorted(parameters.keys() ^ weights.keys())
            raise ValueError(
                f"this transformer_lens builds a native model with other weights ({differing[0]}); 4.3 is known"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        return model.eval()


def hadamard(n: int) -> Tensor:
    """Float[Tensor, 'n n']: Sylvester's matrix over sqrt(n), orthogonal; n is a power of two."""
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H / n**0.5
