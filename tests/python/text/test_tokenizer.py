"""The tokenizer's rules on small vocabularies made here, its properties on any text, and its
refusals."""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_goldens import VOCABULARIES, expand, load

from moesaic.errors import ArgumentError, FormatError
from moesaic.rendered import RenderedChat
from moesaic.tokenizer import Tokenizer
from moesaic.tokenizer.bpe import BYTE_OF_CHAR
from moesaic.tokenizer.special import SpecialSplitter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
CHAR_OF_BYTE = {b: c for c, b in BYTE_OF_CHAR.items()}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
BYTE_LEVEL = [n for n in VOCABULARIES if load(n)["keys"]["tokenizer.ggml.model"] == "gpt2"]
SPM = [n for n in VOCABULARIES if load(n)["keys"]["tokenizer.ggml.model"] == "llama"]


class LazyStrings(Sequence[str]):
    """Strings that are read one by one, as the file reader gives them."""

    def __init__(self, strings: list[str]) -> None:
        self._strings = strings

    def __len__(self) -> int:
        return len(self._strings)

    def __getitem__(self, i: Any) -> Any:
        return self._strings[i]


def byte_level(
    extra: list[tuple[str, int]] = (), merges: Sequence[str] = (), **keys: Any
) -> dict[str, Any]:  # type: ignore[assignment]
    """A byte-level vocabulary: ids 0 to 255 are the bytes in order, then ``extra`` as (token,
    type)."""
    tokens = [CHAR_OF_BYTE[b] for b in range(256)] + [t for t, _ in extra]
    types = [NORMAL] * 256 + [k for _, k in extra]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": LazyStrings(tokens),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": LazyStrings(list(merges)),
        **{f"tokenizer.ggml.{k}": v for k, v in keys.items()},
    }


