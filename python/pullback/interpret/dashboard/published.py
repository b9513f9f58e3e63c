"""Published blind case studies: features of GPT-2 small's transcoder of layer 8 (Dunefsky et al. 2024, table 4), to set
one's own beside. They are data: to reproduce them takes the published weights."""

from __future__ import annotations

from typing import NamedTuple


class Activation(NamedTuple):
    """The largest activation of a feature on a prompt, and that where lower layers' transcoders stand in for MLPs."""

    prompt: str
    activation: float
    substituted: float | None = None


class CaseStudy(NamedTuple):
    """A feature whose meaning was guessed without its examples, and whether the guess was right."""

    model: str
    layer: int
    feature: int
    outcome: str
    """"success", "mostly" or "failure" """
    about: str = ""
    activations: tuple[Activation, ...] = ()


_KNOWN: dict[int, tuple[str, tuple[Activation, ...]]] = {
    355: (
        "a semicolon in a parenthetical citation",
        (Activation("(Leisman, 1976;", 12.484, 4.855), Activation("(Leisman 1976;", 12.13, 4.906)),
    ),
    235: (
        "",
        (
            Activation("He was caught", 19.97, 16.45),
            Activation("He caught the ball", 0.8145, 9.0),
        ),
    ),
}
_OUTCOMES = {"success": (355, 1447, 6569, 4911, 6414), "mostly": (235, 2725), "failure": (479, 9030)}

BLIND_CASE_STUDIES = tuple(
    CaseStudy("gpt2", 8, feature, outcome, *_KNOWN.get(feature, ("", ())))
    for outcome, features in _OUTCOMES.items()
    for feature in features
)
