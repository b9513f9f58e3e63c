"""The sparsity rules as they are trained, one a file: what a batch's entries are, and what is added to the loss."""

from __future__ import annotations

from pullback.training.recipe import Recipe
from pullback.training.rules.batch_topk import BatchTopKRule
from pullback.training.rules.jumprelu import JumpReLURule
from pullback.training.rules.matryoshka import MatryoshkaRule
from pullback.training.rules.relu import ReLURule
from pullback.training.rules.rule import Batch, Penalty, Rule, Slots
from pullback.training.rules.topk import TopKRule
from pullback.training.share import WHOLE, Share
from pullback.transcoders import Activation, BatchTopK, FeatureLayer, JumpReLU, ReLU, TopK

__all__ = ["Batch", "Penalty", "Rule", "Slots", "check_recipe", "keeps_unit_norm", "rule_for"]

PENALTIES = {"l1_coefficient": (ReLU, "standard"), "l0_coefficient": (JumpReLU, "jumprelu")}


def rule_for(trained: Activation, recipe: Recipe, tc: FeatureLayer, d_sae: int, share: Share = WHOLE) -> Rule:
    """The rule that trains an activation on the weights of `tc`, a share of d_sae features."""
    if isinstance(trained, ReLU):
        return ReLURule(trained, recipe, share)
    if isinstance(trained, JumpReLU):
        return JumpReLURule(trained, recipe, tc, share)
    if isinstance(trained, TopK):
        chooser: Rule = TopKRule(trained, recipe, share)
    else:
        chooser = BatchTopKRule(trained, recipe, tc.device, share)
    if recipe.matryoshka_widths is None:
        return chooser
    widths = [width for width in recipe.matryoshka_widths if width < d_sae]
    return MatryoshkaRule(chooser, [*widths, d_sae])


def keeps_unit_norm(trained: Activation, recipe: Recipe, asked: bool) -> bool:
    """Whether decoder rows are kept at unit norm, `asked` for or not."""
    return asked or recipe.loss == "reference" or (isinstance(trained, ReLU) and not recipe.weight_by_decoder_norm)


def check_recipe(trained: Activation, recipe: Recipe, d_in: int, d_out: int, d_sae: int, decoder_norm: bool) -> None:
    """Raise ValueError where a recipe does not fit the activation or the sizes."""
    name = type(trained).__name__
    if not isinstance(trained, TopK | BatchTopK | ReLU | JumpReLU):
        raise ValueError(f"training: activation must be TopK, BatchTopK, ReLU or JumpReLU, got {trained!r}")
    if not isinstance(trained, TopK | BatchTopK) and recipe.matryoshka_widths is not None:
        raise ValueError(f"training: matryoshka_widths goes with TopK or BatchTopK, not {name}; leave it None")
    for penalty, (rule, architecture) in PENALTIES.items():
        if not isinstance(trained, rule) and getattr(recipe, penalty) not in (0, getattr(Recipe, penalty)):
            raise ValueError(
                f"training: {penalty} is a penalty of {rule.__name__}, and {name} has none like it; leave it out, or "
                f"give architecture={architecture!r}"
            )
    if isinstance(trained, TopK | BatchTopK) and recipe.k_start is not None and recipe.k_start > d_sae:
        raise ValueError(f"training: k_start={recipe.k_start} exceeds d_sae={d_sae}; choose k_start <= d_sae")
    if recipe.matryoshka_widths is not None and max(recipe.matryoshka_widths) > d_sae:
        raise ValueError(
            f"training: matryoshka_widths must not exceed d_sae={d_sae}, got {list(recipe.matryoshka_widths)}"
        )
    if recipe.loss == "reference" and recipe.residual == "reference" and d_in != d_out:
        raise ValueError(
            f'training: residual="reference" compares inputs with outputs, of one width; got {d_in} and {d_out}. '
            'Choose residual="target"'
        )
    if recipe.decoder_init == "tied" and d_in != d_out:
        raise ValueError(
            f'training: decoder_init="tied" needs inputs and targets of one width, got {d_in} and {d_out}; '
            'choose "tenth" or "zero"'
        )
    if recipe.decoder_init == "zero" and decoder_norm:
        raise ValueError(
            'training: decoder_init="zero" has no unit norm, which decoder_norm (and ReLU unless '
            'weight_by_decoder_norm) asks for; choose "tied" or "tenth"'
        )
