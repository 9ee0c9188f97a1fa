"""What a run writes while it goes: files a program reads, a display a person reads."""

import dataclasses
import functools
import gzip
import io
import json
import subprocess
import sys
import types

import jax
import pytest
from rich.console import Console

from mecap_jax.config import ConfigError, load
from mecap_jax.interruption import Interrupted
from mecap_jax.json_files import parse_json
from mecap_jax.training import logging
from mecap_jax.training.logging import RunLogger, read_jsonl
from mecap_jax.training.trackers import open_trackers


def quiet(workdir, **options):
    return RunLogger(workdir, console=Console(file=io.StringIO(), force_terminal=False), **options)


def test_metrics_are_strict_json(tmp_path):
    with quiet(tmp_path) as logger:
        logger.metrics("sft", 1, {"loss": 1.5, "bad": float("nan")})
        logger.completions("sft", 1, [{"completions": [{"reward": float("-inf"), "text": "\udc80"}]}])
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = parse_json(line)
    assert (row["stage"], row["step"], row["loss"], row["bad"]) == ("sft", 1, 1.5, None)
    (line,) = (tmp_path / "completions.jsonl").read_text().splitlines()
    assert parse_json(line)["completions"] == [{"reward": None, "text": "\udc80"}]
    assert any((tmp_path / "tensorboard").iterdir())


def test_only_the_first_process_writes(tmp_path):
    with quiet(tmp_path, enabled=False) as logger:
        logger.metrics("sft", 1, {"loss": 1.0})
        logger.completions("sft", 1, [{"text": "a"}])
        logger.rewind("sft", 0)
        logger.say("nothing")
    assert list(tmp_path.iterdir()) == []


def test_rewinding_drops_one_stage_behind_its_checkpoint(tmp_path):
    with quiet(tmp_path) as logger:
        for stage, step in (("sft", 1), ("sft", 2), ("grpo", 1), ("sft", 3)):
            logger.metrics(stage, step, {"loss": 0.0})
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b"[]\n1\n\xff\n{\n")  # somebody's editor, or a damaged disk
        logger.rewind("sft", 1)
        logger.metrics("sft", 2, {"loss": 9.0})
    rows = [(row["stage"], row["step"], row["loss"]) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert rows == [("sft", 1, 0.0), ("grpo", 1, 0.0), ("sft", 2, 9.0)]


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: now[0])
    with quiet(tmp_path) as logger:
        with logger.progress("sft", 100) as progress:
            now[0] += 49.0  # the first step is compiled
            for step in range(1, 101):
                now[0] += 1.0
                progress(step, {"loss": 0.5, "timing_s/step": 1.0, "unseen": 3.0})
        lines = logger._console.file.getvalue().splitlines()
    assert lines[0] == "sft 0/100  compiling"
    assert lines[1] == "sft 1/100  loss 0.500  1.00 s/step  ? left"
    assert lines[2] == "sft 21/100  loss 0.500  1.00 s/step  1:19 left"  # and no part of those fifty seconds
    assert len(lines) == 7  # every twenty seconds, and the end
    assert "\x1b" not in "".join(lines)


def test_a_stage_that_is_finished_compiles_nothing(tmp_path):
    with quiet(tmp_path) as logger:
        with logger.progress("sft", 100, start=100):
            pass
        assert logger._console.file.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_with_the_time_left(tmp_path):
    now = [0.0]
    console = Console(file=io.StringIO(), force_terminal=True, width=160, get_time=lambda: now[0])
    with RunLogger(tmp_path, console=console) as logger, logger.progress("grpo", 10) as progress:
        for step, seconds in ((1, 300.0), (2, 90.0)):  # most of the first step is compilation
            now[0] += seconds
            progress(step, {"reward": 0.75, "kl": 0.01})
    shown = console.file.getvalue()
    assert "compiling" in shown and "grpo" in shown and "2/10" in shown and "reward 0.750" in shown
    assert "0:12:00" in shown  # eight steps of 90 s


