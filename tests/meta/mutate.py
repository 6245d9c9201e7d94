"""Breaks a copy of the code on purpose, one mistake at a time, and shows that a test goes red.

    ./dev mutate                 all of mutations.toml; prints and writes build/mutate/table.md
    ./dev mutate --only NAME     those whose name contains NAME
    ./dev mutate --list

The working tree is never touched: git's tracked files are copied to build/mutate/tree. Exit code
1 when a mutation
survives, when a text is not there exactly once, or when the tests are not green before anything
is broken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("mutations.toml")
WORK = ROOT / "build" / "mutate"
TREE = WORK / "tree"
BUILD = WORK / "build"
SITE = WORK / "site"
TEST_LIMIT_S = 600


@dataclass(frozen=True)
class Edit:
    """One text of one file, and what stands there instead."""

    file: str
    text: str
    replacement: str

    def count(self, root: Path) -> int:
        return (root / self.file).read_text().count(self.text)


@dataclass(frozen=True)
class Mutation:
    """A mistake and the tests that must notice it."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


@dataclass
class Outcome:
    """What became of a mutation."""

    name: str
    killed_by: str = ""
    seconds: float = 0.0
    note: str = field(default="")


def load() -> list[Mutation]:
    """Read the table."""

    def edit(row: dict[str, Any]) -> Edit:
        return Edit(row["file"], row["text"], row["replacement"])

    rows = tomllib.loads(TABLE.read_text())["mutation"]
    return [
        Mutation(r["name"], (edit(r), *(edit(a) for a in r.get("also", []))), tuple(r["tests"]))
        for r in rows
    ]


def copy_tree() -> None:
    """Bring the tracked files of the working tree to TREE, keeping the times of those that are
    the same."""
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, files):
        source, target = ROOT / name, TREE / name
        if not source.is_file():
            continue
        if target.exists() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def cmake_configure() -> None:
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    command = [
        "cmake", "-S", TREE, "-B", BUILD, "-G", "Ninja", "-DMOESAIC_TESTS=ON",
        f"-Dpybind11_DIR={pybind11}", f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    if shutil.which("ccache"):
        command.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def build(targets: set[str]) -> bool:
    command = [
        "cmake",
        "--build",
        BUILD,
        "-j",
        str(os.cpu_count() or 1),
        "--target",
        *sorted(targets),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout[-2000:], file=sys.stderr)
    return done.returncode == 0


def targets_of(tests: tuple[str, ...]) -> set[str]:
    kinds = {test.split(":")[0]: test.split(":")[1] for test in tests}
    return {f"test_{name}" if kind == "ctest" else "_core" for kind, name in kinds.items()}


def fresh_site() -> dict[str, str]:
    """A package put together from the tree and the built extension; the environment that imports
    it."""
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(TREE / "python" / "moesaic", SITE / "moesaic")
    shutil.copy2(TREE / "tests" / "meta" / "overlay" / "sitecustomize.py", SITE)
    extension = next(BUILD.glob("_core*.so"))
    shutil.copy2(extension, SITE / "moesaic" / extension.name)
    return os.environ | {"PYTHONPATH": str(SITE), "PYTHONDONTWRITEBYTECODE": "1"}


def is_green(test: str) -> bool:
    kind, _, rest = test.partition(":")
    if kind == "ctest":
        module, _, pattern = rest.partition(":")
        command = [BUILD / f"test_{module}", f"--gtest_filter={pattern}", "--gtest_fail_fast"]
        environment = dict(os.environ)
    else:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            TREE / rest,
        ]
        environment = fresh_site()
    try:
        done = subprocess.run(
            command, cwd=TREE, env=environment, capture_output=True, text=True, timeout=TEST_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return False  # a hang is noticed
    # A filter that finds no test would be green for ever.
    nothing_ran = "Running 0 tests" in done.stdout or "no tests ran" in done.stdout
    if nothing_ran:
        raise SystemExit(f"{test}: no such test")
    return done.returncode == 0


def apply(edits: tuple[Edit, ...], *, undo: bool = False) -> None:
    for edit in edits:
        path = TREE / edit.file
        text = (ROOT / edit.file).read_text()
        path.write_text(text if undo else text.replace(edit.text, edit.replacement))


def try_mutation(mutation: Mutation) -> Outcome:
    began = time.monotonic()
    outcome = Outcome(mutation.name)
    apply(mutation.edits)
    try:
        if not build(targets_of(mutation.tests)):
            outcome.note = "does not build: a mutation must be a mistake that compiles"
            return outcome
        for test in mutation.tests:
            if not is_green(test):
                outcome.killed_by = test
                break
        else:
            outcome.note = "SURVIVED"
    finally:
        apply(mutation.edits, undo=True)
        outcome.seconds = time.monotonic() - began
    return outcome


def table(outcomes: list[Outcome]) -> str:
    lines = ["| mistake | noticed by | seconds |", "|---|---|---|"]
    lines += [f"| {o.name} | {o.killed_by or o.note} | {o.seconds:.0f} |" for o in outcomes]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = [m for m in load() if args.only in m.name]
    if args.list:
        print("\n".join(m.name for m in chosen))
        return 0
    stale = [f"{m.name}: {e.file}" for m in chosen for e in m.edits if e.count(ROOT) != 1]
    if stale or not chosen:
        print("not there exactly once:", *stale, sep="\n  ", file=sys.stderr)
        return 1
    copy_tree()
    cmake_configure()
    tests = {t for m in chosen for t in m.tests}
    if not build(set().union(*(targets_of((t,)) for t in tests))):
        return 1
    for test in sorted(tests):
        print(f"unbroken: {test}", flush=True)
        if not is_green(test):
            print(f"{test} is not green before anything is broken", file=sys.stderr)
            return 1
    outcomes = []
    for mutation in chosen:
        outcomes.append(try_mutation(mutation))
        o = outcomes[-1]
        print(f"{o.seconds:6.0f} s  {o.name}: {o.killed_by or o.note}", flush=True)
    (WORK / "table.md").write_text(table(outcomes))
    return 0 if all(o.killed_by for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
