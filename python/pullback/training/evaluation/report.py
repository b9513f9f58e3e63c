"""What `evaluate` measured, as numbers and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

# Edges of the density histogram, log10 of the share of tokens on which a feature fires.
DENSITY_LOG10_EDGES = tuple(-7 + i / 2 for i in range(15))


@dataclass(frozen=True)
class Arms:
    """The model with some layers replaced, beside its ablations. Means over scored predictions, in nats.

    Attributes:
        ce_original: next-token loss of the model.
        ce_replaced: the same with the outputs of these layers replaced by their reconstructions.
        ce_mean_ablated: the same with these outputs replaced by their means over the scored tokens.
        ce_zero_ablated: the same with these outputs set to zero.
        kl: KL(original || replaced) of the next-token distributions.
        top1_agreement: share of predictions in which both put the same token first.
    """

    ce_original: float
    ce_replaced: float
    ce_mean_ablated: float
    ce_zero_ablated: float
    kl: float
    top1_agreement: float

    @property
    def ce_recovered(self) -> float:
        """(ce_mean_ablated - ce_replaced) / (ce_mean_ablated - ce_original); 1 is perfect, 0 as bad as the mean."""
        return _recovered(self.ce_mean_ablated, self)

    @property
    def ce_recovered_from_zero(self) -> float:
        """The same against `ce_zero_ablated`."""
        return _recovered(self.ce_zero_ablated, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self) | {
            "ce_recovered": self.ce_recovered,
            "ce_recovered_from_zero": self.ce_recovered_from_zero,
        }


def _recovered(ablated: float, arms: Arms) -> float:
    span = ablated - arms.ce_original
    return (ablated - arms.ce_replaced) / span if span != 0 else float("nan")


@dataclass(frozen=True)
class Report(Arms):
    """The arms with all layers replaced at once, and what each layer reconstructs of the unchanged model.

    Attributes:
        l0: {layer: mean number of active features a token}
        fvu: {layer: fraction of variance unexplained, sum ||y - yhat||^2 / sum ||y - mean y||^2}
        cosine: {layer: mean cosine of y and yhat}
        explained_variance: {layer: 1 - variance of the residual / variance of y, each about its own mean}
        dead: {layer: share of features that fired on no scored token}
        density: {layer: number of features by the share of tokens on which they fire, between `DENSITY_LOG10_EDGES`;
            dead ones are in no bin, rarer ones in the first}
        n_tokens: scored tokens.
        alone: {layer: the arms with this layer alone replaced or ablated}, where `per_layer` was asked for.
        compared: {name: the report of another dictionary on the same tokens}
    """

    l0: dict[int, float]
    fvu: dict[int, float]
    cosine: dict[int, float]
    explained_variance: dict[int, float]
    dead: dict[int, float]
    density: dict[int, list[int]]
    n_tokens: int
    alone: dict[int, Arms] = field(default_factory=dict)
    compared: dict[str, Report] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return super().to_dict() | {
            "density_log10_edges": list(DENSITY_LOG10_EDGES),
            "alone": {layer: arms.to_dict() for layer, arms in self.alone.items()},
            "compared": {name: report.to_dict() for name, report in self.compared.items()},
        }

    def table(self) -> str:
        """Reconstruction, a line a layer; with `alone`, what replacing it alone costs."""
        columns = ["l0", "fvu", "cosine", "ev", "dead"] + (["recovered", "kl"] if self.alone else [])
        lines = [f"{'layer':>5}" + "".join(f" {name:>{max(8, len(name))}}" for name in columns)]
        for layer, l0 in self.l0.items():
            quality = f"{self.fvu[layer]:>8.4f} {self.cosine[layer]:>8.4f} {self.explained_variance[layer]:>8.4f}"
            line = f"{layer:>5} {l0:>8.2f} {quality} {self.dead[layer]:>8.2%}"
            if layer in self.alone:
                line += f" {self.alone[layer].ce_recovered:>9.4f} {self.alone[layer].kl:>8.4f}"
            lines.append(line)
        return "\n".join(lines)

    def arms(self) -> str:
        """The model with all these layers replaced, beside its ablations."""
        arms = ("original", "replaced", "mean_ablated", "zero_ablated")
        losses = "CE  " + ", ".join(f"{arm.replace('_', ' ')} {getattr(self, f'ce_{arm}'):.4f}" for arm in arms)
        share = f"top-1 agreement {self.top1_agreement:.2%}"
        recovered = f"CE recovered {self.ce_recovered:.4f} of the mean's, {self.ce_recovered_from_zero:.4f} of zero's"
        return f"{losses}\n{recovered}; KL {self.kl:.4f}, {share} ({self.n_tokens:,} tokens)"

    def __str__(self) -> str:
        others = [f"\n{name}\n{report}" for name, report in self.compared.items()]
        return "\n".join([self.table(), self.arms(), *others])
