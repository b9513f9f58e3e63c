"""What the translation of settings from one tool's names to those of TrainConfig keeps on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any


class Translation:
    """Settings of another tool, taken one after another.

    Args:
        tool: its name, for what is said.
        given: its settings.

    Attributes:
        settings: of TrainConfig, as far as translated.
        notes: what the user should know, a sentence each.
    """

    def __init__(self, tool: str, given: Mapping[str, Any]) -> None:
        self.tool = tool
        self._left = dict(given)
        self.settings: dict[str, Any] = {}
        self.notes: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, default: Any = None) -> Any:
        """A setting, which counts as translated from now on."""
        return self._left.pop(name, default)

    def peek(self, name: str, default: Any = None) -> Any:
        """A setting that is yet to be translated."""
        return self._left.get(name, default)

    def put(self, **settings: Any) -> None:
        self.settings |= settings

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def rename(self, names: Mapping[str, str]) -> None:
        """Settings that mean the same under another name."""
        for theirs, ours in names.items():
            if theirs in self:
                self.settings[ours] = self.take(theirs)
                if theirs != ours:
                    self.note(f"{theirs} is {ours} here, in the same unit")

    def refuse(self, names: Mapping[str, tuple[Iterable[Any], str]]) -> None:
        """Settings that only make sense at some values: {name: (these, what to do instead of others)}.

        Raises:
            ValueError: another value was given.
        """
        for name, (harmless, instead) in names.items():
            value = self.take(name)
            if value is not None and value not in harmless:
                raise ValueError(f"{self.tool}'s {name}={value!r}: {instead}")

    def leave(self, names: Mapping[str, str]) -> None:
        """Settings that train nothing and belong elsewhere: {name: where}."""
        for name, where in names.items():
            if name in self:
                self.take(name)
                self.note(f"{name} is left out: {where}")

    def finish(self, own: Iterable[str]) -> None:
        """Take what is left as TrainConfig's `own` settings.

        Raises:
            ValueError: a name that neither knows.
        """
        own = set(own)
        for name in list(self._left):
            if name not in own:
                raise ValueError(f"neither {self.tool} nor TrainConfig has a setting {name!r}")
            self.settings[name] = self.take(name)


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of their nested `sae`, a mapping or a dataclass, if they have one. Raises ValueError for what
    is neither."""
    outer = {name: value for name, value in options.items() if name != "sae"}
    inner = options.get("sae")
    if inner is None or isinstance(inner, Mapping):
        return outer | dict(inner or {})
    if not is_dataclass(inner):
        raise ValueError(f"sae must be a mapping or a dataclass, got {type(inner).__name__}")
    found = {field.name: getattr(inner, field.name) for field in fields(inner)}
    architecture = getattr(inner, "architecture", None)  # SAELens has it as a method of the class
    return outer | found | ({} if architecture is None else {"architecture": architecture()})
