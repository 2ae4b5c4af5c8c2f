"""What a vLLM server must not be believed: a server on loopback that answers wrongly, in each way one sentence."""

import json
import socket
import struct
import threading
import time

import pytest
from answering_server import GENERATE, JSON_OF, SETTINGS, STOP, AnsweringServer, entry, event, last

from forked_command import negaware
from negaware.rollout import server_connection, vllm_server
from negaware.rollout.engine import SamplingParams
from negaware.rollout.options import VLLMServerOptions
from negaware.rollout.server_connection import read_api_key
from negaware.rollout.vllm_server import VLLMServerEngine
from negaware.types import Completion
from tiny_models import llama
from tiny_run import write_tiny_config

VOCABULARY = 10
PARAMS = SamplingParams(8, stop_token_ids=(STOP,))
WEIGHTS = llama(0)


@pytest.fixture
def server():
    server = AnsweringServer()
    yield server
    server.stop()


@pytest.fixture
def engine(server, tmp_path):
    engine = VLLMServerEngine((server.url,), tmp_path, VOCABULARY, False, 4)
    engine.load_weights(WEIGHTS.named_parameters(), version=3)
    return engine


def test_a_right_answer_is_taken_as_it_is(engine, server):
    groups = engine.generate([[1, 2], [3]], 2, PARAMS, seed=0)
    assert [len(group) for group in groups] == [2, 2]
    assert {tuple(completion.token_ids) for group in groups for completion in group} == {(5, 6, 7, STOP)}
    found = groups[0][0]
    assert found == Completion.drawn([5, 6, 7, STOP], [-1.5] * 4, "stop", 3, found.seed)


def test_an_answer_of_just_the_length_and_rounding_above_zero(engine, server):
    whole = last([5] * 8, 8, server.weights, finish_reason="length", logprobs={"content": [entry(5, 6e-8)] * 8})
    server.otherwise[GENERATE] = lambda handler: handler.stream([": a heartbeat\n\n", whole])
    ((found,),) = engine.generate([[1]], 1, PARAMS, 0)
    assert (found.finish_reason, found.logprobs.tolist()) == ("length", [0.0] * 8)


def streamed(*parts, end="data: [DONE]\n\n"):
    """Answers with these events; a function is given the name of the weights."""

    def answer(handler):
        weights = handler.server.weights
        handler.stream([part(weights) if callable(part) else part for part in parts], end)

    return answer


def ends(tokens, num_tokens=None, **changes):
    return lambda weights: last(tokens, num_tokens or len(tokens), weights, **changes)


def with_logprobs(*values):
    content = [entry(5, value) for value in values]
    return ends([5] * 3 + [STOP], logprobs={"content": [*content, entry(STOP)]})


def broken_off(handler):
    handler.begin()
    handler.chunk(f"data: {json.dumps(event([5, 6]))}\n\n")
    handler.wfile.write(b"ff\r\ndata: {")
    handler.close_connection = True


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(handler.connection.detach())
    handler.close_connection = True


