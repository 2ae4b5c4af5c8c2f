"""A vLLM server, sampled from over its API: `rollout.engine: {name: vllm_server, url: …}`. It doesn't import vLLM.

Tokens go in and come out, a request a completion. New weights are laid down as files in a folder that the server sees
too, and the server is told to load them while nothing is being sampled. Every answer says which weights sampled each of
its tokens, by a name that is given once; any but those handed over last are an error, so a server that was restarted,
or that another run writes to, is found out at once.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from negaware.libraries import require_tested
from negaware.ranks import ALONE, Ranks
from negaware.rollout import server_replies as replies
from negaware.rollout.engine import SamplingParams
from negaware.rollout.sampling import completion_seed
from negaware.rollout.server_connection import ServerConnection, ServerRefusedError, Watch
from negaware.rollout.vllm import TESTED, require_room
from negaware.types import Completion, FinishReason

STALL_SECONDS = 1800
"""Without a new token of any answer under way the server counts as stalled; other clients' answers may come first."""
TOKENS_AN_EVENT = 64
"""How often the server says what it has sampled: seldom enough to cost nothing."""
GENERATE = "/inference/v1/generate"
SHARD_BYTES = 2**30  # of weights, gathered in memory before they are written


class VLLMServerEngine:
    """Samples with the vLLM server at `url`; weights go through `shared_folder`, which is the run's own.

    The model has tokens below `vocabulary`; `tied`: its head is its embedding. At most `max_sequences` requests are
    under way at once. Of several `ranks` each samples its part of them, and the first hands the weights over.
    ValueError if the server can't be reached, asks for another `api_key`, is of a version that wasn't tested, or wasn't
    started as docs/sampling.md says.
    """

    def __init__(
        self,
        url: str,
        shared_folder: Path,
        vocabulary: int,
        tied: bool,
        max_sequences: int,
        ranks: Ranks = ALONE,
        api_key: str | None = None,
    ) -> None:
        self.ranks, self.vocabulary = ranks, vocabulary
        self.url, self.shared_folder = url, shared_folder.absolute()
        self.server = ServerConnection(url, api_key)
        self.max_sequences = max(1, max_sequences // ranks.size)
        self.version: int | None = None
        self.weights: str | None = None
        """What the server calls the weights of that version."""
        found = self.server.call("GET", "/version", replies.Version)
        require_tested(TESTED, found.version, f"the vLLM server {url}")
        self._require_settings(tied)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_completions: int,
        params: SamplingParams,
        seed: int,
        on_progress: Callable[[int], None] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`; progress is told an answer at a time.

        ValueError for what the server refuses, for an answer that can't have been sampled, and for none.
        """
        require_room(
            prompts, params, self.max_tokens, f"the vLLM server {self.url}", "start it with a longer --max-model-len"
        )
        with ThreadPoolExecutor(self.max_sequences) as pool, Watch(STALL_SECONDS) as watch:
            waiting = [
                [
                    pool.submit(self._complete, list(prompt), params, completion_seed(seed, index, k), watch)
                    for k in range(num_completions)
                ]
                for index, prompt in zip(indices or range(len(prompts)), prompts, strict=True)
            ]
            try:
                for done in as_completed([one for group in waiting for one in group]):
                    num_tokens = len(done.result().token_ids)  # the first failure ends the others
                    if on_progress:
                        on_progress(num_tokens)
                return [tuple(one.result() for one in group) for group in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def load_weights(self, named_weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine.load_weights`. OSError for a folder that can't be written, ValueError if the server refuses."""
        handed = self._hand_over(named_weights, version) if self.ranks.is_first else deque(named_weights, maxlen=0)
        self.weights = str(self.ranks.of_first(lambda: handed))
        self.version = version

    def _hand_over(self, named_weights: Iterable[tuple[str, Tensor]], version: int) -> str:
        """What another client has under way is finished first, with the old weights, and what comes meanwhile waits.

        Returns the name that the server gives these weights.
        """
        self.shared_folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.shared_folder.iterdir():  # of a process that was killed here
            if re.fullmatch("version-[0-9]{6,}-[a-z0-9_]{8}", leftover.name):  # as below; another name is somebody's
                shutil.rmtree(leftover, ignore_errors=True)
        # A name never used before: a network file system may show what an old one held.
        folder = Path(tempfile.mkdtemp(prefix=f"version-{version:06d}-", dir=self.shared_folder))
        folder.chmod(0o755)  # the server may be another user's
        try:
            _write_weights(folder, named_weights)
            self.server.call("POST", "/pause?mode=wait", replies.Status)
            try:
                self._reload(folder)
                if not self.server.call("POST", "/reset_prefix_cache", replies.Success).success:
                    raise ValueError(f"The vLLM server {self.url} can't forget the old weights' keys and values.")
                name = {"new_version": folder.name}
                if not self.server.call("POST", "/update_weight_version", replies.Success, name).success:
                    raise ValueError(f"The vLLM server {self.url} doesn't take a name for the new weights.")
            except BaseException:
                with suppress(ValueError):  # what went wrong first is what is told
                    self.server.call("POST", "/resume", replies.Status)
                raise
            self.server.call("POST", "/resume", replies.Status)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return folder.name

    def sleep(self) -> None:
        """See `Engine.sleep`. The server's memory is its own."""

    def _reload(self, folder: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self.server.call("POST", "/collective_rpc", replies.Loaded, body)
        except ServerRefusedError as error:
            raise ValueError(
                f"The vLLM server {self.url} can't load the weights in {folder} ({error.reason}); see that it serves "
                "the run's model and sees that folder (rollout.engine.shared_folder), start it again, and go on with "
                "--resume."
            ) from error

    def _complete(self, prompt: list[int], params: SamplingParams, seed: int, watch: Watch) -> Completion:
        answer = self._answer(prompt, params, seed, watch)
        if answer.finish_reason == "abort":
            raise ValueError(
                f"The vLLM server {self.url} broke an answer off: someone else paused it; give the run a server of its "
                "own and go on with --resume."
            )
        if self.version is None or set(answer.weights) != {self.weights}:
            raise ValueError(
                f"The vLLM server {self.url} answered with the weights {', '.join(sorted(set(answer.weights)))}, not "
                f"{self.weights}: it was restarted, or another run writes to it; give the run a server of its own and "
                "go on with --resume."
            )
        reason: FinishReason = "stop" if answer.finish_reason == "stop" else "length"
        return Completion.drawn(answer.token_ids, answer.logprobs, reason, self.version, seed)

    def _answer(self, prompt: list[int], params: SamplingParams, seed: int, watch: Watch) -> replies.Answer:
        """An answer that can have been sampled. MalformedReplyError for another."""
        max_tokens = params.room(len(prompt))
        sampling = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": seed,
            "max_tokens": max_tokens,
            "stop_token_ids": list(params.stop_token_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
            "stream_interval": TOKENS_AN_EVENT,
        }
        body = {"token_ids": prompt, "sampling_params": sampling, "stream": True}
        answer = replies.Answer(max_tokens, params.stop_token_ids, self.vocabulary)
        max_bytes = replies.EVENT_BYTES + replies.TOKEN_BYTES * max_tokens
        for line in self.server.lines(GENERATE, body, watch, max_bytes):
            event = self.server.parsed(replies.Event, GENERATE, line)
            if event.error is not None:
                raise ServerRefusedError(self.url, GENERATE, event.error.message)
            try:
                num_tokens = answer.add(event)
            except ValueError as error:
                raise self.server.malformed(GENERATE, str(error)) from None
            if num_tokens:
                watch.note()
        if answer.finish_reason is None:
            raise self.server.malformed(GENERATE, "an answer without an end")
        return answer

    def _require_settings(self, tied: bool) -> None:
        settings = self.server.call("GET", "/server_info?config_format=json", replies.ServerInfo).vllm_config
        self.max_tokens = settings.model_settings.max_model_len
        on_cpu = settings.device_config.device == "cpu"
        if (mode := settings.model_settings.logprobs_mode) != "processed_logprobs":
            raise ValueError(
                f"The vLLM server {self.url} tells {mode}, not those of the distribution that it samples from; start "
                "it with --logprobs-mode processed_logprobs."
            )
        if on_cpu and settings.scheduler_config.enable_chunked_prefill:
            raise ValueError(
                f"The vLLM server {self.url} runs on a CPU, where it fails on seeds with prompts in parts; start it "
                "with --no-enable-chunked-prefill."
            )
        if on_cpu and tied:
            raise ValueError(
                f"The vLLM server {self.url} runs on a CPU, where it goes on sampling with the old head when a model "
                "whose head is its embedding gets new weights; take a GPU, or rollout.engine vllm, which mends that."
            )


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
