"""$MOESAIC_KEY: the key's text, for every command that reaches workers, as for the worker."""

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner

from moesaic.cli import app


def invoke(env: dict[str, str], *args: str):
    return CliRunner().invoke(app, list(args), env=env, input="Hello.\n")


@pytest.mark.parametrize(
    "args",
    [
        ("run", "demo", "It was", "-n", "2"),
        ("chat", "demo", "-n", "2"),
        ("plan", "demo", "--n-ctx", "64"),
        ("cluster", "status"),
    ],
    ids=lambda args: args[0],
)
def test_the_key_is_taken_from_the_environment(pair, args):
    workers = ("--cluster", ",".join(pair.addresses))
    good = pair.launcher.key.text().decode()
    seen: list[str | None] = []
    result = invoke({"MOESAIC_KEY": good}, *args, *workers)
    assert result.exit_code == 0, result.stderr
    seen.append(os.environ.get("MOESAIC_KEY"))
    assert seen == [None]
    without = invoke({"MOESAIC_KEY": ""}, *args, *workers)
    assert without.exit_code == 1
    other = invoke({"MOESAIC_KEY": "00" * 32}, *args, *workers)
    assert other.exit_code == 1
    bad = invoke({"MOESAIC_KEY": "no key"}, *args, *workers)
    assert bad.exit_code in (1, 2) and "Traceback" not in bad.stderr


def test_a_file_goes_before_the_environment(pair, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(pair.launcher.key.text())
    key.chmod(0o600)
    args = ("plan", "demo", "--cluster", ",".join(pair.addresses), "--key", str(key))
    assert invoke({"MOESAIC_KEY": "00" * 32}, *args).exit_code == 0


def test_without_a_cluster_it_is_of_no_consequence():
    env = {"MOESAIC_KEY": "00" * 32}
    assert invoke(env, "run", "demo", "It", "-n", "1").exit_code == 0
    assert invoke(env, "plan", "demo", "--memory", "1G", "--bandwidth", "1G", "--matmul",
                  "1T").exit_code == 0  # fmt: skip
