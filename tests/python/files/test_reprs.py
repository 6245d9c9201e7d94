"""What a prompt and a notebook show of results: short, whatever the size, and safe."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import moesaic
from moesaic._tables import html_table, shortened, text_table
from moesaic.capture import Captures
from moesaic.config import Config, Layer, layers_text
from moesaic.results import Timings


def config(layers: list[Layer]) -> Config:
    values = {f.name: 0 for f in dataclasses.fields(Config)} | {"arch": "llama", "name": "<b>"}
    return Config(**values | {"layers": tuple(layers)})


def test_equal_layers_are_counted():
    dense, near = Layer("grouped", "dense", 0), Layer("grouped", "moe", 128)
    shown = repr(config([dense] * 30))
    assert "30 x grouped/dense" in shown and shown.count("grouped") == 1 and "\n" not in shown
    assert shown.startswith("Config(arch='llama', name='<b>', n_layers=0, ")
    assert layers_text([dense, near] * 18) == "18 x (grouped/dense; grouped/moe, window 128)"
    assert layers_text([near] * 5 + [dense]) == "5 x grouped/moe, window 128, 1 x grouped/dense"
    five_and_one = [*[near] * 5, dense] * 10
    assert layers_text(five_and_one).startswith("10 x (grouped/moe, window 128; ")
    assert layers_text([]) == "none"
    irregular = [near if (i * i // 7) % 2 else dense for i in range(200)]
    assert len(layers_text(irregular)) < 1500


def test_a_config_as_html():
    text = config([Layer("mla", "moe", 0)] * 60)._repr_html_()
    assert "60 x mla/moe" in text and "&lt;b&gt;" in text and "<b>" not in text


@pytest.mark.parametrize("n", [0, 1, 12, 13, 14, 153])
def test_captures_show_the_first_and_the_last(n):
    arrays = {f"blocks.{i}.resid_post": np.zeros((2, i + 1), np.float32) for i in range(n)}
    c = Captures(arrays, np.zeros((2, 9), np.float32))
    lines = repr(c).splitlines()
    assert lines[0] == f"Captures({n} arrays, logits float32 (2, 9))" and len(lines) <= 14
    for name in list(arrays)[:6] + list(arrays)[-6:]:
        assert f"  {name}: float32 {arrays[name].shape}" in lines
    if n == 153:
        assert lines[7] == "  ... 141 more ..."
    page = c._repr_html_()
    assert page.count("<tr>") <= 15 and "(2, 9)" in page


def test_a_name_that_was_not_captured_does_not_list_all():
    c = Captures({f"blocks.{i}.resid_post": np.zeros(1) for i in range(153)})
    with pytest.raises(KeyError, match=r"of 153 arrays") as error:
        c["blocks.3.resid_pots"]
    assert "blocks.3.resid_post" in str(error.value) and len(str(error.value)) < 300
    with pytest.raises(KeyError, match="there are none"):
        Captures({})["embed"]


def test_timings_as_html():
    t = Timings._measured(
        prompt_tokens=1200, cached_tokens=200, generated_tokens=10, time_to_first_token=2.0,
        prefill_seconds=2.0, decode_seconds=1.0, decode_steps=9,
    )  # fmt: skip
    page = t._repr_html_()
    assert "1,200 (200 reused)" in page and "500.0" in page and "9.0" in page


def test_reprs_of_a_model_that_runs():
    with moesaic.Model.demo(progress=False) as m:
        assert "1 x mla/dense, 4 x mla/moe" in repr(m.config)
        inside = m.capture([1, 2], "*")
        assert len(repr(inside).splitlines()) == 14
        assert "<table>" in m._repr_html_()


def test_tables():
    rows = [("a", "b"), ("x\x1b", "10")]
    assert text_table(rows, right={1}) == "a       b\nx\\x1b  10"
    assert text_table([]) == "(none)" and html_table([]) == "<table></table>"
    assert html_table([("<",)], heads=False) == "<table><tr><td>&lt;</td></tr></table>"
    assert shortened(["a", "b", "c"], first=1, last=1) == ["a", "b", "c"]  # a line saves nothing
