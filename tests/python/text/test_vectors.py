"""The tokenizer against llama.cpp's ids for real vocabularies, and the word rules against a second
regex engine."""

from __future__ import annotations

import unicodedata
import warnings
from functools import cache

import pytest
from text_goldens import VOCABULARIES, expand, load

from moesaic.tokenizer import Tokenizer
from moesaic.tokenizer.bpe import BYTE_OF_CHAR, word_splitter
from moesaic.tokenizer.pretokenizers import PRE_TOKENIZERS

SPLITS = load("splits")


@cache
def tokenizer_of(name: str) -> Tokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # two old files name no word rule
        return Tokenizer.from_metadata(expand(load(name)))


def changes_text(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the model's own tokenizer composes the text first, which llama.cpp does not."""
    return tokenizer._vocabulary.pre_tokenizer.nfc and not unicodedata.is_normalized("NFC", text)


def test_there_are_vocabularies() -> None:
    assert len(VOCABULARIES) >= 14


@pytest.mark.parametrize("vocabulary_name", VOCABULARIES)
def test_ids_are_those_of_llama_cpp(vocabulary_name: str) -> None:
    tokenizer = tokenizer_of(vocabulary_name)
    vectors = load(vocabulary_name)["vectors"]
    assert len(vectors) >= 30
    for v in vectors:
        if changes_text(tokenizer, v["text"]):
            continue
        ids = tokenizer.encode(v["text"], v["special"], v["special"])
        assert ids.tolist() == v["ids"], (v["text"], v["special"])


@pytest.mark.parametrize("vocabulary_name", VOCABULARIES)
def test_text_comes_back(vocabulary_name: str) -> None:
    tokenizer = tokenizer_of(vocabulary_name)
    for v in load(vocabulary_name)["vectors"]:
        if v["special"] or changes_text(tokenizer, v["text"]):
            continue
        if vocabulary_name == "falcon" and "\x0b" in v["text"]:
            continue  # its vocabulary has no token for that byte
        if (
            "\u2581" in v["text"]
            and load(vocabulary_name)["keys"]["tokenizer.ggml.model"] != "gpt2"
        ):
            continue  # SentencePiece writes blanks so and cannot tell them apart
        assert tokenizer.decode(tokenizer.encode(v["text"])) == v["text"]


@pytest.mark.parametrize("vocabulary_name", VOCABULARIES)
def test_streamed_text_is_decoded_text(vocabulary_name: str) -> None:
    tokenizer = tokenizer_of(vocabulary_name)
    for v in load(vocabulary_name)["vectors"]:
        for skip_special in (True, False):
            decoder = tokenizer.stream_decoder(skip_special=skip_special)
            parts = [decoder.feed(i) for i in v["ids"]] + [decoder.flush()]
            assert "".join(parts) == tokenizer.decode(v["ids"], skip_special=skip_special)


@pytest.mark.parametrize("pre", sorted(SPLITS["splits"]))
def test_words_are_those_of_the_published_pattern(pre: str) -> None:
    splitter = word_splitter(PRE_TOKENIZERS[pre])
    for text, expected in zip(SPLITS["texts"], SPLITS["splits"][pre], strict=True):
        pieces = [
            bytes(BYTE_OF_CHAR[c] for c in p).decode() for p, _ in splitter.pre_tokenize_str(text)
        ]
        assert pieces == expected


def test_kimi_cuts_where_case_and_script_change() -> None:
    """What llama.cpp's hand-written rule does not do, and the published pattern does."""
    splitter = word_splitter(PRE_TOKENIZERS["kimi-k2"])
    words = [
        bytes(BYTE_OF_CHAR[c] for c in p).decode()
        for p, _ in splitter.pre_tokenize_str("camelCase 中文abc")
    ]
    assert words == ["camel", "Case", " ", "中文", "abc"]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_word_rule_keeps_the_text(pre: str) -> None:
    splitter = word_splitter(PRE_TOKENIZERS[pre])
    for text in SPLITS["texts"]:
        words = [p for p, _ in splitter.pre_tokenize_str(text)]
        assert bytes(BYTE_OF_CHAR[c] for w in words for c in w).decode() == text