def spm(
    pieces: list[tuple[str, float]], extra: list[tuple[str, int]] = (), **keys: Any
) -> dict[str, Any]:  # type: ignore[assignment]
    """A SentencePiece vocabulary: <unk> <s> </s>, 256 bytes (id 3 is byte 0), ``pieces`` from 259
    on, ``extra``."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    types = (
        [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces) + [k for _, k in extra]
    )
    scores = [0.0] * 259 + [s for _, s in pieces] + [0.0] * len(extra)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + [t for t, _ in pieces] + [t for t, _ in extra],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        **{f"tokenizer.ggml.{k}": v for k, v in keys.items()},
    }


def spm_by_definition(text: str, scores: dict[str, float]) -> list[str]:
    """Merge the best pair, the leftmost of equals, until none is left. Quadratic, and nothing to
    get wrong."""
    parts = list(text)
    while True:
        best = max(
            ((scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores),
            default=None,
        )
        if best is None:
            return parts
        i = -best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


# -- byte-level BPE ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(max_examples=30, deadline=None)
@given(text=TEXT)
def test_any_text_comes_back(name: str, text: str) -> None:
    tokenizer = cached(name)
    # Falcon, StarCoder and Refact have no token for some bytes that their training never met.
    lacking = {b for b, c in CHAR_OF_BYTE.items() if tokenizer.token_to_id(c) is None}
    text = "".join(c for c in text if lacking.isdisjoint(c.encode()))
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    composed = tokenizer._vocabulary.pre_tokenizer.nfc
    text = unicodedata.normalize("NFC", text) if composed else text
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


_cache: dict[str, Tokenizer] = {}


def cached(name: str) -> Tokenizer:
    if name not in _cache:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            _cache[name] = Tokenizer.from_metadata(expand(load(name)))
    return _cache[name]


def test_merges_go_by_rank() -> None:
    extra = [("ab", NORMAL), ("bc", NORMAL), ("abc", NORMAL)]
    first = Tokenizer.from_metadata(byte_level(extra, ["b c", "a b", "a bc"]))
    assert first.encode("abc").tolist() == [258]
    second = Tokenizer.from_metadata(byte_level(extra, ["a b", "b c", "a bc"]))
    assert second.encode("abc").tolist() == [256, ord("c")]


def test_merge_of_unknown_tokens_is_left_out() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level([("ab", NORMAL)], ["x y", "a b", "a b"]))
    assert tokenizer.encode("xyab").tolist() == [ord("x"), ord("y"), 256]


def test_ignore_merges_takes_a_whole_word() -> None:
    keys = byte_level([("hey", NORMAL)])
    assert Tokenizer.from_metadata(keys).encode("hey").tolist() == [ord(c) for c in "hey"]
    keys["tokenizer.ggml.pre"] = "llama-bpe"
    assert Tokenizer.from_metadata(keys).encode("hey", add_special=False).tolist() == [256]


def test_plain_text_never_becomes_a_control_token() -> None:
    extra = [("<|x|>", CONTROL), ("hey", CONTROL), ("<u>", USER_DEFINED)]
    tokenizer = Tokenizer.from_metadata(byte_level(extra, pre="llama-bpe"))
    assert tokenizer.encode("<|x|>hey", add_special=False).tolist() == [ord(c) for c in "<|x|>hey"]
    assert tokenizer.encode("<|x|>hey", False, True).tolist() == [256, 257]
    assert tokenizer.encode("a<u>b", False).tolist() == [ord("a"), 258, ord("b")]
    assert tokenizer.decode([256, ord("a"), 258]) == "a<u>"
    assert tokenizer.decode([256, ord("a"), 258], skip_special=False) == "<|x|>a<u>"
    assert (
        tokenizer.is_special(256) and not tokenizer.is_special(258) and not tokenizer.is_special(0)
    )


def test_bos_and_eos_follow_the_keys() -> None:
    extra = [("<s>", CONTROL), ("</s>", CONTROL)]
    ids = {"bos_token_id": 256, "eos_token_id": 257}
    assert Tokenizer.from_metadata(byte_level(extra, **ids)).encode("a").tolist() == [97]
    both = Tokenizer.from_metadata(byte_level(extra, **ids, add_bos_token=True, add_eos_token=True))
    assert both.encode("a").tolist() == [256, 97, 257]
    assert both.encode("a", add_special=False).tolist() == [97]
    assert both.encode("").tolist() == [256, 257]
    assert both.decode(both.encode("a")) == "a"
    none = Tokenizer.from_metadata(byte_level(add_bos_token=True))
    assert none.encode("a").tolist() == [97] and none.bos_id is None


@pytest.mark.parametrize("pre", ["", "no-such-rule"])
def test_unknown_word_rule_warns_by_name(pre: str) -> None:
    with pytest.warns(RuntimeWarning, match=repr(pre) if pre else "the file has none"):
        tokenizer = Tokenizer.from_metadata(byte_level(pre=pre))
    assert tokenizer.decode(tokenizer.encode("Hello, 1234 world!")) == "Hello, 1234 world!"


def test_long_texts_take_the_other_path() -> None:
    tokenizer = cached("gpt-2")
    text = "The cat's 12 hats. " * 2000
    short = tokenizer.encode(text[:1900])
    assert tokenizer.encode(text)[: len(short) - 8].tolist() == short[:-8].tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("char", ["a", "A", " ", "\n", "中", "'", "1", "aA", "\u0301", "!"])
def test_monotonous_texts_are_no_trap(char: str) -> None:
    for name in ("llama-bpe", "llama-spm", "gemma-4"):
        tokenizer = cached(name)
        text = char * 20000 if name == "llama-bpe" else char * 4000
        assert tokenizer.decode(tokenizer.encode(text)) == text


# -- SentencePiece -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPM)
@settings(max_examples=30, deadline=None)
@given(text=TEXT)
def test_any_text_comes_back_from_sentencepiece(name: str, text: str) -> None:
    text = text.replace("\u2581", "_")
    tokenizer = cached(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.dictionaries(
        st.text("ab\u2581", min_size=2, max_size=5), st.integers(-4, 4), max_size=25
    ),
    text=st.text("ab c", max_size=24),
)
def test_sentencepiece_merges_as_defined(pieces: dict[str, int], text: str) -> None:
    """Few letters and few scores: ties of every kind."""
    singles = {"a": 0.0, "b": 0.0, "\u2581": 0.0}
    metadata = spm(
        [*singles.items(), *((p, float(s)) for p, s in pieces.items())], add_space_prefix=False
    )
    tokenizer = Tokenizer.from_metadata(metadata)
    expected: list[int] = []
    for part in spm_by_definition(
        text.replace(" ", "\u2581"), {p: float(s) for p, s in pieces.items()}
    ):
        found = tokenizer.token_to_id(part)
        expected += [3 + b for b in part.encode()] if found is None else [found]
    assert tokenizer.encode(text, add_special=False).tolist() == expected


def test_sentencepiece_leading_blank() -> None:
    pieces = [("\u2581", 0.0), ("a", 0.0), ("\u2581a", 1.0), ("é", 0.0)]
    tokenizer = Tokenizer.from_metadata(spm(pieces))
    blank_a, a = 261, 260
    assert tokenizer.encode("a").tolist() == [1, blank_a]
    assert tokenizer.encode("a</s>a", False, True).tolist() == [blank_a, 2, blank_a]
    assert tokenizer.decode([1, blank_a, a]) == "aa"
    assert tokenizer.decode([blank_a], continuation=True) == " a"
    without = Tokenizer.from_metadata(spm(pieces, add_space_prefix=False))
    assert without.encode("a", False).tolist() == [a]
    assert without.decode([blank_a]) == " a"


def test_sentencepiece_writes_unknown_characters_as_bytes() -> None:
    tokenizer = Tokenizer.from_metadata(spm([("\u2581", 0.0)], add_space_prefix=False))
    assert tokenizer.encode("é", False).tolist() == [3 + 0xC3, 3 + 0xA9]
    assert tokenizer.id_to_piece(3 + 0xC3) == b"\xc3"
    assert tokenizer.decode([3 + 0xC3]) == "\ufffd"


def test_sentencepiece_text_cannot_spell_control_or_byte_tokens() -> None:
    letters = sorted(set("<s>/0xFk\u2581un"))
    steps = ["<s", "<0", "<0x", "<0xF", "<0xFF", "</", "</s", "<u", "<un", "<unk"]
    tokenizer = Tokenizer.from_metadata(
        spm([(t, 1.0) for t in [*letters, *steps]], add_space_prefix=False)
    )
    for text in ("<s>", "</s>", "<0xFF>", "<unk>"):
        ids = tokenizer.encode(text, False).tolist()
        assert tokenizer.token_to_id(text) not in ids and tokenizer.decode(ids) == text


def test_phi3_tokens_swallow_white_space() -> None:
    metadata = spm([("\u2581", 0.0), ("a", 0.0)], [("<|user|>", CONTROL)], add_space_prefix=False)
    metadata["general.name"] = "Phi3"
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("<|user|> \n a", False, True).tolist() == [261, 260]
    assert tokenizer.encode("<s> a", False, True).tolist() == [1, 259, 260]


# -- special tokens ------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text("ab|", min_size=1, max_size=4), max_size=8, unique=True),
    text=st.text("ab|c"),
)
def test_splitter_takes_the_longest_at_each_place(texts: list[str], text: str) -> None:
    ids = {t: i for i, t in enumerate(texts)}
    expected: list[str | int] = []
    i = begin = 0
    while i < len(text):
        found = max((t for t in texts if text.startswith(t, i)), key=len, default=None)
        if found is None:
            i += 1
            continue
        expected += ([text[begin:i]] if begin < i else []) + [ids[found]]
        i = begin = i + len(found)
    expected += [text[begin:]] if begin < len(text) else []
    assert list(SpecialSplitter(ids).split(text)) == expected


def test_end_of_generation() -> None:
    extra = [
        ("<|im_end|>", CONTROL),
        ("<|endoftext|>", CONTROL),
        ("[EOT]", CONTROL),
        ("</s>", NORMAL),
        ("q", CONTROL),
    ]
    tokenizer = Tokenizer.from_metadata(byte_level(extra, eos_token_id=260))
    assert tokenizer.eog_ids == {256, 257, 258, 260}
    assert tokenizer.eot_id == 256 and tokenizer.eos_id == 260
    marked = Tokenizer.from_metadata(byte_level([("</s>", USER_DEFINED)]))
    assert marked.eog_ids == {256}
    assert marked.encode("</s>").tolist() == [ord(c) for c in "</s>"]  # words cannot end a text
    by_key = Tokenizer.from_metadata(
        byte_level(extra, eos_token_id=260, eot_token_id=97, eom_token_id=98)
    )
    assert by_key.eot_id == 97 and {97, 98} <= by_key.eog_ids


def test_harmony_goes_on_after_a_message() -> None:
    names = ["<|return|>", "<|call|>", "<|end|>", "<|channel|>", "<|message|>", "<|start|>"]
    tokenizer = Tokenizer.from_metadata(byte_level([(n, CONTROL) for n in names], eos_token_id=256))
    assert tokenizer.eog_ids == {256, 257}
    assert tokenizer.decode([259, 97, 260, 98, 258, 256]) == "<|channel|>a<|message|>b<|end|>"
    assert tokenizer.encode("<|end|>").tolist() == [ord(c) for c in "<|end|>"]
    phi = Tokenizer.from_metadata(byte_level([("<|end|>", CONTROL)]))
    assert phi.eog_ids == {256} and phi.eot_id == 256


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model": "bert"}, "gpt2, llama, gemma4"),
        ({"model": None}, "got nothing"),
        ({"model": 3}, "got int"),
        ({"tokens": None}, "tokens: got nothing"),
        ({"tokens": []}, "empty"),
        ({"tokens": "abc"}, "got str"),
        ({"token_type": [1]}, "got 1 entries, need 256"),
        ({"token_type": ["a"] * 256}, "need numbers"),
        ({"merges": None}, "merges: got nothing"),
        ({"bos_token_id": 256}, "bos_token_id: got 256"),
        ({"eos_token_id": "2"}, "eos_token_id: got str"),
        ({"add_bos_token": "yes"}, "add_bos_token: got str"),
    ],
)
def test_broken_metadata_is_refused(change: dict[str, Any], part: str) -> None:
    metadata = byte_level()
    for key, value in change.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(FormatError, match=part.replace("(", r"\(")):
        Tokenizer.from_metadata({k: v for k, v in metadata.items() if v is not None})


def test_other_kinds_of_vocabulary_are_refused_by_name() -> None:
    for model in ("bert", "t5", "rwkv", "plamo2", "none"):
        with pytest.raises(FormatError, match=f"{model}.*byte-level BPE"):
            Tokenizer.from_metadata({"tokenizer.ggml.model": model})


def test_padding_outside_the_vocabulary_is_ignored_aloud() -> None:
    with pytest.warns(RuntimeWarning, match="padding_token_id: got 300"):
        tokenizer = Tokenizer.from_metadata(byte_level(padding_token_id=300))
    assert tokenizer.pad_id is None
    assert Tokenizer.from_metadata(byte_level(padding_token_id=0xFFFFFFFF)).pad_id is None


def test_bytes_that_are_not_text_are_kept() -> None:
    metadata = byte_level([("x", NORMAL)])
    tokens: list[Any] = list(metadata["tokenizer.ggml.tokens"])
    tokens[256] = b"\xff\xfe"
    metadata["tokenizer.ggml.tokens"] = tokens
    metadata["tokenizer.ggml.merges"] = [b"\xff \xfe", "a b"]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("ab").tolist() == [97, 98]
    assert tokenizer.id_to_piece(256) == b"\xff\xfe"
    assert tokenizer.id_to_token(256) == "\ufffd\ufffd"
    json.dumps(tokenizer.id_to_token(256)).encode()


def test_wrong_arguments_are_refused() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level())
    for text in (b"a", 3, None, ["a"]):
        with pytest.raises(ArgumentError, match="text: got"):
            tokenizer.encode(text)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="lone surrogate at index 1"):
        tokenizer.encode("a\ud800")
    for ids in ([1.5], [[1]], "abc", np.zeros((2, 2), np.int32), [None]):
        with pytest.raises(ArgumentError, match="need integers"):
            tokenizer.decode(ids)  # type: ignore[arg-type]
    for ids in ([256], [-1], [2**40]):
        with pytest.raises(ArgumentError, match="need 0 to 255"):
            tokenizer.decode(ids)
    with pytest.raises(ArgumentError, match="need an integer"):
        tokenizer.id_to_piece("a")  # type: ignore[arg-type]
    assert tokenizer.decode([]) == "" and tokenizer.encode("").tolist() == []


def test_nothing_is_built_before_it_is_needed() -> None:
    class Untouchable(LazyStrings):
        def __getitem__(self, i: Any) -> Any:
            raise AssertionError("read too early")

    metadata = byte_level()
    metadata["tokenizer.ggml.tokens"] = Untouchable(["a"] * 163840)
    metadata["tokenizer.ggml.merges"] = Untouchable(["a b"] * 163328)
    metadata["tokenizer.ggml.token_type"] = np.ones(163840, np.int32)
    assert Tokenizer.from_metadata(metadata).vocab_size == 163840


# -- composed text, fill-in-the-middle, suppressed tokens, prompts --------------------------------


@pytest.mark.parametrize(
    ("pre", "composes"),
    [
        ("qwen2", True),
        ("qwen35", True),
        ("command-r", True),
        ("llama-bpe", False),
        ("gpt-2", False),
    ],
)
def test_text_is_composed_where_the_models_tokenizer_does(pre: str, composes: bool) -> None:
    tokenizer = Tokenizer.from_metadata({**byte_level(), "tokenizer.ggml.pre": pre})
    for text in ("\u1112\u1161\u11ab\u1100\u1173\u11af", "e\u0301a\u0308", "A\u030angstro\u0308m"):
        composed = unicodedata.normalize("NFC", text)
        assert text != composed
        same = tokenizer.encode(text).tolist() == tokenizer.encode(composed).tolist()
        assert same is composes
        assert tokenizer.decode(tokenizer.encode(text)) == (composed if composes else text)


@pytest.mark.parametrize(
    "text", ["<｜fim▁begin｜>", "<|fim_middle|>", "<fim_suffix>", "<|file_sep|>"]
)
def test_marks_of_the_middle_are_control_tokens(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(
        byte_level([(text, USER_DEFINED), ("<tool>", USER_DEFINED)], add_bos_token=False)
    )
    plain = tokenizer.encode(text).tolist()
    assert 256 not in plain and tokenizer.decode(plain) == text
    assert tokenizer.encode(text, parse_special=True).tolist() == [256]
    assert tokenizer.encode("<tool>").tolist() == [257]  # others of that type are always cut out
    assert tokenizer.is_special(256) and tokenizer.decode([256]) == ""


def test_marks_of_the_middle_by_key() -> None:
    extra = [("<before>", USER_DEFINED), ("<after>", NORMAL)]
    keys = {"fim_pre_token_id": 256, "suffix_token_id": 257, "add_bos_token": False}
    tokenizer = Tokenizer.from_metadata(byte_level(extra, **keys))
    assert not {256, 257} & set(tokenizer.encode("<before><after>").tolist())
    assert tokenizer.encode("<before><after>", parse_special=True).tolist() == [256, 257]


def test_suppressed_tokens() -> None:
    keys = {"suppress_tokens": np.array([3, 5, -1, 99999], np.int32)}
    assert Tokenizer.from_metadata(byte_level(**keys)).suppress_ids == {3, 5}
    assert Tokenizer.from_metadata(byte_level()).suppress_ids == frozenset()
    with pytest.raises(FormatError, match="suppress_tokens"):
        _ = Tokenizer.from_metadata(byte_level(suppress_tokens=["x"])).suppress_ids


def test_a_prompt_begins_once_and_does_not_end() -> None:
    extra = [("<s>", CONTROL), ("</s>", CONTROL)]
    keys = {"bos_token_id": 256, "eos_token_id": 257, "add_bos_token": True, "add_eos_token": True}
    tokenizer = Tokenizer.from_metadata(byte_level(extra, **keys))
    assert tokenizer.encode("a").tolist() == [256, 97, 257]
    assert tokenizer.encode_prompt("a").tolist() == [256, 97]
    assert tokenizer.encode_prompt("<s>a").tolist() == [256, 97]
    assert tokenizer.encode_prompt("<s><s>a</s>").tolist() == [256, 256, 97, 257]  # as written
    assert tokenizer.encode_prompt("").tolist() == [256]
    assert tokenizer.encode_prompt("a", begin=False).tolist() == [97]
    literal = RenderedChat("<s>a</s>b<s>", {9})
    assert tokenizer.encode_prompt(literal).tolist() == [256, 97, 257, 98, 60, 115, 62]


def test_spelled_control_tokens_are_found() -> None:
    extra = [("<s>", CONTROL), ("<<s>", CONTROL), ("<think>", USER_DEFINED)]
    tokenizer = Tokenizer.from_metadata(byte_level(extra, add_bos_token=False))
    assert tokenizer.find_control("a<<s>b<s><think>") == [1, 2, 6]
    literal = RenderedChat("<<s><think>", {0, 1})
    assert tokenizer.encode_prompt(literal).tolist() == [60, 60, 115, 62, 258]
