"""A judge behind an address: its verdicts, and what becomes of one that is down, slow, or talks nonsense."""

import contextlib
import http.server
import json
import threading
import time

import pytest

from mecap_jax.config import ConfigError, load
from mecap_jax.evaluation.judge_endpoint import EndpointJudge
from mecap_jax.tasks.base import Answer, Judges
from mecap_jax.tasks.labels import label_set
from mecap_jax.tasks.registry import make_task
from tests.data.test_checks import clip

LABELS = label_set("dfew")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        question = body["messages"][0]["content"]
        status, said = 200, json.dumps({"choices": [{"message": {"content": "**Anger.**"}}]})
        if "sorry" in question:
            said = json.dumps({"choices": [{"message": {"content": "I cannot say."}}]})
        elif "nonsense" in question:
            said = "<html>"
        elif "list" in question:
            said = json.dumps([])
        elif "elsewhere" in question:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/stolen")
            self.end_headers()
            return
        elif "broken" in question:
            status = 500
        elif "slow" in question:
            time.sleep(3.0)
        elif "creeps" in question:  # each byte of a header in time, and the last one never
            with contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 " + b"x" * 60:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
            return
        self.send_response(status)
        self.end_headers()
        try:
            for byte in said if "drops" in question else [said]:
                self.wfile.write(byte.encode())
                time.sleep(0.1 if "drops" in question else 0)
        except OSError:
            pass  # who asked has gone

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        yield server
        server.shutdown()
        thread.join()


def judge(timeout_s=30.0):
    return EndpointJudge("gpt-x", LABELS.names["en"], LABELS.normalise, timeout_s=timeout_s)


def test_verdicts_come_back_in_order_and_failures_are_counted(server, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    asked = judge(timeout_s=1.5)  # what answers has time to, on a busy machine, too
    texts = ["It is loud.", "sorry", "nonsense", "a list", "broken", "slow", "It is loud again.", "broken", "drops"]
    began = time.monotonic()
    assert asked([*texts, "creeps"]) == ["angry", "", None, None, None, None, "angry", None, None, None]
    assert time.monotonic() - began < 5  # two rounds of eight at a time
    assert asked.failures == {
        "a reply that names no class": 1,
        "a reply that is none of a chat": 2,
        "status 500": 2,
        "TimeoutError": 3,
    }
    assert len(caplog.records) == 4 and "secret" not in caplog.text
    path, key, body = server.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret") and body["model"] == "gpt-x"
    assert all(name in body["messages"][0]["content"] for name in LABELS.names["en"])


def test_the_key_follows_nobody_to_another_host(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    asked = judge()
    assert asked(["elsewhere"]) == [None] and asked.failures == {"status 302": 1}
    assert [path for path, *_ in server.seen] == ["/v1/chat/completions"]


def test_a_judge_that_is_down_says_nothing(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    asked = judge()
    assert asked(["It is loud."]) == [None] and asked.failures == {"ConnectionRefusedError": 1}


@pytest.mark.parametrize("url, model", [("", "m"), ("http://", "m"), ("ftp://host/v1", "m"), ("http://host/v1", "")])
def test_what_cannot_be_asked_is_refused(url, model, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(ValueError, match="OPENAI_BASE_URL holds.*is none|needs the name of its model"):
        EndpointJudge(model, (), LABELS.normalise)


def test_a_configuration_sends_nothing_anywhere(server):
    """That of a stranger's run may name any address: texts and key go where the environment says."""
    config = load("configs/r1_omni.py", ["task.judge=http://stranger.example/v1", "task.judge_model=m"])
    (problem,) = make_task(config).check(config, *[[clip(0, rationale="Loud.")]] * 3).problems
    assert problem.startswith("config key 'task.judge': ") and "OPENAI_BASE_URL" in problem and server.seen == []


def test_a_run_may_name_one(server):
    """Its verdicts are those of EEA and the rest; without a model's name the run does not begin."""
    config = load("configs/r1_omni.py", ["task.judge=endpoint", "task.judge_model=gpt-x"])
    labels = ("angry", "sad", "angry", "sad")
    records = [clip(0, labels={"multimodal": label}, rationale="Loud.") for label in labels]
    texts = ["<think>It is loud.</think><answer>angry</answer>"] * 2 + [
        "<think>It is broken.</think><answer>angry</answer>",
        "no answer",
    ]
    task = make_task(config)
    assert task.check(config, records, records, records).problems == [] and server.seen == []
    result = task.evaluate([Answer(*pair, True) for pair in zip(records, texts)], Judges(None, None, ()), None)
    found = result.metrics
    # The clip without a verdict is no clip whose explanation is wrong.
    assert (found["eea"], found["epc"], found["judge_silent"]) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    assert result.confidence(resamples=10).keys() == found.keys()  # a malformed answer is a clip, too
    nameless = load("configs/r1_omni.py", ["task.judge=endpoint"])
    (problem,) = make_task(nameless).check(nameless, records, records, records).problems
    assert problem.startswith("config key 'task.judge': ") and "name of its model" in problem
    with pytest.raises(ConfigError, match="'task.judge_timeout_s'"):
        load("configs/r1_omni.py", ["task.judge_timeout_s=0"])
