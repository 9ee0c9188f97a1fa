"""From raw files to checked shards: counted, reported, reused, stopped when too much is bad."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mecap_jax.config import SyntheticConfig
from mecap_jax.data.importers import ImporterError, prepare
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.emotions import canonical_label
from tests.data.clips import SHARED, audio_file, needs_shared_data


@pytest.fixture
def raw(tmp_path):
    directory = tmp_path / "raw"
    directory.mkdir()
    rows = []
    for i in range(10):
        (directory / f"{i}.wav").write_bytes(audio_file(seconds=0.2 + 0.1 * i))
        rows.append({"audio": f"{i}.wav", "split": ("train", "test")[i % 2], "label": "happy", "caption": "Happy."})
    (directory / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return directory


def test_a_folder_becomes_shards_with_a_summary(raw, tmp_path, capsys):
    manifest = prepare("folder", raw, tmp_path / "out", command="make it")
    reader = ShardReader(tmp_path / "out")
    assert reader.manifest == manifest and manifest["command"] == "make it"
    assert {u.id for u in reader} == {str(i) for i in range(10)}
    assert {row.id: row.seconds for row in reader.index} == {str(i): pytest.approx(0.2 + 0.1 * i) for i in range(10)}
    summary = capsys.readouterr().err
    assert "10 clips" in summary and "train: 5 clips, 5 speakers" in summary and "(happy 5)" in summary


def test_bad_clips_are_reported_and_too_many_stop_everything(raw, tmp_path, capsys):
    (raw / "3.wav").write_bytes((raw / "3.wav").read_bytes()[:-50])
    (raw / "4.wav").unlink()
    with pytest.raises(ShardError, match=r"(?s)2 of 10 clips are bad \(allowed: 2.0%\).*truncated.*no such file"):
        prepare("folder", raw, tmp_path / "out")
    assert not (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir()] == ["raw"]

    manifest = prepare("folder", raw, tmp_path / "out", max_bad_fraction=0.2)
    assert {clip["id"] for clip in manifest["quarantined"]} == {"3", "4"} and manifest["records"] == 8
    summary = capsys.readouterr().err
    assert "quarantined 2 bad clips:" in summary and "line 5: no such file: '4.wav'" in summary


def test_longer_clips_than_allowed_are_bad(raw, tmp_path):
    manifest = prepare("folder", raw, tmp_path / "out", max_seconds=0.95, max_bad_fraction=0.5)
    assert [clip["id"] for clip in manifest["quarantined"]] == ["8", "9"]
    assert {clip["reason"] for clip in manifest["quarantined"]} == {"audio: longer than 0.95 s"}


def test_the_same_input_is_reused_and_a_changed_one_is_noticed(raw, tmp_path, capsys):
    prepare("folder", raw, tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    prepare("folder", raw, tmp_path / "out")
    assert "reused" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps

    (raw / "manifest.jsonl").write_text((raw / "manifest.jsonl").read_text().replace("Happy.", "Merry."))
    with pytest.raises(ShardError, match="shards of another source: fingerprint: "):
        prepare("folder", raw, tmp_path / "out")


def test_features_that_were_extracted_anew_are_noticed(raw, tmp_path):
    (raw / "features" / "x-UTT").mkdir(parents=True)
    np.save(raw / "features" / "x-UTT" / "0.npy", np.zeros(3, np.float32))
    prepare("folder", raw, tmp_path / "out")
    np.save(raw / "features" / "x-UTT" / "0.npy", np.ones(3, np.float32))
    with pytest.raises(ShardError, match="shards of another source: fingerprint: "):
        prepare("folder", raw, tmp_path / "out")


def test_media_that_were_recorded_anew_are_noticed(raw, tmp_path):
    prepare("folder", raw, tmp_path / "shards", progress=False)
    path = next(raw.rglob("*.wav"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)  # of the same size
    with pytest.raises(ShardError, match="shards of another source: fingerprint: "):
        prepare("folder", raw, tmp_path / "shards", progress=False)


def test_labels_that_stand_for_none_are_none(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    labels = ("happy", "Other", "xxx", "N/A", "未知", "no_agreement")
    for i in range(len(labels)):
        (raw / f"{i}.wav").write_bytes(audio_file(seconds=0.2 + 0.1 * i))
    rows = "".join(f"{i}.wav,{label},speaker,A voice.\n" for i, label in enumerate(labels))
    (raw / "manifest.csv").write_text(f"file,label,speaker,caption\n{rows}", encoding="utf-8")
    prepare("folder", raw, tmp_path / "shards", progress=False)
    assert [row.label for row in ShardReader(tmp_path / "shards").index] == ["happy", *[None] * 5]
    assert "labels that stand for none: 'other' (1 times), 'xxx' (1 times), 'n/a'" in capsys.readouterr().err
    (tmp_path / "map.json").write_text('{"Other": "calm"}')
    prepare("folder", raw, tmp_path / "mapped", progress=False, label_map=tmp_path / "map.json")
    assert ShardReader(tmp_path / "mapped").index[1].label == "calm"


def test_a_medium_that_is_replaced_is_noticed_by_its_time(raw, tmp_path):
    (raw / "0.wav").write_bytes(clip := audio_file(seconds=4))
    prepare("folder", raw, tmp_path / "out")
    changed = bytearray(clip)
    changed[len(clip) // 4] ^= 1  # of equal size, and far from the pieces that are compared
    (raw / "0.wav").write_bytes(changed)
    with pytest.raises(ShardError, match="shards of another source: fingerprint: "):
        prepare("folder", raw, tmp_path / "out")


def test_media_outside_the_input_are_part_of_it_where_they_may_be(raw, tmp_path, capsys):
    (outside := tmp_path / "outside.wav").write_bytes(audio_file())
    row = {"audio": str(outside), "split": "train", "label": "happy", "caption": "Happy."}
    (raw / "manifest.jsonl").write_text(json.dumps(row))
    for _ in range(2):
        prepare("folder", raw, tmp_path / "out", allow_outside=True)
    assert "reused" in capsys.readouterr().err
    outside.write_bytes(audio_file(seconds=2))
    with pytest.raises(ShardError, match="shards of another source: fingerprint: "):
        prepare("folder", raw, tmp_path / "out", allow_outside=True)


def test_what_systems_leave_is_no_change_of_the_input(raw, tmp_path, capsys):
    prepare("folder", raw, tmp_path / "out")
    (raw / ".DS_Store").write_bytes(b"x")
    (raw / "._0.wav").write_bytes(b"x")
    prepare("folder", raw, tmp_path / "out")
    assert "reused" in capsys.readouterr().err


def test_shards_inside_the_input_do_not_count_as_input(raw):
    prepare("folder", raw, raw / "shards")
    prepare("folder", raw, raw / "shards")


@pytest.mark.parametrize(
    "source, has_input, message",
    [
        ("emodb", True, "unknown source 'emodb'; known: synthetic, folder, ravdess"),
        ("folder", False, "source 'folder' needs an input directory"),
        ("synthetic", True, "source 'synthetic' reads no input directory"),
    ],
)
def test_what_cannot_be_imported_is_named(raw, tmp_path, source, has_input, message):
    with pytest.raises(ImporterError, match=message):
        prepare(source, raw if has_input else None, tmp_path / "out", SyntheticConfig(clips=1))
    with pytest.raises(ImporterError, match="needs an input directory"):
        prepare("folder", tmp_path / "nowhere", tmp_path / "out")


def real_layout(directory, rows):
    """Clips and a manifest as a published collection has them: what is known of a clip, captions null."""
    for row in rows:
        (directory / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        (directory / row["file"]).write_bytes(audio_file("FLAC", seconds=0.2))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (directory / "manifest.jsonl").write_text(text, encoding="utf-8")


def test_clips_without_captions_are_one_flag_away_from_them(tmp_path, capsys):
    rows = []
    for i, (emotion, raw) in enumerate([("anger", "Ärger/Wut"), ("boredom", "Langeweile"), ("calm", "calm")] * 2):
        first = i < 3
        rows.append(
            {
                "file": f"audio/{i}.flac",
                "dataset": "RAVDESS" if first else "EMO-DB",
                "lang": "en" if first else "de",
                "speaker": f"s{i}",
                "gender": "female",
                "emotion": emotion,
                "emotion_raw": raw,
                "intensity": "strong" if first else None,
                "transcript": "Das will sie am Mittwoch abgeben.",
                "caption": None,
                "visual_features": {"file": "visual/f.csv", "row": i} if first else None,
                "licence": "CC BY-NC-SA 4.0" if first else "CC0-1.0",
                "split": "train" if i % 3 else "val",
                "sample_rate": 16000,
                "sha256": "0" * 64,
            }
        )
    real_layout(tmp_path / "raw", rows)
    prepare("folder", tmp_path / "raw", tmp_path / "bare")
    hint = "no captions of kind overall in 6 of 6 clips: --captions=templates makes them from labels"
    assert hint in capsys.readouterr().err

    manifest = prepare("folder", tmp_path / "raw", tmp_path / "out", captions="templates")
    assert "no captions" not in capsys.readouterr().err
    assert manifest["licences"] == {"CC BY-NC-SA 4.0": 3, "CC0-1.0": 3} and not manifest["quarantined"]
    assert {split: counts["records"] for split, counts in manifest["splits"].items()} == {"train": 4, "validation": 2}
    assert manifest["splits"]["train"]["labels"] == {"bored": 2, "calm": 2}
    index = {row.id: row for row in ShardReader(tmp_path / "out").index}
    assert [index[str(i)].language for i in range(6)] == ["en"] * 3 + ["de"] * 3
    assert index["3"].dataset == "EMO-DB" and index["3"].label == "angry"
    assert index["0"].attributes["emotion_raw"] == "Ärger/Wut" and index["0"].attributes["gender"] == "female"
    for row in index.values():
        assert len(set(row.captions["overall"])) == 5
        assert all(first_emotion_word(text, ("bored", "calm")) == row.label for text in row.captions["overall"])

    with pytest.raises(ShardError, match="captions: None there, 'templates' asked"):
        prepare("folder", tmp_path / "raw", tmp_path / "bare", captions="templates")


def test_long_attributes_stay_in_the_record(tmp_path):
    rows = [{"file": "a.flac", "split": "train", "note": "x" * 500, "room": "r"}]
    real_layout(tmp_path / "raw", rows)
    prepare("folder", tmp_path / "raw", tmp_path / "out")
    reader = ShardReader(tmp_path / "out")
    assert reader.index[0].attributes == {"room": "r"} and reader[0].attributes == {"note": "x" * 500, "room": "r"}


@needs_shared_data
def test_the_real_collection_imports_as_it_is(tmp_path):
    lines = (SHARED / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[::12]
    rows = list(map(json.loads, lines))
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "audio").symlink_to(SHARED / "audio")
    (raw / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    manifest = prepare("folder", raw, tmp_path / "out", captions="templates", allow_outside=True)
    assert manifest["records"] == manifest["captioned"]["overall"] == len(rows) == 38
    assert set(manifest["splits"]) == {"train", "validation"}
    by_id = {Path(row["file"]).stem: row for row in rows}
    for row in ShardReader(tmp_path / "out").index:
        published = by_id[row.id]
        assert (row.language, row.dataset, row.speaker) == (
            published["lang"],
            published["dataset"],
            published["speaker"],
        )
        assert row.label == canonical_label(published["emotion_raw"]) == canonical_label(published["emotion"])
        assert row.seconds == pytest.approx(published["seconds"], abs=1e-3)
    assert manifest["licences"] == Counter(row["licence"] for row in rows)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("m.json", "[1]", "m.json must hold a JSON object"),
        ("m.json", '{"a": 3}', "m.json: the label of 'a' is no string"),
        ("m.csv", "a\n", "m.csv, line 1: expected two columns"),
        ("none.csv", None, "none.csv cannot be read"),
    ],
)
def test_a_label_map_that_is_none_is_named(raw, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ImporterError, match=f"label map: .*{message}"):
        prepare("folder", raw, tmp_path / "out", label_map=tmp_path / name)


@pytest.mark.parametrize(
    "name, text", [("m.json", '{"happy": "Joy to me"}'), ("m.csv", "\ufeffraw;label\nhappy;joy to me\n")]
)
def test_a_label_map_renames_and_says_which_labels_are_new(raw, tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    manifest = prepare("folder", raw, tmp_path / "out", label_map=tmp_path / name)
    assert manifest["splits"]["train"]["labels"] == {"joy to me": 5}
    assert "labels that the lexicon does not know are kept as they are: 'joy to me'" in capsys.readouterr().err
