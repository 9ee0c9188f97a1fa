"""`train.py` as two processes with two devices each: one run in one directory, equal to one process with four; and what
a user does with it then, on one device."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import pytest

from mecap_jax.config import load
from mecap_jax.experiment.weights import describe
from mecap_jax.interruption import Interrupted
from mecap_jax.sharding import make_mesh
from mecap_jax.train_state import abstract_model
from mecap_jax.training.checkpointing import load_params
from mecap_jax.training.logging import read_jsonl
from tests.data.clips import audio_file, video_file
from tests.documented import commands, training
from tests.experiment.test_story import SMALL
from tests.test_distributed import pair
from tests.xla_flags import xla_flags

ROOT = Path(__file__).parents[2]
# A term that is worth nothing. In the second step of the second process it sends that process a signal, once.
REWARD = """
import os, pathlib, signal
import jax

calls = []

def stop(samples):
    sent = pathlib.Path(__file__).with_name("sent")
    calls.append(samples)
    if jax.process_index() == 1 and len(calls) == 2 and not sent.exists():
        sent.touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return [0.0] * len(samples)
"""
# Another one, which changes what the disk takes, where a file beside it says so.
FAULTY = """
import os, pathlib, resource

def faulty(samples):
    fault = pathlib.Path(__file__).with_name("fault")
    kind = fault.read_text() if fault.exists() else ""
    if kind == "full":
        for descriptor in os.listdir("/proc/self/fd"):
            if os.path.realpath(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
                os.dup2(os.open("/dev/full", os.O_WRONLY), int(descriptor))
    if kind == "quota":
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
    return [0.0] * len(samples)
"""
# Seven clips and five prompts divide over nothing; parameters are divided over devices of both processes.
OPTIONS = (
    "mesh.fsdp=4",
    "sft.steps=1",
    "sft.batch_clips=7",
    "sft.micro_clips=1",
    "sft.validate_every=0",
    "grpo.steps=3",
    "grpo.prompts=5",
    "grpo.micro_prompts=1",
    "grpo.loss.reference_likelihood=0",
    "evaluation.rows=()",
    "evaluation.ablation=False",
)


def environment(devices):
    # Without a PATH there is no Java: METEOR, which other tests run, is left out of the reports here.
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices=devices), "PYTHONPATH": str(ROOT), "PATH": ""}
    return os.environ | flags


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shared):
    """(configuration, directories by name, what the two processes said at the stop).

    "grpo" is the run of one process, "two" that of two, which were stopped; "one_after_two" is what one made of that.
    """
    root = tmp_path_factory.mktemp("together")
    directories = {name: root / "runs" / name for name in ("grpo", "two", "one_after_two")}
    (root / "reward.py").write_text(REWARD)
    (root / "configs").symlink_to(ROOT / "configs")
    overrides = [*shared, f"grpo.reward.terms=emotion=2,{root / 'reward.py'}:stop=1"]
    run(*made_tiny("runs/grpo", *overrides), cwd=root, devices=4)
    script, *arguments = made_tiny("runs/two", *overrides)
    stopped = pair(str(ROOT / script), *arguments, env=environment(2), cwd=root)
    shutil.copytree(directories["two"], directories["one_after_two"])
    run(*made_tiny("runs/large", *overrides), "--workdir=runs/one_after_two", cwd=root, devices=4)
    for code, _, stderr in pair(str(ROOT / script), *arguments, env=environment(2), cwd=root):
        assert code == 0, stderr
    return load(str(ROOT / "configs" / "grpo.py"), [*SMALL, *OPTIONS, *overrides]), directories, stopped


def made_tiny(workdir, *overrides):
    """The README's command that trains in this workdir, made small by further settings."""
    words = training(workdir)
    without = ("sft.",) if "--config.sft=None" in words else ()
    return [*words, *(f"--config.{item}" for item in (*SMALL, *OPTIONS, *overrides) if not item.startswith(without))]


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_the_same_step(runs):
    *_, stopped = runs
    assert [code for code, _, _ in stopped] == [Interrupted.STATUS] * 2
    for _, _, stderr in stopped:
        assert "grpo: stopped after step 2 of 3; the same command resumes" in stderr and "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "one_after_two"])
def test_one_run_in_one_directory(runs, name):
    _, directories, stopped = runs
    alone, together = directories["grpo"], directories[name]
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}
    assert "12% of the work is filled up" in stopped[0][2] and "38% of the work is filled up" in stopped[0][2]
    for one, other in zip(*(read_jsonl(path / "metrics.jsonl") for path in (alone, together)), strict=True):
        assert (one["stage"], one["step"]) == (other["stage"], other["step"]) and one.keys() == other.keys()
        numbers = [name for name in one if name not in ("stage", "time") and not name.startswith(("timing_s", "perf"))]
        for name in numbers:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    groups = [read_jsonl(path / "completions.jsonl") for path in (alone, together)]
    assert len(groups[0]) == 3 * 5
    for one, other in zip(*groups, strict=True):
        assert one["utterance_id"] == other["utterance_id"]
        assert [c["text"] for c in one["completions"]] == [c["text"] for c in other["completions"]]
    reports = [json.loads((path / "report.json").read_text()) for path in (alone, together)]
    assert reports[0]["data"] == reports[1]["data"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("name", ["two", "one_after_two"])
def test_the_same_parameters(runs, name, stage):
    config, directories, _ = runs
    _, abstract = abstract_model(config.model, make_mesh(config.mesh))
    expected, actual = (
        jax.device_get(load_params(directories[run] / "checkpoints" / stage, abstract, describe(config)))
        for run in ("grpo", name)
    )
    chex.assert_trees_all_close(actual, expected, atol=1e-4)


@pytest.mark.slow
def test_what_four_devices_trained_is_evaluated_on_one_and_by_two_processes(runs, tmp_path):
    alone = runs[1]["grpo"]
    arguments = (f"--checkpoint={alone / 'checkpoints' / 'grpo'}", "--split=test", "--output=out.json")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    said = run("scripts/evaluate.py", *arguments, cwd=tmp_path / "one").stdout
    assert "BLEU-4" in said
    command = (str(ROOT / "scripts" / "evaluate.py"), *arguments)
    (first, *_), (second, *_) = ended = pair(*command, env=environment(2), cwd=tmp_path / "two")
    assert (first, second) == (0, 0), ended
    # One of the two writes, for both.
    lines = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for _, out, _ in ended]
    assert list(map(len, lines)) == [len(said.splitlines()), 0]
    expected = json.loads((alone / "report.json").read_text())["eval"]["grpo"]
    rows = [[row["caption"], row["finished"]] for row in read_jsonl(alone / "evaluations" / "grpo.predictions.jsonl")]
    for name in ("one", "two"):
        assert sorted(os.listdir(tmp_path / name)) == ["out.json", "predictions.jsonl"]
        scores = json.loads((tmp_path / name / "out.json").read_text())["eval"]
        # A metric that is not available is None in both.
        assert scores == {k: x if x is None else pytest.approx(x, rel=1e-3, abs=1e-3) for k, x in expected.items()}
        found = read_jsonl(tmp_path / name / "predictions.jsonl")
        assert [[row["caption"], row["finished"]] for row in found] == rows


