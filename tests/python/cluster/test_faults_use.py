"""A few of each case of harmed files, ends, second users and histories; ``./dev campaign`` runs
many."""

from __future__ import annotations

import fault_ends
import fault_files
import fault_history
import fault_users
import pytest
from fault_rig import Rig, rig


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three workers with copies of the model."""
    with rig(tmp_path_factory.mktemp("three"), 3) as made:
        yield made


@pytest.mark.parametrize(
    ("moment", "i"),
    [("load", 0), ("load", 2), ("decode", 1), ("decode", 5), ("serving", 0), ("serving", 3)],
)
def test_a_harmed_file(moment: str, i: int) -> None:
    fault_files.harmed(None, i, moment)


@pytest.mark.parametrize(("i", "ending"), list(enumerate(fault_ends.ENDINGS)))
def test_a_process_that_ends(three: Rig, ending: str, i: int) -> None:
    fault_ends.ended(three, i, ending)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("load", "save"),
        ("prefill", "decode"),
        ("prefill", "save"),
        ("loss", "load"),
        ("loss", "decode"),
    ],
)
def test_a_second_user(three: Rig, mine: str, theirs: str) -> None:
    fault_users.second_user(three, 1, mine, theirs)


@pytest.mark.filterwarnings("ignore:.*trained for")
def test_a_history(three: Rig) -> None:
    assert fault_history.consistent(three, 0, seconds=6.0)["operations"] > 8
