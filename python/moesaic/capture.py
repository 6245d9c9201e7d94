"""Names of what can be captured inside a model, and the arrays that come back."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moesaic._tables import html_table, shortened
from moesaic.errors import ArgumentError
from moesaic.fingerprint import Fingerprint
from moesaic.foreign_taps import explain

_SHOWN = 12  # arrays that a repr lists; of more, the first and the last


class Captures(Mapping[str, npt.NDArray[Any]]):
    """Captured arrays by name, in the order of the forward pass.

    Rows are the positions that were run. Float taps are float32 (n, width); ``router.experts`` is
    int32 (n, n_active), best expert first. Arrays own their memory.

    Attributes
    ----------
    logits : float32 array or None
        The logits of the same call: (n, vocab), (vocab,) or None, as asked.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        logits: npt.NDArray[np.float32] | None = None,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        self._arrays = dict(arrays)
        # "| Any": a caller knows whether it asked for them, and need not look for None.
        self.logits: npt.NDArray[np.float32] | Any = logits
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """:attr:`Model.fingerprint` of the model that was run; "" where it is not known."""
        return self._fingerprint() if self._fingerprint else ""

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._arrays:
            names = list(self._arrays)
            near = difflib.get_close_matches(str(name), names, n=4, cutoff=0.4)
            there = ", ".join(near or shortened(names, first=3, last=1)) or "none"
            raise KeyError(f"{name!r} was not captured; of {len(names)} arrays there are {there}")
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def _first_rows(self, n: int) -> Captures:
        """The same captures, cut to the first n rows."""
        cut = {name: array[:n] for name, array in self._arrays.items()}
        return Captures(cut, self.logits, self._fingerprint)

    def __repr__(self) -> str:
        rows = [f"{name}: {array.dtype} {array.shape}" for name, array in self._arrays.items()]
        shown = shortened(rows, first=_SHOWN // 2, last=_SHOWN // 2)
        logits = "None" if self.logits is None else f"float32 {self.logits.shape}"
        return "\n  ".join([f"Captures({len(self)} arrays, logits {logits})", *shown])

    def _repr_html_(self) -> str:
        rows = [(name, str(a.dtype), str(a.shape)) for name, a in self._arrays.items()]
        if self.logits is not None:
            rows.append(("(logits)", str(self.logits.dtype), str(self.logits.shape)))
        half = _SHOWN // 2
        if len(rows) > _SHOWN + 1:
            left_out = f"... {len(rows) - 2 * half} more ..."
            rows = [*rows[:half], (left_out, "", ""), *rows[-half:]]
        return html_table([("array", "dtype", "shape"), *rows])


def resolve(names: str | Sequence[str], known: Sequence[str], where: str) -> list[str]:
    """Turn names and globs into the model's own names, in the order of the forward pass.

    Parameters
    ----------
    names : str or sequence of str
        Names such as ``"blocks.3.resid_post"``; ``*``, ``?`` and ``[...]`` as in file names.
    known : sequence of str
        Every name the model has.
    where : str
        The public method, for error messages.

    Raises
    ------
    ArgumentError
        A name that the model does not have; the nearest ones are listed.
    """
    if not isinstance(names, Iterable):
        raise ArgumentError(f"[{where}] capture: got {type(names).__name__}, need names (str)")
    wanted = [names] if isinstance(names, str) else list(names)
    chosen: set[str] = set()
    known_set = frozenset(known)
    for name in wanted:
        if not isinstance(name, str):
            raise ArgumentError(f"[{where}] capture: got {type(name).__name__}, need names (str)")
        if name in known_set:
            chosen.add(name)
            continue
        found = fnmatch.filter(known, name) if any(c in name for c in "*?[") else []
        if not found:
            foreign = explain(name)
            if foreign is not None:
                raise ArgumentError(
                    f"[{where}] capture: got {name!r}: {foreign}; Model.capture_names lists all "
                    f"{len(known)}"
                )
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or list(known[:4])
            raise ArgumentError(
                f"[{where}] capture: got {name!r}, which this model does not have; the nearest are "
                f"{', '.join(near)}; Model.capture_names lists all {len(known)}"
            )
        chosen.update(found)
    return [name for name in known if name in chosen]
