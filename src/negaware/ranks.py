"""The processes that train together, as torchrun starts them, and their exchanges.

A rank is one of them. A process that was started alone is the only rank, and exchanges with itself.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

T = TypeVar("T")

LOST_CONNECTION = (
    *("connection closed", "connection reset", "connection refused", "broken pipe"),  # gloo's, and sockets'
    *("remote process exited", "ncclremoteerror"),
)
"""The error of a collective holds one of these if a rank that it waits for has ended."""
PATIENCE = timedelta(days=1)
"""A rank may wait long while another downloads, reads or evaluates; a rank that dies closes its connections."""


class RankLostError(ValueError):
    """Another rank has died, so this rank can't continue."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `size` ranks. All ranks must make the same exchanges in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on this machine, which is the number of its GPU."""
    store: dist.Store | None = None
    processes: tuple[tuple[str, int], ...] = ()
    """Host and process id of each rank."""

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that logs and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """This rank's GPU if `name` is cuda, else `name`. ValueError if there are more ranks on a machine than GPUs."""
        if name != "cuda" or self.size == 1:
            return name
        if self.local_rank >= (num_gpus := torch.cuda.device_count()):
            raise ValueError(
                f"rank {self.rank} is number {self.local_rank + 1} on its machine, where torch sees {num_gpus} GPUs; "
                f"start at most {num_gpus} processes a machine (torchrun --nproc-per-node) and let each see all."
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank; anything that pickles."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def to_first(self, value: T) -> list[T]:
        """On the first rank every rank's value, by rank; on other ranks nothing."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def exchange(self, parcels: Sequence[T]) -> list[T]:
        """Every rank's parcel for this rank, by rank; `parcels` are this rank's, one for each."""
        if self.size == 1:
            return list(parcels)
        packed = [np.frombuffer(pickle.dumps(parcel), np.uint8) for parcel in parcels]
        sizes = torch.tensor([len(each) for each in packed])
        arriving = torch.empty_like(sizes)
        dist.all_to_all_single(arriving, sizes)
        received = torch.empty(int(arriving.sum()), dtype=torch.uint8)
        dist.all_to_all_single(received, torch.from_numpy(np.concatenate(packed)), arriving.tolist(), sizes.tolist())
        return [pickle.loads(each.numpy()) for each in received.split(arriving.tolist())]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank; it is called only there."""
        if self.size == 1:
            return make()
        values = [make() if self.is_first else None]
        dist.broadcast_object_list(values, src=0)
        found: Any = values[0]
        return found

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums over the ranks, by name; a rank need not have every name."""
        gathered = self.gather(dict(values))
        names = dict.fromkeys(name for each in gathered for name in each)
        return {name: sum(each.get(name, 0.0) for each in gathered) for name in names}

    def meet(self) -> None:
        """Waits until every rank is here."""
        self.gather(None)

    def require_shared(self, folder: Path) -> None:
        """ValueError unless all ranks see what the first rank writes in the folder."""
        if self.size == 1:
            return
        with TemporaryDirectory(prefix=".seen-by-all-", dir=folder) if self.is_first else nullcontext() as made:
            name = self.from_first(lambda: Path(str(made)).name)
            seen = self.gather((folder / name).exists())
        if not all(seen):
            rank = seen.index(False)
            raise ValueError(
                f"rank {rank} (on {self.processes[rank][0]}) doesn't see what the first rank writes in {folder}; set "
                "run.folder to a place on a file system that all machines share."
            )

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return any(self.gather(flag))

    def all_reach(self, place: str, seconds: float = 3.0) -> bool:
        """Whether every rank reaches this place within `seconds`; all ranks get the same answer.

        `place` is a name that is used once. The store is asked, not the ranks: a rank that has died can't block it.
        """
        if self.store is None:
            return True
        deadline = time.monotonic() + seconds
        with suppress(RuntimeError):  # the store may have ended with the first rank
            arrived = self.store.add(place, 1)
            while arrived < self.size and time.monotonic() < deadline:
                time.sleep(0.01)
                arrived = self.store.add(place, 0)
            # The first rank that knows decides for all: a late rank must not go on when another has given up.
            word = "yes" if arrived == self.size else "no"
            return bool(self.store.compare_set(f"{place}: all here?", "", word) == b"yes")
        return False

    def require_alive(self, error: BaseException) -> None:
        """RankLostError if the error is due to the death of another rank."""
        if self.size == 1:
            return
        broken = is_lost_connection(error)
        deadline = time.monotonic() + (5 if broken else 0)
        while not (dead := self.dead()) and time.monotonic() < deadline:
            time.sleep(0.02)  # a dying process closes its connections before it has ended
        if not dead and not broken:
            return
        silent = self._wait_until_all_know(dead)
        elsewhere = {host for rank, (host, _) in enumerate(self.processes) if rank in silent} - {socket.gethostname()}
        if dead:
            lost = " and ".join(f"rank {rank} (process {self.processes[rank][1]})" for rank in dead)
        elif elsewhere:
            lost = f"a rank on {' or '.join(sorted(elsewhere))}"
        else:
            return
        raise RankLostError(
            f"{lost} has died, so the others can't go on; its own message or the system's log says why (a lack of "
            "memory?). The same command with --resume goes on from the last checkpoint."
        ) from error

    def _wait_until_all_know(self, dead: Sequence[int], seconds: float = 5.0) -> set[int]:
        """The ranks that don't report a lost rank to the store in time: those that are lost, or haven't noticed yet.

        Each rank waits here, because one that left while others look for dead ranks would be counted as dead.
        """
        silent = set(range(self.size)) - {self.rank, *dead}
        if self.store is None:
            return silent
        deadline = time.monotonic() + seconds
        with suppress(RuntimeError):  # the store may have ended with the first rank
            self.store.set(f"rank {self.rank} has lost one", "")
            while silent and time.monotonic() < deadline:
                time.sleep(0.02)
                silent = {rank for rank in silent if not self.store.check([f"rank {rank} has lost one"])}
        if self.is_first:
            time.sleep(0.5)  # this process may hold the store, which others still read
        return silent

    def dead(self) -> list[int]:
        """The ranks on this machine whose process has ended."""
        host = socket.gethostname()
        return [rank for rank, (place, process) in enumerate(self.processes) if place == host and _has_ended(process)]


ALONE = Ranks()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks among which this process was started, until the block ends. RankLostError if one of them dies."""
    declared = os.environ.get("WORLD_SIZE", "1")
    if declared == "1":
        yield ALONE
        return
    if not declared.isdecimal() or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ValueError(
            f"WORLD_SIZE is {declared!r}, as if this were one of several ranks, but not all that torchrun sets is "
            "there; start with torchrun, or unset it."
        )
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timedelta(minutes=10))))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    processes = Ranks(rank, size).gather((socket.gethostname(), os.getpid()))
    ranks = Ranks(rank, size, int(os.environ.get("LOCAL_RANK", "0")), store, tuple(processes))
    try:
        yield ranks
    except RuntimeError as error:
        ranks.require_alive(error)
        raise
    dist.destroy_process_group()  # not after an error: it could wait for ranks that have ended


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective's error says that a rank has ended."""
    return any(sign in str(error).lower() for sign in LOST_CONNECTION)


def _has_ended(process: int) -> bool:
    """Whether the process has ended, even if its parent hasn't read its exit code yet."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):  # no such call on this system
        return False
    try:
        return bool(select.select([descriptor], [], [], 0)[0])
    finally:
        os.close(descriptor)