@pytest.mark.slow
def test_another_run_starts_from_a_stage(runs, shared):
    """Its steps are so small that it ends where it began."""
    config, directories, _ = runs
    root = directories["grpo"].parents[1]
    still = ("grpo.steps=1", "grpo.optimizer.learning_rate=1e-12")
    run(*made_tiny("runs/branch", *shared, *still), cwd=root, devices=4)
    branch = root / "runs" / "branch"
    assert os.listdir(branch / "checkpoints") == ["grpo"]
    assert json.loads((branch / "config.json").read_text())["grpo"]["loss"]["name"] == "dapo"
    assert json.loads((branch / "report.json").read_text())["eval"].keys() == {"grpo"}
    _, abstract = abstract_model(config.model, make_mesh(config.mesh))
    start, others, end = (
        jax.device_get(load_params(path, abstract, describe(config)))
        for path in (*(directories["grpo"] / "checkpoints" / stage for stage in ("sft", "grpo")),
                     branch / "checkpoints" / "grpo")
    )  # fmt: skip
    chex.assert_trees_all_close(end, start, atol=1e-9)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(others, start, atol=1e-9)
    # Its reference policy is what it started from: with more steps there, it would be another one.
    (sft := directories["grpo"] / "checkpoints" / "sft").joinpath("1").rename(sft / "2")
    done = attempt(*made_tiny("runs/branch", *shared, *still, "grpo.steps=2"), cwd=root, devices=4)
    (sft / "2").rename(sft / "1")
    assert done.returncode == 1 and re.search(r"'init_from': .*step 1 .* there, step 2 .* now", done.stderr), (
        done.stderr
    )