NESTED = "[" * 100_000
MALFORMED = {
    "HTML": (lambda h: h.send("<html>Sign in</html>\n"), r"'<html>Sign in</html>' is no event"),
    "nothing": (lambda h: h.send(""), r"can't be reached \(it broke an answer off\)"),
    "no JSON": (streamed("data: {choices: 3}\n\n"), r"'{choices: 3}' \(Invalid JSON: key must be a string"),
    "JSON that ends too soon": (streamed('data: {"choices": [\n\n'), r"Invalid JSON: EOF while parsing"),
    "no JSON object": (streamed("data: [1, 2]\n\n"), r"\[1, 2\] \(Input should be an object\)"),
    "bytes that are no text": (
        lambda h: h.send(b'data: {"choices": "\xff\xfe"}\n\n'),
        r"Invalid JSON: invalid unicode",
    ),
    "JSON nested deeply": (streamed(f"data: {NESTED}\n\n"), r"Invalid JSON: recursion limit exceeded"),
    "an event too large": (streamed(f"data: {' ' * 3_000_000}\n\n"), r"an event of more than 1,056,768 bytes"),
    "a body cut short": (broken_off, r"can't be reached \(.*"),
    "a body longer than was said": (
        lambda h: h.send("data: {}\n\n", length=6),
        r"can't be reached \(it broke an answe",
    ),
    "a body shorter than was said": (
        lambda h: h.send("data: [DON", length=900),
        r"can't be reached \(it broke an answ",
    ),
    "a stream without an end": (streamed(event([5, 6]), end=""), r"can't be reached \(it broke an answer off\)"),
    "an answer without an end": (streamed(event([5, 6])), r"an answer without an end"),
    "no choices": (streamed({"request_id": "r"}), r"an event with no choice"),
    "choices that are none": (streamed({"choices": []}), r"an event with no choice"),
    "choices that are null": (streamed({"choices": None}), r"choices is None \(Input should be a valid array\)"),
    "two choices": (streamed({"choices": event([5])["choices"] * 2}), r"choices is \[.* \(List should have at most 1"),
    "the choice of another": (streamed(event([5], index=1)), r"choices.0.index is 1 \(Input should be 0\)"),
    "no tokens": (streamed(event([5], token_ids=None)), r"choices.0.token_ids is None \(Input should be a valid array"),
    "a token outside": (streamed(event([5, VOCABULARY])), r"token 10, of a vocabulary of 10"),
    "a huge token": (streamed(event([10**400])), r"token 10000000000000000000, of a vocabulary of 10"),
    "a negative token": (streamed(event([-1])), r"choices.0.token_ids.0 is -1 \(Input should be greater than or equal"),
    "a token as text": (streamed(event(["5"])), r"choices.0.token_ids.0 is '5' \(Input should be a valid integer\)"),
    "a token as a float": (streamed(event([5.0])), r"choices.0.token_ids.0 is 5.0 \(Input should be a valid integer\)"),
    "a token as a bool": (
        streamed(event([True])),
        r"choices.0.token_ids.0 is True \(Input should be a valid integer\)",
    ),
    "no log-probabilities": (
        streamed(event([5], logprobs=None)),
        r"choices.0.logprobs is None \(Input should be an ob",
    ),
    "too few": (streamed(event([5, 6], logprobs={"content": [entry(5)]})), r"log-probabilities of 1 tokens for 2"),
    "too many": (streamed(event([5], logprobs={"content": [entry(5)] * 3})), r"log-probabilities of 3 tokens for 1"),
    "of other tokens": (streamed(event([5], logprobs={"content": [entry(6)]})), r"of 1 tokens for 1, or of others"),
    "NaN": (streamed(with_logprobs(-1, float("nan"), -1)), r"content.1.logprob is nan \(Input should be a finite numb"),
    "minus infinity": (streamed(with_logprobs(float("-inf"))), r"content.0.logprob is -inf \(Input should be a finite"),
    "vLLM's word for minus infinity": (
        streamed(with_logprobs(-9999.0)),
        r"logprob is -9999.0 \(Input should be greate",
    ),
    "a probability above 1": (streamed(with_logprobs(-1, -1, 0.5)), r"content.2.logprob is 0.5 \(Input should be less"),
    "a log-probability beyond floats": (streamed(with_logprobs(-(10**400))), r"content.0.logprob is .*"),
    "a log-probability as text": (
        streamed(with_logprobs("-1")),
        r"content.0.logprob is '-1' \(Input should be a valid",
    ),
    "a log-probability that is null": (streamed(with_logprobs(None)), r"content.0.logprob is None \(Input should be a"),
    "an unknown end": (streamed(ends([5, STOP], finish_reason="tool_calls")), r"finish_reason is 'tool_calls'"),
    "a stop without a stop token": (streamed(ends([5, 6])), r"finish_reason is 'stop', of an answer without a stop to"),
    "the length limit too soon": (
        streamed(ends([5, 6], finish_reason="length")),
        r"'length' after 2 tokens, of 8 asked for",
    ),
    "the length limit at a stop": (
        streamed(ends([5] * 7 + [STOP], finish_reason="length")),
        r"goes on after its stop token, token 8 of 8",
    ),
    "tokens after the stop": (streamed(ends([STOP, 5])), r"an answer that goes on after its stop token, token 1 of 2"),
    "tokens after the end": (streamed(ends([STOP]), event([5])), r"more tokens after the end of an answer"),
    "50 times the length": (streamed(*[event([5] * 8)] * 50), r"16 tokens or more, where 8 were asked for"),
    "an empty answer": (streamed(ends([], finish_reason="stop")), r"an answer without a token"),
    "no name of the weights": (
        streamed(ends([STOP], weight_versions=None)),
        r"weight_versions that don't cover its 1 t",
    ),
    "a token sampled by no weights": (streamed(ends([5, STOP], 1)), r"weight_versions that don't cover its 2 tokens"),
    "weights that are a number": (
        streamed(ends([STOP], weight_versions=[{"version": 3, "start": 0, "end": 1}])),
        r"weight_versions.0.version is 3 \(Input should be a valid string\)",
    ),
    "an error in the stream": (streamed({"error": {"message": "CUDA error", "code": 500}}), r"refused .*: CUDA error$"),
    "an answer that was broken off": (
        streamed(ends([5], finish_reason="abort")),
        r"broke an answer off: someone else p",
    ),
    "status 500": (lambda h: h.send("Internal Server Error", 500), r"refused .*generate: Internal Server Error$"),
    "status 500 without a word": (lambda h: h.send("", 500), r"refused .*generate: status 500, no reason given$"),
    "an error nested deeply": (lambda h: h.send(NESTED, 500), r"refused .*generate: \[\[\[\[\[\["),
    "status 429": (lambda h: h.send('{"error": "too many"}', 429), r"refused .*generate: too many$"),
    "status 401": (
        lambda h: h.send('{"error": "Unauthorized"}', 401),
        r"asks for another API key \(status 401\); name",
    ),
    "status 404": (lambda h: h.send("{}", 404), r"has no /inference/v1/generate; start it with VLLM_SERVER_DEV_MODE=1"),
    "status 307": (lambda h: h.send("", 307, Location="http://x:1/"), r"sends on to 'http://x:1/'; give the address"),
    "no HTTP": (lambda h: h.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n"), r"can't be reached \(SSH-2.0-OpenSSH_9.2"),
    "a connection reset": (reset, r"can't be reached \(.*Connection reset by peer"),
}


@pytest.mark.parametrize("way", MALFORMED)
def test_a_malformed_answer_is_one_sentence(way, engine, server):
    server.otherwise[GENERATE], said = MALFORMED[way]
    with pytest.raises(ValueError, match=rf"(?s)^The vLLM server {server.url} .*{said}") as caught:
        engine.generate([[1, 2]], 1, PARAMS, 0)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_the_room_of_a_prompt_is_what_was_asked_for(engine, server):
    params = SamplingParams(8, stop_token_ids=(STOP,), max_tokens=7)
    assert engine.generate([[1, 2, 3]], 1, params, 0)[0][0].token_ids.tolist() == [5, 6, 7, STOP]
    server.otherwise[GENERATE] = streamed(ends([5, 6, 7, 8, STOP]))
    with pytest.raises(ValueError, match=r"5 tokens or more, where 4 were asked for"):
        engine.generate([[1, 2, 3]], 1, params, 0)


def drip(handler):
    """A byte now and then, and never a token."""
    handler.begin()
    while True:
        handler.chunk(":")
        time.sleep(0.01)


def say_nothing(handler):
    time.sleep(60)


def go_on(handler):
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.01)


