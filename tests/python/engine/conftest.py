"""Models for the engine's tests: the demo, and the tiny families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moesaic

FAMILIES = Path(__file__).parents[2] / "data" / "families"
NAMES = sorted(p.stem for p in FAMILIES.glob("*.gguf") if p.with_suffix(".json").exists())


@pytest.fixture(scope="session")
def demo():
    with moesaic.Model.demo(progress=False) as m:
        yield m


@pytest.fixture(scope="session")
def exact():
    """The demo with deterministic=True."""
    with moesaic.Model.demo(progress=False, deterministic=True, kv_tokens=8192) as m:
        yield m


@pytest.fixture(params=NAMES)
def family(request):
    """(path, description) of each tiny model."""
    path = FAMILIES / f"{request.param}.gguf"
    return path, json.loads(path.with_suffix(".json").read_text())
