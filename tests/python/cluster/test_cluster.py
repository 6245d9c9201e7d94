"""Cluster: what it says of its workers, plans, loading, and who owns what."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import threading
import time
from pathlib import Path

import pytest
from processes import GONE_S, alive, wait_gone

import moesaic
from moesaic.voice import Bars

PROMPT = "It is a truth universally"


def greedy(model: moesaic.Model, n: int = 12) -> list[int]:
    return model.generate(PROMPT, max_tokens=n, temperature=0, ignore_eos=True).tokens.tolist()


# -- nodes -----------------------------------------------------------------------------------------


def test_nodes_say_what_the_workers_are(pair):
    nodes = pair.nodes
    assert [n.address for n in nodes] == list(pair.addresses) == list(pair.launcher.addresses)
    assert [n.pid for n in nodes] == list(pair.launcher.pids)
    for node in nodes:
        assert node.state in ("idle", "ready") and node.error == ""
        assert node.encrypted and node.threads == 1 and node.release == moesaic.__version__
        assert node.isa in moesaic._core.available_isas() and node.host
        assert 0 < node.memory_free <= node.memory == 2 * 10**9
        assert node.rtt is not None and 0 < node.rtt < 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            node.state = "lost"


def test_measured_nodes_have_rates_and_keep_them(pair):
    for node in pair.measure():
        assert node.rates is not None and node.rates.read > 1e8 and node.rates.matmul > 1e8
        assert node.link is not None and node.link > 1e6
    again = [n.rates for n in pair.nodes]
    assert again == [n.rates for n in pair.measure()]  # measured once


def test_a_repr_shows_the_state_at_a_glance(pair):
    assert repr(pair) == "Cluster(2 workers: on this machine)"
    shown = pair._repr_html_()
    assert shown.count("<tr>") == 3 and all(a in shown for a in pair.addresses)
    for bad in ("<script", "NO KEY"):
        assert bad not in shown


def test_a_loaded_model_shows_on_its_nodes(fresh, demo_path):
    with fresh.load(demo_path, n_ctx=256) as m:
        m.session().forward([1, 2, 3])
        held = [model for node in fresh.nodes for model in node.models]
        assert [h.name for h in held] == ["demo.gguf"] * 3
        assert [i for h in held for i in h.layers] == list(range(m.config.n_layers))
        assert len({h.identity for h in held}) == 1 and len(held[0].identity) == 64
        assert all(node.state == "ready" for node in fresh.nodes)
        assert sum(h.weights_bytes for h in held) > 5e6
        assert "demo.gguf layers 0-" in fresh._repr_html_()
    assert [node.memory_free for node in fresh.nodes]


def test_a_dead_worker_is_lost_and_the_others_are_not(fresh):
    address = fresh.addresses[1]
    fresh.launcher.kill(address)
    begin = time.monotonic()
    while (states := [n.state for n in fresh.nodes]) != ["idle", "lost", "idle"]:
        assert time.monotonic() - begin < GONE_S, states
    assert fresh.nodes[1].error
    assert fresh.nodes[1].address == address
    fresh.launcher.restart(address)
    assert [n.state for n in fresh.nodes] == ["idle"] * 3


# -- plan ------------------------------------------------------------------------------------------


def test_a_plan_gives_every_worker_a_layer(fresh, demo_path):
    plan = fresh.plan(demo_path, n_ctx=256)
    assert [n.address for n in plan.nodes] == list(fresh.addresses)
    assert all(len(n.layers) >= 1 for n in plan.nodes)
    assert plan.n_ctx == plan.kv_tokens == 256
    assert all(a in str(plan) for a in fresh.addresses)


def test_a_plan_that_somebody_has_edited_is_followed(fresh, demo_path, exact):
    data = fresh.plan(demo_path, n_ctx=256).to_dict()
    for node, layers in zip(data["nodes"], ([0, 1], [1, 4], [4, 5]), strict=True):
        node["layers"] = layers
    plan = moesaic.Plan.from_dict(data)
    with fresh.load(demo_path, plan=plan, deterministic=True) as m:
        assert m.n_ctx == 256 and m.kv_tokens >= 256
        assert [list(n.models[0].layers) for n in fresh.nodes] == [[0], [1, 2, 3], [4]]
        assert greedy(m) == greedy(exact)


def test_a_plan_may_leave_a_worker_out(fresh, demo_path, exact):
    data = fresh.plan(demo_path, n_ctx=256).to_dict()
    for node, layers in zip(data["nodes"], ([0, 3], [3, 3], [3, 5]), strict=True):
        node["layers"] = layers
    with fresh.load(demo_path, plan=moesaic.Plan.from_dict(data), deterministic=True) as m:
        assert m.device == "cluster: 2 workers"
        assert [len(n.models) for n in fresh.nodes] == [1, 0, 1]
        assert greedy(m) == greedy(exact)


def test_a_plan_of_other_workers_is_refused(pair, fresh, demo_path):
    with pytest.raises(moesaic.ArgumentError, match=r"\[Cluster.load\] plan: it is for .*need one"):
        pair.load(demo_path, plan=fresh.plan(demo_path, n_ctx=64))


@pytest.mark.parametrize("strategy", ["tensor", "hybrid"])
def test_strategies_to_come_are_refused_by_name(pair, demo_path, strategy):
    with pytest.raises(moesaic.ArgumentError, match=strategy):
        pair.plan(demo_path, strategy=strategy)


def test_what_does_not_fit_names_the_worker_and_what_helps(demo_path):
    with moesaic.Cluster.local(2, memory=60 * 10**6) as c:
        with pytest.raises(moesaic.OutOfMemoryError, match=re.escape(c.addresses[0])) as raised:
            c.plan(demo_path, n_ctx=400_000)
        assert raised.value.needed > raised.value.free > 0
        assert "n_ctx" in str(raised.value)
        with pytest.raises(moesaic.OutOfMemoryError):
            c.load(demo_path, n_ctx=400_000)
        with c.load(demo_path, n_ctx=64) as m:  # what fits still goes
            assert len(greedy(m, 3)) == 3


# -- load ------------------------------------------------------------------------------------------


def test_loading_reports_what_every_worker_does(pair, demo_path):
    seen: list[tuple[str, int, int]] = []
    with pair.load(demo_path, n_ctx=64, progress=lambda *news: seen.append(news)):
        pass
    assert all(0 <= done <= total for _, done, total in seen)
    for address in pair.addresses:
        stages = [stage.removesuffix(f" {address}") for stage, *_ in seen if address in stage]
        assert stages[-1] == "ready" and set(stages) <= {"pull", "verify", "map", "ready"}


def test_each_worker_has_a_bar_for_what_it_does(pair, demo_path, monkeypatch, capsys):
    monkeypatch.setattr("moesaic.progress._BYTES", ("B", True, 0.0))  # shown at once
    with Bars(True) as bars:
        assert bars.active
        for done in (0, 50, 100):
            bars.update("a:1", "pull", done, 100)
            bars.update("b:2", "pull", done // 2, 100)
        bars.update("a:1", "map", 10, 100)
    shown = capsys.readouterr().err
    assert all(title in shown for title in ("pull a:1: ", "pull b:2: ", "map a:1: "))
    for quiet in (False, None):  # stderr is no terminal
        pair.load(demo_path, n_ctx=64, progress=quiet).close()
    assert capsys.readouterr().err == ""


def test_an_error_of_the_callback_ends_the_load(pair, demo_path, exact):
    def refuse(*news):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pair.load(demo_path, n_ctx=64, progress=refuse)
    with pair.load(demo_path, n_ctx=64, deterministic=True) as m:
        assert greedy(m, 4) == greedy(exact, 4)


def test_a_file_that_only_workers_have_is_found_by_its_name(tmp_path, demo_path, exact):
    models = tmp_path / "models" / "deep"
    models.mkdir(parents=True)
    (models / "mine.gguf").write_bytes(Path(demo_path).read_bytes())
    with moesaic.Cluster.local(2, models=tmp_path / "models", memory=2 * 10**9) as c:
        with c.load("mine.gguf", n_ctx=256, deterministic=True) as m:
            assert m.path == "mine.gguf" and m.tokenize(PROMPT).tolist()
            assert m.metadata["general.architecture"] == "deepseek2"
            assert greedy(m) == greedy(exact)
            with pytest.raises(moesaic.ArgumentError, match="not here"):
                m.tensors["token_embd.weight"].dequantize()
        assert c.plan("mine.gguf", n_ctx=256).n_ctx == 256
        with pytest.raises(moesaic.IoError, match=r"yours\.gguf"):
            c.load("yours.gguf")


def test_workers_without_a_copy_pull_their_slices(tmp_path, demo_path, exact):
    models, cache = tmp_path / "models", tmp_path / "cache"
    models.mkdir()
    read = []
    for layers in ([0, 2, 5], [0, 2, 5], [0, 3, 5]):
        with moesaic.Cluster.local(2, models=models, cache=cache, memory=2 * 10**9) as c:
            data = c.plan(demo_path, n_ctx=256).to_dict()
            for i in (0, 1):
                data["nodes"][i]["layers"] = layers[i : i + 2]
            plan = moesaic.Plan.from_dict(data)
            with c.load(demo_path, plan=plan, deterministic=True) as m:
                assert greedy(m) == greedy(exact)
            read.append(sum(n.bytes_read for n in c.nodes))
    first, warm, other = read
    assert 0 < first <= 1.02 * os.path.getsize(demo_path)
    assert warm == 0  # nothing is pulled or hashed
    assert 0 < other <= 1.02 * os.path.getsize(demo_path)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/no/such/file.gguf", moesaic.IoError, r'a bare name \("file.gguf"\) is looked for'),
        ("nothing-has-this-name.gguf", moesaic.IoError, "nothing-has-this-name"),
        (3, moesaic.ArgumentError, "path: got 3"),
        (b"x", moesaic.ArgumentError, "path: got b'x'"),
        (None, moesaic.ArgumentError, "path: got None"),
    ],
)
def test_what_is_no_file(pair, path, error, message):
    with pytest.raises(error, match=message):
        pair.load(path)


def test_a_damaged_file_is_said(pair, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(moesaic.FormatError, match=r"bad\.gguf"):
        pair.load(tmp_path / "bad.gguf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 0}, "n_ctx"),
        ({"n_ctx": 64, "kv_tokens": 32}, "kv_tokens"),
        ({"deterministic": 1}, "deterministic"),
        ({"on_loss": "ignore"}, 'need one of "raise", "wait", "replan"'),
        ({"wire": "f8"}, "wire"),
        ({"kv_type": "q8"}, "kv_type"),
        ({"verify": "maybe"}, "verify"),
        ({"wait_seconds": -1}, "wait_seconds"),
        ({"wait_seconds": float("nan")}, "wait_seconds"),
        ({"progress": 3}, "progress"),
        ({"plan": {}}, "plan: got dict"),
    ],
)
def test_bad_options(pair, demo_path, options, message):
    with pytest.raises(moesaic.ArgumentError, match=message):
        pair.load(demo_path, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moesaic.Cluster.local(0), r"\[Cluster.local\] n: got 0"),
        (lambda: moesaic.Cluster.local(1.5), "n: got float"),
        (lambda: moesaic.Cluster.local(1, threads=0), "threads: got 0"),
        (lambda: moesaic.Cluster.local(1, memory=0), "memory: got 0"),
        (lambda: moesaic.Cluster.local(1, models="/no/such/folder"), "is not a folder"),
        (lambda: moesaic.Cluster.local(1, cache=3), "cache: got int"),
        (lambda: moesaic.Cluster([]), "at least one"),
        (lambda: moesaic.Cluster(["nonsense"]), "nonsense"),
        (lambda: moesaic.Cluster(["10.0.0.1:9777"]), "10.0.0.1"),  # beyond loopback without a key
        (lambda: moesaic.Cluster(["127.0.0.1:1"], key=b"short"), "key"),
    ],
)
def test_bad_clusters(call, message):
    with pytest.raises(moesaic.ArgumentError, match=message):
        call()


def test_nobody_there_is_an_error_that_names_the_address():
    begin = time.monotonic()
    with pytest.raises(moesaic.NetError, match=r"127\.0\.0\.1:1"):
        moesaic.Cluster(["127.0.0.1:1"])
    assert time.monotonic() - begin < GONE_S


def test_a_stranger_is_refused(pair):
    for key in (None, bytes(32)):
        with pytest.raises((moesaic.NetError, moesaic.ProtocolError)) as raised:
            moesaic.Cluster(pair.addresses, key=key)
        assert pair.addresses[0] in str(raised.value)
    assert [n.state for n in pair.nodes] == [n.state for n in pair.nodes]


# -- who owns what ---------------------------------------------------------------------------------


def test_close_ends_the_models_and_the_workers(demo_path):
    c = moesaic.Cluster.local(2, memory=2 * 10**9)
    m, s = (made := c.load(demo_path, n_ctx=64)), made.session()
    pids = c.launcher.pids
    c.close()
    c.close()
    assert (
        c.closed and m.closed and s.closed and "closed" in repr(c) and "closed" in c._repr_html_()
    )
    assert not any(alive(pid) for pid in pids)
    for call in (
        lambda: c.nodes, c.measure, lambda: c.plan(demo_path), lambda: c.load(demo_path),
        c.__enter__, lambda: m.generate("x"), lambda: s.forward([1]),
    ):  # fmt: skip
        with pytest.raises(moesaic.ClosedError):
            call()
    assert m.config.n_layers == 5


def test_a_closed_model_leaves_the_cluster_and_its_memory(pair, demo_path):
    before = [n.memory_free for n in pair.nodes]
    for _ in range(3):
        with pair.load(demo_path, n_ctx=512) as m:
            greedy(m, 2)
    begin = time.monotonic()
    # Weights stay for whoever comes next; caches and scratch go.
    while any(b - n.memory_free > 12e6 for b, n in zip(before, pair.nodes, strict=True)):
        assert time.monotonic() - begin < GONE_S
        time.sleep(0.05)


def test_a_model_keeps_its_cluster_alive(demo_path):
    c = moesaic.Cluster.local(1, memory=2 * 10**9)
    m, pids = c.load(demo_path, n_ctx=64), c.launcher.pids
    del c
    gc.collect()
    assert len(greedy(m, 3)) == 3
    del m
    gc.collect()
    wait_gone(pids)


def test_two_models_and_two_coordinators_at_once(pair, demo_path, exact):
    want = greedy(exact)
    other = moesaic.Cluster(pair.addresses, key=pair.launcher.key.text())
    try:
        options = {"n_ctx": 256, "deterministic": True}
        with (
            pair.load(demo_path, **options) as a,
            pair.load(demo_path, **options) as b,
            other.load(demo_path, **options) as c,
        ):
            got: dict[str, list[int]] = {}
            threads = [
                threading.Thread(target=lambda n=name, m=model: got.update({n: greedy(m)}))
                for name, model in (("a", a), ("b", b), ("c", c))
            ]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            assert got == {"a": want, "b": want, "c": want}
        assert repr(other) == f"Cluster(2 workers: {', '.join(pair.addresses)})"
    finally:
        other.close()
    assert all(n.state != "lost" for n in pair.nodes)


def test_a_named_cluster(pair, tmp_path, demo_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "moesaic"
    folder.mkdir()
    (folder / "clusters.toml").write_text(
        f'[home]\nworkers = ["{pair.addresses[0]}", "{pair.addresses[1]}"]\nkey = "home.key"\n'
    )
    key = folder / "home.key"
    key.write_bytes(pair.launcher.key.text())
    key.chmod(0o600)
    with moesaic.Cluster("home") as c:
        assert c.addresses == pair.addresses and c.launcher is None
        assert len(c.nodes) == 2
    assert all(alive(pid) for pid in pair.launcher.pids)  # others started them


def test_a_forked_child_says_that_the_cluster_is_not_its(pair, sharded):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        for call in (lambda: pair.nodes, lambda: sharded.generate("x", max_tokens=1)):
            try:
                call()
                said.append("nothing")
            except BaseException as error:
                said.append(type(error).__name__)
        pair.close()
        os.write(write, ",".join(said).encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        assert file.read() == "ClosedError,ClosedError"
    assert os.waitpid(pid, 0)[1] == 0
    assert all(n.state != "lost" for n in pair.nodes)


def test_descriptors_stay_flat(demo_path):
    def once():
        with moesaic.Cluster.local(1, memory=2 * 10**9) as c, c.load(demo_path, n_ctx=64) as m:
            greedy(m, 2)

    def counts() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    once()
    before = counts()
    for _ in range(5):
        once()
    begin = time.monotonic()
    while counts() != before:
        assert time.monotonic() - begin < GONE_S, (before, counts())
        time.sleep(0.05)
