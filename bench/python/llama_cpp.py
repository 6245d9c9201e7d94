"""llama.cpp as the peer: built from the source package of llama-cpp-python, and run.

Nothing of it is part of Moesaic; it is built into build/llama.cpp (some 12 minutes on two cores)
and measured beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.3.36"
ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "llama.cpp"
# What an x86-64-v3 machine has: llama.cpp built for it is the peer of MOESAIC_ISA=avx2.
AVX2_OPTIONS = (
    "-DGGML_NATIVE=OFF",
    "-DGGML_AVX=ON",
    "-DGGML_AVX2=ON",
    "-DGGML_FMA=ON",
    "-DGGML_F16C=ON",
    "-DGGML_BMI2=ON",
)


def source() -> Path:
    """Download and unpack the package; the folder of llama.cpp in it."""
    folder = WORK / f"llama_cpp_python-{VERSION}"
    if not folder.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(WORK)]
        command += ["--no-binary", ":all:", "--no-build-isolation", f"llama-cpp-python=={VERSION}"]
        subprocess.run(command, check=True)
        with tarfile.open(next(WORK.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(WORK, filter="data")
    return folder / "vendor" / "llama.cpp"


def llama_bench(*, avx2: bool = False) -> Path:
    """Build llama-bench unless it is there; LLAMA_BENCH (or LLAMA_BENCH_AVX2) names another one."""
    given = os.environ.get("LLAMA_BENCH_AVX2" if avx2 else "LLAMA_BENCH")
    if given:
        return Path(given)
    build = WORK / ("avx2" if avx2 else "native")
    binary = build / "bin" / "llama-bench"
    if not binary.exists():
        options = AVX2_OPTIONS if avx2 else ()
        command = ["cmake", "-S", str(source()), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        command += ["-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF"]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
        jobs = str(os.cpu_count() or 1)
        subprocess.run(
            ["cmake", "--build", build, "-j", jobs, "--target", "llama-bench"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return binary


def tokens_per_s(
    binary: Path,
    model: Path,
    *,
    threads: int,
    prompt: int = 0,
    generate: int = 0,
    depth: int = 0,
    flash_attention: bool = True,
) -> float:
    """One run of llama-bench for one figure."""
    command = [str(binary), "-m", str(model), "-t", str(threads), "-o", "json", "-r", "1"]
    command += ["-p", str(prompt), "-n", str(generate), "-d", str(depth), "-ngl", "0"]
    command += ["-fa", "on" if flash_attention else "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"llama-bench failed on {model}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout)[0]["avg_ts"])
