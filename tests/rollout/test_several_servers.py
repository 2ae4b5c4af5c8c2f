"""Several vLLM servers on loopback: they share the requests, and one that dies costs none."""

import threading
import time

import pytest
from answering_server import GENERATE, STOP, AnsweringServer, event, events, last

from negaware.rollout.engine import Draft, Request, SamplingParams
from negaware.rollout.options import VLLMServerOptions
from negaware.rollout.vllm_server import VLLMServerEngine
from tiny_models import VOCABULARY, llama

PARAMS = SamplingParams(8, stop_token_ids=(STOP,))


@pytest.fixture
def servers():
    servers = [AnsweringServer() for _ in range(3)]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def engine(servers, tmp_path):
    sentences = []
    engine = VLLMServerEngine([server.url for server in servers], tmp_path, VOCABULARY, False, 4, note=sentences.append)
    engine.sentences = sentences
    engine.load_weights(llama(0).named_parameters(), version=3)
    return engine


def asked(server: AnsweringServer) -> int:
    return sum(path == GENERATE for path, _ in server.seen)


def held(barrier: threading.Barrier):
    """An answer that comes when so many are asked for at once."""

    def answer(handler):
        barrier.wait(30)
        handler.stream(events(8, weights=handler.server.weights))

    return answer


def test_each_gets_the_weights_and_as_many_requests(engine, servers):
    assert len({server.weights for server in servers}) == 1
    barrier = threading.Barrier(12)
    for server in servers:
        server.otherwise[GENERATE] = held(barrier)
    groups = engine.generate([[1, 2], [3], [4]], 4, PARAMS, 0)  # as many as all may have at once
    assert [asked(server) for server in servers] == [4, 4, 4]
    assert {span.version for group in groups for done in group for span in done.spans} == {3}


def test_one_that_dies_is_left_out_and_its_requests_are_asked_elsewhere(engine, servers):
    dead = servers[1]

    def die(handler):
        handler.begin()
        handler.chunk(f"data: {event([5])}\n\n"[:10])
        handler.connection.shutdown(2)

    dead.otherwise[GENERATE] = die
    groups = engine.generate([[1, 2], [3], [4]], 4, PARAMS, 0)
    assert all(done.token_ids.tolist() == [5, 6, 7, STOP] for group in groups for done in group)
    assert len({done.seed for group in groups for done in group}) == 12
    (sentence,) = engine.sentences  # once, however many requests it had
    assert sentence.startswith(f"The vLLM server {dead.url} can't be reached (")
    assert sentence.endswith("and what it was asked is asked elsewhere; the run takes it back when it is resumed.")
    before = asked(dead)
    engine.load_weights(llama(0).named_parameters(), version=4)
    engine.generate([[1]] * 4, 4, PARAMS, 0)
    assert asked(dead) == before
    assert dead.weights != servers[0].weights == servers[2].weights


@pytest.mark.parametrize(
    "failure",
    [
        lambda handler: handler.send('{"error": {"message": "EngineDeadError"}}', 500),
        lambda handler: handler.send("Bad Gateway", 502),
        lambda handler: handler.stream([{"error": {"message": "EngineDeadError", "code": 500}}]),
    ],
)
def test_one_that_says_that_it_has_failed_is_left_out_too(engine, servers, failure):
    servers[2].otherwise[GENERATE] = failure
    groups = engine.generate([[1, 2], [3], [4]], 4, PARAMS, 0)
    assert len({done.seed for group in groups for done in group}) == 12
    (sentence,) = engine.sentences
    assert sentence.startswith(f"The vLLM server {servers[2].url} failed (")


def test_what_a_server_refuses_of_a_request_is_no_failure_of_the_server(engine, servers):
    for server in servers:
        server.otherwise[GENERATE] = lambda handler: handler.send('{"error": {"message": "top_p is 7"}}', 400)
    with pytest.raises(ValueError, match=r"refused .*: top_p is 7"):
        engine.generate([[1, 2]], 1, PARAMS, 0)
    assert (len(engine.servers), engine.sentences) == (3, [])