def test_some_steps_are_traced(tmp_path):
    """For TensorBoard, and for Perfetto: both are told which steps they see."""
    with quiet(tmp_path, traced=(2, 3)) as logger:
        for stage, steps in (("sft", 4), ("grpo", 2), ("short", 1)):  # the second ends within, the third before
            with logger.trace(stage) as trace:
                for number in range(1, steps + 1):
                    with trace.step(number):
                        jax.numpy.ones(8).block_until_ready()
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {"sft", "grpo"}
    for stage, steps in (("sft", {"2", "3"}), ("grpo", {"2"})):
        (binary,) = (tmp_path / "profile" / stage).rglob("*.xplane.pb")
        assert binary.stat().st_size > 0
        (path,) = (tmp_path / "profile" / stage).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert {event["args"]["step_num"] for event in events if event.get("name") == stage} == steps
    with quiet(tmp_path / "other", enabled=False, traced=(1, 1)) as logger, logger.trace("sft") as trace:
        with trace.step(1):
            pass
    assert not (tmp_path / "other").exists()


def test_a_display_without_files(tmp_path):
    with RunLogger(None, console=Console(file=io.StringIO())) as logger, logger.progress("captions", 1) as progress:
        progress(1, {})


def test_names_in_what_is_said_cannot_write_to_the_terminal(tmp_path):
    with quiet(None) as logger:
        logger.say("labels: calm\x1b[31m\u202e\nand more")
        assert logger._console.file.getvalue() == "labels: calm\\x1b[31m\\u202e\nand more\n"


class FakeTracker(types.ModuleType):
    """What W&B and Trackio have in common, and what they were asked."""

    def __init__(self, name, fails_at=None):
        super().__init__(name)
        self.calls, self._fails_at = [], fails_at
        self.run = types.SimpleNamespace(
            log=functools.partial(self._call, "log"),
            define_metric=functools.partial(self._call, "define_metric"),
            finish=functools.partial(self._call, "finish"),
            alert=functools.partial(self._call, "alert"),
        )

    def _call(self, called, /, *arguments, **options):
        self.calls.append((called, *arguments, options))
        if len(self.calls) == self._fails_at:
            raise ConnectionError("no network")

    def init(self, **options):
        self._call("init", **options)
        return self.run

    Table = staticmethod(lambda **options: options)
    AlertLevel = types.SimpleNamespace(ERROR="error")

    def called(self, name):
        return [call for call in self.calls if call[0] == name]


@pytest.fixture
def tracker(monkeypatch):
    def make(name, **options):
        module = FakeTracker(name, **options)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


GROUP = {"utterance_id": "a", "label": "sad", "completions": [
    {"text": "low", "reward": 1.5, "advantage": 0.5, "rewards": {"emotion": 0.7}},
    {"text": "loud", "reward": None, "advantage": None, "rewards": {"emotion": None}},
]}  # fmt: skip


def opening(workdir, *names, goes_on=False):
    workdir.mkdir(exist_ok=True)
    config = dataclasses.replace(load("configs/grpo.py"), trackers=names)
    return functools.partial(open_trackers, config, workdir, goes_on)


def log_with(workdir, *names, goes_on=False):
    with quiet(workdir) as logger:
        logger.mirror(opening(workdir, *names, goes_on=goes_on))
        logger.metrics("sft", 1, {"loss": 1.5, "bad": float("nan")})
        logger.metrics("grpo", 1, {"reward": 2.0})
        logger.completions("grpo", 1, iter([GROUP]))
        logger.completions("sft", 2, [])
        return logger._console.file.getvalue()


def test_trackers_get_the_same_names_and_completions_as_tables(tmp_path, tracker):
    wandb, trackio = tracker("wandb"), tracker("trackio")
    assert log_with(tmp_path / "run", "wandb", "trackio") == ""
    table = {
        "columns": ["step", "clip", "label", "completion", "reward", "advantage", "emotion"],
        "data": [[1, "a", "sad", "low", 1.5, 0.5, 0.7], [1, "a", "sad", "loud", None, None, None]],
    }
    logged = [
        ("log", {"sft/step": 1, "sft/loss": 1.5}, {}),
        ("log", {"grpo/step": 1, "grpo/reward": 2.0}, {}),
        ("log", {"grpo/step": 1, "grpo/completions": table}, {}),
    ]
    assert trackio.calls[1:] == [*logged, ("finish", {})]
    assert [call for call in wandb.calls[1:] if call[0] != "define_metric"] == [*logged, ("finish", {"exit_code": 0})]
    steps = [(call[1], call[2]) for call in wandb.calls if call[0] == "define_metric"]
    assert steps == [("sft/*", {"step_metric": "sft/step"}), ("grpo/*", {"step_metric": "grpo/step"})]
    (_, first), (_, second) = wandb.calls[0], trackio.calls[0]
    assert first["resume"] == second["resume"] == "allow"
    assert first["id"] == first["name"] != second["name"] and second["name"].startswith("run-")
    assert first["config"]["grpo"]["group_size"] == 6 and len(read_jsonl(tmp_path / "run" / "completions.jsonl")) == 1
    log_with(tmp_path / "run", "wandb", goes_on=True)  # the same run, and others: another workdir, the same one emptied
    log_with(tmp_path / "other", "wandb"), log_with(tmp_path / "run", "wandb")
    _, again, other, anew = (call[1]["id"] for call in wandb.called("init"))
    assert again == first["id"] and len({again, other, anew}) == 3


