"""What callers give, checked and brought into one form: prompts, token ids, numbers in a range."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesaic import _core
from moesaic.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

#: One prompt: text, or token ids as a list of int or an integer array (n,).
Prompt = str | Sequence[int] | npt.NDArray[np.integer[Any]]
#: Many of them, for one batch.
PromptList = (
    Sequence[str]
    | Sequence[Sequence[int]]
    | Sequence[npt.NDArray[np.integer[Any]]]
    | Sequence[Prompt]
)
Tokens = npt.NDArray[np.int32]
#: Element types of a KV cache.
KV_TYPES = ("f16", "f32", "q8_0")


def integer(value: Any, name: str, where: str, low: int, high: int | None = None) -> int:
    """Return ``value`` as int; bools, floats and what is out of range are refused."""
    need = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"[{where}] {name}: got {_shown(value)}, need {need}") from None
    if number < low or (high is not None and number > high):
        raise ArgumentError(f"[{where}] {name}: got {number}, need {need}")
    return number


def real(value: Any, name: str, where: str, low: float, high: float) -> float:
    """Return ``value`` as float; NaN and what is out of range are refused."""
    need = f"a number from {low:g} to {high:g}"
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise ArgumentError(f"[{where}] {name}: got {_shown(value)}, need {need}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"[{where}] {name}: got {_shown(value)}, need {need}") from None
    if math.isnan(number) or not low <= number <= high:
        raise ArgumentError(f"[{where}] {name}: got {number:g}, need {need}")
    return number


def flag(value: Any, name: str, where: str) -> bool:
    """Return ``value`` if it is a bool."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ArgumentError(f"[{where}] {name}: got {_shown(value)}, need True or False")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def token_ids(tokens: Any, vocab: int, where: str, *, allow_empty: bool = False) -> Tokens:
    """Return token ids as int32 (n,), range-checked.

    Raises
    ------
    ArgumentError
        Floats, bools, text, nested lists, ids outside the vocabulary, or none at all.
    """
    if isinstance(tokens, list | tuple) and any(isinstance(t, bool | np.bool_) for t in tokens):
        raise ArgumentError(f"[{where}] tokens: got a bool among them, need integers")
    ids: Tokens = _core.token_ids(tokens, vocab, where)
    if len(ids) == 0 and not allow_empty:
        raise ArgumentError(
            f"[{where}] tokens: got none, need at least one; an empty text has none in a model "
            "without a begin-of-text token"
        )
    return ids


def is_batch(prompt: Any) -> bool:
    """Whether ``prompt`` is a list of prompts rather than one."""
    return isinstance(prompt, list | tuple) and any(
        isinstance(item, str | bytes | list | tuple) or (isinstance(item, np.ndarray) and item.ndim)
        for item in prompt
    )


def prompt_ids(
    prompt: Any, encode: Callable[[str], Tokens], vocab: int, where: str, name: str = "tokens"
) -> Tokens:
    """Return one prompt's token ids; text goes through ``encode``."""
    if isinstance(prompt, str):
        ids = encode(prompt)
        if len(ids) == 0:
            raise ArgumentError(
                f"[{where}] prompt: got an empty text, need at least one token; this model has no "
                "begin-of-text token to start from"
            )
        return token_ids(ids, vocab, where)
    if isinstance(prompt, bytes):
        raise ArgumentError(f"[{where}] prompt: got bytes, need str; decode them first")
    if isinstance(prompt, Mapping) or (
        isinstance(prompt, list | tuple) and any(isinstance(item, Mapping) for item in prompt)
    ):
        raise ArgumentError(
            f"[{where}] {name}: got messages, need text or token ids; chat(messages) answers them, "
            "render_chat(messages) gives their text"
        )
    if is_batch(prompt) or (isinstance(prompt, np.ndarray) and prompt.ndim == 2):
        raise ArgumentError(
            f"[{where}] {name}: got {len(prompt)} prompts, need one text or one list of token ids; "
            "loop over them (a loop is as fast), or run sessions together by forward_many()"
        )
    return token_ids(prompt, vocab, where)
