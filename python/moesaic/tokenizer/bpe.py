"""Byte-pair merging by rank, run by the ``tokenizers`` library (Rust).

Byte-level BPE and Gemma 4's BPE over text. Takes plain text without special tokens. Not here:
special tokens, SentencePiece scores (spm.py), detokenizing.
"""

from __future__ import annotations

import re

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from moesaic.errors import FormatError
from moesaic.tokenizer.pretokenizers import PreTokenizer
from moesaic.tokenizer.vocabulary import WHERE, Vocabulary

# Longer texts go through the library's batch call, which lets other Python threads run meanwhile.
# Short ones do not: that call starts a thread pool, which a process that only chats need not have.
_LONG_TEXT = 16384
_NEWLINES = re.compile("(\n+)")

# GPT-2's printable stand-ins for bytes: bytes that print stand for themselves, the others for
# U+0100 onwards.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF_CHAR: dict[str, int] = {chr(b): b for b in _PRINTABLE} | {
    chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in set(_PRINTABLE))
}


def byte_level_piece(token: str) -> bytes:
    """The bytes a byte-level token stands for; outside GPT-2's alphabet, those of its text."""
    try:
        return bytes([BYTE_OF_CHAR[c] for c in token])
    except KeyError:
        return token.encode("utf-8", "surrogateescape")


def _is_text(token: str) -> bool:
    """Whether the library can take it: bytes that are not UTF-8 stand here as lone surrogates."""
    try:
        token.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def word_splitter(rule: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """What cuts text into words by ``rule`` and writes them in GPT-2's alphabet."""
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


class BpeEngine:
    """Merges by rank.

    Parameters
    ----------
    vocabulary
        One whose ``model`` is ``gpt2`` or ``gemma4``.

    Notes
    -----
    Control and unknown tokens take no part: plain text cannot become one, whatever it spells.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids = dict(vocabulary.ids)
        for token in vocabulary.special_texts:
            ids.pop(token, None)
        if not _is_text("".join(ids)):
            ids = {t: i for t, i in ids.items() if _is_text(t)}
        self._ids = ids
        self._raw_text = vocabulary.raw_text
        self._rule = vocabulary.pre_tokenizer
        self._tokenizer = tokenizers.Tokenizer(self._build(ids, vocabulary.merges()))
        if not self._raw_text:
            self._tokenizer.pre_tokenizer = word_splitter(self._rule)

    def _build(self, ids: dict[str, int], merges: list[tuple[str, str]]) -> models.BPE:
        def build(pairs: list[tuple[str, str]]) -> models.BPE:
            return models.BPE(
                vocab=ids,
                merges=pairs,
                byte_fallback=self._raw_text,
                ignore_merges=self._rule.ignore_merges and not self._raw_text,
            )

        try:
            return build(merges)
        except Exception:  # the library's errors have no common class
            known = [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]
        try:
            return build(known)
        except Exception as error:
            raise FormatError(f"{WHERE} tokenizer.ggml.merges: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return self._encode_raw(text) if self._raw_text else self._run(text)

    def _encode_raw(self, text: str) -> list[int]:
        """Gemma 4: blanks become U+2581; a run of newlines is a word, whole if it is a token."""
        ids: list[int] = []
        for part in _NEWLINES.split(text.replace(" ", "\u2581")):
            if not part:
                continue
            whole = self._ids.get(part) if part[0] == "\n" else None
            ids += [whole] if whole is not None else self._run(part)
        return ids

    def _run(self, text: str) -> list[int]:
        if len(text) < _LONG_TEXT:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