def test_a_server_is_not_lost_for_what_it_was_not_asked(engine, servers, monkeypatch):
    """The trainer works for longer than an answer may take to come; then more is asked."""
    monkeypatch.setattr("negaware.rollout.vllm_server.STALL_SECONDS", 0.5)
    first, second = (Request([1], PARAMS, [Draft(seed)]) for seed in (1, 2))
    engine.submit(first)
    time.sleep(1.5)  # finished at once, and not yet taken: the session goes on
    engine.submit(second)
    while second.drafts:
        engine.step()
    assert (len(engine.servers), engine.sentences) == (3, [])
    assert [done.seed for request in (first, second) for done in request.take()] == [1, 2]


def test_one_that_is_gone_when_weights_are_handed_over_is_left_out(engine, servers):
    servers[0].stop()
    engine.load_weights(llama(0).named_parameters(), version=4)
    engine.generate([[1]], 4, PARAMS, 0)
    assert len(engine.servers) == 2
    assert [sentence.split()[3] for sentence in engine.sentences] == [servers[0].url]


def test_all_dead_is_an_error_that_says_how_to_go_on(engine, servers):
    for server in servers:
        server.stop()
    with pytest.raises(ValueError, match=r"The vLLM server http\S+ can't be reached .* then go on with --resume"):
        engine.generate([[1, 2]], 4, PARAMS, 0)
    assert engine.withdraw() == []


def test_weights_that_come_while_answers_are_under_way_are_told_to_go_on(engine, servers):
    """An answer from both versions says which tokens are whose; the servers are told to keep what is under way."""
    old, hold = servers[0].weights, threading.Event()

    def answer(handler):
        assert hold.wait(30)
        spans = [{"version": old, "start": 0, "end": 3}, {"version": handler.server.weights, "start": 3, "end": 4}]
        handler.stream([event([5, 6]), last([7, STOP], 4, old, weight_versions=spans)])

    for server in servers:
        server.otherwise[GENERATE] = answer
    request = Request([1, 2], PARAMS, [Draft(7)])
    engine.submit(request)
    engine.load_weights(llama(0).named_parameters(), version=4)
    hold.set()
    assert engine.step() == 4
    (done,) = request.take()
    assert done.spans == ((3, 3), (4, 1))
    assert {query for server in servers for path, query in server.queries if path == "/pause"} == {
        "mode=wait",
        "mode=keep",
    }


def test_what_is_withdrawn_is_dropped_by_the_servers(engine, servers):
    """Its connection is closed at the next event, and an answer that comes anyway is nobody's."""
    begun, closed = threading.Event(), threading.Event()

    def endless(handler):
        handler.begin()
        begun.set()
        try:
            for _ in range(3000):
                handler.chunk(": a heartbeat\n\n")
                threading.Event().wait(0.01)
        except OSError:
            closed.set()

    for server in servers:
        server.otherwise[GENERATE] = endless
    request = Request([1], PARAMS, [Draft(1), Draft(2)])
    engine.submit(request)
    assert begun.wait(20)  # withdrawn earlier, it is never asked for
    assert engine.withdraw() == [request]
    assert len(request.drafts) == 2
    assert closed.wait(20)
    for server in servers:
        del server.otherwise[GENERATE]
    engine.submit(request)
    while request.drafts:
        engine.step()
    assert sorted(done.seed for done in request.take()) == [1, 2]


def test_a_list_of_urls_is_read_and_checked():
    assert VLLMServerOptions(url="http://node7:8000/").url == ("http://node7:8000",)
    two = ("http://node7:8000", "https://node8:8000")
    assert VLLMServerOptions(url=list(two)).url == two
    with pytest.raises(ValueError, match="url names a server twice"):
        VLLMServerOptions(url=["http://node7:8000", "http://node7:8000/"])
    with pytest.raises(ValueError, match="url is 'node8:8000'; write http://"):
        VLLMServerOptions(url=["http://node7:8000", "node8:8000"])
    with pytest.raises(ValueError, match="url"):
        VLLMServerOptions(url=[])