def test_a_step_is_sent_to_a_tracker_once_however_often_it_is_taken(tmp_path, tracker):
    """A crash between two checkpoints: what had been sent comes out the same, and a tracker takes nothing back."""
    wandb, trackio = tracker("wandb"), tracker("trackio")
    with quiet(tmp_path) as logger:
        logger.mirror(opening(tmp_path, "wandb"))
        for step in (1, 2, 3):
            logger.metrics("grpo", step, {"reward": 1.0})
            if step < 3:  # the end comes between the two
                logger.completions("grpo", step, [GROUP])
    with quiet(tmp_path) as logger:
        logger.mirror(opening(tmp_path, "wandb", "trackio", goes_on=True))
        logger.rewind("sft", 0)
        logger.rewind("grpo", 1)
        for step in (2, 3, 4):
            logger.metrics("grpo", step, {"reward": 1.0})
            logger.completions("grpo", step, [GROUP])
        logger.metrics("sft", 1, {"loss": 1.0})
    for module, expected in ((wandb, [1, 2, 3, 4]), (trackio, [2, 3, 4])):  # the second one is new to this run
        logged = [call[1] for call in module.called("log")]
        for name in ("grpo/reward", "grpo/completions"):
            assert [row["grpo/step"] for row in logged if name in row] == expected
        assert logged[-1] == {"sft/step": 1, "sft/loss": 1.0}
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 1]


def test_a_run_that_fails_is_no_finished_one(tmp_path, tracker):
    wandb, trackio = tracker("wandb"), tracker("trackio")
    for error, status, title in ((RuntimeError("no memory"), 1, "failed"), (Interrupted("asked to"), 75, "stopped")):
        with pytest.raises(type(error)), quiet(tmp_path) as logger:
            logger.mirror(opening(tmp_path, "wandb", "trackio"))
            raise error
        assert wandb.calls[-1] == ("finish", {"exit_code": status})
        assert trackio.calls[-2:] == [("alert", title, f"{type(error).__name__}: {error}", "error", {}), ("finish", {})]


def test_a_tracker_that_fails_is_said_once_and_harms_no_log(tmp_path, tracker):
    trackio = tracker("trackio", fails_at=2)
    assert log_with(tmp_path, "trackio") == ("trackio failed and is left out from here: ConnectionError: no network\n")
    assert len(trackio.calls) == 2 and len(read_jsonl(tmp_path / "metrics.jsonl")) == 2


def test_a_tracker_that_does_not_open_ends_the_run_before_it_begins(tmp_path, tracker, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"'trackers': wandb is not installed \(pip install 'mecap_jax\[wandb\]'\)"):
        log_with(tmp_path, "wandb")
    trackio = tracker("trackio")
    with pytest.raises(ConfigError, match="wandb is not installed"):
        log_with(tmp_path, "trackio", "wandb")
    assert not trackio.calls and not (tmp_path / "trackers.json").exists()
    wandb, _ = tracker("wandb"), tracker("trackio", fails_at=1)
    with pytest.raises(ConfigError, match="'trackers': trackio did not open: no network"):
        log_with(tmp_path, "wandb", "trackio")
    assert [call[0] for call in wandb.calls] == ["init", "finish"]  # and is not left open


def test_a_log_does_not_load_pytorch(tmp_path):
    """TensorBoard's writer would; whoever needs it later finds it."""
    code = (
        "import sys, pathlib; from mecap_jax.training.logging import RunLogger\n"
        "with RunLogger(pathlib.Path(sys.argv[1])): assert 'torch' not in sys.modules\n"
        "import importlib.util; assert importlib.util.find_spec('torch')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert any((tmp_path / "tensorboard").iterdir())
