"""From raw files to checked shards: counted, reported, reused, stopped when too much is bad."""

import json

import pytest

from mecap_jax.config import SyntheticConfig
from mecap_jax.data.importers import ImporterError, prepare
from mecap_jax.data.shards import ShardError, ShardReader
from tests.data.clips import audio_file


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
