"""The campaign's memory: one JSON line for every run of a row, and the table made of them.

A run is one call of a row's case, or one program that counts by itself. What has passed is not run
again: a row goes on at the first number that no line says "passed" of.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One run: ``count`` cases from number ``first`` on."""

    row: str
    first: int
    count: int
    passed: bool
    date: str
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    error: str = ""


class Journal:
    """Entries in a file that is only ever appended to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        if path.exists():
            for line in path.read_text().splitlines():
                entry = Entry(**json.loads(line))
                self._entries[entry.row].append(entry)

    def add(self, entry: Entry) -> None:
        """Write an entry, whole, before anything else is done."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
        self._entries[entry.row].append(entry)

    def entries(self, row: str) -> list[Entry]:
        """Return a row's runs in their order."""
        return self._entries[row]

    def reached(self, row: str) -> int:
        """Return how many different cases have passed."""
        return sum(end - begin for begin, end in self._passed(row))

    def next(self, row: str, but: set[int]) -> int:
        """Return the first number that has not passed and is none of those."""
        number = 0
        while True:
            inside = [end for begin, end in self._passed(row) if begin <= number < end]
            if inside:
                number = inside[0]
            elif number in but:
                number += 1
            else:
                return number

    def failures(self, row: str) -> list[Entry]:
        """Return runs that failed and have not passed since, the last one of each case."""
        last = {e.first: e for e in self._entries[row] if not e.passed}
        passed = self._passed(row)
        return [e for n, e in last.items() if not any(b <= n < end for b, end in passed)]

    def _passed(self, row: str) -> list[tuple[int, int]]:
        """Return the ranges of numbers that have passed, apart and in order."""
        ranges: list[tuple[int, int]] = []
        for first, end in sorted(
            (e.first, e.first + e.count) for e in self._entries[row] if e.passed
        ):
            if ranges and first <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
            else:
                ranges.append((first, end))
        return ranges


@dataclass(frozen=True)
class Line:
    """What a row of the table is about."""

    name: str
    group: str
    full: int
    must_hold: str


def table(lines: Iterable[Line], journal: Journal) -> str:
    """Return the table as Markdown, with what failed below it."""
    out = [
        "| row | full number | reached | must hold | last run | seconds | result |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    group = ""
    for line in lines:
        entries = journal.entries(line.name)
        if line.group != group:
            group = line.group
            out.append(f"| **{group}** | | | | | | |")
        reached = journal.reached(line.name)
        failures = journal.failures(line.name)
        result = "not run" if not entries else f"{len(failures)} failed" if failures else "held"
        out.append(
            f"| {line.name} | {line.full:,} | {reached:,} ({100 * reached / line.full:.0f} %) "
            f"| {line.must_hold} | {entries[-1].date if entries else '-'} "
            f"| {sum(e.seconds for e in entries):.0f} | {result}{_figures(entries)} |"
        )
        notes += [f"- {line.name}, case {e.first}: {e.error}" for e in failures]
    text = "\n".join(out) + "\n"
    return text + ("\nFailed and not passed since:\n\n" + "\n".join(notes) + "\n" if notes else "")


def _figures(entries: list[Entry]) -> str:
    """Return median and worst of what the cases measured."""
    values: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        if entry.passed:
            for name, value in entry.figures.items():
                values[name].append(value)
    parts = []
    for name, found in sorted(values.items()):
        found.sort()
        parts.append(f"{name} {found[len(found) // 2]:.3g}, worst {found[-1]:.3g}")
    return "; " + "; ".join(parts) if parts else ""
