"""moesaic.Plan: on paper, as data, as a table and a picture; and `moesaic plan`."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moesaic
from moesaic import description
from moesaic.cli import app
from moesaic.plan import Plan, PlanNode, Prediction

DATA = Path(__file__).parents[2] / "data"
DEMO = str(resources.files("moesaic") / "data" / "demo.gguf")
#: The reference machine room of the design.
ROOM = {"nodes": 4, "memory": "128G", "bandwidth": "215G", "matmul": "30T", "rtt": "0.2ms",
        "link": "5Gb", "threads": 16}  # fmt: skip


@pytest.fixture(scope="module")
def kimi() -> Plan:
    return Plan.on_paper("kimi-k2.5", n_ctx=32768, **ROOM)


def run(*args: object):
    result = CliRunner().invoke(app, ["plan", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def room_options(**changes: object) -> list[str]:
    return [part for k, v in (ROOM | changes).items() for part in (f"--{k}", str(v))]


def test_kimi_fits_four_machines_of_the_room(kimi):
    assert sum(n.weights for n in kimi.nodes) == pytest.approx(375e9, rel=0.005)
    assert all(14 <= len(n.layers) <= 17 for n in kimi.nodes)
    assert sum(len(n.layers) for n in kimi.nodes) == 61
    assert [n.embed for n in kimi.nodes] == [True, False, False, False]
    assert [n.head for n in kimi.nodes] == [False, False, False, True]
    # 61 layers of 576 values in f16 for each token, in whole pages.
    assert sum(n.kv for n in kimi.nodes) == 61 * 576 * 2 * 32768
    for n in kimi.nodes:
        assert n.total == n.weights + n.kv + n.scratch + n.process
        assert n.free == n.memory - n.total - n.headroom > 0
        assert n.headroom == pytest.approx(0.05 * 128e9)
    assert [p.prompt_tokens for p in kimi.predictions] == [512, 4096, 16384]
    # Some 14 GB of weights for a token, read once: no plan may promise more.
    assert 5 < kimi.predictions[0].decode_tokens_per_s < 215 / 13


def test_three_machines_are_too_few_and_the_message_says_what_helps():
    with pytest.raises(moesaic.OutOfMemoryError, match=r"node2 .* lacks .*another node of") as info:
        Plan.on_paper("kimi-k2.5", **ROOM | {"nodes": 3})
    assert info.value.needed > info.value.free > 0


def test_the_context_that_the_message_names_fits():
    room = ROOM | {"memory": "102G"}
    with pytest.raises(moesaic.OutOfMemoryError, match="n_ctx of at most") as info:
        Plan.on_paper("kimi-k2.5", n_ctx=262144, **room)
    n_ctx = int(str(info.value).split("n_ctx of at most ")[1].split()[0])
    assert Plan.on_paper("kimi-k2.5", n_ctx=n_ctx, **room).n_ctx == n_ctx
    with pytest.raises(moesaic.OutOfMemoryError):
        Plan.on_paper("kimi-k2.5", n_ctx=n_ctx + 256, **room)


def test_uneven_machines_get_uneven_shares():
    p = Plan.on_paper("kimi-k2.5", **ROOM | {"memory": ["128G", "200G", 64e9, "128G"]})
    assert len(p.nodes[2].layers) < 10
    q = Plan.on_paper("kimi-k2.5", **ROOM | {"memory": "600G", "bandwidth": "100G,400G,200G,200G",
                                             "matmul": "10T,40T,20T,20T"})  # fmt: skip
    first, second, third, fourth = (len(n.layers) for n in q.nodes)
    assert 1 <= first < third < second and abs(third - fourth) <= 1


def test_layers_can_be_given():
    p = Plan.on_paper("kimi-k2.5", layers=[10, 17, 17, 17], **ROOM)
    assert [n.layers for n in p.nodes] == [range(10), range(10, 27), range(27, 44), range(44, 61)]
    with pytest.raises(moesaic.OutOfMemoryError, match=r"node2 .* lacks .* for layers 10 to 39"):
        Plan.on_paper("kimi-k2.5", layers=[10, 30, 10, 11], **ROOM)
    for bad in ([10, 17, 17], [10, 17, 17, 18], [61, 0, 0, 1]):
        with pytest.raises(moesaic.ArgumentError, match="layer ends"):
            Plan.on_paper("kimi-k2.5", layers=bad, **ROOM)


def test_options_reach_the_plan(kimi):
    assert Plan.on_paper("kimi-k2.5", n_ctx=32768, wire="f16", **ROOM) != kimi
    f32 = Plan.on_paper("kimi-k2.5", n_ctx=32768, kv_type="f32", **ROOM)
    assert sum(n.kv for n in f32.nodes) == 2 * sum(n.kv for n in kimi.nodes)
    one_form = Plan.on_paper("kimi-k2.5", n_ctx=32768, deterministic=True, **ROOM)
    assert sum(n.weights for n in one_form.nodes) < sum(n.weights for n in kimi.nodes)
    # The absorbed form costs more for long prompts.
    last = -1
    assert (
        one_form.predictions[last].prefill_tokens_per_s
        < kimi.predictions[last].prefill_tokens_per_s
    )
    more = Plan.on_paper("kimi-k2.5", n_ctx=32768, kv_tokens=65536, **ROOM)
    assert more.kv_tokens == 65536
    assert sum(n.kv for n in more.nodes) == 2 * sum(n.kv for n in kimi.nodes)
    tight = Plan.on_paper("kimi-k2.5", n_ctx=32768, headroom=0.2, **ROOM)
    assert tight.nodes[0].headroom == pytest.approx(0.2 * 128e9)


@pytest.mark.parametrize("strategy", ["tensor", "hybrid"])
def test_strategies_that_are_not_there_are_refused_by_name(strategy):
    with pytest.raises(moesaic.ArgumentError, match=f'"{strategy}".* not in this version'):
        Plan.on_paper(DEMO, strategy=strategy, **ROOM)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nodes": 0}, "nodes"),
        ({"nodes": 2.5}, "nodes"),
        ({"memory": "12X"}, "memory"),
        ({"memory": ["1G", "2G"]}, "memory: got 2 amounts"),
        ({"memory": -5}, "memory"),
        ({"bandwidth": "fast"}, "bandwidth"),
        ({"bandwidth": float("nan")}, "bandwidth"),
        ({"matmul": "30X"}, "matmul"),
        ({"rtt": "0.2"}, "rtt"),
        ({"link": "5G"}, "the b or B must be there"),
        ({"threads": 0}, "threads"),
        ({"threads": [1, 2]}, "threads"),
        ({"strategy": "fast"}, "strategy"),
        ({"strategy": None}, "strategy"),
        ({"wire": "f64"}, "wire"),
        ({"kv_type": "q1"}, "kv_type"),
        ({"n_ctx": 0}, "n_ctx"),
        ({"n_ctx": 4096, "kv_tokens": 64}, "kv_tokens"),
        ({"headroom": 1.5}, "headroom"),
        ({"deterministic": "yes"}, "deterministic"),
        ({"layers": ["a"]}, "layers"),
    ],
)
def test_a_bad_option_is_named(options, said):
    with pytest.raises(moesaic.ArgumentError, match=said):
        Plan.on_paper(DEMO, **ROOM | options)


def test_models_that_are_none_are_said(tmp_path):
    with pytest.raises(moesaic.IoError):
        Plan.on_paper(tmp_path / "none.gguf", **ROOM)
    with pytest.raises(moesaic.IoError):
        Plan.on_paper(tmp_path / "none.json", **ROOM)
    with pytest.raises(moesaic.ArgumentError, match="kimi"):
        Plan.on_paper(17, **ROOM)
    (tmp_path / "odd.json").write_text('{"metadata": {}, "tensors": []}')
    with pytest.raises(moesaic.FormatError, match=r"general\.architecture"):
        Plan.on_paper(tmp_path / "odd.json", **ROOM)


def test_what_is_not_said_is_measured_here():
    p = Plan.on_paper(DEMO, nodes=2, n_ctx=512)
    assert len(p.nodes) == 2
    assert p.nodes[0].memory > 0
    assert p.predictions[0].decode_tokens_per_s > 0


def test_a_plan_is_plain_data_and_back(kimi):
    data = json.loads(json.dumps(kimi.to_dict()))
    assert Plan.from_dict(data) == kimi
    assert isinstance(kimi.nodes[0], PlanNode)
    assert isinstance(kimi.predictions[0], Prediction)


def test_an_edited_plan_keeps_to_its_layers(kimi):
    data = kimi.to_dict()
    for node, layers in zip(data["nodes"], ([0, 0], [0, 30], [30, 45], [45, 61]), strict=True):
        node["layers"] = layers
    edited = Plan.from_dict(data)
    assert [len(n.layers) for n in edited.nodes] == [0, 30, 15, 16]
    assert [n.embed for n in edited.nodes] == [False, True, False, False]
    assert [n.head for n in edited.nodes] == [False, False, False, True]
    assert "unused" in str(edited)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("nodes", 1, "layers"), [1, 30], "go on from"),
        (("nodes", 1, "layers"), [60, 2], "go on from"),
        (("nodes", 1, "layers"), [16], "first, end"),
        (("nodes", 1, "layers"), "all", "layers"),
        (("nodes", 0, "weights_bytes"), "much", "weights_bytes"),
        (("nodes",), 7, "nodes"),
        (("strategy",), "best", "strategy"),
        (("n_ctx",), None, "n_ctx"),
        (("n_ctx",), 2**70, "n_ctx"),
        (("predictions",), [{}], "prompt_tokens"),
    ],
)
def test_a_spoilt_plan_is_refused_and_says_where(kimi, path, value, said):
    data = copy.deepcopy(kimi.to_dict())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(moesaic.ArgumentError, match=said):
        Plan.from_dict(data)


@pytest.mark.parametrize("key", ["model", "nodes", "kv_tokens", "micro_batch_rows", "predictions"])
def test_what_a_plan_lacks_is_named(kimi, key):
    data = kimi.to_dict()
    del data[key]
    with pytest.raises(moesaic.ArgumentError, match=key):
        Plan.from_dict(data)


def test_from_dict_takes_a_mapping_only():
    with pytest.raises(moesaic.ArgumentError, match="to_dict"):
        Plan.from_dict([1, 2])


def test_a_plan_prints_as_a_table(kimi):
    lines = str(kimi).splitlines()
    heads = lines[2]
    assert heads.split() == ["node", "layers", "weights", "KV", "cache", "scratch", "process",
                             "total", "headroom", "free", "memory"]  # fmt: skip
    assert re.match(r"node1  0-1\d \+embed ", lines[3])
    assert len({len(line) for line in lines[2:7]}) == 1  # aligned
    assert "16,384" in lines[-1]
    assert re.match(r"Plan\('Kimi K2.5 UD-Q2_K_XL', pipeline, node1: 0-1\d \+embed, ", repr(kimi))


def test_html_is_escaped(kimi):
    data = kimi.to_dict()
    data["model"] = "<script>"
    data["nodes"][0]["address"] = "a&b"
    text = Plan.from_dict(data)._repr_html_()
    assert "&lt;script&gt;" in text and "a&amp;b" in text and "<script>" not in text
    assert text.count("<tr>") == 1 + 4 + 1 + 3


def test_a_plan_is_drawn(kimi):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ax = kimi.plot()
    assert [t.get_text() for t in ax.get_yticklabels()] == [n.address for n in kimi.nodes]
    widths = sum(bar.get_width() for bar in ax.patches)
    assert widths == pytest.approx(sum(n.total + n.headroom for n in kimi.nodes) / 1e9)
    said = [t.get_text() for t in ax.texts]
    assert said[0] == f"0-{len(kimi.nodes[0].layers) - 1} +embed"
    assert said[-1].endswith("-60 +head") and len(said) == 4
    other, own = plt.subplots()
    assert kimi.plot(own) is own
    plt.close(ax.figure)
    plt.close(other)


def test_the_command_prints_the_plan(kimi):
    result = run("kimi-k2.5", *room_options(), "--n-ctx", 32768)
    assert result.exit_code == 0
    assert result.stdout == f"{kimi}\n"


def test_the_commands_json_is_the_plan(kimi):
    result = run("kimi-k2.5", *room_options(nodes="a,b,c,d"), "--n-ctx", 32768, "--json")
    assert result.exit_code == 0
    said = Plan.from_dict(json.loads(result.stdout))
    assert [n.address for n in said.nodes] == ["a", "b", "c", "d"]
    assert [n.layers for n in said.nodes] == [n.layers for n in kimi.nodes]


def test_the_command_says_what_is_wrong_in_a_line():
    result = run("kimi-k2.5", *room_options(nodes=2))
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("moesaic: [plan] Kimi K2.5") and result.stderr.count("\n") == 1
    for wrong in (room_options(link="5G"), [*room_options(), "--layers", "a,b"]):
        result = run("kimi-k2.5", *wrong)
        assert result.exit_code == 2 and result.stdout == ""
    assert run("nowhere.gguf", *room_options()).exit_code == 1


def test_the_command_plans_for_workers(pair, tmp_path, demo_path):
    key = tmp_path / "key"
    key.write_bytes(pair.launcher.key.text())
    key.chmod(0o600)
    workers = ["--cluster", ",".join(pair.addresses), "--key", key]
    result = run(demo_path, *workers, "--n-ctx", 512, "--json")
    assert result.exit_code == 0, result.stderr
    said = Plan.from_dict(json.loads(result.stdout))
    assert [n.address for n in said.nodes] == list(pair.addresses)
    assert sum(len(n.layers) for n in said.nodes) == 5
    mixed = run(demo_path, *workers, "--nodes", 3, "--link", "5Gb")
    assert mixed.exit_code == 2 and "--nodes, --link with --cluster" in mixed.stderr
    lonely = run(demo_path, "--key", key)
    assert lonely.exit_code == 2 and "--cluster" in lonely.stderr


def test_an_edited_plan_is_what_a_cluster_loads(pair, demo_path, exact):
    data = pair.plan(demo_path, n_ctx=256).to_dict()
    data["nodes"][0]["layers"], data["nodes"][1]["layers"] = [0, 1], [1, 5]
    edited = Plan.from_dict(data)
    with pair.load(demo_path, plan=edited, deterministic=True, progress=False) as m:
        held = {n.address: {tuple(x.layers) for x in n.models} for n in pair.nodes}
        assert (0,) in held[pair.addresses[0]] and (1, 2, 3, 4) in held[pair.addresses[1]]
        tokens = m.tokenize("It was")
        assert m.forward(tokens).tobytes() == exact.forward(tokens).tobytes()
    data["nodes"][1]["layers"] = [1, 4]
    with pytest.raises(moesaic.ArgumentError, match="need 2, one for each node"):
        pair.load(demo_path, plan=Plan.from_dict(data), progress=False)


def test_the_shipped_description_is_what_its_script_writes():
    spec = importlib.util.spec_from_file_location("m", DATA / "make_kimi_description.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shipped = resources.files("moesaic") / "data" / description.SHIPPED["kimi-k2.5"]
    assert shipped.read_text() == script.text()
    assert len(script.tensors()) == 1096  # as the published files count
