"""Workers added to a cluster, weights taken out of it, and how it looks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import moesaic


def test_a_worker_that_the_launcher_starts_is_seen_and_used(demo_path, exact):
    with moesaic.Cluster.local(1, memory=10**9) as c:
        (address,) = c.launcher.start(1)
        assert c.addresses[1] == address and [n.state for n in c.nodes] == ["idle", "idle"]
        assert c.add(address).address == address and len(c.nodes) == 2  # it is there already
        with c.load(demo_path, n_ctx=256, deterministic=True) as m:
            assert m.device == "cluster: 2 workers"
            got = m.generate([3, 4], max_tokens=5, temperature=0).tokens.tolist()
        assert got == exact.generate([3, 4], max_tokens=5, temperature=0).tokens.tolist()


def test_one_that_others_started_is_added_and_takes_layers_at_a_loss(demo_path):
    with moesaic.Cluster.local(2, memory=10**9) as theirs:
        first, second = theirs.addresses
        with moesaic.Cluster([first], key=theirs.launcher.key) as c:
            with c.load(demo_path, n_ctx=256, on_loss="replan", deterministic=True) as m:
                want = m.generate([3, 4], max_tokens=5, temperature=0).tokens.tolist()
                assert c.add(second).state == "idle"
                theirs.launcher.kill(first)
                assert m.generate([3, 4], max_tokens=5, temperature=0).tokens.tolist() == want
            assert c.nodes[0].state == "lost" and c.nodes[1].models


def test_what_cannot_be_added_changes_nothing(pair):
    before = pair.addresses
    port = pair.addresses[0].rsplit(":", 1)[1]
    for address, error in [
        ("127.0.0.1:1", moesaic.errors.NetError),
        (f"localhost:{port}", moesaic.ArgumentError),  # the same worker
        ("nonsense", moesaic.ArgumentError),
        ("", moesaic.ArgumentError),
        (7, moesaic.ArgumentError),
    ]:
        with pytest.raises(error):
            pair.add(address)
    assert pair.addresses == before and len(pair.nodes) == len(before)


def test_unload_frees_what_is_not_in_use(pair, demo_path, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(Path(demo_path).read_bytes())
    pair.unload()
    empty = [n.memory_free for n in pair.nodes]
    m = pair.load(demo_path, n_ctx=64)
    name = "demo.gguf"
    held = [[h.name for h in n.models] for n in pair.unload(name)]
    assert held == [[name], [name]]  # it is in use
    assert [[h.name for h in n.models] for n in pair.unload("other.gguf")] == held
    assert all(not n.models for n in pair.unload(m))
    assert m.closed and [n.memory_free for n in pair.nodes] == empty
    with pair.load(demo_path, n_ctx=64):
        pass
    identity = pair.nodes[0].models[0].identity
    assert all(not n.models for n in pair.unload(identity))
    with pytest.raises(moesaic.ArgumentError, match="model"):
        pair.unload(7)


def test_unload_at_the_command_line(pair, demo_path, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(pair.launcher.key.text())
    key.chmod(0o600)
    pair.load(demo_path, n_ctx=64).close()
    command = [sys.executable, "-m", "moesaic", "cluster", "unload", "demo.gguf"]
    command += ["--cluster", ",".join(pair.addresses), "--key", str(key)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "freed" in done.stderr and pair.addresses[1] in done.stdout


def test_nodes_print_as_a_table(pair):
    nodes = pair.nodes
    assert isinstance(nodes, tuple) and nodes[0].address == pair.addresses[0]
    text = str(nodes)
    assert repr(nodes) == text and text.splitlines()[0].startswith("node ")
    assert len(text.splitlines()) == 3 and len(text) < 600
    assert nodes._repr_html_().startswith("<table>")


def test_plan_takes_what_load_takes(pair, demo_path):
    small = pair.plan(demo_path, n_ctx=256, kv_type="f16")
    large = pair.plan(demo_path, n_ctx=256, kv_type="f32", deterministic=True)
    assert sum(n.kv for n in large.nodes) == 2 * sum(n.kv for n in small.nodes)
    for bad in ([5], [1, 1], [6, -1], "23"):
        with pytest.raises(moesaic.ArgumentError, match="layer"):
            pair.plan(demo_path, n_ctx=256, layers=bad)
    with pytest.raises(moesaic.ArgumentError, match="kv_type"):
        pair.plan(demo_path, n_ctx=256, kv_type="f8")
