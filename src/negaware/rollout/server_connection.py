"""The connection to a vLLM server: JSON goes there, and what comes back is a declared reply, or one sentence.

Nothing is waited for without end. A watch hangs up on a server from which nothing useful has come for a time, whatever
else it sends meanwhile. It knows neither completions nor weights.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from negaware.libraries import reason

CONNECT_SECONDS = 60
CALL_SECONDS = 3600
"""The longest call that isn't sampled from: the server may first have to finish other clients' answers, and to load
tens of gigabytes."""
REPLY_BYTES = 2**24

Reply = TypeVar("Reply", bound=BaseModel)


class ServerRefusedError(ValueError):
    """The server answered, but not with what was asked for."""

    def __init__(self, url: str, path: str, reason: str, status: int = 500) -> None:
        super().__init__(f"The vLLM server {url} refused {path}: {reason}")
        self.reason, self.status = reason, status


class LostServerError(ValueError):
    """The server can't be reached, or has said nothing for too long: `what` says which."""

    def __init__(self, url: str, what: str, remedy: str) -> None:
        super().__init__(f"The vLLM server {url} {what}; {remedy}, then go on with --resume.")
        self.what = what


class MalformedReplyError(ValueError):
    """What the server answered is not what a vLLM server answers."""

    def __init__(self, url: str, path: str, what: str) -> None:
        super().__init__(
            f"The vLLM server {url} answered {path} with what can't be right: {what}; see that a vLLM server listens "
            "there and that nothing in between changes what it says, then go on with --resume."
        )


