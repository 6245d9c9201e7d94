"""A coordinator that ends or forks with everything open; ``fault_ends`` starts it.

    python fault_ending.py HOST:PORT,... MODEL FOLDER STATE ENDING    (the key comes on stdin)

STATE is what is open: "cluster", "stream" (half read) or "save" (another thread saves a session,
again and again). ENDING is what happens then: "fork" (a child that ends, and a parent that goes
on), "sys.exit", "garbage" (the last references are dropped, and the process goes on) or "end" (of
the script). The last line on stdout is "at" with the monotonic time right before the ending, or
"took" with the seconds of what happened inside the process.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import moesaic

HANG_S = 20.0


def say(*words: object) -> None:
    """Print a line at once."""
    print(*words, flush=True)


def save_for_ever(model: moesaic.Model, path: Path, begun: threading.Event) -> None:
    """Save a session again and again; return when the model is closed."""
    with model.session() as session:
        session.feed([(11 * i) % 700 + 5 for i in range(400)])
        while True:
            begun.set()
            session.save(path)


def forked() -> float:
    """Fork; return how long the child took to end."""
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    begin = time.monotonic()
    while time.monotonic() < begin + HANG_S:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return time.monotonic() - begin
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    sys.exit("the child hangs")


def main(addresses: str, path: str, folder: str, state: str, ending: str) -> None:
    """Open what the state says and end as told."""
    cluster = moesaic.Cluster(addresses.split(","), key=sys.stdin.readline().encode())
    model = cluster.load(path, n_ctx=512, deterministic=True, progress=False)
    want = model.generate([5, 6, 7], max_tokens=5, temperature=0).tokens.tolist()
    stream = saving = None
    if state == "stream":
        stream = model.stream([5, 6, 7], max_tokens=400, ignore_eos=True)
        next(stream)
    if state == "save":
        begun = threading.Event()
        saving = threading.Thread(
            target=save_for_ever, args=(model, Path(folder) / "e.session", begun), daemon=True
        )
        saving.start()
        begun.wait(HANG_S)
    if ending == "fork":
        took = forked()
        again = model.generate([5, 6, 7], max_tokens=5, temperature=0).tokens.tolist()
        if again != want:
            sys.exit(f"the parent says {again}, before the fork {want}")
        say("took", took)
    elif ending == "garbage":
        begin = time.monotonic()
        del cluster, model, stream, saving
        gc.collect()
        say("took", time.monotonic() - begin)
    else:
        say("at", time.monotonic())
        if ending == "sys.exit":
            sys.exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
