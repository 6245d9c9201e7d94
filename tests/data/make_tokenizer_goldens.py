"""Makes tests/data/tokenizer/*.json.gz from the vocabulary-only GGUF files inside
llama-cpp-python's source package.

Needs: that source tree, the `gguf` and `regex` packages, moesaic itself, and, for `--llama-cpp`,
llama-cpp-python.

    python tests/data/make_tokenizer_goldens.py VENDOR/llama.cpp/models [--llama-cpp] [--gguf
    MORE.gguf ...]

Per vocabulary it (1) holds the tokenizer against every `.inp`/`.out` vector on the FULL vocabulary
and prints passed / total, (2) with `--llama-cpp` asks llama.cpp itself for further texts, with and
without special tokens, (3) writes a REDUCED vocabulary with those vectors. A vector comes from
llama.cpp, never from moesaic.

Why a reduced vocabulary gives the same ids: every state of merging is a cut of one text into
adjacent parts, and every merge makes a part longer; so a token or merge whose result is no
substring of any text can never take part. All others are kept, in their order, with their ids; so
are all single bytes, and special tokens that occur in a text or are few.
"""

# ruff: noqa: E501 (templates and patterns read better whole)

from __future__ import annotations

import argparse
import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import regex
from gguf import GGUFReader

from moesaic.errors import MoesaicError
from moesaic.tokenizer import Tokenizer
from moesaic.tokenizer.bpe import BYTE_OF_CHAR

