"""A forked child of a process with a cluster ends at once and leaves the parent's cluster alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# The child has the parent's objects and none of its threads. What each case does there is run
# right after the fork; `ended` is how long it took, or the signal that had to end it.
PROGRAM = """
import gc, os, sys, signal, threading, time
import moesaic

before, ending = sys.argv[1:]
cluster = moesaic.Cluster.local(1)
path = moesaic.Model.demo().path
model = stream = session = None
if before != "links":
    model = cluster.load(path, n_ctx=512)
if before == "stream":
    stream = model.stream("It is", max_tokens=100, seed=1)
    next(stream)
if before == "session":
    session = model.session()
    session.forward(model.tokenize("It is a truth"))
if before == "busy":  # another thread holds whatever a call holds
    busy = threading.Thread(
        target=lambda: model.generate("It is", max_tokens=300, seed=1, stop=()), daemon=True)
    busy.start()
    time.sleep(0.05)
pid = os.fork()
if pid == 0:
    if ending == "exit":
        sys.exit(0)
    if ending == "drop":
        del cluster, model, stream, session
        gc.collect()
    if ending == "close":
        for each in (stream, session, model, cluster):
            if each is not None:
                each.close()
        del cluster, model, stream, session
        gc.collect()
    if ending == "raise":
        raise SystemExit(0)
    sys.exit(0)
begin = time.monotonic()
while time.monotonic() < begin + 20:
    if os.waitpid(pid, os.WNOHANG)[0]:
        break
    time.sleep(0.005)
else:
    os.kill(pid, signal.SIGKILL)
    sys.exit("the child hangs")
took = time.monotonic() - begin
if [node.state for node in cluster.nodes] != [("idle" if model is None else "ready")]:
    sys.exit(f"the parent's worker is {cluster.nodes[0].state}")
if model is not None and before != "busy" and not model.generate("It is", max_tokens=3).tokens.size:
    sys.exit("the parent's model does not answer")
cluster.close()
print(took)
"""


@pytest.mark.parametrize("ending", ["exit", "drop", "close", "raise"])
@pytest.mark.parametrize("before", ["links", "model", "stream", "session", "busy"])
def test_a_forked_child_ends_and_its_parent_goes_on(before, ending):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), before, ending],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # A second is promised; interpreters that end on a loaded machine take a while.
    assert float(done.stdout) < 5


def test_a_forked_child_cannot_use_the_cluster_and_may_make_another():
    program = """
    import os, sys, moesaic
    cluster = moesaic.Cluster.local(1)
    pid = os.fork()
    if pid == 0:
        try:
            cluster.nodes
        except moesaic.ClosedError:
            with moesaic.Cluster.local(1) as mine:
                os._exit(0 if mine.nodes[0].state == "idle" else 3)
        os._exit(4)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    cluster.close()
    sys.exit(code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
