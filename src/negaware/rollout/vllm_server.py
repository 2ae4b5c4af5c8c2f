"""vLLM servers, sampled from over their API: `rollout.engine: {name: vllm_server, url: …}`. It doesn't import vLLM.

A request goes to the server that has least to do; one that is lost is left out, and what it was asked is asked
elsewhere. New weights are laid down as files in a folder that the servers see too, and they are told to load them.
Every answer says which weights sampled each of its tokens, by a name that is given once; any but those handed over
since it was asked are an error, so a server that was restarted, or that another run writes to, is found out at once.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from torch import Tensor

from negaware.ranks import ALONE, Ranks
from negaware.rollout import server_replies as replies
from negaware.rollout.engine import Draft, Engine, Request
from negaware.rollout.inference_server import InferenceServer
from negaware.rollout.server_connection import LostServerError, ServerRefusedError, Watch
from negaware.rollout.vllm import require_room
from negaware.types import Completion, FinishReason, Span

STALL_SECONDS = 1800
"""Without a new token of any answer under way a server counts as stalled; other clients' answers may come first."""
SHARD_BYTES = 2**30  # of weights, gathered in memory before they are written


@dataclass(slots=True, eq=False)
class _Asked:
    """A draft of a request that is with the servers since a version of the weights, unless it was withdrawn."""

    request: Request
    draft: Draft
    version: int
    is_wanted: bool = True