@pytest.mark.parametrize("way", [drip, say_nothing, go_on])
def test_a_server_that_stalls(way, engine, server, monkeypatch):
    monkeypatch.setattr(vllm_server, "STALL_SECONDS", 0.3)
    server.otherwise[GENERATE] = way
    with pytest.raises(ValueError, match=rf"^The vLLM server {server.url} has given no token for 0.3 seconds; see w"):
        engine.generate([[1, 2]] * 3, 2, PARAMS, 0)


def test_tokens_that_come_slowly_are_waited_for(engine, server, monkeypatch):
    """Longer in all than a stall may be, but never so long without a token."""
    monkeypatch.setattr(vllm_server, "STALL_SECONDS", 2.5)

    def slowly(handler):
        handler.begin()
        for token in [*range(2, 9), None]:
            time.sleep(0.4)
            part = event([token]) if token else last([STOP], 8, server.weights)
            handler.chunk(f"data: {json.dumps(part)}\n\n")
        handler.chunk("data: [DONE]\n\n")
        handler.chunk("")

    server.otherwise[GENERATE] = slowly
    ((found,),) = engine.generate([[1]], 1, PARAMS, 0)
    assert found.token_ids.tolist() == [*range(2, 9), STOP]


def test_no_thread_waits_on_after_a_failure(engine, server, monkeypatch):
    """One answer is malformed, the others never come: their connections are hung up."""
    monkeypatch.setattr(vllm_server, "STALL_SECONDS", 600)
    is_over, waited_for = threading.Event(), []

    def hold(handler):
        if not is_over.wait(20):
            waited_for.append(handler)
        handler.close_connection = True

    turns = iter([streamed(event([-1])), hold, hold, hold])
    server.otherwise[GENERATE] = lambda handler: next(turns)(handler)
    with pytest.raises(ValueError, match=r"token_ids.0 is -1"):
        engine.generate([[1]], 4, PARAMS, 0)
    is_over.set()
    assert waited_for == []


