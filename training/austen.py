"""The training text of the demo model: Jane Austen's six novels, as Debian packages them.

Reads the R data file of `r-cran-janeaustenr` (an R "lazy-load" database: blocks of a big-endian
length and a zlib stream, each one R object in XDR serialisation, per the "R Internals" manual,
section 1.8) without needing R, undoes Project Gutenberg's line wrapping, and returns chapters. Not
for other R files: only character vectors are understood.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "r-cran-janeaustenr"
DEFAULT_RDB = Path("/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
HOLD_OUT_EVERY = 20  # one chapter in twenty is never trained on

_HEADING = re.compile(r"(?:chapter|volume) (?:[0-9]+|[ivxl]+)\.?", re.IGNORECASE)
_ENDINGS = ("finis", "the end", "a note on the text")  # the last: a modern editor's words follow
_STRSXP, _CHARSXP = 16, 9


@dataclass(frozen=True)
class Chapter:
    """One chapter: its novel's title and its paragraphs, one string each, without line breaks."""

    novel: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The chapter as the model sees it: paragraphs with an empty line between them."""
        return "\n\n".join(self.paragraphs)


def _character_vector(blob: bytes) -> list[str]:
    """Decode one serialised R character vector (format X, version 3)."""
    if blob[:2] != b"X\n" or struct.unpack_from(">I", blob, 2)[0] != 3:
        raise ValueError(f"[austen] R object: got header {blob[:6]!r}, need XDR version 3")
    (encoding_bytes,) = struct.unpack_from(">I", blob, 14)
    at = 18 + encoding_bytes
    flags, count = struct.unpack_from(">II", blob, at)
    if flags & 0xFF != _STRSXP:
        raise ValueError(f"[austen] R object: got type {flags & 0xFF}, need {_STRSXP} (characters)")
    at += 8
    lines = []
    for _ in range(count):
        flags, length = struct.unpack_from(">Ii", blob, at)
        if flags & 0xFF != _CHARSXP:
            raise ValueError(f"[austen] R string: got type {flags & 0xFF}, need {_CHARSXP}")
        at += 8
        lines.append(blob[at : at + max(length, 0)].decode("utf-8"))
        at += max(length, 0)
    return lines


def read_lines(path: Path = DEFAULT_RDB) -> list[list[str]]:
    """Return the lines of each novel, in the file's order."""
    if not path.exists():
        raise FileNotFoundError(
            f"[austen] {path} is missing: `apt-get install {PACKAGE}` puts it there, or "
            f"unpack the package with `dpkg -x` and name the file with --text"
        )
    data = path.read_bytes()
    novels, at = [], 0
    while at < len(data):
        stream = zlib.decompressobj()
        novels.append(
            _character_vector(stream.decompress(data[at + 4 :]))
        )  # 4: the length before the stream
        at = len(data) - len(stream.unused_data)
    return novels


def _paragraph(lines: list[str]) -> str:
    """Join wrapped lines; drop emphasis marks and doubled spaces, which a reader does not need."""
    text = re.sub(r"[_*\[\]]", "", " ".join(lines))
    return re.sub(r"\s+", " ", text).strip()


def chapters(path: Path = DEFAULT_RDB) -> list[Chapter]:
    """Return every chapter of the six novels, without title pages, headings, editors' notes."""
    found: list[Chapter] = []
    for lines in read_lines(path):
        title = next(line for line in lines if line).title()
        paragraphs: list[str] | None = None  # None: still before the first heading
        current: list[str] = []
        for line in [*lines, "", "FINIS"]:
            text = line.strip()
            ends = text.lower() in _ENDINGS
            if text and not _HEADING.fullmatch(text) and not ends:
                current.append(text)
                continue
            if current and paragraphs is not None:
                paragraphs.append(_paragraph(current))
            current = []
            if text:  # a heading or the end of the novel
                if paragraphs:
                    found.append(Chapter(title, tuple(p for p in paragraphs if p)))
                if ends:
                    break
                paragraphs = []
    return found


def split(all_chapters: list[Chapter]) -> tuple[list[Chapter], list[Chapter]]:
    """Split into (training, held-out) chapters: whole chapters, spread evenly over the novels."""
    held = [c for i, c in enumerate(all_chapters) if i % HOLD_OUT_EVERY == HOLD_OUT_EVERY // 2]
    train = [c for i, c in enumerate(all_chapters) if i % HOLD_OUT_EVERY != HOLD_OUT_EVERY // 2]
    return train, held


def dialogues(chapter: Chapter, *, longest: int = 400) -> list[list[str]]:
    """Return runs of two or more paragraphs that are all speech, without their quotation marks.

    They teach the model to answer: one speaker's words, then another's. `longest` bounds a turn,
    in characters.
    """
    runs: list[list[str]] = []
    run: list[str] = []
    for p in [*chapter.paragraphs, ""]:
        if len(p) > 2 and p[0] == p[-1] == '"' and p.count('"') == 2 and len(p) <= longest:
            run.append(p[1:-1].strip())
            continue
        if len(run) >= 2:
            runs.append(run)
        run = []
    return runs