class VLLMServerEngine(Engine):
    """Samples with the vLLM servers at `urls`; weights go through `shared_folder`, which is the run's own.

    The model has tokens below `vocabulary`; `tied`: its head is its embedding. At most `max_sequences` answers are
    under way at once at each server. Of several `ranks` each samples its part of them, and the first hands the weights
    over. `note` is told a sentence of a server that was lost. ValueError as of `InferenceServer`.
    """

    samples_alone = True

    def __init__(
        self,
        urls: Sequence[str],
        shared_folder: Path,
        vocabulary: int,
        tied: bool,
        max_sequences: int,
        ranks: Ranks = ALONE,
        api_key: str | None = None,
        note: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.ranks, self.note = ranks, note
        self.shared_folder = shared_folder.absolute()
        self.servers = [InferenceServer(url, vocabulary, tied, api_key) for url in urls]
        self.max_sequences = max(1, max_sequences * len(urls) // ranks.size)
        self.version = -1
        self.versions: dict[str, int] = {}
        """Of the weights that were handed over, by the name that the servers know them by."""
        self.under_way: dict[Future[Completion | None], _Asked] = {}
        self._ended: SimpleQueue[Future[Completion | None]] = SimpleQueue()
        self._lost: list[str] = []
        self._losses: deque[str] = deque()
        """Sentences that weren't told yet: a server is lost in a thread."""
        self._lock = threading.Lock()
        self._session = ExitStack()
        self._pool: ThreadPoolExecutor | None = None
        self._watches: dict[str, Watch] = {}

    def submit(self, request: Request) -> None:
        """See `Engine.submit`. Drafts that have begun elsewhere begin again."""
        smallest = min(self.servers, key=lambda server: server.max_tokens)
        place, remedy = f"the vLLM server {smallest.url}", "start it with a longer --max-model-len"
        require_room(request, smallest.max_tokens, place, remedy)
        if self._pool is None:
            self._watches = {server.url: self._session.enter_context(Watch(STALL_SECONDS)) for server in self.servers}
            self._pool = ThreadPoolExecutor(self.max_sequences)
            self._session.callback(self._pool.shutdown, wait=False, cancel_futures=True)
        for draft in request.drafts:
            asked = _Asked(request, draft, self.version)
            future = self._pool.submit(self._complete, asked, self._watches)
            self.under_way[future] = asked
            future.add_done_callback(self._ended.put)

    def step(self) -> int:
        """See `Engine.step`. Waits for an answer, if one is under way.

        ValueError for what a server refuses, for an answer that can't have been sampled, and if no server is left.
        """
        if not self.under_way:
            return 0
        num_tokens = 0
        while self.under_way and (not num_tokens or not self._ended.empty()):
            future = self._ended.get()
            self._tell_losses()
            if future not in self.under_way:  # it was withdrawn
                continue
            completion = future.result()  # the first failure ends the others
            assert completion is not None
            asked = self.under_way.pop(future)
            asked.request.drafts.remove(asked.draft)
            asked.request.finished.append(completion)
            num_tokens += completion.num_tokens
        self._hang_up_if_idle()
        return num_tokens

    def _tell_losses(self) -> None:
        while self._losses:
            self.note(self._losses.popleft())

    def withdraw(self, requests: Collection[Request] | None = None) -> list[Request]:
        """See `Engine.withdraw`. What was drawn of an answer isn't known before its end: drafts are empty."""
        found: list[Request] = []
        for future, asked in list(self.under_way.items()):
            if requests is None or asked.request in requests:
                found += [] if asked.request in found else [asked.request]
                asked.is_wanted = False
                future.cancel()
                del self.under_way[future]
        self._hang_up_if_idle()
        return found

    def _hang_up_if_idle(self) -> None:
        """No thread and no connection outlives the requests that it is for."""
        if not self.under_way:
            self._session.close()
            self._pool = None

    def load_weights(self, named_weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine.load_weights`. OSError for a folder that can't be written, ValueError if a server refuses."""
        goes_on = self.ranks.any(bool(self.under_way))
        folder = self.shared_folder / self.ranks.from_first(lambda: self._new_folder(version).name)
        self.version = self.versions[folder.name] = version  # before the first answer that these have sampled
        if self.ranks.is_first:
            self._hand_over(named_weights, folder, goes_on)
        else:
            deque(named_weights, maxlen=0)
        for url in {url for lost in self.ranks.gather(self._lost) for url in lost}:
            self.servers = [server for server in self.servers if server.url != url] or self.servers
        self._tell_losses()

    def _new_folder(self, version: int) -> Path:
        """An empty one, whose name is the weights'."""
        self.shared_folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.shared_folder.iterdir():  # of a process that was killed here
            if re.fullmatch("version-[0-9]{6,}-[a-z0-9_]{8}", leftover.name):  # as below; another name is somebody's
                shutil.rmtree(leftover, ignore_errors=True)
        # A name never used before: a network file system may show what an old one held.
        folder = Path(tempfile.mkdtemp(prefix=f"version-{version:06d}-", dir=self.shared_folder))
        folder.chmod(0o755)  # the server may be another user's
        return folder

    def _hand_over(self, named_weights: Iterable[tuple[str, Tensor]], folder: Path, goes_on: bool) -> None:
        try:
            _write_weights(folder, named_weights)
            for server in list(self.servers):
                try:
                    server.load_weights(folder, goes_on)
                except LostServerError as error:
                    self._leave_out(server, error, error.what)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sleep(self) -> None:
        """See `Engine.sleep`. The servers' memory is their own."""

    def _complete(self, asked: _Asked, watches: dict[str, Watch]) -> Completion | None:
        """The completion, from one server after the other until one isn't lost; None once it is withdrawn.

        It runs in a thread of its own.
        """
        request, seed = asked.request, asked.draft.seed
        while True:
            with self._lock:
                server = min(self.servers, key=lambda server: server.num_under_way)
                server.num_under_way += 1
            try:
                answer = server.answer(
                    request.prompt, request.params, seed, watches[server.url], lambda: asked.is_wanted
                )
                return self._completion(answer, server, seed, asked.version) if answer else None
            except LostServerError as error:
                if not asked.is_wanted:  # it was hung up
                    return None
                self._leave_out(server, error, error.what)
            except ServerRefusedError as error:
                if error.status < 500:  # the request's fault
                    raise
                self._leave_out(server, error, f"failed ({error.reason})")
            finally:
                with self._lock:
                    server.num_under_way -= 1

    def _leave_out(self, server: InferenceServer, error: ValueError, what: str) -> None:
        """Asks this server no more, for what happened. Raises the error if there is no other."""
        with self._lock:
            if server not in self.servers:
                return  # another thread has seen it too
            if len(self.servers) == 1:
                raise error
            self.servers.remove(server)
            self._lost.append(server.url)
            self._losses.append(
                f"The vLLM server {server.url} {what}: it is left out, and what it was asked is asked elsewhere; "
                "the run takes it back when it is resumed."
            )

    def _completion(self, answer: replies.Answer, server: InferenceServer, seed: int, since: int) -> Completion:
        """ValueError for an answer that was broken off, or comes from other weights than those since a version."""
        if answer.finish_reason == "abort":
            raise ValueError(
                f"The vLLM server {server.url} broke an answer off: someone else paused it; give the run a server of "
                "its own and go on with --resume."
            )
        names = {name for name, _ in answer.weights}
        if any(self.versions.get(name, since - 1) < since for name in names):
            raise ValueError(
                f"The vLLM server {server.url} answered with the weights {', '.join(sorted(names))}, not "
                f"{next(reversed(self.versions), None)}: it was restarted, or another run writes to it; give the run a "
                "server of its own and go on with --resume."
            )
        reason: FinishReason = "stop" if answer.finish_reason == "stop" else "length"
        spans = tuple(Span(self.versions[name], num_tokens) for name, num_tokens in answer.weights)
        token_ids, logprobs = np.array(answer.token_ids, np.int32), np.array(answer.logprobs, np.float32)
        return Completion(token_ids, logprobs, reason, spans, seed)


def _write_weights(folder: Path, named_weights: Iterable[tuple[str, Tensor]]) -> None:
    """Safetensors files of about a gibibyte, so that no more of the weights is in memory twice."""
    from safetensors.torch import save_file

    shard: dict[str, Tensor] = {}
    number = 0
    for name, weight in named_weights:
        shard[name] = weight.detach().cpu().contiguous()
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            save_file(shard, folder / f"{number:05d}.safetensors")
            shard, number = {}, number + 1
    if shard:
        save_file(shard, folder / f"{number:05d}.safetensors")
