"""Local clusters and the models they run. No test writes to the user's own folders."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

import moesaic


@pytest.fixture(autouse=True)
def no_folders_of_the_user(tmp_path_factory, monkeypatch) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
    monkeypatch.delenv("MOESAIC_KEY", raising=False)


@pytest.fixture(scope="session")
def demo_path() -> str:
    return str(resources.files("moesaic") / "data" / "demo.gguf")


@pytest.fixture(scope="session")
def exact() -> Iterator[moesaic.Model]:
    """The demo model on this process alone, with deterministic=True."""
    with moesaic.Model.demo(progress=False, deterministic=True) as m:
        yield m


@pytest.fixture(scope="module")
def pair() -> Iterator[moesaic.Cluster]:
    """Two workers, for tests that leave them as they were."""
    with moesaic.Cluster.local(2, memory=2 * 10**9) as c:
        yield c


@pytest.fixture
def fresh() -> Iterator[moesaic.Cluster]:
    """Three workers for one test that may break them."""
    with moesaic.Cluster.local(3, memory=2 * 10**9) as c:
        yield c


@pytest.fixture(scope="module")
def sharded(pair) -> Iterator[moesaic.Model]:
    """The demo model on two workers, with deterministic=True."""
    path = Path(str(resources.files("moesaic") / "data" / "demo.gguf"))
    with pair.load(path, n_ctx=512, deterministic=True, progress=False) as m:
        yield m
