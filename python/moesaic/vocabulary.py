"""Whether a file's vocabulary fits its model, and what to do when it does not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from moesaic.errors import FormatError

if TYPE_CHECKING:
    from moesaic.tokenizer import Tokenizer

#: Written by some converters for "there is none".
_NO_TOKEN = 0xFFFFFFFF


def check_special_ids(metadata: Mapping[str, Any], vocab: int, path: str | bytes) -> None:
    """Refuse a file whose begin or end token the model has no row for.

    Parameters
    ----------
    metadata : Mapping
        The file's keys.
    vocab : int
        Rows of the embedding.
    path : str or bytes
        The file, for the message.

    Raises
    ------
    FormatError
        An id is not below vocab.
    """
    for name in ("bos", "eos"):
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token, int) and vocab <= token < _NO_TOKEN:
            raise FormatError(
                f"[Model] {os.fsdecode(path)}: tokenizer.ggml.{name}_token_id: got {token}, need "
                f"0 to {vocab - 1}, the rows of the embedding"
            )


def tokenizer_or_none(
    metadata: Mapping[str, Any], make: Callable[[], Tokenizer]
) -> Tokenizer | None:
    """Return the tokenizer where there is one to be had: token ids are generated without it too.

    A vocabulary that is there and cannot be read is said in a warning, because then there is no
    text, and no end-of-generation token is known.
    """
    if "tokenizer.ggml.model" not in metadata:
        return None
    try:
        return make()
    except FormatError as error:
        warnings.warn(f"[Model] no text and no end-of-generation tokens: {error}", stacklevel=4)
        return None
