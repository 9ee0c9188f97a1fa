"""Voices by their features: the README's run in small, on made-up clips, and the linear probe beside it."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.linear_classifier import probe
from mecap_jax.config import ConfigError, load
from mecap_jax.data.importers import prepare
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.experiment import story
from mecap_jax.experiment.feature_normalisation import normalise
from mecap_jax.training.logging import RunLogger
from tests import documented
from tests.data.importers.test_prosody_captions import voice

LABELS = ("angry", "bored", "calm")
SMALL = (
    "model.decoder.vocab_size=512",
    "model.decoder.hidden_size=32",
    "model.decoder.intermediate_size=32",
    "model.decoder.num_hidden_layers=1",
    "model.decoder.head_dim=8",
    "model.features.hidden_size=16",
    "sft.steps=2",
    "sft.batch_clips=8",
    "grpo.steps=2",
    "grpo.prompts=8",
    "grpo.micro_prompts=1",
    "grpo.group_size=2",
    "grpo.max_new_tokens=8",
    "evaluation.batch_clips=2",
    "evaluation.bootstrap=20",
)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Two corpora of three train speakers and one to validate; in one of them features tell the label."""
    directory = tmp_path_factory.mktemp("voices") / "raw"
    (features := directory / "features" / "whisper-base-UTT").mkdir(parents=True)
    rng, rows, means = np.random.default_rng(0), [], np.random.default_rng(1).normal(size=(3, 512))
    for n in range(2 * 4 * 6):
        corpus, speaker, label = ("heard", "noise")[n // 24], n // 6 % 4, n % 3
        (directory / f"{n}.wav").write_bytes(voice(120.0 + 40 * label + speaker, seconds=0.3))
        vector = rng.normal(size=512) + (means[label] if corpus == "heard" else 0)
        np.save(features / f"{n}.npy", vector.astype(np.float32))
        split = "validation" if speaker == 3 else "train"
        rows.append(
            dict(file=f"{n}.wav", dataset=corpus, speaker=f"{corpus}{speaker}", label=LABELS[label], split=split)
        )
    (directory / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with RunLogger(None) as logger:
        normalise(directory, "whisper-base-UTT", "speaker", logger)
    prepare("folder", directory, directory.parent / "shards", captions="prosody", progress=False)
    return directory.parent / "shards"


@pytest.mark.slow
@pytest.mark.usefixtures("one_meteor")
def test_the_recipe_trains_on_features_with_its_rows(voices, shared, tmp_path):
    encoder = [override for override in shared if override.startswith("encoder.")]
    config = load(
        "configs/real_voices.py", [*documented.overrides("runs/voices"), *SMALL, *encoder, f"data.path={voices}"]
    )
    report = story.run(config, tmp_path / "run")
    assert set(report["eval"]) == {"sft", "grpo", "reward_off", "sft_control"}
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["modalities"] == ["features"]


def test_the_recipe_chooses_nothing_by_the_clips_that_it_is_tested_on():
    config = load("configs/real_voices.py")
    assert config.sft.validate_every == config.grpo.validate_every == 0
    assert {row.name for row in config.rows} == {"reward_off", "sft_control"}


def test_the_recipe_reads_what_its_argument_says():
    def read(arg):
        features = load(f"configs/real_voices.py{arg}").model.features
        return dict(zip(features.names, features.dims, strict=True))

    assert read("") == read(":speaker") == {"whisper-base-speaker-UTT": 512}
    assert read(":train,face") == {"whisper-base-train-UTT": 512, "face-train-UTT": 56}
    for wrong in (":face", ":speaker,face,face", ":nobody"):
        with pytest.raises(ConfigError, match=f"got '{wrong[1:]}'"):
            read(wrong)


def test_a_linear_probe_hears_what_the_features_tell_of_unseen_speakers(voices):
    command = [sys.executable, "benchmarks/linear_probe.py", f"--shards={voices}", "--feature=whisper-base-UTT"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = re.findall(r"(\w+): UAR (\S+) \(majority class 0.333\) of 3 labels in 6 clips of 1 unseen", done.stdout)
    assert [corpus for corpus, _ in told] == ["heard", "noise"]
    assert float(told[0][1]) == 1.0 and float(told[1][1]) < 0.9


def test_a_captioner_of_several_features_is_held_against_them_side_by_side(voices):
    names = ["whisper-base-UTT", "whisper-base-speaker-UTT"]
    (heard, _) = probe(ShardReader(voices), names)
    assert heard.uar == 1.0
    with pytest.raises(ShardError, match="no labelled clips with features whisper-base-UTT, nose-UTT in train"):
        probe(ShardReader(voices), [names[0], "nose-UTT"])
