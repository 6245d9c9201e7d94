"""Imports go downward only: the rule of DESIGN.md "Allowed imports", and intrinsics stay in
kernels/."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "cpp"

# What each module may include beside itself and base.
ALLOWED = {
    "base": set(),
    "quant": set(),
    "gguf": {"quant"},
    "wire": set(),
    "kernels": {"quant"},
    "net": {"wire"},
    "backend": {"kernels", "quant", "gguf"},
    "model": {"backend", "gguf", "quant"},
    "cluster": {"model", "backend", "net", "wire", "gguf", "quant"},
    "engine": {"model", "gguf"},
}
# Modules that have rooms: what each room may include of its own module. Files beside the rooms are
# interfaces that all of them may include and that include none of them.
ROOMS = {
    "model": {
        "file": set(),
        "state": set(),
        "layers": {"file"},
        "arch": {"file", "layers"},
        "run": {"file", "state", "layers", "arch"},
    },
    "cluster": {
        "weights": set(),
        "step": set(),
        "plan": {"step"},
        "measure": {"weights"},
        "worker": {"weights", "measure", "step"},
        "coordinator": {"weights", "measure", "step", "plan"},
    },
}
# DESIGN.md names backend's imports as kernels and quant. It also says that a backend is given
# (file, offset, length,
# layout): backend.h takes gguf::File for that, so gguf is added here.
BINDINGS_FORBIDDEN = {"kernels", "net", "wire"}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
INTRINSICS = re.compile(r"#\s*include\s*<(?:x86|imm|emm|avx\w*|arm_neon)\w*\.h>|\b_mm\d*_\w+\s*\(")


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in {".h", ".cpp", ".inl", ".inc"})


def violations(module: str, paths: list[Path], allowed: set[str]) -> list[str]:
    found = []
    for path in paths:
        for target in INCLUDE.findall(path.read_text()):
            room = target.split("/")[0]
            if "/" not in target:
                found.append(f"{path}: include rooted at cpp/, not '{target}'")
            elif room not in allowed | {module, "base"}:
                found.append(f"{path}: {module} may not include {target}")
    return found


def room_violations(module: str, root: Path) -> list[str]:
    """Includes of a module under ``root`` that lead out of a room other than ROOMS says."""
    rooms = ROOMS[module]
    found = []
    for path in sources(root / module):
        *folders, _ = path.relative_to(root / module).parts
        room = folders[0] if folders else ""
        if folders and room not in rooms:
            found.append(f"{path}: new room {room}: say in ROOMS what it may include")
            continue
        for target in INCLUDE.findall(path.read_text()):
            into, *rest = target.split("/")
            other = rest[0] if len(rest) > 1 else ""
            allowed = rooms[room] | {room} if room else set()
            if into == module and other and other not in allowed:
                found.append(f"{path}: {module}/{room or '(interfaces)'} may not include {target}")
    return found


@pytest.mark.parametrize("module", sorted(ROOMS))
def test_rooms_include_only_downward(module: str) -> None:
    assert room_violations(module, CPP) == []


@pytest.mark.parametrize("module", sorted(ROOMS))
def test_rooms_have_no_cycle(module: str) -> None:
    left = dict(ROOMS[module])
    while free := [room for room, below in left.items() if not below & set(left)]:
        for room in free:
            del left[room]
    assert left == {}


def test_the_rule_of_rooms_can_fail(tmp_path: Path) -> None:
    for name, text in {
        "weights/a.h": '#include "cluster/worker/worker.h"\n',
        "b.h": '#include "cluster/plan/plan.h"\n',
        "attic/c.h": "",
        "worker/d.h": '#include "cluster/weights/content.h"\n#include "cluster/api.h"\n',
    }.items():
        path = tmp_path / "cluster" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert len(room_violations("cluster", tmp_path)) == 3


@pytest.mark.parametrize("module", sorted(p.name for p in CPP.iterdir() if p.is_dir()))
def test_module_includes_only_downward(module: str) -> None:
    assert module in ALLOWED, f"new room cpp/{module}: say in this test what it may include"
    assert violations(module, sources(CPP / module), ALLOWED[module]) == []


def test_bindings_do_not_reach_past_their_borders() -> None:
    allowed = (set(ALLOWED) - BINDINGS_FORBIDDEN) | {"bindings"}
    assert violations("bindings", sources(ROOT / "bindings"), allowed) == []


def test_intrinsics_live_in_kernels_only() -> None:
    outside = [p for p in sources(CPP) + sources(ROOT / "bindings") if "kernels" not in p.parts]
    assert [str(p) for p in outside if INTRINSICS.search(p.read_text())] == []


def test_the_rule_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.cpp"
    bad.write_text('#include "engine/engine.h"\n')
    assert violations("quant", [bad], ALLOWED["quant"]) != []


@pytest.mark.parametrize("folder", ["cpp", "bindings", "python"])
def test_no_file_past_900_lines(folder: str) -> None:
    suffixes = {".h", ".cpp", ".py"}
    long = {
        str(p.relative_to(ROOT)): n
        for p in (ROOT / folder).rglob("*")
        if p.suffix in suffixes and (n := len(p.read_text().splitlines())) > 900
    }
    assert long == {}


def test_no_path_of_a_machine_is_committed() -> None:
    """Nothing in the tree names a developer's folders."""
    pattern = re.compile(r"/(?:work|tmp/(?:build|oracle|llamasrc|briefs))/\w+")
    found = []
    for folder in ("cpp", "bindings", "python", "tests", "bench", "training", "docs", "notebooks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".h", ".cpp", ".py", ".md", ".ipynb", ".json", ".txt"} and (
                path != Path(__file__).resolve()
                and pattern.search(path.read_text(errors="replace"))
            ):
                found.append(str(path.relative_to(ROOT)))
    assert found == []
