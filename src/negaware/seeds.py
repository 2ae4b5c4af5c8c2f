"""The streams of random numbers that a run draws from, by name.

Each seed is made from the run's seed and a place in the run, so that a resumed run draws the same numbers as a run
without interruption.
"""

from __future__ import annotations

import hashlib


def sampling_seed(seed: int, step: int, num_sampled: int) -> int:
    """For the answers to a step's questions, of which `num_sampled` were asked before."""
    return _seed(seed, step, num_sampled)


def order_seed(seed: int, epoch: int) -> int:
    """For the order of an epoch's questions."""
    return _seed(seed, epoch, -1)


def mini_batch_seed(seed: int, step: int) -> int:
    """For the order of groups in a step's mini-batches."""
    return _seed(seed, step, -2)


def evaluation_seed(seed: int) -> int:
    """For the answers to held-out questions: every evaluation of a run draws the same numbers."""
    return _seed(seed, 0, -3)


def completion_seed(seed: int, index: int, k: int) -> int:
    """For answer k to the question with this index, among all that are sampled from `seed`."""
    return _hashed(f"{seed}/{index}/{k}")


def _seed(seed: int, step: int, place: int) -> int:
    """`place` separates the streams: it is 0 or more for calls that are counted within a step."""
    return _hashed(f"{seed}:{step}:{place}")


def _hashed(place: str) -> int:
    """A hash of 63 bits."""
    return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little") >> 1
