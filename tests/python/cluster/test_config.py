"""Clusters by name, keys as callers give them, amounts of memory as people write them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import moesaic
from moesaic import _core
from moesaic.cluster_config import named_cluster, named_clusters, read_key, resolve
from moesaic.folders import cache_folder, config_folder, make_private
from moesaic.units import parse_bytes

HEX = "ab" * 32


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The folder of clusters.toml; write(text) fills it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "moesaic"
    folder.mkdir(parents=True)

    def write(text: str | bytes):
        data = text.encode() if isinstance(text, str) else text
        (folder / "clusters.toml").write_bytes(data)
        return folder

    return write


def test_a_named_cluster_has_its_workers_and_its_key_beside_the_file(config):
    folder = config('[home]\nworkers = ["a:1", "b:2"]\nkey = "home.key"\n[lab]\nworkers = ["c:3"]')
    assert named_cluster("home").workers == ("a:1", "b:2")
    assert named_cluster("home").key == folder / "home.key"
    assert named_cluster("lab").key is None
    assert resolve("home", None, "x") == (["a:1", "b:2"], folder / "home.key")
    assert resolve("home", b"k", "x") == (["a:1", "b:2"], b"k")  # the caller's key goes first


def test_a_key_may_be_anywhere(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config('[a]\nworkers = ["a:1"]\nkey = "~/k"\n[b]\nworkers = ["b:1"]\nkey = "/etc/k"')
    assert named_cluster("a").key == tmp_path / "k"
    assert str(named_cluster("b").key) == "/etc/k"


def test_an_unknown_name_lists_those_there_are(config):
    config('[home]\nworkers = ["a:1"]\n[lab]\nworkers = ["c:3"]')
    with pytest.raises(moesaic.ArgumentError, match=r'got "hom", need one of .*home, lab'):
        resolve("hom", None, "Cluster")


def test_without_a_file_the_message_says_what_to_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert named_clusters() is None
    with pytest.raises(moesaic.ArgumentError, match=r"clusters\.toml with\n\[home\]\nworkers = "):
        named_cluster("home")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[home\nworkers = 3", r"no TOML: .*line 1"),
        (b"[home]\nworkers = ['\xff']", "no UTF-8"),
        ("home = 3", r"\[home\]: got int, need a table"),
        ("[home]", r"\[home\] workers: got None, need a list"),
        ("[home]\nworkers = []", r"workers: got \[\], need a list"),
        ("[home]\nworkers = [1]", r"workers: got \[1\], need a list"),
        ("[home]\nworkers = 'a:1'", r"workers: got 'a:1', need a list"),
        ("[home]\nworkers = ['a:1']\nkey = 3", "key: got 3, need the path"),
        ("[home]\nworkers = ['a:1']\nport = 3", 'got "port", need only workers and key'),
    ],
)
def test_what_is_wrong_with_the_file_is_said(config, text, message):
    config(text)
    with pytest.raises(moesaic.FormatError, match=message) as raised:
        named_cluster("home")
    assert "clusters.toml" in str(raised.value)


def test_a_file_that_may_not_be_read(config):
    folder = config("")
    (folder / "clusters.toml").unlink()
    (folder / "clusters.toml").mkdir()
    with pytest.raises(moesaic.IoError, match=r"clusters\.toml: Is a directory"):
        named_clusters()


def test_addresses_in_a_list_or_with_commas():
    assert resolve(["a:1", "b:2"], None, "x") == (["a:1", "b:2"], None)
    assert resolve(("a:1",), None, "x") == (["a:1"], None)
    assert resolve("a:1, [::1]:2", None, "x") == (["a:1", "[::1]:2"], None)


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ([], "at least one"),
        (["a:1", ""], "at least one"),
        ("a:1,", "at least one"),
        (["a:1", "b:1", "a:1"], "got a:1 twice"),
        ([1], r"got \[1\]"),
        (b"a:1", "got b'a:1'"),
        (None, "got None"),
        ({"a:1"}, "need a list"),
    ],
)
def test_what_is_no_list_of_addresses(workers, message):
    with pytest.raises(moesaic.ArgumentError, match=message):
        resolve(workers, None, "Cluster")


def test_a_key_is_a_file_or_its_bytes(tmp_path):
    path = tmp_path / "key"
    path.write_text(HEX + "\n")
    path.chmod(0o600)
    for key in (path, str(path), HEX.encode(), (HEX + "\n").encode(), bytes.fromhex(HEX)):
        made = read_key(key, "Cluster")
        assert made is not None and made.text().split() == [HEX.encode()]
    assert read_key(None, "Cluster") is None


def test_a_key_does_not_show_itself():
    assert HEX[:8] not in repr(read_key(HEX.encode(), "Cluster"))


@pytest.mark.parametrize("key", [b"", b"short", HEX.encode()[:-1], 3, ["a"]])
def test_what_is_no_key(key):
    with pytest.raises(moesaic.ArgumentError):
        read_key(key, "Cluster")


def test_a_key_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text(HEX + "\n")
    path.chmod(0o644)
    with pytest.raises(moesaic.IoError, match=re.escape(str(path))):
        read_key(path, "Cluster")
    with pytest.raises(moesaic.IoError, match="nowhere"):
        read_key(tmp_path / "nowhere", "Cluster")


def test_a_generated_key_is_private_and_new_each_time(tmp_path):
    keys = set()
    for i in range(3):
        path = tmp_path / f"key{i}"
        _core.ClusterKey.generate(os.fsencode(path))
        assert path.stat().st_mode & 0o777 == 0o600
        keys.add(path.read_text())
    assert len(keys) == 3
    assert all(re.fullmatch(r"[0-9a-f]{64}\n", key) for key in keys)


def test_folders_follow_the_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    monkeypatch.setenv("XDG_CACHE_HOME", "/d")
    assert str(config_folder()) == "/c/moesaic" and str(cache_folder()) == "/d/moesaic"
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says XDG
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert str(config_folder()) == "/h/.config/moesaic"
    assert str(cache_folder()) == "/h/.cache/moesaic"
    made = make_private(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(moesaic.IoError, match="cannot be made"):
        make_private(tmp_path / "file" / "b")


def test_folders_that_others_may_write_to_are_refused(tmp_path):
    folder = tmp_path / "open" / "cache"
    folder.mkdir(parents=True)
    _core.ClusterKey.generate(os.fsencode(folder / "key"))
    for at in (folder, folder.parent):
        at.chmod(0o777)
        with pytest.raises(moesaic.IoError, match=rf"others may write to {at} \(mode 777\)"):
            make_private(folder)
        with pytest.raises(moesaic.IoError, match=r"key: others may write to .*chmod go-w"):
            _core.ClusterKey.read(os.fsencode(folder / "key"))
        at.chmod(0o1777)  # as /tmp: others cannot replace what is ours
        assert make_private(folder) == folder
        at.chmod(0o755)
    assert _core.ClusterKey.read(os.fsencode(folder / "key"))


def test_a_worker_warns_of_models_that_others_may_change(tmp_path):
    tmp_path.chmod(0o777)
    program = [sys.executable, "-m", "moesaic", "worker", "--listen", "127.0.0.1:0", "--no-cache"]
    process = subprocess.Popen(
        [*program, "--models", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        line = next(text for text in lines if "warning" in text)
        assert f"others may write to {tmp_path}" in line
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0", 0), ("17", 17), ("100G", 10**11), ("100 GB", 10**11), ("1.5t", 15 * 10**11),
        ("64GiB", 2**36), (".5k", 500), ("1Mi", 2**20), (" 3m ", 3 * 10**6),
    ],
)  # fmt: skip
def test_amounts(text, n_bytes):
    assert parse_bytes(text, "memory", "worker") == n_bytes


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "1 X", "1GG", "nan", "١G", "1,5G"])
def test_what_is_no_amount(text):
    with pytest.raises(moesaic.ArgumentError, match=r"\[worker\] memory: got"):
        parse_bytes(text, "memory", "worker")


@pytest.mark.parametrize("text", ["0", "-1G", "much", "7"])
def test_a_cache_size_that_is_none_is_refused(tmp_path, text):
    program = [sys.executable, "-m", "moesaic", "worker", "--listen", "127.0.0.1:0"]
    ended = subprocess.run(
        [*program, "--cache", str(tmp_path), f"--cache-size={text}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0 and "--cache-size" in ended.stderr
