"""One verifier for the whole folder: its workers start once."""

from collections.abc import Iterator

import pytest

from negaware.verifiers.math import MathVerifier


@pytest.fixture(scope="session")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier() as shared:
        shared.grade_pairs([r"\boxed{\sqrt{2}}"], [r"\frac{2}{\sqrt{2}}"])  # starts the workers
        yield shared
