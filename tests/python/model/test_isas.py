"""A whole model gives the same bytes on every CPU table: the kernels' contract, end to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic import _core

FAMILIES = Path(__file__).parents[2] / "data" / "families"

# Prompt and single tokens: the kernels for many columns and for one. Both forms of MLA: the prompt
# is long enough for the decompressed one, which only the default mode takes.
_CODE = """
import hashlib, sys
import moesaic
path, digests = sys.argv[1], []
for deterministic in (True, False):
    digest = hashlib.sha256()
    options = {"n_ctx": 64, "threads": 1, "deterministic": deterministic, "progress": False}
    model = moesaic.Model(path, **options) if path != "demo" else moesaic.Model.demo(**options)
    digest.update(model.forward(list(range(3, 43))).tobytes())
    with model.session() as session:
        for token in (5, 9, 2, 200):
            digest.update(session.forward([token]).tobytes())
    digests.append(digest.hexdigest())
print(model.device, *digests)
"""


def run(model: str, isa: str, *, bf16: bool) -> tuple[str, str, str]:
    path = model if model == "demo" else str(FAMILIES / f"{model}.gguf")
    done = subprocess.run(
        [sys.executable, "-c", _CODE, path],
        env=os.environ | {"MOESAIC_ISA": isa, "MOESAIC_BF16": str(int(bf16))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    device, exact, default = done.stdout.rsplit(maxsplit=2)
    return device, exact, default


@pytest.mark.parametrize("model", ["demo", "deepseek2_kimi", "gptoss_mxfp4", "llama_gqa"])
def test_every_table_gives_the_same_bytes(model: str) -> None:
    seen = {}
    for isa in _core.available_isas():
        device, *seen[isa] = run(model, isa, bf16=False)
        assert f"{isa}," in device, device
    assert "generic" in seen
    assert len(set(map(tuple, seen.values()))) == 1, seen
    # Short products in attention are for the default mode alone, and not for models of floats.
    _, exact, default = run(model, _core.available_isas()[-1], bf16=True)
    assert exact == seen["generic"][0]
    if model != "demo":
        assert default == seen["generic"][1]
