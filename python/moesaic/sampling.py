"""Sampling options: what callers give, what the file recommends, and names of other engines.

Each option is the caller's where there is one, else the file's (``general.sampling.*``, the keys of
llama.cpp), else this package's. Not here: the options that do not sample (generation.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from moesaic.errors import ArgumentError
from moesaic.inputs import integer, real

_MAX_INT = 2**31 - 1
#: Option -> (default, lowest, highest, key in the file); integers where the default is one.
_SAMPLING: dict[str, tuple[float, float, float, str]] = {
    "temperature": (0.8, 0.0, 1e6, "temp"),
    "top_k": (40, 0, _MAX_INT, "top_k"),
    "top_p": (0.95, 0.0, 1.0, "top_p"),
    "min_p": (0.05, 0.0, 1.0, "min_p"),
    "typical_p": (1.0, 0.0, 1.0, ""),
    "repeat_penalty": (1.0, 1e-3, 1e3, "penalty_repeat"),
    "presence_penalty": (0.0, -1e3, 1e3, ""),
    "frequency_penalty": (0.0, -1e3, 1e3, ""),
    "penalty_last_n": (64, -1, _MAX_INT, "penalty_last_n"),
}
#: Options of other engines -> what to do here.
_HINTS = {
    "max_new_tokens": "it is called max_tokens",
    "max_length": "it is called max_tokens, and counts generated tokens only",
    "max_completion_tokens": "it is called max_tokens",
    "max_output_tokens": "it is called max_tokens",
    "num_predict": "it is called max_tokens",
    "n_predict": "it is called max_tokens",
    "min_new_tokens": "not in this version; ignore_eos=True goes on past the end",
    "min_tokens": "not in this version; ignore_eos=True goes on past the end",
    "do_sample": "temperature=0 is greedy, anything above it samples",
    "temp": "it is called temperature",
    "repetition_penalty": "it is called repeat_penalty",
    "repeat_last_n": "it is called penalty_last_n",
    "num_ctx": "the context is chosen at load: Model(path, n_ctx=...)",
    "n_ctx": "the context is chosen at load: Model(path, n_ctx=...)",
    "num_return_sequences": "give [prompt] * n; item i samples with seed + i",
    "n": "give [prompt] * n; item i samples with seed + i",
    "best_of": "give [prompt] * n with logprobs=0, and keep the best",
    "num_beams": "no beam search in this version",
    "stream": "stream() yields pieces of text, and so does chat(..., stream=True)",
    "streamer": "stream() yields pieces of text",
    "stop_strings": "it is called stop",
    "stop_sequences": "it is called stop",
    "until": "it is called stop",
    "stop_token_ids": "it is called stop_tokens",
    "eos_token_id": "it is called stop_tokens",
    "random_seed": "it is called seed",
    "grammar": "no grammars in this version; a logits_processor can allow and ban tokens",
    "json_schema": "no structured output in this version; see logits_processor",
    "response_format": "no structured output in this version; see logits_processor",
    "guided_json": "no structured output in this version; see logits_processor",
    "guided_regex": "no structured output in this version; see logits_processor",
    "structured_outputs": "no structured output in this version; see logits_processor",
    "top_logprobs": "it is called logprobs: the k best at each position",
    "messages": "messages go to chat(messages)",
    "tools": "tools go to chat(messages, tools=...)",
    "tool_choice": "not in this version; say it in a message",
    "chat_template_kwargs": "it is called template_vars, an option of chat()",
    "enable_thinking": "it is a variable of templates: chat(..., template_vars={...})",
    "reasoning_effort": "it is a variable of templates: chat(..., template_vars={...})",
    "skip_special_tokens": "text never holds them; detokenize the tokens to see them",
    "add_generation_prompt": "render_chat() takes it",
    "mirostat": "not in this version; min_p and typical_p are",
    "xtc_probability": "not in this version; min_p and typical_p are",
    "dry_multiplier": "not in this version; repeat_penalty is",
    "logits_processors": "it is called logits_processor, one callable",
    "bad_words_ids": "logit_bias={token: float('-inf')} bans tokens",
    "suppress_tokens": "logit_bias={token: float('-inf')} bans tokens",
    "model": "the model is the object; leave it out",
    "user": "it has no meaning here; leave it out",
}


def refuse_unknown(options: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise ArgumentError for the first option that is not known, with a hint where there is one.

    Raises
    ------
    ArgumentError
        An option has none of the known names.
    """
    unknown = sorted(set(options) - set(known))
    if not unknown:
        return
    name = unknown[0]
    hint = _HINTS.get(name)
    if hint is not None:
        raise ArgumentError(f"[{where}] option: got {name!r}, need another: {hint}")
    raise ArgumentError(f"[{where}] option: got {name!r}, need one of {', '.join(sorted(known))}")


def sampling_options(
    options: Mapping[str, Any], metadata: Mapping[str, Any], where: str
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return every sampling option's value, and the names of those that are the file's.

    Raises
    ------
    ArgumentError
        A value of the caller has the wrong type or range.
    """
    values: dict[str, float] = {}
    from_file: list[str] = []
    for name, (default, low, high, key) in _SAMPLING.items():
        if name in options:
            values[name] = _checked(options[name], name, where)
            continue
        recommended = _from_file(metadata, name, key, default, low, high) if key else None
        values[name] = default if recommended is None else recommended
        if recommended is not None:
            from_file.append(name)
    return values, tuple(from_file)


def _checked(value: Any, name: str, where: str) -> float:
    default, low, high, _ = _SAMPLING[name]
    if isinstance(default, int):
        return integer(value, name, where, int(low), int(high))
    return real(value, name, where, low, high)


def _from_file(
    metadata: Mapping[str, Any], name: str, key: str, default: float, low: float, high: float
) -> float | None:
    """The file's own value; one that cannot be is left out with a warning."""
    value = metadata.get(f"general.sampling.{key}")
    if value is None:
        return None
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int if isinstance(default, int) else int | float)
        or not low <= value <= high
    ):
        warnings.warn(
            f"[Model] general.sampling.{key}: got {value!r}, need a number from {low:g} to "
            f"{high:g}; {name} is {default:g} in its place",
            stacklevel=6,
        )
        return None
    return float(value) if isinstance(default, float) else value
