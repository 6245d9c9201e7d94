"""The interpreter may end while another thread reads, encodes or decodes without the GIL."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORK = {
    "open": "moesaic.GGUF(path)",
    "dequantize a tensor": "tensor.dequantize()",
    "dequantize": "moesaic.dequantize(raw, 'Q4_K', floats.shape)",
    "quantize": "moesaic.quantize(floats, 'Q4_K')",
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_a_daemon_thread_at_work(work):
    script = f"""
import threading, time
import numpy as np
import moesaic
floats = np.random.default_rng(0).standard_normal((64, 1024), np.float32)
raw = moesaic.quantize(floats, "Q4_K")
with moesaic.Model.demo(progress=False) as m:
    path = m.path
tensor = moesaic.GGUF(path).tensors["token_embd.weight"]
def loop():
    while True:
        {work}
for _ in range(4):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.05)
"""
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
