"""Paths that are no UTF-8: legal on Linux, so errors about them are errors of ours too."""

import os

import pytest

import moesaic


def test_a_missing_file_whose_name_is_no_utf8(tmp_path) -> None:
    with pytest.raises(moesaic.IoError, match="nope"):
        moesaic.GGUF(os.fsencode(tmp_path) + b"/nope_\xff.gguf")
