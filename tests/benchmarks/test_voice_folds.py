"""Folds by speaker: who is dealt where, what the systems may read of the tested clips, and the table."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.speaker_folds import PROBE, Clips, FoldsError, deal, features, read_clips, read_faces, table
from mecap_jax.data.importers import prepare


def clips(speakers=4, each=3, seed=0):
    """Clips of two corpora; those of the first have a face."""
    rng = np.random.default_rng(seed)
    rows = [
        dict(id=f"{corpus}{speaker}-{n}", dataset=corpus, speaker=f"{corpus}{speaker}", label=("sad", "happy")[n % 2])
        for corpus in "AB"
        for speaker in range(speakers)
        for n in range(each)
    ]
    face = rng.normal(3, 2, size=(len(rows), 4))
    face[len(rows) // 2 :] = np.nan
    return Clips(rows, rng.normal(1, 0.1, size=(len(rows), 6)).astype(np.float32), face)


def test_speakers_of_each_corpus_are_dealt_in_turn():
    dealt = deal([("B", "x")] * 3 + [("B", "y"), ("A", "c"), ("A", "a"), ("A", "b")], 2)
    assert dealt == {("A", "a"): 0, ("A", "b"): 1, ("A", "c"): 0, ("B", "x"): 0, ("B", "y"): 1}
    with pytest.raises(FoldsError, match="B has 2 speakers, too few for 3 folds"):
        deal(dealt, 3)


def test_z_scores_of_a_tested_clip_are_its_speakers_or_those_of_the_train_clips():
    given = clips()
    tested = given.column("speaker") == "A0"
    by_speaker, by_train = (features(given, variant, ~tested) for variant in ("speaker", "train"))
    own = by_speaker["whisper-base-speaker-UTT"][tested]
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(by_train["whisper-base-train-UTT"][~tested].std(axis=0), 1, atol=1e-4)
    moved = given._replace(voice=np.where(tested[:, None], given.voice + 5, given.voice))
    others = features(moved, "train", ~tested)["whisper-base-train-UTT"][~tested]
    np.testing.assert_array_equal(others, by_train["whisper-base-train-UTT"][~tested])  # nothing of a tested clip


@pytest.mark.parametrize("variant", ["speaker,face", "train,face"])
def test_a_clip_without_a_face_has_the_mean_there(variant):
    given = clips()
    voice, face = features(given, variant, given.column("speaker") != "A0").values()
    assert np.isfinite(voice).all() and (face[given.column("dataset") == "B"] == 0).all()
    assert (face[given.column("dataset") == "A"] != 0).all()


def test_the_table_compares_with_the_probe_over_speakers():
    rows = clips().rows
    truth = [row["label"] for row in rows]
    lines = table(rows, {PROBE: truth, "sft": ["sad"] * len(rows)}, resamples=20)
    assert lines[0] == "| | linear probe | sft | sft − probe |"
    assert lines[2].startswith("| A: 12 clips, 4 speakers | 1.000 [1.000, 1.000] | 0.500 [")
    assert "| -0.500 [" in lines[2] and lines[3].startswith("| B: ")


def test_rows_of_the_table_of_faces_are_found_by_what_clips_name(tmp_path):
    (path := tmp_path / "faces.csv").write_text("clip,smile,brow\na.mp4,0.5,1\nb.mp4,2,3\n")
    (tmp_path / "features" / "v-UTT").mkdir(parents=True)
    rows = [
        {"id": "a", "label": "sad", "transcript": "x", "split": "train", "visual_features": {"row": 1}},
        {"id": "b", "label": "sad", "transcript": "y", "split": "train"},
    ]
    for row in rows:
        np.save(tmp_path / "features" / "v-UTT" / f"{row['id']}.npy", np.ones(3, np.float32))

    def read(feature="v-UTT"):
        (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
        prepare("folder", tmp_path, tmp_path / f"shards{rows[0]['visual_features']['row']}", progress=False)
        return read_clips(tmp_path / f"shards{rows[0]['visual_features']['row']}", feature, path)

    np.testing.assert_array_equal(read().face, [[2, 3], [np.nan] * 2])
    with pytest.raises(FoldsError, match=r"clip 'a' lacks the features 'w-UTT'; it has \['v-UTT'\]"):
        read("w-UTT")
    rows[0]["visual_features"]["row"] = 2
    with pytest.raises(FoldsError, match="clip 'a': attribute visual_features is .*, the table has rows 0 to 1"):
        read()
    path.write_text("clip,smile,brow\na.mp4,0.5,\n")
    with pytest.raises(FoldsError, match="faces.csv: line 2: 'brow' is '', no finite number"):
        read_faces(path)


def test_a_wrong_setting_is_named_before_anything_is_written(tmp_path):
    command = [sys.executable, "benchmarks/voice_folds.py", "--shards=nowhere", f"--output={tmp_path / 'folds'}"]
    done = subprocess.run([*command, "--change=sft.stepps=3"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "stepps" in done.stderr and not any(tmp_path.iterdir())
