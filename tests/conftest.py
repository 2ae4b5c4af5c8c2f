"""What every test needs: shapes and dtypes checked on the maths, one torch thread, fixed seeds.

The import hook must stand before anything imports negaware. It isn't in the processes that a test starts.
"""

import gc
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping

jaxtyping.install_import_hook(["negaware.objectives", "negaware.models.logprobs"], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

# A test runner in the background ignores Ctrl-C, and so would the processes that tests start to interrupt them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and one under nohup a closed terminal
if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side, each on all cores, would wait for the others' threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)  # tests are small: more threads cost more than they give, and sums keep their order


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes that they start, neither read nor change what the user's runs have kept.

    Test processes side by side have one together: the embedded model is converted once.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEGAWARE_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _small_parts_of_the_vocabulary() -> Iterator[None]:
    """So that small vocabularies have several; real models, and the processes that tests start, have the real ones."""
    from negaware.models import logprobs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "LOGITS_AT_ONCE", {"cpu": 1, "cuda": 1})
        patch.setattr(logprobs, "LEAST_COLUMNS", 7)
        yield


CHROMIUM_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; without one the test is skipped."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=[*CHROMIUM_ARGUMENTS])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a report; at the end, fails for any console message or any request beyond the file."""
    troubles: list[str] = []
    pages = []

    def open_file(path: Path, **options: Any) -> Any:
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"page error: {error}"))
        own = ("file:", "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or troubles.append(f"request: {request.url}"))
        page.goto(path.as_uri())
        page.wait_for_selector("#answer-list > li, #count:has-text('No ')")
        pages.append(page)
        return page

    yield open_file
    for page in pages:
        page.close()
    assert troubles == []


def pytest_collection_finish() -> None:
    """What the imports have made stays: a full collection, as accelerate asks for after each model, needn't walk it."""
    gc.collect()
    gc.freeze()
