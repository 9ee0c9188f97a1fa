"""A published model as it comes, on a corpus of one's own."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mecap_jax.config import ConfigError
from mecap_jax.data.importers import prepare
from mecap_jax.experiment.scoring import evaluate_checkpoint
from mecap_jax.training.logging import RunLogger, read_jsonl
from tests.data.clips import audio_file
from tests.experiment.test_story import METRICS, small
from tests.published_family import open_family

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


def test_what_is_missing_is_named(model, tmp_path):
    with RunLogger(None) as logger, pytest.raises(ConfigError, match="--data: .*name the shards"):
        evaluate_checkpoint(model, None, "test", logger)
    (tmp_path / "a.wav").write_bytes(audio_file())
    failed = evaluate(f"--checkpoint={model}", f"--data={tmp_path}", f"--output={tmp_path / 'scores.json'}")
    assert failed.returncode == 1 and "prepare_data.py" in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "scores.json").exists()
    failed = evaluate("--report=a", f"--checkpoint={model}", "--output=b")
    assert failed.returncode != 0 and "--report alone" in failed.stdout + failed.stderr