@pytest.mark.parametrize("path", [*JSON_OF, "/update_weight_version"])
@pytest.mark.parametrize("reply", ["", "<html>", "[]", "{}", NESTED, '{"version": NaN}', '{"success": 1}', "null"])
def test_no_reply_is_believed_unread(path, reply, server, tmp_path):
    server.otherwise[path] = lambda handler: handler.send(reply)
    with pytest.raises(ValueError, match=rf"^The vLLM server {server.url} answered {path} with what can't be right: "):
        VLLMServerEngine((server.url,), tmp_path, VOCABULARY, False, 4).load_weights(
            WEIGHTS.named_parameters(), version=1
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/version", "/collective_rpc"])
@pytest.mark.parametrize("way", [drip, say_nothing])
def test_no_reply_is_waited_for_without_end(path, way, server, tmp_path, monkeypatch):
    monkeypatch.setattr(server_connection, "CALL_SECONDS", 0.3)
    server.otherwise[path] = way
    with pytest.raises(ValueError, match=rf"^The vLLM server {server.url} has given no answer for 0.3 seconds"):
        VLLMServerEngine((server.url,), tmp_path, VOCABULARY, False, 4).load_weights(
            WEIGHTS.named_parameters(), version=1
        )


@pytest.mark.parametrize(
    ("path", "reply", "said"),
    [
        ("/version", {"version": "0.9"}, r"^the vLLM server \S+ is version 0.9; negaware was tested with vllm>="),
        ("/version", {"version": "soon"}, r"^the vLLM server \S+ is version soon; negaware was tested with"),
        ("/version", {"version": 32}, r"version is 32 \(Input should be a valid string\)"),
        *(
            ("/server_info", {"vllm_config": SETTINGS | {"model_config": {"max_model_len": size}}}, rf"len is {size} ")
            for size in (0, -5, True, 1.5, None)
        ),
        (
            "/server_info",
            {"vllm_config": "ModelConfig(…)"},
            r"vllm_config is 'ModelConfig\(…\)' \(Input should be an ob",
        ),
        ("/reset_prefix_cache", {"success": False}, r"can't forget the old weights' keys and values"),
        ("/update_weight_version", {"success": False}, r"doesn't take a name for the new weights"),
        ("/collective_rpc", {"results": []}, r"results is \[\] \(List should have at least 1 item"),
    ],
)
def test_a_reply_with_another_value(path, reply, said, server, tmp_path):
    server.otherwise[path] = lambda handler: handler.send(json.dumps(reply))
    with pytest.raises(ValueError, match=said):
        VLLMServerEngine((server.url,), tmp_path, VOCABULARY, False, 4).load_weights(
            WEIGHTS.named_parameters(), version=1
        )


def test_weights_that_a_killed_run_left_are_deleted_and_nothing_else(engine, tmp_path):
    theirs = ["version-000016-good-20260101", "version-000016-COPY2026", "version-16-abcdefgh", "notes"]
    for name in (*theirs, "version-000016-ab_cd012", "version-1000000-ab_cd012"):
        (tmp_path / name).mkdir()
    engine.load_weights(WEIGHTS.named_parameters(), version=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)


def test_what_failed_first_is_told_and_the_server_goes_on(server, tmp_path):
    """It is resumed after a hand-over that failed, for other clients; that this fails too is not the news."""
    for path in ("/collective_rpc", "/resume"):
        server.otherwise[path] = lambda handler: handler.send('{"error": {"message": "size mismatch"}}', 500)
    engine = VLLMServerEngine((server.url,), tmp_path, VOCABULARY, False, 4)
    with pytest.raises(
        ValueError, match=r"can't load the weights in .* \(size mismatch\); see that it serves the run's"
    ):
        engine.load_weights(WEIGHTS.named_parameters(), version=1)
    assert server.seen[-1][0] == "/resume"


def test_the_api_key_is_sent_with_every_call(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMPLER_KEY", "s3cret")
    key = read_api_key("SAMPLER_KEY")
    engine = VLLMServerEngine((server.url,), tmp_path, VOCABULARY, False, 4, api_key=key)
    engine.load_weights(WEIGHTS.named_parameters(), version=1)
    engine.generate([[1]], 1, PARAMS, 0)
    assert {path for path, _ in server.seen} == {*JSON_OF, "/update_weight_version", GENERATE}
    assert {headers.get("Authorization") for _, headers in server.seen} == {"Bearer s3cret"}


def test_no_key_is_sent_unasked(engine, server):
    assert {headers.get("Authorization") for _, headers in server.seen} == {None}


@pytest.mark.parametrize("key", [None, "", "two words", "line\nline", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_not_shown(key, monkeypatch):
    monkeypatch.delenv("SAMPLER_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SAMPLER_KEY", key)
    with pytest.raises(ValueError, match=r"environment variable SAMPLER_KEY.*(not set|no API key)") as caught:
        read_api_key("SAMPLER_KEY")
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://x:99999", "http://[::1", "http://u:pass@x:1", "http://a b", "http://:80", "http://x:0"]
)
def test_an_address_that_cannot_be_called(url):
    with pytest.raises(ValueError, match=r"write http:// or https://, the host's name and its port, and no more"):
        VLLMServerOptions(url=url)


@pytest.mark.slow
def test_a_run_ends_with_the_sentence_alone(server, tmp_path):
    """Through the command: exit code 2, nothing but the sentence, no key in the run's files."""
    server.otherwise[GENERATE] = streamed(event([5], logprobs={"content": [entry(5, float("nan"))]}))
    engine = f"{{name: vllm_server, url: '{server.url}', api_key_env: PATH_TO_NO_KEY}}"
    config = write_tiny_config(tmp_path)
    ended = negaware("train", config, "--rollout.engine", engine)
    assert ended.code == 2
    assert ended.err.startswith("negaware: error: rollout.engine.api_key_env names the environment variable PATH_TO_NO")
    ended = negaware("train", config, "--rollout.engine", f"{{name: vllm_server, url: '{server.url}'}}")
    assert ended.code == 2
    assert "Traceback" not in ended.err
    said = f"negaware: error: The vLLM server {server.url} answered {GENERATE} with what can't be right: choices.0."
    assert ended.err.splitlines()[-1].startswith(said)
