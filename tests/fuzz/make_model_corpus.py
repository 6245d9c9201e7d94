"""Write corpus/model_understand/: the headers of tests/data/families, one of each.

Plain struct unpacking, so that it depends on nothing of ours:
python tests/fuzz/make_model_corpus.py
"""

from __future__ import annotations

import struct
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE / "corpus" / "model_understand"
FAMILIES = HERE.parent / "data" / "families"
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
HEADERS = b"\1"  # what the target takes the rest for


class Reader:
    """Walks over a file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> int:
        """Take a number."""
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return int(value)

    def text(self) -> bytes:
        """Take a length and its bytes."""
        n = self.number("Q")
        self.at += n
        return self.data[self.at - n : self.at]

    def skip(self, kind: int) -> None:
        """Go past a value."""
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            elem, n = self.number("I"), self.number("Q")
            for _ in range(n):
                self.skip(elem)
        else:
            self.at += SIZES[kind]


def header(data: bytes) -> bytes:
    """A file's header up to the end of its directory, without the texts of its vocabulary."""
    reader = Reader(data)
    magic, version = reader.number("I"), reader.number("I")
    n_tensors, n_pairs = reader.number("Q"), reader.number("Q")
    pairs = []
    for _ in range(n_pairs):
        begin = reader.at
        key = reader.text()
        reader.skip(reader.number("I"))
        if not key.startswith(b"tokenizer."):
            pairs.append(data[begin : reader.at])
    begin = reader.at
    for _ in range(n_tensors):
        reader.text()
        n_dims = reader.number("I")
        reader.at += 8 * n_dims + 12
    head = struct.pack("<IIQQ", magic, version, n_tensors, len(pairs))
    return head + b"".join(pairs) + data[begin : reader.at]


def main() -> None:
    """Write the seeds."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in sorted(FAMILIES.glob("*.gguf")):
        (FOLDER / path.stem).write_bytes(HEADERS + header(path.read_bytes()))


if __name__ == "__main__":
    main()
