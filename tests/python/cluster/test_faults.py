"""A few of each case of faults, with real processes; ``./dev campaign`` runs many."""

from __future__ import annotations

import fault_kills
import fault_others
import pytest
from fault_rig import Rig, rig


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Two workers with copies of the model."""
    with rig(tmp_path_factory.mktemp("copies")) as made:
        yield made


@pytest.fixture(scope="module")
def pulling(tmp_path_factory):
    """Two workers that pull the model."""
    with rig(tmp_path_factory.mktemp("pulling"), pull=True) as made:
        yield made


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three workers with copies of the model."""
    with rig(tmp_path_factory.mktemp("three"), 3) as made:
        yield made


@pytest.mark.parametrize(("i", "moment"), list(enumerate(fault_kills.KILLS)))
def test_a_worker_killed(copies: Rig, pulling: Rig, moment: str, i: int) -> None:
    fault_kills.KILLS[moment](pulling if moment in fault_kills.PULLED else copies, i)


def test_a_worker_killed_while_it_ends(copies: Rig) -> None:
    fault_kills.in_shutdown(copies, 0)


@pytest.mark.parametrize("moment", fault_others.MOMENTS)
def test_a_coordinator_killed(copies: Rig, moment: str) -> None:
    fault_others.killed_coordinator(copies, 1, moment)


@pytest.mark.parametrize("i", [4, 8])
@pytest.mark.parametrize("on_loss", ["wait", "replan"])
def test_it_goes_on_with_the_same_tokens(three: Rig, on_loss: str, i: int) -> None:
    fault_others.resumed(three, i, on_loss)


@pytest.mark.filterwarnings("ignore:.*trained for")
@pytest.mark.parametrize(("i", "on_loss"), [(0, "raise"), (3, "wait"), (3, "replan")])
def test_a_worker_lost_late_in_a_call(three: Rig, on_loss: str, i: int) -> None:
    fault_others.lost_late(three, i, on_loss)


@pytest.mark.parametrize("seconds", [1.0, 2.0, 4.0])
def test_a_worker_that_stops(copies: Rig, seconds: float) -> None:
    fault_others.stopped(copies, 1, seconds)


@pytest.mark.parametrize("on_loss", ["wait", "replan"])
def test_a_worker_that_wakes_up_to_a_dead_epoch(copies: Rig, on_loss: str) -> None:
    fault_others.slept_through(copies, 0, 4.0, on_loss)


def test_a_worker_that_flaps(copies: Rig) -> None:
    fault_others.flapped(copies, 0)


@pytest.mark.parametrize("i", range(5))
def test_ctrl_c(copies: Rig, i: int) -> None:
    fault_others.interrupted(copies, i)


def test_a_coordinator_killed_in_a_pull(pulling: Rig) -> None:
    fault_others.coordinator_killed_in_a_pull(pulling, 0)


def test_all_workers_killed_at_once(copies: Rig) -> None:
    fault_others.all_killed_at_once(copies, 1)


@pytest.mark.parametrize("i", [0, 2])
def test_a_worker_that_stops_in_a_load(pulling: Rig, i: int) -> None:
    fault_others.stopped_in_a_load(pulling, i)


def test_opened_and_closed(copies: Rig) -> None:
    for i in range(12):
        figures = fault_others.opened_and_closed(copies, i)
    assert "drift_mb" in figures


def test_eight_clients(copies: Rig) -> None:
    assert fault_others.soaked(copies, 0, seconds=3.0)["calls"] >= 8
