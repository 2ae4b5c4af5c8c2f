"""A real vLLM server on loopback: it conforms, and no answer is sampled from stale weights. `make test-vllm`."""

import pytest
from conformance import MAX_SEQUENCES, EngineConformance, assert_logprobs_are_the_models, random_prompts

import tiny_models
from negaware.ranks import Ranks
from negaware.rollout.engine import SamplingParams
from negaware.rollout.vllm_server import VLLMServerEngine
from served_vllm import Server
from tiny_models import llama

PROMPTS = [[*random_prompts(20, (70,))[0], *ending] for ending in random_prompts(21, (5, 9))]
PARAMS = SamplingParams(16, stop_token_ids=(1, 2))
pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that was started as docs/sampling.md says."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_models.SHAPE, "head_dim", 32)
        llama(0).save_pretrained(folder / "model")
        server = Server(folder)
        yield server
    server.stop()


class TestVLLMServerEngine(EngineConformance):
    @pytest.fixture
    def model(self, server):  # what depends on the architecture is vLLM's, and tested in process
        return llama(1)

    @pytest.fixture(autouse=True)
    def _server(self, server, tmp_path):
        self.server, self.folder = server, tmp_path

    def make_engine(self, model, max_sequences=MAX_SEQUENCES):
        engine = VLLMServerEngine((self.server.url,), self.folder, 61, False, max_sequences)
        engine.load_weights(model.named_parameters(), version=0)
        return engine


def test_no_answer_comes_from_the_weights_before(server, tmp_path):
    old, new = llama(8), llama(9)
    (tmp_path / "weights/version-000005-leftover").mkdir(parents=True)  # by a process that was killed
    (tmp_path / "weights/version-good").mkdir()  # somebody's
    engine = VLLMServerEngine((server.url,), tmp_path / "weights", 61, False, MAX_SEQUENCES)
    engine.load_weights(old.named_parameters(), version=6)
    before = engine.generate(PROMPTS, 3, PARAMS, 0)
    engine.load_weights(new.named_parameters(), version=7)
    after = engine.generate(PROMPTS, 3, PARAMS, 0)
    assert {span.version for group in before for c in group for span in c.spans} == {6}
    assert {span.version for group in after for c in group for span in c.spans} == {7}
    for weights, groups in ((old, before), (new, after)):
        assert_logprobs_are_the_models(weights, PROMPTS, groups)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["version-good"]


def test_another_writer_is_found_out(server, tmp_path):
    ours, theirs = (VLLMServerEngine((server.url,), tmp_path, 61, False, MAX_SEQUENCES) for _ in range(2))
    ours.load_weights(llama(0).named_parameters(), version=1)
    theirs.load_weights(llama(0).named_parameters(), version=1)
    said = r"answered with the weights version-000001-(\S+), not version-000001-(?!\1)\S+: it was restarted, or"
    with pytest.raises(ValueError, match=said):
        ours.generate(PROMPTS, 2, PARAMS, 0)


def test_what_the_server_refuses_is_said(server, tmp_path):
    engine = VLLMServerEngine((server.url,), tmp_path, 61, False, MAX_SEQUENCES)
    engine.load_weights(llama(0).named_parameters(), version=1)
    with pytest.raises(ValueError, match=r"The vLLM server .* refused /inference/v1/generate: .*top_p"):
        engine.generate([[1]], 1, SamplingParams(16, top_p=7), 0)
    with pytest.raises(ValueError, match=r"has 516 tokens, and the vLLM server .* at most 512; start it with a longer"):
        engine.generate([[1] * 500], 1, PARAMS, 0)  # which it would cut short
    with pytest.raises(ValueError, match="runs on a CPU, where it goes on sampling with the old head"):
        VLLMServerEngine((server.url,), tmp_path, 61, True, MAX_SEQUENCES)


def test_ranks_share_what_a_server_is_asked_at_once(server, tmp_path):
    assert VLLMServerEngine((server.url,), tmp_path, 61, False, 64, Ranks(1, 4)).max_sequences == 16


def test_a_server_started_otherwise_and_its_death(server, tmp_path):
    llama(0).save_pretrained(tmp_path / "model")
    mortal = Server(tmp_path, "--no-enable-chunked-prefill")
    try:
        with pytest.raises(ValueError, match="start it with --no-enable-chunked-prefill"):
            VLLMServerEngine((mortal.url,), tmp_path, 61, False, MAX_SEQUENCES)
        engine = VLLMServerEngine((server.url,), tmp_path, 61, False, MAX_SEQUENCES)
        engine.servers[0].url = engine.servers[0].connection.url = mortal.url
        engine.load_weights(llama(0).named_parameters(), version=1)
        with pytest.raises(ValueError, match=r"can't be reached .*; see that it runs there, then go on with --resume"):
            engine.generate([[1, 2]] * 200, 2, PARAMS, 0, lambda num_tokens: mortal.stop())
    finally:
        mortal.stop()


def test_weights_of_another_model_are_refused(server, tmp_path):
    """The last to use the fixture's server: vLLM can't be used after half an update, which the sentence says."""
    engine = VLLMServerEngine((server.url,), tmp_path, 61, False, MAX_SEQUENCES)
    with pytest.raises(ValueError, match=r"can't load the weights in .*version-000002-\S+ \(.*; see that it serves"):
        engine.load_weights(llama(0, hidden_size=64).named_parameters(), version=2)
    assert list(tmp_path.iterdir()) == []
