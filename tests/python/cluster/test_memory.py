"""A worker's memory and reading against the plan, on a model of more than 500 MB."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fault_rig
import pytest

import moesaic
from moesaic.gguf import Typed

BENCH = Path(__file__).parents[3] / "bench" / "python"
N_CTX = 4096
SHARE = 0.05  # promised: the plan is that near
READ = 1.02  # promised: a worker reads that much of its slice, ever


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Three of the layers of the bench model that is shaped like Kimi: random weights, 0.5 GB."""
    sys.path.insert(0, str(BENCH))
    try:
        import make_bench_model as bench
    finally:
        sys.path.remove(str(BENCH))
    builder = bench.Builder(1)
    metadata = bench.kimi(builder, n_layers=3)
    metadata["general.file_type"] = Typed(10, "u32")
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    moesaic.write_gguf(path, metadata, builder.tensors)
    assert path.stat().st_size > 500e6
    return path


def filled(cluster: moesaic.Cluster, large: Path) -> tuple[moesaic.Plan, list[float], str]:
    """Load the model, write every row of its cache, and compare each worker with its plan."""
    empty = [rss(pid) for pid in cluster.launcher.pids]
    plan = cluster.plan(large, n_ctx=N_CTX)
    off, text = [], []
    with cluster.load(large, plan=plan, progress=False) as m:
        m.forward([(7 * i) % 30000 for i in range(N_CTX)])
        for node, pid, before in zip(plan.nodes, cluster.launcher.pids, empty, strict=True):
            now = rss(pid)
            off.append(now / node.total - 1)
            text.append(
                f"layers {node.layers}: {now / 1e6:.1f} MB, planned {node.total / 1e6:.1f} "
                f"({100 * off[-1]:+.1f} %); process {node.process / 1e6:.1f} of it, "
                f"{before / 1e6:.1f} before"
            )
    return plan, off, "\n".join(text)


@pytest.mark.parametrize("pull", [False, True], ids=["own copies", "pulled"])
def test_no_more_memory_than_planned_and_a_slice_is_read_once(large, tmp_path, pull):
    models = tmp_path / "models"
    models.mkdir()
    if not pull:
        (models / large.name).symlink_to(large)
    cache = tmp_path / "cache"
    with moesaic.Cluster.local(2, models=models, cache=cache, memory=3 * 10**9) as c:
        plan, off, text = filled(c, large)
        print(text)
        assert max(off) < SHARE, text
        held = {n.address: n.bytes_read for n in c.nodes}
        for node in plan.nodes:
            assert held[node.address] <= READ * node.weights, (held, node)
        # Once more, warm: not a byte.
        with c.load(large, plan=plan, progress=False) as m:
            assert len(m.generate([3, 4, 5], max_tokens=2, ignore_eos=True).tokens) == 2
        assert {n.address: n.bytes_read for n in c.nodes} == held
        # Closed: the cache is free and the weights are held.
        fault_rig.eventually(lambda: all(n.state == "idle" for n in c.nodes), 10, "idle")
        for node, now in zip(plan.nodes, c.nodes, strict=True):
            assert now.memory - now.memory_free <= node.weights * (1 + SHARE)
    # Other processes, the same folders: digests are remembered, nothing is read for them.
    with (
        moesaic.Cluster.local(2, models=models, cache=cache, memory=3 * 10**9) as c,
        c.load(large, plan=_like(plan, c), progress=False),
    ):
        for node, planned in zip(c.nodes, plan.nodes, strict=True):
            assert node.bytes_read <= (READ - 1) * planned.weights


def test_no_less_memory_than_planned(large):
    with moesaic.Cluster.local(2, memory=3 * 10**9) as c:
        _, off, text = filled(c, large)
        print(text)
        assert min(off) > -SHARE, text


def _like(plan: moesaic.Plan, cluster: moesaic.Cluster) -> moesaic.Plan:
    """Return the plan for workers at other addresses."""
    made = plan.to_dict()
    for node, address in zip(made["nodes"], cluster.addresses, strict=True):
        node["address"] = address
    return moesaic.Plan.from_dict(made)


def test_too_little_memory_on_one_worker_names_it(large):
    with moesaic.Cluster.local(2, memory=10**9) as c:
        with pytest.raises(moesaic.OutOfMemoryError, match=r"GB|MB") as raised:
            c.load(large, n_ctx=131072, kv_tokens=2_000_000)
        assert any(address in str(raised.value) for address in c.addresses), raised.value
        with c.load(large, n_ctx=512) as m:  # and it is usable
            assert len(m.generate([3], max_tokens=2, ignore_eos=True).tokens) == 2
