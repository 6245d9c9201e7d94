"""llama.cpp as the peer: built from the source package of llama-cpp-python, and run.

Nothing of it is part of Moesaic; it is built into build/llama.cpp (some 12 minutes on two cores)
and measured beside it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def llama_bench(*, avx2: bool = False, rpc: bool = False) -> Path:
    """Build llama-bench unless it is there, with ``rpc`` also ggml-rpc-server beside it.

    LLAMA_BENCH, LLAMA_BENCH_AVX2 or LLAMA_BENCH_RPC names one that is built already.
    """
    given = os.environ.get("LLAMA_BENCH" + ("_AVX2" if avx2 else "_RPC" if rpc else ""))
    if given:
        return Path(given)
    build = WORK / ("avx2" if avx2 else "rpc" if rpc else "native")
    binary = build / "bin" / "llama-bench"
    if not binary.exists():
        options = AVX2_OPTIONS if avx2 else ("-DGGML_RPC=ON",) if rpc else ()
        command = ["cmake", "-S", str(source()), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        command += ["-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF"]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
        jobs = str(os.cpu_count() or 1)
        targets = ["llama-bench", *(["ggml-rpc-server"] if rpc else [])]
        subprocess.run(
            ["cmake", "--build", build, "-j", jobs, "--target", *targets],
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
    servers: Sequence[str] = (),
) -> float:
    """One run of llama-bench for one figure; with ``servers``, all layers on RPC servers."""
    command = [str(binary), "-m", str(model), "-t", str(threads), "-o", "json", "-r", "1"]
    command += ["-p", str(prompt), "-n", str(generate), "-d", str(depth)]
    command += ["-ngl", "99", "--rpc", ",".join(servers)] if servers else ["-ngl", "0"]
    command += ["-fa", "on" if flash_attention else "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"llama-bench failed on {model}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout)[0]["avg_ts"])


@contextmanager
def rpc_servers(binary: Path, n: int, *, threads: int = 1) -> Iterator[list[str]]:
    """Start n RPC servers of so many threads on loopback; yields their addresses, ends them."""
    server = binary.with_name("ggml-rpc-server")
    processes = []
    addresses = []
    try:
        for _ in range(n):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            command = [str(server), "-H", "127.0.0.1", "-p", str(port), "-t", str(threads)]
            quiet = subprocess.DEVNULL
            processes.append(subprocess.Popen(command, stdout=quiet, stderr=quiet))
            addresses.append(f"127.0.0.1:{port}")
        for address in addresses:
            wait_for_port(address)
        yield addresses
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=10)


def wait_for_port(address: str, seconds: float = 20.0) -> None:
    """Wait until something listens there."""
    host, port = address.rsplit(":", 1)
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=1.0):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
