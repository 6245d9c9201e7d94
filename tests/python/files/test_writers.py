"""Files that users name are written whole, through links, and over nothing but regular files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import moesaic
from moesaic.gguf import GGUF, write_gguf

META = {"general.architecture": "none"}


def test_a_planted_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"out.gguf.tmp{os.getpid()}").symlink_to(victim)
    write_gguf(tmp_path / "out.gguf", META, {"w": np.zeros((4, 32), np.float32)})
    assert victim.read_text() == "precious"


def test_two_writers_of_one_path_give_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "same.gguf"
    faults: list[str] = []

    def write(value: float, times: int) -> None:
        tensors = {f"t{i}": np.full((64, 256), value, np.float32) for i in range(4)}
        try:
            for _ in range(times):
                write_gguf(path, META, tensors)
        except moesaic.MoesaicError as error:
            faults.append(str(error))

    write(1.0, 1)
    writers = [threading.Thread(target=write, args=(v, 15)) for v in (1.0, 2.0)]
    for thread in writers:
        thread.start()
    while any(thread.is_alive() for thread in writers):
        with GGUF(path) as g:
            values = {float(x) for t in g.tensors.values() for x in np.unique(t.dequantize())}
        assert len(values) == 1
    assert faults == []
    assert os.listdir(tmp_path) == ["same.gguf"]


def test_links_are_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target.gguf", tmp_path / "link.gguf"
    target.write_bytes(b"old")
    link.symlink_to("target.gguf")
    write_gguf(link, META, {})
    assert link.is_symlink()
    assert GGUF(target).metadata["general.architecture"] == "none"


def test_pipes_devices_and_descriptors_stay(tmp_path: Path) -> None:
    pipe, null = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    null.symlink_to("/dev/null")
    with moesaic.Model.demo() as model, model.session() as session:
        session.forward([1, 2])
        for write in (lambda at: write_gguf(at, META, {}), session.save):
            for at, what in ((pipe, "pipe"), (null, "device"), (tmp_path, "directory")):
                with pytest.raises(moesaic.IoError, match=f"is a {what}, need a regular file"):
                    write(at)
            with (tmp_path / "f").open("wb") as file, pytest.raises(moesaic.IoError):
                write(f"/dev/fd/{file.fileno()}")
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()


def test_a_session_is_its_owners_and_a_model_has_the_umasks_mode(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_gguf(tmp_path / "m.gguf", META, {})
        with moesaic.Model.demo() as model, model.session() as session:
            session.forward([1, 2])
            session.save(tmp_path / "s")
    finally:
        os.umask(before)
    assert (tmp_path / "m.gguf").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
