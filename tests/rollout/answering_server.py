"""An HTTP server on loopback that speaks as vLLM 0.32 does, but for the paths that it is told to answer otherwise."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GENERATE = "/inference/v1/generate"
STOP, SETTINGS = (
    1,
    {
        "model_config": {"max_model_len": 64, "logprobs_mode": "processed_logprobs"},
        "device_config": {"device": "cuda"},
        "scheduler_config": {"enable_chunked_prefill": True},
    },
)
JSON_OF: dict[str, Any] = {
    "/version": {"version": "0.32.0"},
    "/server_info": {"vllm_config": SETTINGS},
    "/pause": {"status": "paused"},
    "/resume": {"status": "resumed"},
    "/collective_rpc": {"results": [None]},
    "/reset_prefix_cache": {"success": True},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: AnsweringServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.queries.append((path, query))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((path, dict(self.headers)))
        if path in self.server.otherwise:
            self.server.otherwise[path](self)
        elif path == GENERATE:
            self.stream(events(body["sampling_params"]["max_tokens"], weights=self.server.weights))
        elif path == "/update_weight_version":
            self.server.weights = body["new_version"]
            self.send(json.dumps({"success": True, "new_version": self.server.weights}))
        else:
            self.send(json.dumps(JSON_OF[path]))

    def send(self, text: str | bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: str) -> None:
        self.wfile.write(f"{len(data.encode()):x}\r\n{data}\r\n".encode())

    def stream(self, parts: list[Any], end: str = "data: [DONE]\n\n") -> None:
        """Each part as an event, a text as it is."""
        self.begin()
        for part in parts:
            self.chunk(part if isinstance(part, str) else f"data: {json.dumps(part)}\n\n")
        if end:
            self.chunk(end)
        self.chunk("")

    def log_message(self, *arguments: Any) -> None:
        pass


class AnsweringServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.otherwise: dict[str, Callable[[Handler], None]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.queries: list[tuple[str, str]] = []
        self.weights = "default"
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request: Any, address: Any) -> None:
        pass  # the client hung up

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


def entry(token: Any, logprob: Any = -1.5) -> dict[str, Any]:
    return {"token_id": token, "logprob": logprob, "rank": 1, "top_logprobs": []}


def event(tokens: list[Any], **changes: Any) -> dict[str, Any]:
    """An event of these tokens, with other values of the choice's fields."""
    fields = {"index": 0, "token_ids": tokens, "logprobs": {"content": [entry(token) for token in tokens]}}
    return {"request_id": "r", "choices": [fields | {"finish_reason": None, "weight_versions": None} | changes]}


def last(tokens: list[Any], num_tokens: int, weights: str, **changes: Any) -> dict[str, Any]:
    """The event that ends an answer of `num_tokens` tokens."""
    spans = [{"version": weights, "start": 0, "end": num_tokens}]
    return event(tokens, **{"finish_reason": "stop", "weight_versions": spans} | changes)


def events(max_tokens: int, weights: str) -> list[dict[str, Any]]:
    """A right answer of four tokens, in two events."""
    assert max_tokens >= 4
    return [event([5, 6]), last([7, STOP], 4, weights)]
