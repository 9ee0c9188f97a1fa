"""A folder of clips becomes utterances; what is wrong in one row costs that row only, and is named."""

import json
import os

import numpy as np
import pytest

from mecap_jax.data.importers import BadClip, ImporterError, folder
from mecap_jax.data.utterance import Utterance
from tests.data.clips import audio_file


@pytest.fixture
def directory(tmp_path):
    root = tmp_path / "input"
    (root / "wav").mkdir(parents=True)
    (root / "wav" / "a.wav").write_bytes(audio_file(seconds=0.1))
    (root / "v.mp4").write_bytes(b"checked later")
    np.save(root / "f64.npy", np.arange(6, dtype=np.float64).reshape(2, 3))
    np.save(root / "f16.npy", np.arange(4, dtype=np.float16))
    return root


def read(root, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    items = list(folder.read(root))
    assert folder.count(root) == len(items) == len(rows)
    return items


def test_every_key_arrives_where_it_belongs(directory):
    row = {
        "id": "one",
        "audio": "wav/a.wav",
        "video": "v.mp4",
        "features": {"face": "f64.npy", "voice": "f16.npy"},
        "speaker": "anna",
        "dialogue": "d1",
        "split": "val",
        "transcript": "你好",
        "language": "zh",
        "labels": {"audio": "Anger", "multimodal": "happiness"},
        "emotion": "happiness",
        "valence": -1,
        "captions": {"overall": ["A happy voice.", "Joy."], "style": "Loud."},
        "rationale": "The brows are raised.",
        "attributes": {"gender": "female"},
        "dataset": "mine",
        "licence": "CC-BY-4.0",
    }
    (utterance,) = read(directory, row)
    assert utterance.audio == (directory / "wav/a.wav").read_bytes() and utterance.video == b"checked later"
    assert utterance.labels == {"audio": "angry", "multimodal": "happy"} and utterance.label == "happy"
    assert utterance.captions == {"overall": ("A happy voice.", "Joy."), "style": ("Loud.",)}
    assert utterance.split == "validation" and utterance.valence == -1.0
    for key in ("id", "speaker", "dialogue", "transcript", "language", "rationale", "attributes", "dataset", "licence"):
        assert getattr(utterance, key) == row[key]
    assert utterance.features["face"].dtype == utterance.features["voice"].dtype == np.float32
    np.testing.assert_array_equal(utterance.features["face"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(utterance.features["voice"], [[0, 1, 2, 3]])


def test_features_in_emotiontalks_layout_are_found_by_clip(directory):
    for folder_name, array in (
        ("hubert-FRA", np.ones((5, 3), np.float32)),
        ("clip-UTT", np.zeros(4)),
        ("notes", np.zeros(2)),
    ):
        (directory / "features" / folder_name).mkdir(parents=True)
        np.save(directory / "features" / folder_name / "a.npy", array)
    first, second = read(
        directory, {"audio": "wav/a.wav", "split": "test"}, {"id": "b", "transcript": "x", "split": "test"}
    )
    assert {name: x.shape for name, x in first.features.items()} == {"clip-UTT": (1, 4), "hubert-FRA": (5, 3)}
    assert not second.features
    (outside,) = read(directory, {"id": "../a", "transcript": "x", "split": "test"})
    assert not outside.features


def test_defaults(directory):
    (utterance,) = read(directory, {"audio": "wav/a.wav", "split": "test", "caption": "Calm.", "label": "calm"})
    assert (utterance.id, utterance.speaker, utterance.dataset, utterance.language) == ("a", "a", "folder", "en")
    assert utterance.captions == {"overall": ("Calm.",)} and utterance.label == "calm"
    assert utterance.video is None and utterance.valence is None and utterance.transcript == ""
    (listed,) = read(directory, {"id": "x", "transcript": "Hello.", "split": "test", "captions": ["One.", "Two."]})
    assert listed.captions == {"overall": ("One.", "Two.")}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"speeker": "anna"}, "unknown key 'speeker'; did you mean 'speaker'?"),
        ({"audio": "gone.wav"}, "no such file: 'gone.wav'"),
        ({"audio": "../secret.wav"}, "path leads out of the input directory: '../secret.wav'"),
        ({"audio": "wav/../../secret.wav"}, "path leads out of the input directory"),
        ({"audio": "/etc/passwd"}, "path leads out of the input directory: '/etc/passwd'"),
        ({"audio": "link.wav"}, "path leads out of the input directory: 'link.wav'"),
        ({"audio": "linked/secret.wav"}, "path leads out of the input directory"),
        ({"audio": "loop.wav"}, "loop.wav"),
        ({"audio": "pipe.wav"}, "no such file: 'pipe.wav'"),
        ({"audio": "wav"}, "no such file: 'wav'"),
        ({"audio": "a\0b"}, "null"),
        ({"audio": "x" * 5000}, "cannot read"),
        ({"audio": 3}, "'audio' must be a string, got 3"),
        ({"features": {"f": "../secret.npy"}}, "path leads out of the input directory"),
        ({"features": {"f": "objects.npy"}}, "features 'objects.npy': Object arrays cannot be loaded"),
        ({"features": {"f": "integers.npy"}}, "must be floats .*got int64"),
        ({"features": {"f": "nan.npy"}}, "features 'nan.npy' hold values that are not finite"),
        ({"features": {"f": "huge.npy"}}, "features 'huge.npy'"),
        ({"features": {"f": "cut.npy"}}, "features 'cut.npy'"),
        ({"features": {"f": "v.mp4"}}, "features 'v.mp4'"),
        ({"features": "f64.npy"}, "'features' must be an object of strings"),
        ({"split": "eval"}, "split 'eval' is none of train, validation, test"),
        ({"label": "hangry"}, "unknown emotion label 'hangry'"),
        ({"labels": {"smell": "happy"}}, "'labels' has 'smell'"),
        ({"label": "sad", "labels": {"multimodal": "happy"}}, "'label' is 'sad', but the multimodal label is 'happy'"),
        ({"valence": 7}, r"'valence' must be a number in \[-2, 2\], got 7"),
        ({"valence": float("nan")}, "'valence' must be a number"),
        ({"valence": True}, "'valence' must be a number"),
        ({"captions": ["fine", " "]}, "captions must be non-empty strings"),
        ({"captions": {"poem": "Roses."}}, "caption kind 'poem' is none of"),
        ({"caption": "a", "captions": "b"}, "both 'caption' and 'captions'"),
        ({"id": ""}, "field 'id' must be a non-empty string"),
        ({"speaker": "\ud800"}, "surrogates not allowed"),
        ({"attributes": {"age": 3}}, "'attributes' must be an object of strings"),
    ],
)
def test_one_bad_row_is_named_and_costs_only_itself(directory, change, reason):
    (directory.parent / "secret.wav").write_bytes(audio_file(seconds=0.1))
    (directory / "link.wav").symlink_to(directory.parent / "secret.wav")
    (directory / "linked").symlink_to(directory.parent)
    (directory / "loop.wav").symlink_to(directory / "loop.wav")
    os.mkfifo(directory / "pipe.wav")
    np.save(directory / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.save(directory / "integers.npy", np.arange(3))
    np.save(directory / "nan.npy", np.array([1.0, np.nan]))
    array = (directory / "f64.npy").read_bytes()
    with (directory / "huge.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)}
        np.lib.format.write_array_header_1_0(file, header)
    (directory / "cut.npy").write_bytes(array[:-8])

    good = {"id": "good", "audio": "wav/a.wav", "split": "train"}
    items = read(directory, good, {**good, "id": "bad", **change}, {**good, "id": "also good"})

    assert [type(item) for item in items] == [Utterance, BadClip, Utterance]
    assert items[1].id == ("line 2" if change.get("id") == "" else "bad")
    assert items[1].reason.startswith("line 2: ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(items[1].reason)


def test_a_row_that_is_no_object_is_named(directory):
    good = {"id": "good", "audio": "wav/a.wav", "split": "train"}
    items = read(directory, good, "{broken", "[1, 2]", '"text"', "[" * 100_000, {"id": "empty", "split": "train"})
    assert isinstance(items[0], Utterance)
    assert [item.id for item in items[1:]] == ["line 2", "line 3", "line 4", "line 5", "empty"]
    for item, reason in zip(items[1:], ("not JSON", "expected a JSON object", "expected", "not JSON", "neither audio")):
        assert reason in item.reason


def test_a_manifest_that_is_no_json_lines_names_the_line(directory):
    for text in ("id,audio\none,wav/a.wav\n", "\n\n<html></html>\n", "[]\n[]\n"):
        (directory / "manifest.jsonl").write_text(text)
        line = 1 + text.index(text.strip()[0])
        with pytest.raises(ImporterError, match=f"manifest.jsonl is not JSON Lines: line {line} "):
            list(folder.read(directory))
    (directory / "manifest.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ImporterError, match="not JSON Lines: line 1"):
        list(folder.read(directory))
    (directory / "manifest.jsonl").write_text("")
    with pytest.raises(ImporterError, match="is empty"):
        list(folder.read(directory))
    (directory / "manifest.jsonl").unlink()
    with pytest.raises(ImporterError, match="no manifest.jsonl"):
        list(folder.read(directory))


def test_without_splits_whole_speakers_are_divided_80_10_10(directory, capsys):
    rows = [{"id": f"{s}-{i}", "audio": "wav/a.wav", "speaker": f"s{s}"} for s in range(40) for i in range(3)]
    first, second = read(directory, *rows), read(directory, *reversed(rows))
    splits = {u.id: u.split for u in first}
    assert splits == {u.id: u.split for u in second}
    of_speaker = {}
    for u in first:
        of_speaker.setdefault(u.speaker, set()).add(u.split)
    assert all(len(of) == 1 for of in of_speaker.values())
    counts = {s: sum(of == {s} for of in of_speaker.values()) for s in ("train", "validation", "test")}
    assert counts == {"train": 32, "validation": 4, "test": 4}
    assert "names no splits: speakers are divided by a hash (32 train, 4 validation, 4 test)" in capsys.readouterr().err

    few = read(directory, *[row for row in rows if row["speaker"] in ("s0", "s1", "s2")])
    assert {u.split for u in few} == {"train", "validation", "test"}


def test_a_split_that_only_some_rows_have_is_missed_in_the_others(directory):
    row = {"audio": "wav/a.wav"}
    items = read(directory, {**row, "id": "a", "split": "train"}, {**row, "id": "b"})
    assert items[1] == BadClip("b", "line 2: no split, where other rows have one")
