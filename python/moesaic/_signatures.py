"""Signatures of methods that take ``**options: Unpack[GenerateOptions]``, spelled out.

Completion in a notebook and ``help()`` read ``__signature__``: with it they show every option and
its default, which a type checker takes from the TypedDict.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from moesaic.generation import GenerateOptions

__all__ = ["DEFAULTS", "spelled_out"]

#: As ``Model.generate`` documents them; tests hold them against what the options do.
DEFAULTS: Mapping[str, Any] = {
    "max_tokens": 128,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "penalty_last_n": 64,
    "stop": (),
    "stop_tokens": (),
    "ignore_eos": False,
    "capture": (),
    "echo": False,
    "priority": 0,
}


def spelled_out(function: Callable[..., Any]) -> inspect.Signature:
    """Return a function's signature with every option in place of ``**options``.

    Options without an entry in ``DEFAULTS`` have None: not given.
    """
    signature = inspect.signature(function)
    options = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    if not options:
        raise TypeError(f"{function.__qualname__} takes no **options")
    others = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    hints = GenerateOptions.__annotations__
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=DEFAULTS.get(name),
            annotation=getattr(hint, "__forward_arg__", hint),
        )
        for name, hint in hints.items()
        if name not in signature.parameters
    ]
    return signature.replace(parameters=[*others, *added])