class Watch:
    """Hangs up on the connections that it holds once nothing was noted for `seconds`, or when it is told to.

    A context manager; it may hold connections of several threads.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.has_expired = False
        self._noted = time.monotonic()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    def __enter__(self) -> Watch:
        threading.Thread(target=self._wait, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.hang_up()

    def note(self) -> None:
        """Something useful came."""
        self._noted = time.monotonic()

    @contextmanager
    def holds(self, connected: socket.socket) -> Iterator[None]:
        """A block in which this connection is under the watch; if that is over already, it is hung up at once."""
        with self._lock:
            if not self._sockets:  # nothing was waited for
                self.note()
            self._sockets.add(connected)
        if self._is_over.is_set():
            _shut(connected)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(connected)

    def hang_up(self) -> None:
        """Ends all connections, those to come included: the server drops a request whose client is gone."""
        self._is_over.set()
        with self._lock:
            for connected in self._sockets:
                _shut(connected)

    def _seconds_left(self) -> float:
        """All of them while no connection is held."""
        with self._lock:
            return self._noted + self.seconds - time.monotonic() if self._sockets else self.seconds

    def _wait(self) -> None:
        while (left := self._seconds_left()) > 0:
            if self._is_over.wait(left):
                return
        self.has_expired = True
        self.hang_up()


class ServerConnection:
    """Calls the vLLM server at `url`, a connection a call, with `api_key` as its bearer token if there is one."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def call(self, method: str, path: str, reply: type[Reply], body: Any = None) -> Reply:
        """The server's answer as a `reply`. ValueError in one sentence if it is gone, refuses, or is none."""
        with Watch(CALL_SECONDS) as watch, self._sent(method, path, body, watch, "no answer") as response:
            text = response.read(REPLY_BYTES)
            if watch.has_expired:
                raise TimeoutError
            return self.parsed(reply, path, text)

    def lines(self, path: str, body: Any, watch: Watch, max_bytes: int) -> Iterator[bytes]:
        """What the server streams: the data of each event, until it says that it is done.

        ValueError if it is gone, refuses, breaks off, sends an event of more than `max_bytes`, or if `watch` expires.
        """
        with self._sent("POST", path, body, watch, "no token") as response:
            while line := response.readline(max_bytes + 1):
                if len(line) > max_bytes:
                    raise self.malformed(path, f"an event of more than {max_bytes:,} bytes")
                if not line.endswith(b"\n"):
                    break
                if not (text := line.strip()) or text.startswith(b":"):
                    continue
                if not text.startswith(b"data:"):
                    raise self.malformed(path, f"{shown(text)} is no event")
                if (data := text.removeprefix(b"data:").strip()) == b"[DONE]":
                    return
                yield data
            raise HTTPException("it broke an answer off")

    def parsed(self, reply: type[Reply], path: str, text: bytes) -> Reply:
        """JSON as a `reply`. MalformedReplyError for the first thing that is wrong with it."""
        try:
            return reply.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            found = shown(text if first["type"] == "json_invalid" else first["input"])
            message = first["msg"].removeprefix("Value error, ")
            raise self.malformed(path, f"{f'{place} is ' if place else ''}{found} ({message})") from None

    def malformed(self, path: str, what: str) -> MalformedReplyError:
        """The error that says `what` is wrong with the answer to `path`."""
        return MalformedReplyError(self.url, path.partition("?")[0], what)

    @contextmanager
    def _sent(self, method: str, path: str, body: Any, watch: Watch, missing: str) -> Iterator[HTTPResponse]:
        """A request's response, as it begins to come in."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        try:
            connection = kind(parts.netloc, timeout=CONNECT_SECONDS)
            try:
                connection.connect()
                # Kept here: the connection lets go of it when the server says that it will close.
                connected: socket.socket = connection.sock
                connected.settimeout(None)  # from here on the watch counts
                with watch.holds(connected):
                    connection.request(method, path, json.dumps(body or {}), self._headers)
                    response = connection.getresponse()
                    if response.status != 200:
                        self._refuse(response, path)
                    yield response
            finally:
                connection.close()
        except (OSError, HTTPException, UnicodeError) as error:
            if watch.has_expired:
                what, remedy = f"has given {missing} for {watch.seconds:g} seconds", "see what it does, start it again"
            else:
                what, remedy = f"can't be reached ({reason(error)})", "see that it runs there"
            raise LostServerError(self.url, what, remedy) from error

    def _refuse(self, response: HTTPResponse, path: str) -> None:
        path = path.partition("?")[0]
        if response.status == 404:
            raise ValueError(
                f"The vLLM server {self.url} has no {path}; start it with VLLM_SERVER_DEV_MODE=1 and "
                "--enable-scale-out."
            )
        if response.status in (401, 403):
            raise ValueError(
                f"The vLLM server {self.url} asks for another API key (status {response.status}); name the "
                "environment variable that holds it as rollout.engine.api_key_env."
            )
        if 300 <= response.status < 400:
            raise ValueError(
                f"The vLLM server {self.url} sends on to {shown(response.headers.get('Location', 'nowhere'))}; give "
                "the address where it listens itself as rollout.engine.url."
            )
        said = _reason(response.read(REPLY_BYTES))
        said = said or f"status {response.status}, no reason given"
        raise ServerRefusedError(self.url, path, said, response.status)


def read_api_key(variable: str | None) -> str | None:
    """The API key in an environment variable, None without one. ValueError if it is not set or can't be sent."""
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise ValueError(
            f"rollout.engine.api_key_env names the environment variable {variable}, which is not set; put the "
            "server's API key into it."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"The environment variable {variable} (rollout.engine.api_key_env) holds no API key: a key is of visible "
            "ASCII characters alone."
        )
    return key


def shown(value: object) -> str:
    """A reply, or a part of one, short enough for a sentence."""
    text = repr(value if not isinstance(value, bytes) else value[:200].decode(errors="replace"))
    return text if len(text) <= 80 else f"{text[:77]}…"


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):  # closed by the other side
        connected.shutdown(socket.SHUT_RDWR)


def _reason(text: bytes) -> str:
    """What an error's JSON says, else its first line."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return next(iter(text.decode(errors="replace").splitlines()), "")[:200]
