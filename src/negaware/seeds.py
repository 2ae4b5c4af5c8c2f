"""The streams of random numbers that a run draws from, by name.

Each call has a seed of its own, made from the run's seed and the call's place, so that a resumed run draws what the
straight run drew, whatever happened between.
"""

from __future__ import annotations

import hashlib


def sampling_seed(seed: int, step: int, num_sampled: int) -> int:
    """Of the answers to a step's questions, of which `num_sampled` were asked before."""
    return _seed(seed, step, num_sampled)


def order_seed(seed: int, epoch: int) -> int:
    """Of the order in which an epoch asks its questions."""
    return _seed(seed, epoch, -1)


def mini_batch_seed(seed: int, step: int) -> int:
    """Of the groups' order in a step's mini-batches."""
    return _seed(seed, step, -2)


def evaluation_seed(seed: int) -> int:
    """Of the answers to held-out questions: every evaluation of a run draws the same numbers."""
    return _seed(seed, 0, -3)


def completion_seed(seed: int, index: int, k: int) -> int:
    """Of answer k to the question with this index, among all that are sampled from `seed`."""
    return _hashed(f"{seed}/{index}/{k}")


def _seed(seed: int, step: int, place: int) -> int:
    """Streams differ by `place`: it is 0 or more where calls of a step are counted."""
    return _hashed(f"{seed}:{step}:{place}")


def _hashed(place: str) -> int:
    """63 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "little") >> 1
