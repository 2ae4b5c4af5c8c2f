"""A vLLM server, sampled from over its API: `rollout.engine: {name: vllm_server, url: …}`. It doesn't import vLLM.

Tokens go in and come out, a request a completion. New weights are laid down as files in a folder that the server sees
too, and the server is told to load them while nothing is being sampled. Every answer says which weights sampled each of
its tokens, by a name that is given once; any but those handed over last are an error, so a server that was restarted,
or that another run writes to, is found out at once.
"""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from negaware.libraries import require_tested
from negaware.ranks import ALONE, Ranks
from negaware.rollout.engine import SamplingParams
from negaware.rollout.sampling import completion_seed
from negaware.rollout.vllm import TESTED, require_room
from negaware.types import Completion, FinishReason

PATIENCE = 3600  # seconds without a byte from the server after which it counts as gone
SHARD_BYTES = 2**30  # of weights, gathered in memory before they are written


class ServerRefusedError(ValueError):
    """The server answered, but not with what was asked for."""

    def __init__(self, url: str, path: str, reason: str) -> None:
        super().__init__(f"The vLLM server {url} refused {path}: {reason}")
        self.reason = reason


class VLLMServerEngine:
    """Samples with the vLLM server at `url`; weights go through `shared_folder`, which is the run's own.

    At most `max_sequences` requests are under way at once. `tied`: the model's head is its embedding. Of several
    `ranks` each samples its part of them, and the first hands the weights over. ValueError if the server can't be
    reached, is of a version that wasn't tested, or wasn't started as docs/sampling.md says.
    """

    def __init__(self, url: str, shared_folder: Path, tied: bool, max_sequences: int, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.url, self.shared_folder = url, shared_folder.absolute()
        self.max_sequences = max(1, max_sequences // ranks.size)
        self.version: int | None = None
        self.weights: str | None = None
        """What the server calls the weights of that version."""
        self._connections: set[HTTPConnection] = set()
        require_tested(TESTED, self._call("GET", "/version")["version"], f"the vLLM server {url}")
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
        """See `Engine.generate`; progress is told an answer at a time. ValueError for what the server refuses."""
        require_room(
            prompts, params, self.max_tokens, f"the vLLM server {self.url}", "start it with a longer --max-model-len"
        )
        with ThreadPoolExecutor(self.max_sequences) as pool:
            waiting = [
                [
                    pool.submit(self._complete, list(prompt), params, completion_seed(seed, index, k))
                    for k in range(num_completions)
                ]
                for index, prompt in zip(indices or range(len(prompts)), prompts, strict=True)
            ]
            try:
                for done in as_completed([one for group in waiting for one in group]):
                    if on_progress:
                        on_progress(len(done.result().token_ids))
                return [tuple(one.result() for one in group) for group in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._hang_up()  # the server drops a request whose client is gone
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
        for leftover in self.shared_folder.glob("version-*"):  # of a process that was killed here
            shutil.rmtree(leftover, ignore_errors=True)
        # A name never used before: a network file system may show what an old one held.
        folder = Path(tempfile.mkdtemp(prefix=f"version-{version:06d}-", dir=self.shared_folder))
        folder.chmod(0o755)  # the server may be another user's
        try:
            _write_weights(folder, named_weights)
            self._call("POST", "/pause?mode=wait")
            try:
                self._reload(folder)
                if not self._call("POST", "/reset_prefix_cache")["success"]:
                    raise ValueError(f"The vLLM server {self.url} can't forget the old weights' keys and values.")
                self._call("POST", "/update_weight_version", {"new_version": folder.name})
            finally:
                self._call("POST", "/resume")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return folder.name

    def sleep(self) -> None:
        """See `Engine.sleep`. The server's memory is its own."""

    def _reload(self, folder: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self._call("POST", "/collective_rpc", body)
        except ServerRefusedError as error:
            raise ValueError(
                f"The vLLM server {self.url} can't load the weights in {folder} ({error.reason}); see that it serves "
                "the run's model and sees that folder (rollout.engine.shared_folder), start it again, and go on with "
                "--resume."
            ) from error

    def _complete(self, prompt: list[int], params: SamplingParams, seed: int) -> Completion:
        sampling = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": seed,
            "max_tokens": params.room(len(prompt)),
            "stop_token_ids": list(params.stop_token_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
        }
        reply = self._call("POST", "/inference/v1/generate", {"token_ids": prompt, "sampling_params": sampling})
        (choice,) = reply["choices"]
        weights = {span["version"] for span in choice["weight_versions"]}
        if self.version is None or weights != {self.weights}:
            raise ValueError(
                f"The vLLM server {self.url} answered with the weights {', '.join(sorted(weights))}, not "
                f"{self.weights}: it was restarted, or another run writes to it; give the run a server of its own and "
                "go on with --resume."
            )
        if choice["finish_reason"] not in ("stop", "length"):
            raise ValueError(
                f"The vLLM server {self.url} broke an answer off ({choice['finish_reason']}): someone else paused it; "
                "give the run a server of its own and go on with --resume."
            )
        logprobs = tuple(at["logprob"] for at in choice["logprobs"]["content"])
        reason: FinishReason = "stop" if choice["token_ids"][-1] in params.stop_token_ids else "length"
        return Completion(tuple(choice["token_ids"]), logprobs, reason, self.version, seed)

    def _require_settings(self, tied: bool) -> None:
        settings = self._call("GET", "/server_info?config_format=json")["vllm_config"]
        self.max_tokens = int(settings["model_config"]["max_model_len"])
        on_cpu = settings["device_config"]["device"] == "cpu"
        if (mode := settings["model_config"]["logprobs_mode"]) != "processed_logprobs":
            raise ValueError(
                f"The vLLM server {self.url} tells {mode}, not those of the distribution that it samples from; start "
                "it with --logprobs-mode processed_logprobs."
            )
        if on_cpu and settings["scheduler_config"]["enable_chunked_prefill"]:
            raise ValueError(
                f"The vLLM server {self.url} runs on a CPU, where it fails on seeds with prompts in parts; start it "
                "with --no-enable-chunked-prefill."
            )
        if on_cpu and tied:
            raise ValueError(
                f"The vLLM server {self.url} runs on a CPU, where it goes on sampling with the old head when a model "
                "whose head is its embedding gets new weights; take a GPU, or rollout.engine vllm, which mends that."
            )

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """The server's JSON answer. ValueError in one sentence if it is gone or refuses."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.netloc, timeout=PATIENCE)
        self._connections.add(connection)
        try:
            connection.request(method, path, json.dumps(body or {}), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, HTTPException) as error:
            raise ValueError(
                f"The vLLM server {self.url} can't be reached ({str(error) or type(error).__name__}); see that it runs "
                "there, then go on with --resume."
            ) from error
        finally:
            self._connections.discard(connection)
            connection.close()
        if response.status == 404:
            raise ValueError(
                f"The vLLM server {self.url} has no {path.partition('?')[0]}; start it with VLLM_SERVER_DEV_MODE=1 and "
                "--enable-scale-out."
            )
        if response.status != 200:
            raise ServerRefusedError(self.url, path.partition("?")[0], _reason(text))
        return json.loads(text)

    def _hang_up(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError, AttributeError):  # closed, or not open yet
                connection.sock.shutdown(socket.SHUT_RDWR)


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


def _reason(text: str) -> str:
    """What an error's JSON says, else its first line."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return next(iter(text.splitlines()), "no reason given")
