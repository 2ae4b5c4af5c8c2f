"""One verifier for the whole folder: its workers start once."""

from collections.abc import Iterator

import pytest

from negaware.verifiers.limits import Limits
from negaware.verifiers.math import MathVerifier


@pytest.fixture(scope="session")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(limits=Limits(seconds=10.0)) as shared:  # what is right must not depend on how busy a machine is
        shared.grade_pairs([r"\boxed{\sqrt{2}}"], [r"\frac{2}{\sqrt{2}}"])  # starts the workers
        yield shared