OUT = Path(__file__).parent / "tokenizer"
CHAR_OF_BYTE = {b: c for c, b in BYTE_OF_CHAR.items()}
SEPARATOR = "\n__ggml_vocab_test__\n"
KEPT_KEYS = ("general.name", "general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
MANY_SPECIALS = 300

TEXTS = [
    "The quick brown fox, 3.14159 and 2024-12-31; isn't it? I'D SAY WE'RE FINE, they'Ve gone.",
    "def f(x: int) -> dict[str, int]:\n\treturn {'a': x ** 2}  # ok\n\n\n    if not x:\r\n        pass\r\n",
    "camelCaseWord XMLHttpRequest snake_case SCREAMING_CASE iPhone15ProMax",
    "Größe Ångström façade naïve œuvre e\u0301cole A\u030angstro\u0308m ﬁne ǅ ʼn ſ'ſ",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก",
    "你好，世界！我在2024年買了3個蘋果。日本語とカタカナと漢字、한국어도 됩니다。",
    "👩‍👩‍👧‍👦 🇩🇪🏳️‍🌈 👍🏽 1️⃣ ☺️ 😀😀",
    " leading, trailing  and   inner    spaces     \t\ttabs\u00a0nbsp\u2003em\u3000ideographic\u200bzero ",
    "\n",
    "\n\n",
    "\r\n\r\n",
    "\n \n  \n\t\n",
    " \n",
    "\n a",
    "   a   \n   b",
    "\u2028\u2029\x85\x0b\x0c",
    "=" * 40 + "-" * 17 + "." * 33 + " " * 70 + "x" + "\n" * 40 + "a" * 99 + "aba" * 20 + "▁▁ ▁",
    "1234567890 12 345 6789 ½ ⅔ Ⅷ ١٢٣ ५६ ²³ 1,234,567.89 0x1F 1e-9",
    "<b>x</b> &amp; [link](http://example.org/?q=1&r=2#frag) user@example.org C:\\path\\to $HOME `code`",
    "\x00\x01\x7f\ufffd\ufeff\U0010ffff\U000e0041 private \ue000",
    "don't DON'T donʼt don’t 'tis 's 'S 'll 'LL '' ''' \"quoted\" (parenthesised) {braced} [bracketed]",
]

# The published patterns, as a second engine (the `regex` package) runs them, against mistakes in
# ours. Sources: the models' tokenizer.json or tokenization_*.py; the comments in llama.cpp's
# llama-vocab.cpp quote most of them.
PUBLISHED = {
    "kimi-k2": [
        "|".join(
            [
                r"[\p{Han}]+",
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
                r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
                r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            ]
        )
    ],
    "gpt-4o": [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "tekken": [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "llama-bpe": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ],
    "qwen2": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ],
    "qwen35": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "gpt-2": [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
    "smollm": [
        r"\p{N}",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
}
PUBLISHED["glm4"] = PUBLISHED["chatglm-bpe"] = PUBLISHED["llama-bpe"]


def read_metadata(path: Path) -> dict[str, Any]:
    """Every key of a GGUF file as Python values."""
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def read_vectors(path: Path) -> list[dict[str, Any]]:
    """The vectors beside a vocabulary: text and ids, without special tokens."""
    inp, out = path.with_name(path.name + ".inp"), path.with_name(path.name + ".out")
    if not inp.exists():
        return []
    texts = inp.read_bytes().decode("utf-8").split(SEPARATOR)
    rows = out.read_text(encoding="utf-8").splitlines()
    return [
        {"text": text, "ids": [int(x) for x in row.split()], "special": False, "from": "inp"}
        for text, row in zip(texts, rows, strict=False)
    ]


def ask_llama_cpp(path: Path, metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Vectors of llama.cpp for TEXTS, and for texts with this vocabulary's own special tokens in
    them."""
    import llama_cpp

    model = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    marks = [t for t, kind in zip(tokens, types, strict=True) if kind in (3, 4) and t.strip()][:12]
    mixed = ["".join(f"{m} Hello{m}world \n" for m in marks), " ".join(marks[::-1]), "".join(marks)]
    vectors = []
    for text in TEXTS + mixed:
        for special in (False, True):
            ids = model.tokenize(text.encode("utf-8"), add_bos=special, special=special)
            vectors.append({"text": text, "ids": ids, "special": special, "from": "llama.cpp"})
    return vectors


def reduce(metadata: dict[str, Any], vectors: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of a vocabulary that the vectors can touch; ids stay what they were."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    byte_level = metadata["tokenizer.ggml.model"] == "gpt2"
    texts = [v["text"] for v in vectors]
    raw = "\x03".join(texts)
    if byte_level:
        merged = "\x03".join("".join(CHAR_OF_BYTE[b] for b in t.encode("utf-8")) for t in texts)
    else:
        merged = "\x03".join(" " + t for t in texts)
        cut = merged
        for token, kind in zip(tokens, types, strict=True):
            if kind in (2, 3, 4) and token in raw:  # a blank is added behind special tokens, too
                cut = cut.replace(token, "\x03 ")
        merged += cut
        merged = merged.replace(" ", "\u2581")
    specials = [i for i, kind in enumerate(types) if kind in (2, 3)]
    kept = set(
        specials if len(specials) <= MANY_SPECIALS else [i for i in specials if tokens[i] in raw]
    )
    kept |= {v for k, v in metadata.items() if k.endswith("_token_id") and v < len(tokens)}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        alphabet = byte_level and token in BYTE_OF_CHAR
        if kind == 6 or alphabet or token in merged or (kind == 4 and token in raw):
            kept.add(i)
    for v in vectors:
        missing = set(v["ids"]) - kept
        assert not missing, (
            f"llama.cpp gave tokens that are no substring: {[tokens[i] for i in missing]}"
        )
    names = {tokens[i] for i in kept}
    merges = []
    for merge in metadata.get("tokenizer.ggml.merges", ()):
        cut = merge.find(" ", 1)
        if {merge[:cut], merge[cut + 1 :], merge[:cut] + merge[cut + 1 :]} <= names:
            merges.append(merge)
    ids = sorted(kept)
    scores = metadata.get("tokenizer.ggml.scores")
    small = ("_token_id", "_token", "_prefix", "whitespaces")
    return {
        "size": len(tokens),
        "keys": {
            k: v
            for k, v in metadata.items()
            if k in KEPT_KEYS or (k.startswith("tokenizer.ggml.") and k.endswith(small))
        },
        "ids": ids,
        "tokens": [tokens[i] for i in ids],
        "types": [types[i] for i in ids],
        "scores": None if scores is None else [scores[i] for i in ids],
        "merges": merges if "tokenizer.ggml.merges" in metadata else None,
        "vectors": vectors,
    }


def write(name: str, data: Any) -> int:
    path = OUT / f"{name}.json.gz"
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    path.write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))
    return path.stat().st_size


def published_splits() -> dict[str, list[list[str]]]:
    """Name -> for each text its pieces, by the published patterns."""
    splits = {}
    for name, patterns in PUBLISHED.items():
        rows = []
        for text in TEXTS:
            pieces = [text]
            for pattern in patterns:
                compiled = regex.compile(pattern, regex.V1)
                pieces = [p for piece in pieces for p in cut(compiled, piece)]
            rows.append(pieces)
        splits[name] = rows
    return splits


def cut(compiled: Any, text: str) -> list[str]:
    """Matches and the gaps between them."""
    parts, end = [], 0
    for match in compiled.finditer(text):
        if match.end() > match.start():
            parts += [text[end : match.start()], match.group()]
            end = match.end()
    return [p for p in [*parts, text[end:]] if p]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("--llama-cpp", action="store_true")
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    total_bytes = 0
    print(
        "| vocabulary | kind | .inp/.out passed | llama.cpp's own passed | bytes |\n|---|---|--:|--:|--:|"
    )
    for path in [*sorted(args.models.glob("ggml-vocab-*.gguf")), *args.gguf]:
        name = path.stem.removeprefix("ggml-vocab-")
        metadata = read_metadata(path)
        kind = f"{metadata['tokenizer.ggml.model']} {metadata.get('tokenizer.ggml.pre', '')}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                tokenizer = Tokenizer.from_metadata(metadata)
        except MoesaicError as error:
            print(f"| {name} | {kind} | refused | refused: {str(error).split(';')[0][:70]} | |")
            continue
        vectors = read_vectors(path)
        if args.llama_cpp:
            vectors += ask_llama_cpp(path, metadata)
        passed = {"inp": [0, 0], "llama.cpp": [0, 0]}
        failed = []
        for v in vectors:
            ids = tokenizer.encode(v["text"], v["special"], v["special"]).tolist()
            passed[v["from"]][0] += ids == v["ids"]
            passed[v["from"]][1] += 1
            if ids != v["ids"]:
                failed.append((v, ids))
        good = [v for v in vectors if all(v is not f for f, _ in failed)]
        size = write(name, reduce(metadata, good)) if good else 0
        total_bytes += size
        figures = [f"{a} / {b}" if b else "none" for a, b in passed.values()]
        print(f"| {name} | {kind} | {figures[0]} | {figures[1]} | {size} |")
        for v, ids in failed:
            first = next(
                (i for i, (a, b) in enumerate(zip(ids, v["ids"], strict=False)) if a != b), -1
            )
            print(
                f"    DIFFERS {v['from']} special={v['special']} {v['text'][:60]!r} at {first}:"
                f" ours {[tokenizer.id_to_token(i) for i in ids[max(first - 1, 0) : first + 4]]}"
                f" theirs {[tokenizer.id_to_token(i) for i in v['ids'][max(first - 1, 0) : first + 4]]}"
            )
    total_bytes += write("splits", {"texts": TEXTS, "splits": published_splits()})
    print(f"{total_bytes} bytes in all")


if __name__ == "__main__":
    main()
