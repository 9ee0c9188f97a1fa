"""Shards give back what was written, appear only when complete, and are refused when anything differs."""

import dataclasses
import hashlib
import json
import multiprocessing
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mecap_jax.config import SyntheticConfig
from mecap_jax.data import shards
from mecap_jax.data.manifest import read_manifest, sha256, write_manifest
from mecap_jax.data.shards import BadClip, Duplicate, ShardError, ShardReader, find_finished
from mecap_jax.data.utterance import Utterance
from tests.data.clips import audio_file, video_file

SOURCE = {"importer": "test", "seed": 0}


@pytest.fixture(scope="module")
def media():
    return audio_file("FLAC", seconds=0.5), video_file(frames=10, sound="aac"), video_file(frames=10, sound=None)


def utterances(media, count=10):
    speech, talking, silent = media
    for i in range(count):
        yield Utterance(
            id=f"clip-{i}",
            dataset="test",
            split=("train", "train", "validation", "test")[i % 4],
            speaker=f"speaker-{i % 4}",
            audio=speech if i % 2 else None,
            video=(None, talking, silent)[i % 3],
            features={"face": np.full((i + 1, 3), i, np.float32)} if i % 2 else {},
            labels={"multimodal": "happy" if i % 2 else "sad"},
            captions={"overall": (f"Caption {i}.", "Another.")},
            rationale=f"The voice of {i} is high." if i % 3 else None,
            attributes={"intensity": "strong"},
            licence="CC0-1.0",
        )


@pytest.fixture
def built(tmp_path, media):
    directory = tmp_path / "shards"
    items = [*utterances(media), BadClip("broken", "no such file")]
    shards.write(items, directory, command="make test", source=SOURCE, shard_size=2)
    return directory


def test_what_is_written_is_read_back(built, media):
    reader = ShardReader(built)
    written = {u.id: u for u in utterances(media)}

    assert len(reader) == 10
    assert {row.id for row in reader.index} == set(written)
    for i, row in enumerate(reader.index):
        read, expected = reader[i], written[row.id]
        assert read.audio == expected.audio and read.video == expected.video
        assert read.captions == expected.captions and read.labels == expected.labels
        assert read.split == row.split == expected.split
        assert set(read.features) == set(expected.features)
        for name, array in expected.features.items():
            np.testing.assert_array_equal(read.features[name], array)
            assert row.features[name] == array.shape
    assert reader[-1].id == reader.index[-1].id
    with pytest.raises(IndexError):
        reader[10]
    assert [u.id for u in reader] == [row.id for row in reader.index]


def test_the_index_knows_what_the_media_hold(built, media):
    speech, talking, _ = media
    reader = ShardReader(built)
    for i, row in enumerate(reader.index):
        utterance = reader[i]
        assert row.has_video == (utterance.video is not None)
        assert row.has_audio == (utterance.audio is not None or utterance.video == talking)
        assert (row.frames, row.width, row.height) == ((10, 64, 48) if row.has_video else (0, 0, 0))
        assert row.video_seconds == pytest.approx(0.4 if row.has_video else 0.0, abs=1e-3)
        if utterance.audio == speech:
            assert row.seconds == 0.5
        elif row.has_video:
            assert row.seconds == pytest.approx(0.4, abs=0.05)
        else:
            assert row.seconds == 0.0
        told = (utterance.captions, utterance.transcript, utterance.rationale)
        assert (row.captions, row.transcript, row.rationale) == told
        assert row.attributes == {"intensity": "strong"}


