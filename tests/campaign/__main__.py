"""Runs the campaign of faults, as far as told, and writes docs/campaign.md.

    ./dev campaign                           a tenth of every full number
    ./dev campaign --share 1 --rows "kill*"  all of some rows
    ./dev campaign --table                   the table only, from the journal
    ./dev campaign --journal build/my.jsonl  from the first case on, in a journal of one's own

It may be stopped at any time: what has passed is in the journal (docs/campaign.jsonl) and is not
run again. Rows take turns, so that all of them get somewhere. The table is written beside the
journal, under its name.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "python" / "cluster")]

import fault_links  # noqa: E402 (found by the line above)
import netns  # noqa: E402
from fault_rig import LATE_S, Rig  # noqa: E402
from journal import Entry, Journal, table  # noqa: E402
from rows import CaseRow, FuzzRow, ProgramRow, PythonRow, Row, rows  # noqa: E402

JOURNAL = ROOT / "docs" / "campaign.jsonl"
TURN_S = 25.0  # then it is another row's turn
CASE_S = 180  # no case takes longer; a hang is a failure
MOST_FAILURES = 3  # of one row in one campaign: then it waits for somebody to look

HEAD = """# The campaign of faults

Written by `./dev campaign` from `{journal}`; not by hand. The rows are those of the
reliability table: transport, workers, cache, links, identity, users, files, ends; the full numbers
are the table's. Each row can be run alone and goes on where it stopped:
`./dev campaign --share 1 --rows "kill*"`. Times of "last run" are UTC; "seconds" is the time that
all runs of the row took together.

A case fails when anything that must hold does not hold, and when it takes longer than {case} s.
Deadlines are held against the promise plus {late} s, because the machine ran other work at the same
time; what was measured stands behind the result, as median and worst of all cases, in seconds.

"""


class Hang(Exception):
    """A case did not end."""


class Rigs:
    """Clusters that live from case to case; a case that failed costs its rig."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Any] = {}
        self._n = 0

    def get(self, kind: str) -> Any:
        """Return the rig of a kind; of "none" there is none."""
        if kind == "none":
            return None
        if kind not in self._made:
            self._n += 1
            folder = self._folder / f"{kind}-{self._n}"
            folder.mkdir()
            if kind == "net":
                self._made[kind] = fault_links.NetRig(folder)
            else:
                self._made[kind] = Rig(folder, 3 if kind == "three" else 2, pull=kind == "pulling")
        return self._made[kind]

    def drop(self, kind: str) -> None:
        """End a rig; the next case gets a new one."""
        made = self._made.pop(kind, None)
        if made is not None:
            made.close()

    def close(self) -> None:
        """End all."""
        for kind in list(self._made):
            self.drop(kind)


def now() -> str:
    """Return the time as the table shows it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def run_case(row: CaseRow, number: int, rigs: Rigs) -> Entry:
    """Run one case, with a limit of time."""
    begin = time.monotonic()
    figures: dict[str, float] = {}
    error = ""

    def give_up(*_: object) -> None:
        raise Hang(f"it did not end within {CASE_S} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(CASE_S)
    try:
        figures = row.case(rigs.get(row.rig), number)
    except (Exception, KeyboardInterrupt) as raised:
        if isinstance(raised, KeyboardInterrupt) and "Ctrl-C" not in row.line.name:
            raise
        lines = str(raised).strip() or type(raised).__name__
        error = " ".join(f"{type(raised).__name__}: {lines}".split())[:500]
        traceback.print_exc()
    finally:
        signal.alarm(0)
    if error:
        with contextlib.suppress(Exception):
            rigs.drop(row.rig)
    return Entry(
        row.line.name, number, 1, not error, now(),
        round(time.monotonic() - begin, 2), {k: round(v, 4) for k, v in figures.items()}, error,
    )  # fmt: skip


def run_program(row: ProgramRow, number: int, most: int, build: Path) -> Entry:
    """Run a test program on cases from a number on; each run draws its own."""
    whole = row.per_run >= row.line.full  # one that cannot be cut
    count = row.per_run if whole else max(1, min(row.per_run, most))
    units = max(1, round(count / row.per_unit))
    begin = time.monotonic()
    repeat = [] if row.variable else [f"--gtest_repeat={units}"]
    variables = {row.variable: str(units)} if row.variable else {}
    done = subprocess.run(
        [build / row.target, f"--gtest_filter={row.filter}", "--gtest_brief=1", *repeat],
        env=os.environ | variables | {"MOESAIC_SEED": str(number)},
        capture_output=True, text=True, errors="replace", cwd=ROOT,
    )  # fmt: skip
    failed = done.returncode != 0
    ran = re.search(r"\[==========\] (\d+) tests? from", done.stdout)
    if not failed and (ran is None or int(ran[1]) == 0):
        failed = True
    return Entry(
        row.line.name, number, units * row.per_unit, not failed, now(),
        round(time.monotonic() - begin, 2), {},
        " ".join((done.stdout + done.stderr).split())[-500:] if failed else "",
    )  # fmt: skip


def run_python(row: PythonRow, number: int) -> Entry:
    """Run Python tests once."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / row.path]
        + (["-k", row.tests] if row.tests else []),
        capture_output=True, text=True, errors="replace", cwd=ROOT,
    )  # fmt: skip
    failed = done.returncode != 0
    return Entry(
        row.line.name, number, 1, not failed, now(), round(time.monotonic() - begin, 2), {},
        " ".join((done.stdout + done.stderr).split())[-500:] if failed else "",
    )  # fmt: skip


