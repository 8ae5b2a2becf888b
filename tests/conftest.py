from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import tiny_teacher
from ranks import Ranks


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features of tests are kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSAME_CACHE", str(tmp_path_factory.mktemp("cache")))
        tiny_teacher()  # before any rank asks for it
        yield


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Run a module-level function on two processes: ``ranks(function, *args)``."""
    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.stop()
