"""What generation gives back: Generation, Chunk and Timings."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moesaic._tables import html_table
from moesaic.capture import Captures
from moesaic.fingerprint import Fingerprint


@dataclass(frozen=True, slots=True)
class Timings:
    """How long the parts of a generation took, in seconds, as the engine measured them.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the prompt.
    cached_tokens : int
        Those of them that an equal prefix saved.
    generated_tokens : int
        Tokens that were generated.
    time_to_first_token : float
        From the call to the first token, with waiting for other requests; 0 before it.
    prefill_seconds, decode_seconds : float
        Running the prompt, and everything after its last row.
    prefill_tokens_per_s, decode_tokens_per_s : float
        Rates; 0 when there is nothing to divide.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    time_to_first_token: float
    prefill_seconds: float
    decode_seconds: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    def _repr_html_(self) -> str:
        return html_table(
            [
                ("", "tokens", "seconds", "tokens/s"),
                (
                    "prompt",
                    f"{self.prompt_tokens:,} ({self.cached_tokens:,} reused)",
                    f"{self.prefill_seconds:.3f}",
                    f"{self.prefill_tokens_per_s:,.1f}",
                ),
                ("first token", "", f"{self.time_to_first_token:.3f}", ""),
                (
                    "generated",
                    f"{self.generated_tokens:,}",
                    f"{self.decode_seconds:.3f}",
                    f"{self.decode_tokens_per_s:,.1f}",
                ),
            ]
        )

    @classmethod
    def _measured(
        cls,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        generated_tokens: int,
        time_to_first_token: float,
        prefill_seconds: float,
        decode_seconds: float,
        decode_steps: int,
    ) -> Timings:
        """Add the rates. The first token comes with the prompt; each later one is a decode step."""
        run = prompt_tokens - cached_tokens
        return cls(
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            generated_tokens=generated_tokens,
            time_to_first_token=time_to_first_token,
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
            prefill_tokens_per_s=run / prefill_seconds if prefill_seconds > 0 else 0.0,
            decode_tokens_per_s=decode_steps / decode_seconds if decode_seconds > 0 else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream.

    Attributes
    ----------
    text : str
        New text: whole characters, never past a stop string. May be empty.
    tokens : tuple of int
        New tokens. Their text may come in a later chunk.
    timings : Timings
        Up to now.
    finish_reason : str or None
        As in Generation, in the last chunk; None before it.
    logprobs : tuple of float
        Log-probabilities of ``tokens``, when asked for.
    """

    text: str
    tokens: tuple[int, ...]
    timings: Timings
    finish_reason: str | None = None
    logprobs: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A finished generation.

    Attributes
    ----------
    text : str
        The generated text (with the prompt's in front when ``echo``), ending before a stop string.
    tokens : int32 array (n,)
        Generated tokens, without the one that ended the generation; with those of a stop string.
    finish_reason : str
        ``"stop"`` (end-of-generation token or stop string) or ``"length"`` (max_tokens or n_ctx).
    stop : str or int or None
        The stop string or token that ended it.
    prompt_tokens : int32 array
        The prompt as it was run.
    seed : int
        The seed that was used; with it the same call gives the same tokens.
    sampling : mapping of str to float
        Every sampling option as it was used: ``temperature``, ``top_k``, ...
    sampling_from_file : tuple of str
        Which of them the caller did not give and the file recommends (``general.sampling.*``).
    timings : Timings
        How long it took.
    logprobs : float32 array (n,) or None
        Natural log of each token's probability under the model, before any sampling option.
    top_ids, top_logprobs : arrays (n, k) or None
        The k most probable tokens of each position, int32, and their log-probabilities, float32.
    captures : Captures or None
        Rows of the prompt and of every generated token but the last, which is never run.
    message : dict or None
        Of ``chat``: ``{"role": "assistant", "content": text}``.
    """

    text: str
    tokens: npt.NDArray[np.int32]
    finish_reason: str
    timings: Timings
    prompt_tokens: npt.NDArray[np.int32]
    seed: int
    sampling: Mapping[str, float] = field(default_factory=dict)
    sampling_from_file: tuple[str, ...] = ()
    stop: str | int | None = None
    # "| Any": None where it was not asked for, which the caller knows and need not look for.
    logprobs: npt.NDArray[np.float32] | Any = None
    top_ids: npt.NDArray[np.int32] | Any = None
    top_logprobs: npt.NDArray[np.float32] | Any = None
    captures: Captures | Any = None
    message: dict[str, str] | Any = field(default=None)
    _fingerprint: Fingerprint | None = field(default=None, repr=False)

    @property
    def fingerprint(self) -> str:
        """:attr:`Model.fingerprint` of the model that gave it, made when it is asked for."""
        return self._fingerprint() if self._fingerprint else ""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        t = self.timings
        return (
            f"Generation({self.text!r}, {len(self.tokens)} tokens, "
            f"finish_reason={self.finish_reason!r}, {t.decode_tokens_per_s:.1f} tok/s"
            f"{self._file_options()})"
        )

    def _repr_html_(self) -> str:
        t = self.timings
        return (
            f"<pre style='white-space: pre-wrap'>{html.escape(self.text)}</pre>"
            f"<small>{len(self.tokens)} tokens, {self.finish_reason}; prompt {t.prompt_tokens} "
            f"tokens ({t.cached_tokens} reused); {t.decode_tokens_per_s:.1f} tok/s"
            f"{html.escape(self._file_options())}</small>"
        )

    def _file_options(self) -> str:
        """What the file chose, in words; empty when nothing."""
        chosen = [f"{name}={self.sampling[name]:g}" for name in self.sampling_from_file]
        return f"; from the file: {', '.join(chosen)}" if chosen else ""
