"""One verifier for the whole folder: its workers start once."""

from collections.abc import Iterator
from functools import partial

import pytest

from negaware.verifiers.math import MathVerifier
from negaware.verifiers.pool import WorkerPool


@pytest.fixture(scope="session")
def verifier() -> Iterator[MathVerifier]:
    with pytest.MonkeyPatch.context() as patch:  # what is right must not depend on how busy the machine is
        patch.setattr("negaware.verifiers.math.WorkerPool", partial(WorkerPool, seconds=10.0))
        shared = MathVerifier()
    with shared:
        shared.grade_pairs([r"\boxed{\sqrt{2}}"], [r"\frac{2}{\sqrt{2}}"])  # starts the workers
        yield shared