def stop(command, cwd, moment):
    """Sends SIGTERM to a command when `moment` says so: it has to end within seconds."""
    with (cwd / "said").open("w+") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / command[0]), *command[1:]], env=environment(4), cwd=cwd, stderr=file
        )
        try:
            while not moment():
                assert process.poll() is None, (cwd / "said").read_text()
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == Interrupted.STATUS
        finally:
            process.kill()
    said = (cwd / "said").read_text()
    assert "SIGTERM: stopping" in said and "the same command resumes" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_signal_outside_of_training_loses_nothing_that_was_finished(tmp_path, shared):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (example,) = re.findall(r"```python\n(# brevity.py.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "brevity.py").write_text(example)
    command = made_tiny("runs/brief", "grpo.steps=1", shared[1])
    cache, workdir = tmp_path / "cache", tmp_path / "runs" / "brief"
    stop(command, tmp_path, lambda: any(cache.glob(".synthetic-*.building/*")))
    assert not list(cache.glob("synthetic-*")) and not workdir.joinpath("config.json").exists()
    predictions = workdir / "evaluations" / "sft.predictions.jsonl"
    stop(command, tmp_path, predictions.exists)
    assert not (workdir / "report.json").exists()
    finished = [*(workdir / "checkpoints").rglob("*"), *cache.glob("synthetic-*/*")]
    times = {path: path.stat().st_mtime_ns for path in finished}
    captions = [row["caption"] for row in read_jsonl(predictions)]
    said = run(*command, cwd=tmp_path, devices=4).stderr
    assert "captions sft 0/" not in said and "captions grpo 0/" in said
    assert [row["caption"] for row in read_jsonl(predictions) if row.get("reading")] == captions
    assert {path: path.stat().st_mtime_ns for path in finished} == times
    assert json.loads((workdir / "report.json").read_text())["eval"].keys() == {"sft", "grpo"}


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_with_room_it_goes_on(tmp_path, shared):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "faulty.py").write_text(FAULTY)
    terms = "grpo.reward.terms=emotion=2,faulty.py:faulty=1"
    command = made_tiny("runs/dapo", *shared, terms, "grpo.steps=2", "checkpoint.every=1")
    for kind, reason in (("full", "No space left on device"), ("quota", "File too large")):
        (tmp_path / "fault").write_text(kind)
        done = attempt(*command, cwd=tmp_path, devices=4)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "runs/dapo" in line and reason in line and line.endswith("the same command goes on from there")
    (tmp_path / "fault").unlink()
    run(*command, cwd=tmp_path, devices=4)
    rows = read_jsonl(tmp_path / "runs" / "dapo" / "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [("sft", 1), ("grpo", 1), ("grpo", 2)]


@pytest.fixture(scope="module")
def user(runs):
    """A directory in which a user of the README would be: a run, and clips of one's own."""
    root = runs[1]["grpo"].parents[1]
    (root / "runs" / "mine").symlink_to("grpo")
    (root / "DIR").mkdir()
    rows = []
    for name, data in (("a.wav", audio_file()), ("b.mp4", video_file())):
        (root / "DIR" / name).write_bytes(data)
        rows.append({"file": name, "split": "test", "label": "happy", "captions": ["A bright and happy voice."]})
    (root / "DIR" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("clip.wav", "new.wav"):
        (root / name).write_bytes(audio_file(seconds=0.5))
    (root / "interview.mp4").write_bytes(video_file(frames=30))
    return root


# Of what the README shows: the commands that the user above can run, and what each leaves or says.
USABLE = {
    "scripts/prepare_data.py --source=folder --input=DIR": "SHARDS/manifest.json",
    "scripts/evaluate.py --checkpoint=runs/mine": "scores.json",
    "scripts/caption.py --checkpoint=runs/mine": ("new.wav",),
    "scripts/caption.py --checkpoint=runs/grpo": ("clip.wav", "interview.mp4", "DIR/a.wav", "DIR/b.mp4"),
    "scripts/export_hf.py --checkpoint=runs/grpo": "EXPORT",
}


@pytest.mark.slow
@pytest.mark.parametrize("begins, left", USABLE.items())
def test_a_documented_command_runs(user, begins, left):
    """As it stands in the README, on one device."""
    (words,) = (words for *_, words, _ in commands() if " ".join(words).startswith(begins))
    done = run(*words, cwd=user)
    if isinstance(left, str):
        assert (user / left).exists()
    else:
        assert tuple(line.partition(": ")[0] for line in done.stdout.splitlines()) == left


def run(*command, cwd, devices=1):
    done = attempt(*command, cwd=cwd, devices=devices)
    assert done.returncode == 0, done.stderr
    return done


def attempt(script, *arguments, cwd, devices):
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, env=environment(devices), cwd=cwd, capture_output=True, text=True)
