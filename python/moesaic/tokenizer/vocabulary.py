"""The vocabulary in a GGUF file's metadata: tokens, types, scores, special ones.

Checks what the file says when it is made and reads the token strings only when somebody needs them:
a model loads without waiting for 163,840 strings. Not here: cutting text (pretokenizers.py) or
merging it (bpe.py, spm.py). Key names and token types: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from moesaic.errors import FormatError
from moesaic.tokenizer.pretokenizers import DEFAULT, PRE_TOKENIZERS, PreTokenizer

WHERE = "[Tokenizer]"
SUPPORTED_MODELS = ("gpt2", "llama", "gemma4")
_NO_TOKEN = 0xFFFFFFFF  # -1 in an unsigned key: "this model has none"

# Texts that end a turn or a text in the families known so far, whatever the file's keys say.
_EOG_TEXTS = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    ]
)
# These end a text only where the file marks them as more than ordinary words.
_EOG_TEXTS_IF_MARKED = frozenset(["</s>"])
_EOT_TEXTS = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
]
# Marks of fill-in-the-middle: control tokens, whatever type a converter gave them.
_FIM_TEXTS = [
    *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
    *("<|code_prefix|>", "<|prefix|>"),
    *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),
    *("<|code_suffix|>", "<|suffix|>"),
    *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),
    *("<|code_middle|>", "<|middle|>"),
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
]
_FIM_KEYS = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")
_OLD_FIM_KEYS = ("prefix", "suffix", "middle")
# Harmony (gpt-oss) writes a message's structure in control tokens that belong to the text people
# see.
_VISIBLE_TEXTS = frozenset(["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"])
_EOG_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


def suppressed_ids(metadata: Mapping[str, Any], size: int) -> frozenset[int]:
    """Ids below ``size`` that ``tokenizer.ggml.suppress_tokens`` lists."""
    listed = metadata.get("tokenizer.ggml.suppress_tokens")
    try:
        values = np.asarray([] if listed is None else listed)
    except (ValueError, TypeError):
        values = np.empty(0, dtype=object)
    if values.size and (values.ndim != 1 or values.dtype.kind not in "iu"):
        raise FormatError(
            f"{WHERE} tokenizer.ggml.suppress_tokens: got {values.dtype} {values.shape}, need "
            "integers (n,)"
        )
    return frozenset(i for i in values.tolist() if 0 <= i < size)


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary:
    """Tokens and what the metadata says about them.

    Parameters
    ----------
    metadata
        GGUF key -> value. Arrays of strings may be any sequence; a token that is not valid UTF-8
        may be ``bytes``.

    Raises
    ------
    FormatError
        A key is missing, has the wrong type or length, names a token that does not exist, or the
        vocabulary is of a kind that is not supported.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.model = self._text("tokenizer.ggml.model", required=True)
        if self.model not in SUPPORTED_MODELS:
            raise FormatError(
                f"{WHERE} tokenizer.ggml.model: got {self.model!r}, need one of"
                f" {', '.join(SUPPORTED_MODELS)} (byte-level BPE, SentencePiece BPE, Gemma 4);"
                " WordPiece (bert), unigram (t5) and RWKV vocabularies are not supported"
            )
        self.pre = self._text("tokenizer.ggml.pre", required=False)
        self._raw_tokens: Sequence[str | bytes] = self._array(
            "tokenizer.ggml.tokens", required=True
        )
        self.size = len(self._raw_tokens)
        if self.size == 0:
            raise FormatError(
                f"{WHERE} tokenizer.ggml.tokens: got an empty array, need at least one token"
            )
        self.types = self._numbers("tokenizer.ggml.token_type", np.int32, fill=TokenType.NORMAL)
        self.scores = self._numbers("tokenizer.ggml.scores", np.float32, fill=0.0)
        if self.model != "llama":
            self._array("tokenizer.ggml.merges", required=True)
        self._read_special_ids()
        self._read_flags()

    # -- reading keys ----------------------------------------------------------------------------

    def _text(self, key: str, *, required: bool) -> str:
        value = self._metadata.get(key)
        if value is None and not required:
            return ""
        if not isinstance(value, str):
            got = "nothing" if value is None else type(value).__name__
            raise FormatError(
                f"{WHERE} {key}: got {got}, need a string; the file has no usable tokenizer"
            )
        return value

    def _array(self, key: str, *, required: bool) -> Sequence[Any]:
        value = self._metadata.get(key)
        if value is None and not required:
            return ()
        if (
            isinstance(value, str | bytes)
            or not hasattr(value, "__len__")
            or not hasattr(value, "__getitem__")
        ):
            got = "nothing" if value is None else type(value).__name__
            raise FormatError(f"{WHERE} {key}: got {got}, need an array")
        return cast("Sequence[Any]", value)

    def _numbers(self, key: str, dtype: type, *, fill: float) -> npt.NDArray[Any]:
        """Read one number per token, shape (vocab,); ``fill`` where the file has no such key."""
        raw = self._array(key, required=False)
        if len(raw) == 0:
            return np.full(self.size, fill, dtype=dtype)
        try:
            values = np.asarray(raw)
        except (ValueError, TypeError):
            values = np.empty(0, dtype=object)
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise FormatError(f"{WHERE} {key}: got an array of {values.dtype}, need numbers")
        if len(values) < self.size:
            raise FormatError(
                f"{WHERE} {key}: got {len(values)} entries, need {self.size}, one per token"
            )
        return values[: self.size].astype(dtype)

    def _flag(self, name: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if value is None:
            return default
        if not isinstance(value, bool | int | np.bool_ | np.integer):
            raise FormatError(
                f"{WHERE} tokenizer.ggml.{name}: got {type(value).__name__}, need a boolean"
            )
        return bool(value)

    def _id(self, name: str, default: int | None = None, *, strict: bool = False) -> int | None:
        """Read a token id; ``None`` when the file names none."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self._metadata.get(key)
        if value is None:
            return default if default is not None and default < self.size else None
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise FormatError(f"{WHERE} {key}: got {type(value).__name__}, need an integer")
        if value in (-1, _NO_TOKEN):
            return None
        if not 0 <= int(value) < self.size:
            message = f"{WHERE} {key}: got {int(value)}, need an id below {self.size}"
            if strict:
                raise FormatError(message)
            warnings.warn(f"{message}; ignored", RuntimeWarning, stacklevel=4)
            return default if default is not None and default < self.size else None
        return int(value)

    # -- what the keys mean ----------------------------------------------------------------------

    def _read_special_ids(self) -> None:
        spm = self.model == "llama"
        # Byte-level files of 2023 (Falcon) name no ids and mean 11; believe it only of a control
        # token.
        old = (
            11
            if self.model == "gpt2" and self.size > 11 and int(self.types[11]) == TokenType.CONTROL
            else None
        )
        if self.pre in ("chatglm-bpe", "glm4", "glm5"):
            self.bos_id = self._id("bos", strict=True)
        else:
            self.bos_id = self._id("bos", 1 if spm else old, strict=True)
        self.eos_id = self._id("eos", 2 if spm else old, strict=True)
        self.unk_id = self._id("unknown", 0 if spm else None)
        self.pad_id = self._id("padding")

    def _read_flags(self) -> None:
        self.is_gemma4 = self.model == "gemma4" or self.pre in (
            "gemma4",
            "granite-embed-multi-311m",
        )
        self.raw_text = self.is_gemma4 or self.pre == "sarvam-moe"  # BPE over text, not over bytes
        self.is_byte_level = self.model == "gpt2" and not self.raw_text
        self.pre_tokenizer = self._choose_pre_tokenizer() if self.is_byte_level else DEFAULT
        self.add_bos = self._flag(
            "add_bos_token", self.model == "llama" or self.pre_tokenizer.add_bos
        )
        if self.is_gemma4:  # published files say false, the model was trained with it
            self.add_bos = True
        self.add_eos = self._flag("add_eos_token", False)
        self.add_space_prefix = self.model == "llama" and self._flag("add_space_prefix", True)
        self.escapes_spaces = self.model == "llama" or self.raw_text

    def _choose_pre_tokenizer(self) -> PreTokenizer:
        found = PRE_TOKENIZERS.get(self.pre)
        if found is not None:
            return found
        got = f"got {self.pre!r}, which is not known here" if self.pre else "the file has none"
        warnings.warn(
            f"{WHERE} tokenizer.ggml.pre: {got}; text is cut by the 'default' rule and may give"
            " other tokens than the model was trained on."
            f" Known: {', '.join(sorted(PRE_TOKENIZERS))}",
            RuntimeWarning,
            stacklevel=6,
        )
        return DEFAULT

    # -- token strings, read when needed ---------------------------------------------------------

    @cached_property
    def tokens(self) -> list[str]:
        """Token texts as stored, by id; bytes that are not UTF-8 become lone surrogates."""
        tokens = list(self._raw_tokens)
        for i, token in enumerate(tokens):
            if not isinstance(token, str):
                if not isinstance(token, bytes):
                    raise FormatError(
                        f"{WHERE} tokenizer.ggml.tokens[{i}]: got {type(token).__name__},"
                        " need a string"
                    )
                tokens[i] = token.decode("utf-8", "surrogateescape")
        return tokens  # type: ignore[return-value]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token text -> id; of two equal tokens the last counts."""
        return {token: i for i, token in enumerate(self.tokens) if token}

    def merges(self) -> list[tuple[str, str]]:
        """Pairs in order of rank; of two equal ones the first."""
        raw = list(self._array("tokenizer.ggml.merges", required=True))
        pairs: list[tuple[str, str]] = []
        for merge in raw if len(set(raw)) == len(raw) else dict.fromkeys(raw):
            if isinstance(merge, str):  # else bytes that are not UTF-8: no text can contain them
                left, _, right = merge.partition(" ")
                if not left:  # a part may itself begin with a blank
                    left, _, right = merge[1:].partition(" ")
                    left = " " + left
                pairs.append((left, right))
        return pairs

    @cached_property
    def eot_id(self) -> int | None:
        """End of turn: by key, else by the first known text."""
        by_key = self._id("eot")
        if by_key is not None:
            return by_key
        return next((self.ids[t] for t in _EOT_TEXTS if t in self.ids), None)

    @cached_property
    def eog_ids(self) -> frozenset[int]:
        """Every token that ends a generation."""
        found = {self._id(name) for name in _EOG_KEYS} | {self.eos_id, self.eot_id}
        found |= {self.ids[t] for t in _EOG_TEXTS if t in self.ids}
        found |= {
            self.ids[t]
            for t in _EOG_TEXTS_IF_MARKED
            if t in self.ids and int(self.types[self.ids[t]]) != TokenType.NORMAL
        }
        texts = {self.tokens[i]: i for i in found if i is not None}
        # Harmony and Solar close every message with <|end|>; the turn goes on until one of the
        # others.
        if ("<|return|>" in texts and "<|call|>" in texts) or (
            "<|calls|>" in texts and "<|flush|>" in texts
        ):
            texts.pop("<|end|>", None)
        if "<|tool_response>" in texts:  # Gemma 4, where </s> is an ordinary tag
            texts.pop("</s>", None)
        return frozenset(texts.values())

    @cached_property
    def _fim_ids(self) -> frozenset[int]:
        """Tokens of fill-in-the-middle, by key or by known texts, ordinary words left out."""
        named = {self._id(name) for name in (*_FIM_KEYS, *_OLD_FIM_KEYS)} - {None}
        texts = {self.ids[t] for t in _FIM_TEXTS if t in self.ids}
        marked = {i for i in texts if int(self.types[i]) != TokenType.NORMAL}
        return frozenset(marked | {i for i in named if i is not None})

    @cached_property
    def suppress_ids(self) -> frozenset[int]:
        """Tokens that must never be sampled; ids that do not exist are left out."""
        return suppressed_ids(self._metadata, self.size)

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Tokens that are no text for a reader: control, unknown and unused ones."""
        kinds = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED)
        marked = set(np.flatnonzero(np.isin(self.types, kinds)).tolist())
        shown = {self.ids[t] for t in _VISIBLE_TEXTS if t in self.ids}
        if shown and "<|end|>" in self.ids:
            shown.add(self.ids["<|end|>"])
        return frozenset((marked | self.eog_ids | self._fim_ids) - shown)

    @cached_property
    def special_texts(self) -> dict[str, int]:
        """Control and unknown tokens, and all that end a text: recognised only when asked for."""
        kinds = (TokenType.CONTROL, TokenType.UNKNOWN)
        marked = set(np.flatnonzero(np.isin(self.types, kinds)).tolist())
        marked |= self.eog_ids | self._fim_ids
        return {self.tokens[i]: i for i in sorted(marked) if self.tokens[i]}

    @cached_property
    def user_defined_texts(self) -> dict[str, int]:
        """Tokens that are cut out of every text before anything else."""
        marked = set(np.flatnonzero(self.types == TokenType.USER_DEFINED).tolist())
        marked -= self.eog_ids | self._fim_ids
        return {self.tokens[i]: i for i in sorted(marked) if self.tokens[i]}

    @cached_property
    def right_strip_ids(self) -> frozenset[int]:
        """Tokens that swallow the white space behind them (Phi-3)."""
        name = str(self._metadata.get("general.name", "")).lower()
        if "phi-3" not in name and "phi3" not in name:
            return frozenset()
        texts = {**self.special_texts, **self.user_defined_texts}
        return frozenset(i for t, i in texts.items() if t not in ("<unk>", "<s>", "<|endoftext|>"))
