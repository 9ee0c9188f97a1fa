"""The script, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mecap_jax.data import shards
from mecap_jax.data.utterance import Utterance
from mecap_jax.emotions import EMOTIONS
from mecap_jax.models.sentence_encoder import PACKAGED_SHA256, load_sentence_encoder
from mecap_jax.rewards.anchors import Anchors
from mecap_jax.rewards.emotion import emotion_coordinates

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_anchors.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd=SCRIPT.parents[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards with captions of two emotions, and a misleading test split."""

    def clip(name, split, label, *captions):
        return Utterance(
            name, "toy", split, name, labels={"multimodal": label}, captions={"overall": captions, "style": ("loud",)}
        )

    directory = tmp_path_factory.mktemp("data") / "toy"
    items = [
        clip("a", "train", "sad", "tears and sorrow", "a mournful voice"),
        clip("b", "train", "happy", "laughter and joy"),
        clip("c", "test", "happy", "tears and sorrow"),
    ]
    shards.write(items, directory, "a test", {"source": "toy"})
    return directory


def test_anchors_from_train_captions(data, tmp_path):
    output = tmp_path / "anchors.safetensors"
    result = run(f"--data={data}", f"--output={output}")
    assert result.returncode == 0, result.stderr
    anchors = Anchors.load(output)
    assert (anchors.labels, anchors.counts, anchors.kind) == (("happy", "sad"), (1, 2), "captions")
    assert (anchors.encoder, anchors.encoder_sha256) == ("all-MiniLM-L6-v2", PACKAGED_SHA256)
    assert "toy" in anchors.source and "train" in anchors.source
    assert "happy 1, sad 2" in result.stdout


def test_template_anchors_need_no_data(tmp_path):
    output = tmp_path / "anchors.safetensors"
    result = run("--templates", f"--output={output}")
    assert result.returncode == 0, result.stderr
    anchors = Anchors.load(output)
    assert anchors.labels == EMOTIONS and anchors.kind == "templates"
    coordinates = emotion_coordinates(load_sentence_encoder().encode(["he is furious"]), anchors)
    assert anchors.labels[int(np.argmax(coordinates))] == "angry"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--data is needed"),
        (["--templates", "extra"], "extra"),
        (["--data={data}", "--split=validation"], "no labelled clip"),
        (["--data={data}", "--encoder=/nowhere/at/all"], "no such directory: /nowhere/at/all"),
        (["--data={data}/absent"], "absent"),
    ],
)
def test_errors_name_what_is_wrong(data, tmp_path, arguments, message):
    output = tmp_path / "anchors.safetensors"
    result = run(*(argument.format(data=data) for argument in arguments), f"--output={output}")
    assert result.returncode != 0 and message in result.stdout + result.stderr
    assert not output.exists()
