"""One vLLM server as it is asked for answers, and handed new weights.

Tokens go in and come out, a request a completion. It knows neither versions nor what other servers do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from negaware.libraries import require_tested
from negaware.rollout import server_replies as replies
from negaware.rollout.engine import SamplingParams
from negaware.rollout.server_connection import ServerConnection, ServerRefusedError, Watch
from negaware.rollout.vllm import TESTED

TOKENS_AN_EVENT = 64
"""How often the server says what it has sampled: seldom enough to cost nothing."""
GENERATE = "/inference/v1/generate"


class InferenceServer:
    """The vLLM server at `url`, of a model that has tokens below `vocabulary`; `tied`: its head is its embedding.

    ValueError if it can't be reached, asks for another `api_key`, is of a version that wasn't tested, or wasn't started
    as docs/sampling.md says.
    """

    def __init__(self, url: str, vocabulary: int, tied: bool, api_key: str | None = None) -> None:
        self.url, self.vocabulary = url, vocabulary
        self.connection = ServerConnection(url, api_key)
        self.num_under_way = 0
        found = self.connection.call("GET", "/version", replies.Version)
        require_tested(TESTED, found.version, f"the vLLM server {url}")
        self._require_settings(tied)

    def load_weights(self, folder: Path, goes_on: bool) -> None:
        """Loads the weights in a folder, whose name is theirs from then on.

        What is under way `goes_on` with them, its keys and values computed anew; or else it is finished first, with the
        old ones, while what comes meanwhile waits.
        """
        self.connection.call("POST", f"/pause?mode={'keep' if goes_on else 'wait'}", replies.Status)
        try:
            self._reload(folder)
            forget = f"/reset_prefix_cache{'?reset_running_requests=true' if goes_on else ''}"
            if not self.connection.call("POST", forget, replies.Success).success:
                raise ValueError(f"The vLLM server {self.url} can't forget the old weights' keys and values.")
            name = {"new_version": folder.name}
            if not self.connection.call("POST", "/update_weight_version", replies.Success, name).success:
                raise ValueError(f"The vLLM server {self.url} doesn't take a name for the new weights.")
        except BaseException:
            with suppress(ValueError):  # what went wrong first is what is told
                self.connection.call("POST", "/resume", replies.Status)
            raise
        self.connection.call("POST", "/resume", replies.Status)

    def _reload(self, folder: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self.connection.call("POST", "/collective_rpc", replies.Loaded, body)
        except ServerRefusedError as error:
            raise ValueError(
                f"The vLLM server {self.url} can't load the weights in {folder} ({error.reason}); see that it serves "
                "the run's model and sees that folder (rollout.engine.shared_folder), start it again, and go on with "
                "--resume."
            ) from error

    def answer(
        self, prompt: Sequence[int], params: SamplingParams, seed: int, watch: Watch, is_wanted: Callable[[], bool]
    ) -> replies.Answer | None:
        """An answer that can have been sampled, None once it is no longer wanted. MalformedReplyError for another."""
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
        body = {"token_ids": list(prompt), "sampling_params": sampling, "stream": True}
        answer = replies.Answer(max_tokens, params.stop_token_ids, self.vocabulary)
        max_bytes = replies.EVENT_BYTES + replies.TOKEN_BYTES * max_tokens
        for line in self.connection.lines(GENERATE, body, watch, max_bytes):
            event = self.connection.parsed(replies.Event, GENERATE, line)
            if event.error is not None:
                raise ServerRefusedError(self.url, GENERATE, event.error.message)
            try:
                num_tokens = answer.add(event)
            except ValueError as error:
                raise self.connection.malformed(GENERATE, str(error)) from None
            if num_tokens:
                watch.note()
            if not is_wanted():
                return None  # the server drops a request whose client is gone
        if answer.finish_reason is None:
            raise self.connection.malformed(GENERATE, "an answer without an end")
        return answer

    def _require_settings(self, tied: bool) -> None:
        settings = self.connection.call("GET", "/server_info?config_format=json", replies.ServerInfo).vllm_config
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
