"""Features by speaker: what is written is what NumPy says, all or nothing, and a clip that does not fit is named."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mecap_jax.data.importers import prepare
from mecap_jax.data.shards import ShardReader
from mecap_jax.experiment.feature_extraction import summarise
from mecap_jax.experiment.feature_normalisation import Moments, NormalisationError, normalise
from mecap_jax.experiment.frozen_encoder import EncoderError
from mecap_jax.training.logging import RunLogger

SPEAKERS = {"a1": "anna", "a2": "anna", "a3": "anna", "b1": "bo", "b2": "bo"}


def table(folder, **further):
    rows = [
        {"id": id, "speaker": speaker, "transcript": id, "split": "train" if speaker == "anna" else "validation"}
        for id, speaker in (SPEAKERS | further).items()
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def folder(tmp_path):
    """Clips of two speakers with features of three numbers, the last of which is always the same."""
    rng = np.random.default_rng(0)
    (directory := tmp_path / "features" / "voice-UTT").mkdir(parents=True)
    for id in SPEAKERS:
        np.save(directory / f"{id}.npy", np.float32([*rng.normal(size=2), 7]))
    table(tmp_path)
    return tmp_path


def run(folder, feature="voice-UTT", by="speaker", name=""):
    with RunLogger(None) as logger:
        _, found = normalise(folder, feature, by, logger, name=name)
    return summarise(found)


def vectors(folder, name):
    return {id: np.load(folder / "features" / name / f"{id}.npy") for id in SPEAKERS}


def expected(found, ids, of):
    them = np.stack([found[id] for id in of])
    deviation = np.where(them.std(axis=0) > 0, them.std(axis=0), 1)
    return {id: (found[id] - them.mean(axis=0)) / deviation for id in ids}


@pytest.mark.parametrize("by, groups", [("speaker", (("a1", "a2", "a3"), ("b1", "b2"))), ("train", ())])
def test_z_scores_are_those_of_the_speaker_or_of_the_train_clips(folder, by, groups):
    run(folder, by=by)
    raw, found = vectors(folder, "voice-UTT"), vectors(folder, f"voice-{by}-UTT")
    for group in groups or (tuple(SPEAKERS),):
        for id, scores in expected(raw, group, of=group if groups else ("a1", "a2", "a3")).items():
            assert found[id].shape == (3,) and found[id].dtype == np.float32
            np.testing.assert_allclose(found[id], scores, atol=1e-5)
    prepare("folder", folder, folder / "shards", progress=False)
    assert f"voice-{by}-UTT" in ShardReader(folder / "shards").index[0].features


def test_moments_of_frames_are_those_of_all_of_them_at_once():
    clips = [np.random.default_rng(n).normal(5, 2, size=(n, 4)).astype(np.float32) for n in (1, 3, 8)]
    moments = Moments()
    for clip in clips:
        moments.add(clip)
    scores = np.concatenate([moments.normalise(clip) for clip in clips])
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scores.std(axis=0), 1, atol=1e-5)


def test_what_is_there_is_not_made_again_and_never_mixed_with_others(folder):
    assert run(folder) == "5 clips made"
    paths = sorted((folder / "features" / "voice-speaker-UTT").glob("*.npy"))
    before = {path: path.stat().st_mtime_ns for path in paths[1:]}
    paths[0].unlink()  # of an interrupted run, say
    assert run(folder) == "1 clips made, 4 there already"
    assert {path: path.stat().st_mtime_ns for path in paths[1:]} == before

    np.save(folder / "features" / "voice-UTT" / "b1.npy", np.float32([5, 5, 7]))
    with pytest.raises(NormalisationError, match="voice-speaker-UTT holds features that were made otherwise, or of"):
        run(folder)
    assert run(folder, name="again") == "5 clips made" and (folder / "features/again-UTT/b1.npy").is_file()


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda path: path.unlink(), "clip 'b1' lacks the features 'voice-UTT'; it has []"),
        (lambda path: np.save(path, np.float32([1, 2])), "clip 'b1': 'voice-UTT' has a width of 2, and of 3 in 'a1'"),
        (lambda path: np.save(path, np.float32([1, np.nan, 2])), "b1.npy' hold values that are not finite"),
        (lambda path: np.save(path, np.ones((2, 3), np.float32)), "clip 'b1': 'voice-UTT' has 2 vectors, not one"),
        (lambda path: path.write_bytes(b"no"), "clip 'b1': line 4: features 'features/voice-UTT/b1.npy'"),
        (lambda path: shutil.rmtree(path.parent), "clip 'a1' lacks the features 'voice-UTT'"),
    ],
)
def test_a_clip_that_does_not_fit_is_named_and_nothing_is_written(folder, broken, message):
    broken(folder / "features" / "voice-UTT" / "b1.npy")
    with pytest.raises(NormalisationError, match=re.escape(message)):
        run(folder)
    assert not list(folder.glob("features/*speaker*"))


def test_a_speaker_with_one_clip_has_nothing_to_be_compared_with(folder):
    np.save(folder / "features" / "voice-UTT" / "c1.npy", np.ones(3, np.float32))
    table(folder, c1="cleo")
    with pytest.raises(NormalisationError, match="clip 'c1' is the only one of folder cleo"):
        run(folder)
    assert run(folder, by="train") == "6 clips made"


def test_names_are_refused_that_importers_would_not_find_or_that_lead_elsewhere(folder):
    with pytest.raises(NormalisationError, match="'voice' ends in none of -UTT, -FRA"):
        run(folder, feature="voice")
    with pytest.raises(EncoderError, match="is no name of a directory"):
        run(folder, name="../elsewhere")
    (folder / "features" / "far-UTT").symlink_to(folder.parent)
    with pytest.raises(EncoderError, match="leads out of"):
        run(folder, name="far")


def test_the_command_says_what_it_made_and_what_is_wrong(folder):
    command = [sys.executable, "scripts/normalise_features.py", f"--input={folder}", "--feature"]
    done = subprocess.run([*command, "voice-UTT"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "voice-speaker-UTT: 5 clips made" in done.stderr
    done = subprocess.run([*command, "face-UTT"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("error: clip 'a1' lacks the features 'face-UTT'")
