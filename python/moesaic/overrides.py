"""Overrides: keys of a model's file that a caller sets to other values when it is loaded.

What a key means, and which values suit a model, the core checks. Not for changing files:
:func:`moesaic.write_gguf` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from moesaic import _core
from moesaic.errors import ArgumentError

if TYPE_CHECKING:
    from moesaic.gguf import GGUF, MetadataValue

#: A value of a key.
Override = bool | int | float | str
#: By name, with the architecture's prefix or without: ``{"expert_used_count": 4}``.
Overrides = Mapping[str, Override]


@dataclass(frozen=True)
class Applied:
    """Overrides as they were given, and what they change in a file: whole names, its types."""

    given: Mapping[str, Override] = field(default_factory=lambda: MappingProxyType({}))
    changed: Mapping[str, Override] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def to(cls, file: GGUF, overrides: Mapping[str, Override]) -> Applied:
        """Check overrides against an open file."""
        if not overrides:
            return cls()
        set_keys = _core.overridden(file._file.get(), dict(overrides))
        changed = {k: v for k, v in set_keys.items() if not _equal(file.metadata.get(k), v)}
        return cls(MappingProxyType(dict(overrides)), MappingProxyType(changed))

    def __str__(self) -> str:
        """Return ``deepseek2.expert_used_count=4``, the keys in alphabetical order."""
        return ", ".join(f"{name}={value}" for name, value in sorted(self.changed.items()))


def _equal(there: Any, value: Override) -> bool:
    return isinstance(there, bool | int | float | str) and there == value


class Overlaid(Mapping[str, "MetadataValue"]):
    """A file's metadata with some keys of other values; new ones come last."""

    def __init__(self, below: Mapping[str, MetadataValue], above: Mapping[str, Override]) -> None:
        self._below = below
        self._above = above

    def __getitem__(self, key: str) -> MetadataValue:
        return self._above[key] if key in self._above else self._below[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._below
        yield from (key for key in self._above if key not in self._below)

    def __len__(self) -> int:
        return len(self._below) + sum(key not in self._below for key in self._above)

    def __repr__(self) -> str:
        return repr(self._below) + f" with {dict(self._above)}"


def checked(overrides: Any, where: str) -> dict[str, Override]:
    """Return what a caller gave as a dict of plain values; None is none.

    Raises
    ------
    ArgumentError
        No mapping of names to bools, integers, numbers and texts.

    Examples
    --------
    >>> checked({"expert_used_count": np.int64(4)}, "Model")
    {'expert_used_count': 4}
    """
    if overrides is None:
        return {}
    if not isinstance(overrides, Mapping):
        raise ArgumentError(
            f"[{where}] overrides: got {type(overrides).__name__}, need a mapping like "
            '{"expert_used_count": 4}'
        )
    out: dict[str, Override] = {}
    for name, value in overrides.items():
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"[{where}] overrides: got the key {name!r}, need its name")
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, bool | int | float | str):
            raise ArgumentError(
                f"[{where}] overrides: {name}: got {type(value).__name__}, need a bool, an "
                "integer, a number or a text"
            )
        if isinstance(plain, int) and not -(2**63) <= plain < 2**63:
            raise ArgumentError(
                f"[{where}] overrides: {name}: got {plain}, need an integer of 64 bits"
            )
        out[name] = plain
    return out


def parsed(texts: list[str] | None, where: str) -> dict[str, Override]:
    """Return what a command line gave: ``KEY=VALUE``, where true, 4 and 2.5 are no texts.

    Raises
    ------
    ArgumentError
        No ``=``, or a key that comes twice.

    Examples
    --------
    >>> parsed(["expert_used_count=4", "expert_weights_norm=true", "rope.scaling.type=yarn"], "run")
    {'expert_used_count': 4, 'expert_weights_norm': True, 'rope.scaling.type': 'yarn'}
    """
    out: dict[str, Override] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ArgumentError(f'[{where}] override: got "{text}", need KEY=VALUE')
        if name in out:
            raise ArgumentError(f"[{where}] override: got {name} twice, need each key once")
        out[name] = _value(value.strip())
    return checked(out, where)


def _value(text: str) -> Override:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
