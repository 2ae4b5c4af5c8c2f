"""What every test needs: shapes and dtypes checked on the maths, one torch thread, fixed seeds.

The import hook must stand before anything imports negaware. Subprocesses that a test starts are left as they are.
"""

import gc
import random
import signal
from collections.abc import Iterator

import jaxtyping

jaxtyping.install_import_hook(["negaware.objectives", "negaware.models.logprobs"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

# A test runner in the background ignores Ctrl-C, and so would the processes that tests start to interrupt them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and one under nohup a closed terminal
torch.set_num_threads(1)  # tests are small: more threads cost more than they give, and sums keep their order


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes that they start, neither read nor change what the user's runs have kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEGAWARE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _small_parts_of_the_vocabulary() -> Iterator[None]:
    """So that small vocabularies have several; real models, and the processes that tests start, have the real ones."""
    from negaware.models import logprobs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "LOGITS_AT_ONCE", {"cpu": 1, "cuda": 1})
        patch.setattr(logprobs, "LEAST_COLUMNS", 7)
        yield


def pytest_collection_finish() -> None:
    """What the imports have made stays: a full collection, as accelerate asks for after each model, needn't walk it."""
    gc.collect()
    gc.freeze()