def test_the_manifest_counts_and_names_everything(built):
    manifest = ShardReader(built).manifest
    assert manifest["command"] == "make test" and manifest["source"] == SOURCE
    assert manifest["records"] == 10 and manifest["licences"] == {"CC0-1.0": 10}
    assert manifest["quarantined"] == [{"id": "broken", "reason": "no such file"}] and manifest["duplicates"] == []
    train = manifest["splits"]["train"]
    assert (train["records"], train["speakers"]) == (6, 2)
    assert train["labels"] == {"happy": 3, "sad": 3}
    files = {path.name for path in built.iterdir()}
    assert files == {shard["file"] for shard in manifest["shards"]} | {"index.jsonl", "manifest.json"}
    assert "train-00002.arrayrecord" in files  # six records, two a shard
    for entry in (*manifest["shards"], manifest["index"]):
        assert hashlib.sha256((built / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


def test_clips_that_do_not_decode_are_quarantined(tmp_path, media):
    speech, talking, silent = media
    base = {"dataset": "test", "split": "train", "speaker": "s"}
    items = [
        Utterance(id="good", audio=speech, **base),
        Utterance(id="text only", transcript="hello", **base),
        Utterance(id="cut", audio=speech[: len(speech) // 2], **base),
        Utterance(id="junk", video=b"not a video", **base),
        Utterance(id="swapped", video=speech, **base),
        Utterance(id="silent", audio=silent, **base),
    ]
    manifest = shards.write(items, tmp_path / "s", "", SOURCE)
    assert manifest["records"] == 2
    reasons = {clip["id"]: clip["reason"] for clip in manifest["quarantined"]}
    assert set(reasons) == {"cut", "junk", "swapped", "silent"}
    assert reasons["cut"].startswith("audio: ") and "not a media file" in reasons["junk"]
    assert reasons["swapped"] == "video: has no video stream" and reasons["silent"] == "audio: has no audio stream"

    with pytest.raises(ShardError, match="1 of 1 clips are bad.*\n.*longer than 0.2 s: good"):
        shards.write(items[:1], tmp_path / "t", "", SOURCE, max_seconds=0.2)


def test_too_many_bad_clips_leave_nothing_behind(tmp_path, media):
    items = [*utterances(media, 8), BadClip("a", "gone"), BadClip("b", "gone"), BadClip("c", "odd")]
    with pytest.raises(ShardError, match=r"(?s)3 of 11 clips are bad \(allowed: 10.0%\).*2 x gone: a, b.*1 x odd: c"):
        shards.write(items, tmp_path / "out" / "s", "", SOURCE, max_bad_fraction=0.1)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ShardError, match="no clips"):
        shards.write([], tmp_path / "s", "", SOURCE)


def test_an_interrupted_build_leaves_nothing_behind(tmp_path, media):
    def interrupted():
        yield from utterances(media, 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(interrupted(), tmp_path / "s", "", SOURCE, shard_size=1)
    assert list(tmp_path.iterdir()) == []


def test_an_id_that_is_taken_costs_the_second_clip_and_a_copy_costs_nothing(tmp_path):
    anna = Utterance(id="same", dataset="test", split="train", speaker="anna")
    items = [
        anna,
        Utterance(id="same", dataset="test", split="test", speaker="bert"),
        anna,
        Duplicate("b/x", "a/x"),
        Utterance(id="other", dataset="test", split="train", speaker="anna"),
    ]
    manifest = shards.write(items, tmp_path / "s", "", SOURCE, max_bad_fraction=0.34)
    assert manifest["records"] == 2
    assert manifest["duplicates"] == [{"id": "same", "of": "same"}, {"id": "b/x", "of": "a/x"}]
    (bad,) = manifest["quarantined"]
    assert bad["id"] == "same"
    assert re.search(r"'same' occurs twice: record 0 .*'anna'.* and record 1 .*'bert'", bad["reason"])
    with pytest.raises(ShardError, match=r"1 of 3 clips are bad \(allowed: 20.0%\)"):
        shards.write(items, tmp_path / "t", "", SOURCE, max_bad_fraction=0.2)


def test_reasons_that_differ_in_names_only_are_one_line():
    bad = [BadClip(f"c{i}", f"line {i}: no such file: '{i}\\'s.wav'") for i in range(12)]
    bad += [BadClip("x", "too\x1b[2Jloud"), BadClip("y\n", "a\nb")]
    assert shards.summarise_bad(bad).splitlines() == [
        "  12 x line 0: no such file: '0\\'s.wav' and the like: c0, c1, c2, ...",
        "  1 x too\\x1b[2Jloud: x",
        "  1 x a b: y",
    ]


def test_a_finished_build_is_reused_or_protected(built, tmp_path, media):
    before = {path: path.read_bytes() for path in built.iterdir()}

    def untouchable():
        raise AssertionError("a finished build must not be read again")
        yield

    assert shards.write(untouchable(), built, "again", SOURCE)["command"] == "make test"
    with pytest.raises(ShardError, match="seed: 0 there, 1 asked"):
        shards.write(untouchable(), built, "again", {**SOURCE, "seed": 1})
    assert {path: path.read_bytes() for path in built.iterdir()} == before

    (tmp_path / "mine").mkdir()
    shards.write(utterances(media, 1), tmp_path / "mine", "", SOURCE)  # an empty directory is in nobody's way
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(ShardError, match="not overwriting"):
        shards.write(untouchable(), tmp_path / "other", "", SOURCE)


def test_a_setting_that_came_later_is_compared_with_what_it_was_then(tmp_path, media):
    """Shards of the synthetic corpus that name no `contradicting_share` have none, and not another source."""

    def source(**changes):
        return {"importer": "synthetic", "synthetic": dataclasses.asdict(SyntheticConfig(**changes))}

    then = source(clips=8)
    for later in ("contradicting_share", "captioned_share", "stills", "domain", "features"):
        del then["synthetic"][later]
    shards.write(utterances(media, 1), tmp_path, "then", then)
    assert find_finished(tmp_path, source(clips=8))["command"] == "then"
    with pytest.raises(ShardError, match=r"source: synthetic.contradicting_share: 0.0 there, 0.4 asked\. Delete"):
        find_finished(tmp_path, source(clips=8, contradicting_share=0.4))
    with pytest.raises(ShardError, match=r"source: synthetic.clips: 8 there, 9 asked\. Delete"):
        find_finished(tmp_path, source(clips=9))


@pytest.mark.parametrize("file", ["train-00000.arrayrecord", "test-00000.arrayrecord", "index.jsonl"])
def test_a_changed_byte_is_found(built, file):
    path = built / file
    data = bytearray(path.read_bytes())
    expected = hashlib.sha256(data).hexdigest()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(ShardError, match=f"{file} has changed: sha256 {found}, expected {expected}"):
        ShardReader(built)
    path.unlink()
    with pytest.raises(ShardError, match=f"{file} is missing"):
        ShardReader(built)


def test_unverified_shards_still_never_give_a_wrong_record(built):
    first, second = built / "train-00000.arrayrecord", built / "train-00001.arrayrecord"
    first.write_bytes(second.read_bytes())
    reader = ShardReader(built, verify=False)
    with pytest.raises(ShardError, match="train-00000.arrayrecord: record 0 is"):
        reader[0]
    first.write_bytes(b"junk" * 30_000)
    with pytest.raises(ShardError, match="train-00000.arrayrecord is unreadable"):
        ShardReader(built, verify=False)[0]


def edit_manifest(directory, **changes):
    """Changes the manifest as somebody would who can compute its checksum; None takes a key away."""
    manifest = read_manifest(directory) | changes
    write_manifest(directory, {key: value for key, value in manifest.items() if value is not None})


A = {"file": "train-00000.arrayrecord", "records": 2, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shards": [A | {"file": "../secret"}]}, r"'shards\[0\].file': leads out of the directory, got '../secret'"),
        ({"shards": [A | {"file": "/etc/passwd"}]}, "leads out of the directory, got '/etc/passwd'"),
        ({"shards": [A | {"file": "..\\secret"}]}, "leads out of the directory"),
        ({"shards": [A | {"file": ".."}]}, "leads out of the directory, got '..'"),
        ({"shards": [A | {"file": ""}]}, "leads out of the directory, got ''"),
        ({"shards": [A | {"file": "C:x"}]}, "leads out of the directory"),
        ({"index": A | {"file": "a/b"}}, "'index.file': leads out of the directory, got 'a/b'"),
        ({"shards": [{"file": "train-00000.arrayrecord"}]}, r"'shards\[0\].records': Field required"),
        ({"shards": [A | {"file": 3}]}, r"'shards\[0\].file': must be a valid string, got 3"),
        ({"shards": [A | {"records": 2.0}]}, r"'shards\[0\].records': must be a valid integer, got 2.0"),
        ({"shards": [A | {"records": True}]}, r"'shards\[0\].records': must be a valid integer, got True"),
        ({"shards": [A | {"records": -1}]}, "must be greater than or equal to 0, got -1"),
        ({"shards": [A | {"sha256": "0"}]}, r"'shards\[0\].sha256': String should match pattern"),
        ({"shards": [A | {"records": 10**9}]}, r"train-00000.arrayrecord cannot hold 1000000000 records in \d+ bytes"),
        ({"shards": {}}, "'shards': must be a valid list"),
        ({"shards": []}, "index.jsonl does not list the records"),
        ({"records": 11}, "index.jsonl does not list the records"),
        ({"source": None}, "'source': Field required"),
        ({"quarantined": None}, "'quarantined': Field required"),
        ({"quarantined": [{"id": 3, "reason": ""}]}, r"'quarantined\[0\].id': must be a valid string, got 3"),
        ({"licences": {"CC0": "ten"}}, "'licences.CC0': must be a valid integer, got 'ten'"),
        ({"licences": []}, "'licences': must be a valid dictionary"),
        ({"splits": {"train": 6}}, "'splits.train': must be a valid dictionary, got 6"),
        ({"splits": {"\x1b[2J": 6}}, r"'splits.\\x1b\[2J': must be"),
        ({"command": ["rm"]}, "'command': must be a valid string"),
    ],
)
def test_a_manifest_is_hostile_until_checked(built, changes, message):
    edit_manifest(built, **changes)
    with pytest.raises(ShardError, match=message) as caught:
        ShardReader(built, verify=False)
    assert str(built) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"records": 10,', '"records": 11,', "manifest.json has changed: sha256 [0-9a-f]{64}, expected '[0-9a-f]{64}'"),
        ('"CC0-1.0"', '"CC0-1.1"', "has changed"),
        ('"seed": 0', '"seed": NaN', "is not JSON: NaN is no finite number"),
        ('"seed": 0', '"seed": 1e999', "is not JSON: 1e999 is no finite number"),
        ('"schema_version": 3', '"schema_version": 1', "schema version 1, .* made by 'make test'"),
        ('"schema_version": 3', '"schema_version": [7]', r"schema version \[7\], this code reads version 3"),
        ('"sha256"', '"sha257"', "has changed"),
        ("{", "[" * 100_000 + "{", "not JSON: it is nested too deeply"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(built, old, new, message):
    path = built / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old != '"sha256"' else text.replace(old, new))
    with pytest.raises(ShardError, match=message):
        ShardReader(built)


def test_a_manifest_may_be_laid_out_otherwise(built):
    path = built / "manifest.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert len(ShardReader(built)) == 10


def test_more_records_than_a_file_has_are_an_error_when_it_is_read(built):
    """The sizes fit, and the index lists them all: only the file itself knows better."""
    manifest = read_manifest(built)
    first, *others = manifest["shards"]
    lines = (built / "index.jsonl").read_text().splitlines()
    further = json.dumps(json.loads(lines[1]) | {"id": "more", "position": 2})
    (built / "index.jsonl").write_text("\n".join([*lines[:2], further, *lines[2:]]) + "\n")
    index = {"file": "index.jsonl", "records": 11, "sha256": sha256(built / "index.jsonl")}
    edit_manifest(built, shards=[first | {"records": 3}, *others], index=index, records=11)
    with pytest.raises(ShardError, match="train-00000.arrayrecord has 2 records, manifest.json says 3"):
        ShardReader(built)[0]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 1: "),
        ('{"id": "x"}', "line 1: 'dataset': Field required"),
        ("[]", "line 1: must be an object"),
        ("", "line 1: Invalid JSON"),
        ("\xff", "line 1: "),
        ("[" * 100_000, "line 1: Invalid JSON"),
        ({"seconds": float("nan")}, "line 1: 'seconds': must be a finite number"),
        ({"seconds": float("inf")}, "line 1: 'seconds': must be a finite number"),
        ({"seconds": -1.0}, "line 1: 'seconds': must be greater than or equal to 0"),
        ({"position": True}, "line 1: 'position': must be a valid integer"),
        ({"frames": 10**30}, "line 1: 'frames': must be less than"),
        ({"id": "\ud800"}, "line 1: "),
        ({"labels": {"multimodal": 3}}, "line 1: 'labels.multimodal': must be a valid string"),
        ({"captions": {"overall": "a caption"}}, "line 1: 'captions.overall': must be a valid array"),
        ({"captions": {"overall": [3]}}, r"line 1: 'captions.overall\[0\]': must be a valid string"),
        ({"features": {"f": [3]}}, r"line 1: 'features.f\[1\]': Field required"),
        ({"colour": "red"}, "line 1: 'colour': Unexpected"),
    ],
)
def test_an_index_is_hostile_until_checked(built, line, message):
    index = built / "index.jsonl"
    first, *others = index.read_text().splitlines()
    line = line if isinstance(line, str) else json.dumps(json.loads(first) | line)
    index.write_bytes("\n".join([line, *others]).encode("latin-1") + b"\n")
    edit_manifest(built, index={"file": "index.jsonl", "records": 10, "sha256": sha256(index)})
    with pytest.raises(ShardError, match=message):
        ShardReader(built)


def test_what_is_no_directory_of_shards(tmp_path):
    with pytest.raises(ShardError, match="holds no shards"):
        ShardReader(tmp_path)
    (tmp_path / "manifest.json").write_text("not json")
    with pytest.raises(ShardError, match="not JSON"):
        ShardReader(tmp_path)


def read_ids(reader):
    return [reader[i].id for i in range(len(reader))]


def test_a_reader_works_in_threads_and_when_pickled_into_other_processes(built):
    reader = ShardReader(built)
    ids = read_ids(reader)
    with ThreadPoolExecutor(8) as pool:
        assert [u.id for u in pool.map(lambda i: reader[i % 10], range(200))] == ids * 20
    assert read_ids(pickle.loads(pickle.dumps(reader))) == ids
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map_async(read_ids, [reader, reader]).get(timeout=60) == [ids, ids]


def test_forks_work_before_the_first_read_and_fail_clearly_after_it(built):
    # In a process of its own, because this one has written shards.
    program = f"""
import os
from mecap_jax.data.shards import ShardError, ShardReader

def in_child(function):
    child = os.fork()
    if child == 0:
        os._exit(function())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def read():
    return 10 if len([utterance.id for utterance in reader]) == 10 else 0

def refuse():
    try:
        reader[0]
    except ShardError as error:
        return 20 if "spawn" in str(error) else 0

reader = ShardReader({str(built)!r})
assert [in_child(read) for _ in range(5)] == [10] * 5
assert read() == 10
assert [in_child(refuse) for _ in range(5)] == [20] * 5
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
