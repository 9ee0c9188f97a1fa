"""A published model as it comes, on a corpus of one's own."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mecap_jax.config import ConfigError, load, to_json
from mecap_jax.data import shards
from mecap_jax.data.importers import prepare
from mecap_jax.data.utterance import Utterance
from mecap_jax.experiment.scoring import evaluate_checkpoint
from mecap_jax.experiment.trained_task import TrainedTask
from mecap_jax.training.logging import RunLogger, read_jsonl
from tests.data.clips import audio_file
from tests.experiment.test_story import METRICS, small
from tests.published_family import open_family
from tests.test_captioning import behind_features

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_family("qwen2_5_omni", tmp_path_factory.mktemp("published") / "model").directory


def evaluate(*arguments):
    command = [sys.executable, ROOT / "scripts" / "evaluate.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_it_is_evaluated_without_a_run(model, tmp_path):
    settings = dataclasses.replace(small().data.synthetic, clips=40)
    prepare("synthetic", None, tmp_path / "shards", settings, progress=False)
    output = tmp_path / "out" / "scores.json"
    done = evaluate(f"--checkpoint={model}", f"--data={tmp_path / 'shards'}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "Emotion UAR" in done.stdout
    rows = read_jsonl(output.with_name("predictions.jsonl"))
    assert len(rows) == 8 and {row["step"] for row in rows} == {None}
    assert all(len(row["references"]) > 1 and isinstance(row["caption"], str) for row in rows)
    scores = json.loads(output.read_text())
    assert set(METRICS) <= set(scores["eval"]) and scores["clips"] == 8


@pytest.mark.slow
def test_answers_in_any_words_are_compared_by_the_wheels_that_are_named(model, shared, one_meteor, tmp_path):
    """An export has none of its own: they may not be passed on."""
    shards = Path(shared[0].removeprefix("data.path="))
    shutil.copytree(model, tmp_path / "export")
    trained = TrainedTask.of(load("configs/r1_omni.py", ["task.labels=open", "grpo.max_new_tokens=4"]))
    dataclasses.replace(trained, max_seconds=4.0).save(tmp_path / "export")
    forms, classes = {"sad": ["sad"]}, {"w": {"level1": {"sad": "sad"}}}
    wheels = {"format_mapping": forms, "raw_mapping": forms, "wheel_map_whole": classes}
    (tmp_path / "wheels.json").write_text(json.dumps(wheels))
    named = {"wheels": str(tmp_path / "wheels.json")}
    kept = []
    with RunLogger(None, enabled=False) as logger:
        with pytest.raises(ConfigError, match="--wheels: the model answers in words of an open vocabulary"):
            evaluate_checkpoint(tmp_path / "export", shards, "test", logger)
        with pytest.raises(ConfigError, match="--wheels: the model writes captions"):
            evaluate_checkpoint(model, shards, "test", logger, **named)
        found, rows = evaluate_checkpoint(tmp_path / "export", shards, "test", logger, **named, keep=kept.append)
    assert {"wheel_f1", "wheel_precision"} <= found["eval"].keys()
    # What was said is there before anybody has scored it.
    (bare,) = kept
    assert [(row["id"], row["caption"]) for row in bare] == [(row["id"], row["caption"]) for row in rows] and rows


@pytest.mark.usefixtures("one_meteor")
def test_a_clip_without_room_among_learned_positions_is_left_out_and_named(tmp_path):
    """Its 480 frames of features leave no room for 96 tokens of caption in 512 positions."""
    directory = behind_features("gpt2", tmp_path, ())
    items = []
    for i, (split, frames) in enumerate([("train", 3), ("train", 3), ("test", 3), ("test", 480)]):
        features = {"face-UTT": np.ones((1, 3), np.float32), "voice-FRA": np.ones((frames, 2), np.float32)}
        told = dict(labels={"multimodal": "sad"}, captions={"overall": ("a sad voice",)})
        items.append(Utterance(f"clip-{i}", "mine", split, f"speaker-{i}", features=features, **told))
    shards.write(items, tmp_path / "shards", "a test", {"importer": "test"})
    with RunLogger(None, enabled=False) as logger:
        found, rows = evaluate_checkpoint(directory, tmp_path / "shards", "test", logger)
    (left_out,) = found["quarantined"]
    assert left_out["id"] == "clip-3" and "max_position_embeddings is 512" in left_out["reason"]
    assert [row["id"] for row in rows] == ["clip-2"]


def test_what_is_missing_is_named(model, tmp_path):
    with RunLogger(None) as logger, pytest.raises(ConfigError, match="--data: .*name the shards"):
        evaluate_checkpoint(model, None, "test", logger)
    (tmp_path / "a.wav").write_bytes(audio_file())
    failed = evaluate(f"--checkpoint={model}", f"--data={tmp_path}", f"--output={tmp_path / 'scores.json'}")
    assert failed.returncode == 1 and "prepare_data.py" in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "scores.json").exists()
    (tmp_path / "config.json").write_text(to_json(load("configs/grpo.py")))
    (tmp_path / "shards.json").write_text("{")
    failed = evaluate(f"--report={tmp_path}")
    assert failed.returncode == 1 and "shards.json is not JSON" in failed.stderr and "Traceback" not in failed.stderr
    failed = evaluate("--report=a", f"--checkpoint={model}", "--output=b")
    assert failed.returncode != 0 and "--report alone" in failed.stdout + failed.stderr