def run_fuzz(row: FuzzRow, number: int, most: int, build: Path) -> Entry:
    """Run a fuzz target; the corpus grows from run to run, the seed is the first number's."""
    target = build / row.target
    count = max(1, min(row.per_run, most))
    name = row.target.removeprefix("fuzz_")
    corpus = build / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    begin = time.monotonic()
    done = subprocess.run(
        [
            target, f"-runs={count}", f"-seed={number + 1}", "-timeout=1", "-rss_limit_mb=512",
            "-malloc_limit_mb=64", "-max_len=16384", f"-artifact_prefix={build}/",
            "-print_final_stats=1", *row.options, corpus, ROOT / "tests" / "fuzz" / "corpus" / name,
        ],
        capture_output=True, text=True, errors="replace",
        # What was freed is watched for as long as an input lasts, and then some; the 256 MB that
        # are the default are always new to the processor's cache.
        env=os.environ | {"ASAN_OPTIONS": "quarantine_size_mb=16"},
    )  # fmt: skip
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    failed = done.returncode != 0 or executed is None
    return Entry(
        row.line.name, number, int(executed[1]) if executed else count, not failed, now(),
        round(time.monotonic() - begin, 2), {},
        " ".join(done.stderr.split())[-500:] if failed else "",
    )  # fmt: skip


class Campaign:
    """Rows that take turns until each has its share, or the time is up."""

    def __init__(self, options: argparse.Namespace, journal: Journal) -> None:
        self._options = options
        self._journal = journal
        self._failed: dict[str, set[int]] = {}
        self._end = time.monotonic() + options.seconds

    def run(self) -> None:
        """Run."""
        todo = [row for row in rows() if fnmatch.fnmatch(row.line.name, self._options.rows)]
        todo = [row for row in todo if self._can_run(row)]
        with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
            rigs = Rigs(Path(folder))
            try:
                while todo and time.monotonic() < self._end:
                    todo = [row for row in todo if self._turn(row, rigs)]
                    write_table(self._options.journal)  # with what others have added meanwhile
            finally:
                rigs.close()

    def _can_run(self, row: Row) -> bool:
        if isinstance(row, CaseRow):
            possible = row.rig != "net" or netns.available()
        elif isinstance(row, PythonRow):
            possible = (ROOT / row.path).exists()
        else:
            folder = self._options.fuzz if isinstance(row, FuzzRow) else self._options.build
            possible = (folder / row.target).exists()
        if not possible:
            print(f"cannot run here: {row.line.name}", flush=True)
        return possible

    def _turn(self, row: Row, rigs: Rigs) -> bool:
        """Run cases of a row for a while; False when it needs no other turn."""
        name = row.line.name
        want = math.ceil(self._options.share * row.line.full)
        failed = self._failed.setdefault(name, set())
        begin = time.monotonic()
        while (left := want - self._journal.reached(name)) > 0 or any(
            entry.first not in failed for entry in self._journal.failures(name)
        ):  # enough, and what failed before has been tried again
            number = self._journal.next(name, failed)
            if isinstance(row, CaseRow):
                entry = run_case(row, number, rigs)
            elif isinstance(row, ProgramRow):
                entry = run_program(row, number, left, self._options.build)
            elif isinstance(row, PythonRow):
                entry = run_python(row, number)
            else:
                entry = run_fuzz(row, number, left, self._options.fuzz)
            self._journal.add(entry)
            result = "passed" if entry.passed else f"FAILED: {entry.error}"
            print(f"{entry.date} {name} {number}+{entry.count} {entry.seconds:.1f} s {result}",
                  flush=True)  # fmt: skip
            if not entry.passed:
                failed.add(number)
                if len(failed) >= MOST_FAILURES:
                    return False
            if time.monotonic() > min(self._end, begin + TURN_S):
                return True
        return False


def write_table(path: Path) -> Path:
    """Write the table of a journal beside it, as the journal is now; return where."""
    text = HEAD.format(journal=path.name, case=CASE_S, late=f"{LATE_S:.0f}")
    text += table([row.line for row in rows()], Journal(path))
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    text += (
        f"\nMachine: {cpu[1] if cpu else 'unknown'}, {os.cpu_count()} CPUs, "
        f"Linux {platform.release()}.\n"
    )
    written = path.with_suffix(".md")
    written.write_text(text)
    return written


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="dev campaign", description=__doc__)
    parser.add_argument("--share", type=float, default=0.1, help="of every full number")
    parser.add_argument("--rows", default="*", help="a pattern of their names")
    parser.add_argument("--seconds", type=float, default=math.inf, help="and then stop")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "release")
    parser.add_argument("--fuzz", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--journal", type=Path, default=JOURNAL, help="where to go on")
    parser.add_argument("--table", action="store_true", help="write the table and run nothing")
    options = parser.parse_args()
    if not options.table:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also when started by nohup
        Campaign(options, Journal(options.journal)).run()
    print(f"written: {os.path.relpath(write_table(options.journal))}")


if __name__ == "__main__":
    main()
