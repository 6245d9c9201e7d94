"""A coordinator as a process of its own, to be killed: says on stdout where it is.

    python fault_coordinator.py HOST:PORT,... MODEL FOLDER      (the key comes on stdin)

Lines: connecting, connected, load 0.53, loaded, prefill, decode 17, saving, saved, closing,
closed, over; "tokens" with all that came, "error" with what was raised. With the word "once"
behind the arguments it does all of it once, else until it is killed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import moesaic


def say(*words: object) -> None:
    """Print a line at once."""
    print(*words, flush=True)


def main(addresses: str, path: str, folder: str, once: str = "") -> None:
    """Do what coordinators do."""
    key = sys.stdin.readline().encode()
    prompt = [(13 * i) % 500 + 5 for i in range(40)]
    planned = Path(folder) / "plan.json"  # what is held already: another plan, other slices
    plan = moesaic.Plan.from_dict(json.loads(planned.read_text())) if planned.exists() else None
    while True:
        say("connecting")
        with moesaic.Cluster(addresses.split(","), key=key) as cluster:
            say("connected")
            model = cluster.load(
                path,
                plan=plan,
                n_ctx=512,
                deterministic=True,
                progress=lambda _, k, n: say("load", k / n),
            )
            say("loaded")
            for k in range(3):
                say("prefill")
                model.forward([k + 5, *[(11 * i) % 700 + 5 for i in range(480)]])
            tokens: list[int] = []
            try:
                for chunk in model.stream(prompt, max_tokens=200, temperature=0, ignore_eos=True):
                    tokens += [int(t) for t in chunk.tokens]
                    say("decode", len(tokens))
            finally:
                say("tokens", tokens)
            with model.session() as session:
                session.forward([(11 * i) % 700 + 5 for i in range(400)])
                say("saving")
                session.save(Path(folder) / "coordinator.session")
                say("saved")
            say("closing")
        say("closed")
        if once:
            say("over")
            return


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except moesaic.MoesaicError as error:
        say("error", json.dumps({"type": type(error).__name__, "text": str(error)}))
