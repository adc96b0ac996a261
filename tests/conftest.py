"""What all tests share: own home and cache, the quick profile's tokens, hypothesis."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from quarterhour.data.tokens import TokenData, prepare_tokens
from quarterhour.search_spaces.profiles import QUICK

# The same examples every time, on a machine of any speed, and none kept from run to run.
settings.register_profile("tests", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two processes test side by side; and other threads than a trial's give other last bits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home and a cache for this session, so that no test touches the user's or is touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokens(cache: None) -> TokenData:
    """The quick profile's tokens: seconds, once a session."""
    return prepare_tokens(QUICK.data)
