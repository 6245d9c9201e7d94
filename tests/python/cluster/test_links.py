"""Bad links between processes: the same tokens or a typed error. A few; the campaign runs many."""

from __future__ import annotations

import fault_links
import netns
import pytest
from fault_rig import Rig, rig


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    """Two workers behind proxies, with copies of the model."""
    with rig(tmp_path_factory.mktemp("links")) as made:
        yield made


@pytest.fixture(scope="module")
def pulling(tmp_path_factory):
    """Two workers behind proxies that pull the model."""
    with rig(tmp_path_factory.mktemp("pulling"), pull=True) as made:
        yield made


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Two workers and a desk in network namespaces."""
    if not netns.available():
        pytest.skip("needs root and iproute2 for namespaces")
    with fault_links.net_rig(tmp_path_factory.mktemp("net")) as made:
        yield made


@pytest.mark.parametrize("profile", fault_links.PROFILES)
def test_tokens_over_a_bad_link_are_right_or_missing(proxied: Rig, profile: str) -> None:
    fault_links.bad_link(proxied, 1, profile)


@pytest.mark.parametrize(
    "profile", ["reset, nobody there", "silence from the worker", "a flipped bit to the worker"]
)
def test_what_waits_survives_a_bad_link(proxied: Rig, profile: str) -> None:
    fault_links.bad_link_survived(proxied, 0, profile)


@pytest.mark.parametrize("i", range(3))
def test_weights_over_a_bad_link(pulling: Rig, i: int) -> None:
    fault_links.harmed_load(pulling, i)


@pytest.mark.parametrize("profile", fault_links.NET_PROFILES)
def test_links_of_the_kernel(net, profile: str) -> None:
    fault_links.bad_net(net, 0, profile)
