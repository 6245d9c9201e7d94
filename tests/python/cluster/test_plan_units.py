"""Amounts in a plan: with units, or large enough to be meant as they are; and the nodes' names."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import moesaic
from moesaic.cli import app
from moesaic.plan import Plan

ROOM = {"nodes": 4, "memory": "128G", "bandwidth": "215G", "matmul": "30T", "link": "5Gb",
        "threads": 16}  # fmt: skip


def on_paper(**changes):
    return Plan.on_paper("kimi-k2.5", **(ROOM | changes))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory", "128"), ("memory", "0.5"), ("memory", "128,128,128,64"), ("memory", " 96 "),
        ("bandwidth", "215"), ("bandwidth", "215/s"), ("bandwidth", "1000"),
        ("matmul", "30"), ("matmul", "30ops"), ("matmul", "30 OP/s"),
    ],
)  # fmt: skip
def test_a_number_without_its_unit_is_refused(name, text):
    with pytest.raises(moesaic.ArgumentError, match=rf"{name}: got .*need a unit, like"):
        on_paper(**{name: text})
    result = CliRunner().invoke(app, ["plan", "kimi-k2.5", f"--{name}", text, "--nodes", "4"])
    assert result.exit_code == 2 and result.stdout == "" and "need a unit" in result.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory", 128), ("bandwidth", 215), ("matmul", 30), ("memory", "128B"),
     ("bandwidth", [215, 215e9, 215e9, 215e9]), ("link", 5)],
)  # fmt: skip
def test_an_amount_that_no_machine_has_is_refused(name, value):
    with pytest.raises(moesaic.ArgumentError, match=rf"{name}: got .*need an amount like"):
        on_paper(**{name: value})


def test_bits_are_not_taken_for_bytes():
    with pytest.raises(moesaic.ArgumentError, match="b are bits"):
        on_paper(bandwidth="215Gb/s")


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": 128e9}, {"memory": "128000000000"}, {"memory": "128 GB"}, {"memory": "128gb"},
        {"bandwidth": 215e9}, {"bandwidth": "215GB/s"}, {"bandwidth": "215 GBps"},
        {"bandwidth": "215000000000"}, {"matmul": 30e12}, {"matmul": "30 TOPS"},
        {"matmul": "30000G"}, {"link": 625e6}, {"link": "625MB/s"}, {"nodes": "4"},
    ],
)  # fmt: skip
def test_amounts_in_any_form_make_the_same_plan(changes):
    assert on_paper(**changes) == on_paper()


@pytest.mark.parametrize("nodes", ["four", "4 nodes", "-1", "4.0", "4x", "node1", "", "a,,b", "a,a",
                                   ",", "0", [], ["a", ""]])  # fmt: skip
def test_what_is_no_number_of_nodes_and_no_names(nodes):
    with pytest.raises(moesaic.ArgumentError, match="nodes: got"):
        on_paper(nodes=nodes)
    if isinstance(nodes, str):
        result = CliRunner().invoke(app, ["plan", "demo", f"--nodes={nodes}", "--memory", "1G"])
        assert result.exit_code == 2 and result.stdout == "" and "nodes: got" in result.stderr


def test_names_of_nodes():
    assert [n.address for n in on_paper(nodes="a, b,c,d").nodes] == ["a", "b", "c", "d"]
    one = Plan.on_paper("demo", nodes="desk,", memory="1G", bandwidth="1G", matmul="1T")
    assert [n.address for n in one.nodes] == ["desk"]


@pytest.mark.parametrize(("trained", "n_ctx"), [(512, 512), (131072, 4096)])
def test_the_context_is_what_run_takes(trained, n_ctx, pair, demo_path):
    rates = {"memory": "1T", "bandwidth": "1T", "matmul": "1T"}
    made = Plan.on_paper("demo" if trained == 512 else "kimi-k2.5", **rates)
    assert made.n_ctx == n_ctx
    if trained == 512:
        assert pair.plan(demo_path).n_ctx == n_ctx
        result = CliRunner().invoke(app, ["plan", "demo", "--memory", "1T", "--bandwidth", "1T",
                                          "--matmul", "1T"])  # fmt: skip
        assert result.exit_code == 0 and "context 512," in result.stdout
