"""`train.py` as two processes with two devices each: one run in one directory, equal to one process with four; and what
a user does with it then, on one device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import pytest

from mecap_jax.config import load
from mecap_jax.experiment.weights import describe
from mecap_jax.sharding import make_mesh
from mecap_jax.train_state import abstract_model
from mecap_jax.training.checkpointing import load_params
from mecap_jax.training.logging import read_jsonl
from mecap_jax.training.stopping import Interrupted
from tests.data.clips import audio_file, video_file
from tests.experiment.test_story import SMALL
from tests.test_distributed import pair
from tests.test_documented_commands import COMMANDS
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
    overrides = [*SMALL, *OPTIONS, *shared, f"grpo.reward.terms=emotion=2,{root / 'reward.py'}:stop=1"]
    recipe = str(ROOT / "configs" / "grpo.py")
    command = ["scripts/train.py", f"--config={recipe}", *(f"--config.{item}" for item in overrides)]
    run(*command, f"--workdir={directories['grpo']}", cwd=root, devices=4)
    together = [str(ROOT / command[0]), *command[1:], f"--workdir={directories['two']}"]
    stopped = pair(*together, env=environment(2), cwd=root)
    shutil.copytree(directories["two"], directories["one_after_two"])
    run(*command, f"--workdir={directories['one_after_two']}", cwd=root, devices=4)
    for code, _, stderr in pair(*together, env=environment(2), cwd=root):
        assert code == 0, stderr
    return load(recipe, overrides), directories, stopped


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
        numbers = [name for name in one if name not in ("stage", "time") and not name.startswith("timing_s")]
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
def test_what_four_devices_trained_is_evaluated_on_one(runs, tmp_path):
    alone = runs[1]["grpo"]
    arguments = (f"--checkpoint={alone / 'checkpoints' / 'grpo'}", "--split=test", f"--output={tmp_path / 'out.json'}")
    run("scripts/evaluate.py", *arguments, cwd=alone.parents[1])
    scores = json.loads((tmp_path / "out.json").read_text())["eval"]
    expected = json.loads((alone / "report.json").read_text())["eval"]["grpo"]
    # A metric that is not available is None in both.
    assert scores == {k: x if x is None else pytest.approx(x, rel=1e-3, abs=1e-3) for k, x in expected.items()}


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
    "scripts/prepare_data.py --source=folder": "SHARDS/manifest.json",
    "scripts/evaluate.py --checkpoint=runs/mine": "scores.json",
    "scripts/caption.py --checkpoint=runs/mine": ("new.wav",),
    "scripts/caption.py --checkpoint=runs/grpo": ("clip.wav", "interview.mp4", "DIR/a.wav", "DIR/b.mp4"),
    "scripts/export_hf.py --checkpoint=runs/grpo": "EXPORT",
}


@pytest.mark.slow
@pytest.mark.parametrize("begins, left", USABLE.items())
def test_a_documented_command_runs(user, begins, left):
    """As it stands in the README, on one device."""
    (words,) = (words for words, _ in (command.values for command in COMMANDS) if " ".join(words).startswith(begins))
    done = run(*words, cwd=user)
    if isinstance(left, str):
        assert (user / left).exists()
    else:
        assert tuple(line.partition(": ")[0] for line in done.stdout.splitlines()) == left


def run(script, *arguments, cwd, devices=1):
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, env=environment(devices), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done
