"""A folder of clips becomes utterances; what is wrong in one row costs that row only, and is named."""

import codecs
import csv
import io
import json
import os
import unicodedata

import numpy as np
import pytest

from mecap_jax.data import inspection
from mecap_jax.data.importers import BadClip, Duplicate, ImporterError, ImportSettings, folder
from mecap_jax.data.utterance import Utterance
from tests.data.clips import audio_file, video_file


@pytest.fixture
def directory(tmp_path):
    root = tmp_path / "input"
    (root / "wav").mkdir(parents=True)
    (root / "wav" / "a.wav").write_bytes(audio_file(seconds=0.1))
    (root / "v.mp4").write_bytes(b"checked later")
    np.save(root / "f64.npy", np.arange(6, dtype=np.float64).reshape(2, 3))
    np.save(root / "f16.npy", np.arange(4, dtype=np.float16))
    return root


def read_all(root, **settings):
    return list(map(inspection.read, folder.clips(root, ImportSettings(**settings))))


def read(root, *rows, **settings):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    items = read_all(root, **settings)
    assert len(items) == len(rows)
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
    assert (utterance.id, utterance.speaker, utterance.dataset, utterance.language) == ("a", "a", "folder", "")
    assert utterance.captions == {"overall": ("Calm.",)} and utterance.label == "calm"
    assert utterance.video is None and utterance.valence is None and utterance.transcript == ""
    (listed,) = read(directory, {"id": "x", "transcript": "Hello.", "split": "test", "captions": ["One.", "Two."]})
    assert listed.captions == {"overall": ("One.", "Two.")}


@pytest.mark.parametrize(
    "change, reason",
    [
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
        ({"audio": {"bytes": "", "path": "a.wav"}}, "'audio' must be a string, got {'path': 'a.wav'}"),
        ({"file": "wav/a.wav"}, "both 'file' and 'audio'"),
        ({"features": {"f": "../secret.npy"}}, "path leads out of the input directory"),
        ({"features": {"f": "objects.npy"}}, "features 'objects.npy': Object arrays cannot be loaded"),
        ({"features": {"f": "integers.npy"}}, "must be floats .*got int64"),
        ({"features": {"f": "nan.npy"}}, "features 'nan.npy' hold values that are not finite"),
        ({"features": {"f": "huge.npy"}}, "features 'huge.npy'"),
        ({"features": {"f": "cut.npy"}}, "features 'cut.npy'"),
        ({"features": {"f": "v.mp4"}}, "features 'v.mp4'"),
        ({"features": "f64.npy"}, "'features' must be an object of strings"),
        ({"split": "eval"}, "split 'eval' is none of train, validation, test"),
        ({"labels": {"smell": "happy"}}, "'labels' has 'smell'"),
        ({"label": "sad", "labels": {"multimodal": "happy"}}, "'label' is 'sad', but the multimodal label is 'happy'"),
        (
            {"label": "a caption in the wrong column " * 20},
            "'a caption in the wrong .* is no label: it has 599 char",
        ),
        ({"valence": 7}, r"'valence' must be a number in \[-2, 2\], got 7"),
        ({"valence": "high"}, "'valence' must be a number"),
        ({"valence": True}, "'valence' must be a number"),
        ({"captions": ["fine", " "]}, "captions must be non-empty strings"),
        ({"captions": {"poem": "Roses."}}, "caption kind 'poem' is none of"),
        ({"caption": "a", "captions": "b"}, "both 'caption' and 'captions'"),
        ({"speaker": "\ud800"}, "field 'speaker' must be a string of Unicode characters"),
        ({"attributes": "old"}, "'attributes' must be an object"),
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
    assert items[1].id == "bad"
    assert items[1].reason.startswith("line 2: ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(items[1].reason)


def test_a_row_that_is_no_object_is_named(directory):
    good = {"id": "good", "audio": "wav/a.wav", "split": "train"}
    rows = ("{broken", "[1, 2]", '"text"', "[" * 100_000, '{"valence": NaN}', '{"valence": 1e999}')
    items = read(directory, good, *rows, {"id": "empty", "split": "train"})
    assert isinstance(items[0], Utterance)
    assert [item.id for item in items[1:]] == [*(f"line {n}" for n in range(2, 8)), "empty"]
    reasons = (
        "Expecting",
        "expected a JSON object",
        "expected",
        "nested too deeply",
        "NaN is no",
        "1e999 is no",
        "neither",
    )
    for item, reason in zip(items[1:], reasons, strict=True):
        assert reason in item.reason


def test_a_manifest_that_is_no_table_names_the_line(directory):
    for text in ("id,audio\none,wav/a.wav\n", "\n\n<html></html>\n", "[]\n[]\n"):
        (directory / "manifest.jsonl").write_text(text)
        line = 1 + text.index(text.strip()[0])
        with pytest.raises(ImporterError, match=f"manifest.jsonl is not JSON Lines: line {line}: "):
            read_all(directory)
    (directory / "manifest.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ImporterError, match="not JSON Lines: line 1"):
        read_all(directory)
    (directory / "manifest.jsonl").write_text("")
    with pytest.raises(ImporterError, match="is empty"):
        read_all(directory)
    (directory / "manifest.jsonl").unlink()
    with pytest.raises(ImporterError, match="holds no manifest.jsonl"):
        read_all(directory)
    (directory / "manifest.csv").write_text("audio,label,label\nwav/a.wav,sad,sad\n")
    with pytest.raises(ImporterError, match="manifest.csv, line 1: column 'label' occurs twice"):
        read_all(directory)
    (directory / "manifest.csv").write_text("audio,label\n")
    with pytest.raises(ImporterError, match="manifest.csv is empty"):
        read_all(directory)
    (directory / "manifest.tsv").write_text("audio\nwav/a.wav\n")
    with pytest.raises(ImporterError, match="more than one manifest: manifest.csv, manifest.tsv"):
        read_all(directory)


def test_names_cannot_write_to_the_terminal(directory, capsys):
    odd = directory.with_name("clips\x1b[31m")
    directory.rename(odd)
    (odd / "manifest.jsonl").write_text('{"transcript": "Hello.", "id": "a", "colour\\u001b[31m": "red"}')
    folder.clips(odd, ImportSettings())
    said = capsys.readouterr().err
    assert "\x1b" not in said and said.count("\\x1b[31m/manifest.jsonl") == 2 and "colour\\x1b" in said


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


def test_what_tables_hold_is_taken_as_meant(directory, capsys):
    """Nulls, numbers, other names and further columns, as an export from a data frame has them."""
    row = {
        "id": 7,
        "file": "wav/a.wav",
        "speaker_id": 12.0,
        "lang": "de",
        "license": "CC0-1.0",
        "split": "Val",
        "label": 3,
        "labels": {"audio": "Anger", "text": None},
        "caption": None,
        "captions": {"overall": ["A voice.", None, ""], "style": None},
        "sentence": "",
        "valence": "1.5",
        "features": {},
        "attributes": {"gender": "female", "age": 41, "note": None},
        "speeker": "x",
        "seconds": 2.75,
        "ok": True,
        "source": {"file": "b.csv", "row": 0, "clip": None},
        "dialogue": None,
    }
    (utterance,) = read(directory, row, label_map={"3": "Fear"})
    assert (utterance.id, utterance.speaker, utterance.language) == ("7", "12", "de")
    assert (utterance.licence, utterance.split, utterance.valence) == ("CC0-1.0", "validation", 1.5)
    assert utterance.labels == {"audio": "angry", "multimodal": "fearful"}
    assert (
        utterance.captions == {"overall": ("A voice.",)} and utterance.transcript == "" and utterance.dialogue is None
    )
    assert utterance.audio == (directory / "wav/a.wav").read_bytes() and utterance.video is None
    assert utterance.attributes == {
        "gender": "female",
        "age": "41",
        "speeker": "x",
        "seconds": "2.75",
        "ok": "true",
        "source": '{"file": "b.csv", "row": 0}',
    }
    said = capsys.readouterr().err
    assert "kept as attributes: " in said and "speeker (did you mean 'speaker'?)" in said and "seconds," in said


def test_the_content_of_a_file_decides_whether_it_is_a_video(directory):
    (directory / "talk.webm").write_bytes(audio_file("OGG", seconds=0.1))
    (directory / "face.ogg").write_bytes(video_file(frames=5))
    voice, face, broken = read(directory, {"file": "talk.webm"}, {"path": "face.ogg"}, {"file": "v.mp4"})
    assert voice.video is None and voice.audio == (directory / "talk.webm").read_bytes()
    assert face.audio is None and face.video == (directory / "face.ogg").read_bytes()
    assert "not a media file" in broken.reason


CSV = """id,audio,label,caption,captions,transcript,room

1,wav/a.wav,Anger,"A loud, angry voice.",,"caf\u00e9, \u201cno\u201d",3
2, wav/a.wav ,,,"{""overall"": [""One."", ""Two.""]}",,
3,wav/a.wav,joy
4,wav/a.wav,joy,,,,,
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_and_tsv_in_any_encoding(directory, encoding, newline, delimiter):
    if delimiter != ",":
        rows = [line for line in csv.reader(CSV.splitlines())]
        file = io.StringIO()
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)
        text = file.getvalue()
    else:
        text = CSV
    suffix = ".tsv" if delimiter == "\t" else ".csv"
    (directory / f"manifest{suffix}").write_bytes(text.replace("\n", newline).encode(encoding))
    items = read_all(directory)
    assert [item.id for item in items] == ["1", "2", "line 5", "4"]
    first, second, short, last = items
    assert first.captions == {"overall": ("A loud, angry voice.",)} and first.label == "angry"
    assert first.transcript == "caf\u00e9, \u201cno\u201d" and first.attributes == {"room": "3"}
    assert second.captions == {"overall": ("One.", "Two.")} and second.label is None and second.attributes == {}
    assert short.reason == "line 5: 3 columns, expected 7" and last.label == "happy"


def test_a_guess_at_an_encoding_is_said(directory, capsys):
    (directory / "manifest.csv").write_bytes("audio,caption\nwav/a.wav,ein Gru\u00df\n".encode("latin-1"))
    (item,) = read_all(directory)
    folder.clips(directory, ImportSettings())
    assert item.captions["overall"] == ("ein Gru\u00df",)
    assert capsys.readouterr().err.count("manifest.csv is not UTF-8: read as Latin-1 (cp1252)") == 1


def test_long_fields_odd_separators_and_marks_are_text(directory):
    long = "word " * 100_000
    rows = [{"id": "a", "transcript": "one\u2028two\x85three\x0cfour"}, {"id": "b", "transcript": "ok"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (directory / "manifest.jsonl").write_bytes(codecs.BOM_UTF8 + "\r\n\r\n".join(lines).encode())
    assert [item.transcript for item in read_all(directory)] == ["one\u2028two\x85three\x0cfour", "ok"]

    (directory / "manifest.jsonl").unlink()
    (directory / "manifest.csv").write_text(f'id,transcript,rationale\nx,"a\u2028b",{long}\n', encoding="utf-8")
    (item,) = read_all(directory)
    assert item.transcript == "a\u2028b" and item.rationale == long.strip()


def test_files_outside_are_followed_when_asked(directory, tmp_path):
    """A snapshot in a cache of blobs, a linked directory, an absolute path."""
    blobs = tmp_path / "blobs"
    (blobs / "deep").mkdir(parents=True)
    (blobs / "0f3a").write_bytes(audio_file(seconds=0.1))
    (blobs / "deep" / "b.wav").write_bytes(audio_file(seconds=0.2))
    np.save(blobs / "f.npy", np.ones(3, np.float32))
    (directory / "link.wav").symlink_to("../blobs/0f3a")
    (directory / "far").symlink_to(blobs / "deep")
    rows = [
        {"audio": "link.wav"},
        {"audio": "far/b.wav", "features": {"f": str(blobs / "f.npy")}},
        {"file": str(blobs / "deep" / "b.wav"), "id": "absolute"},
    ]
    refused = read(directory, *rows)
    assert all("path leads out of the input directory" in item.reason for item in refused)
    assert all("--allow_outside" in item.reason for item in refused)
    assert [item.id for item in refused] == ["link", "b", "absolute"]
    followed = read(directory, *rows, allow_outside=True)
    assert [item.audio for item in followed] == [(blobs / name).read_bytes() for name in ("0f3a", *["deep/b.wav"] * 2)]
    assert followed[1].features["f"].shape == (1, 3)


def test_names_are_found_in_every_form_they_have(directory):
    """An archive of macOS decomposes names; an old one has Latin-1 bytes that are no UTF-8."""
    data = audio_file(seconds=0.1)
    (directory / unicodedata.normalize("NFD", "\u00e9t\u00e9.wav")).write_bytes(data)
    os.makedirs(os.fsencode(directory) + b"/\xfc")
    with open(os.fsencode(directory) + b"/\xfc/gr\xfcn.wav", "wb") as file:
        file.write(data)
    as_python_writes_it = os.fsdecode(b"\xfc/gr\xfcn.wav")
    items = read(
        directory, {"audio": "\u00e9t\u00e9.wav"}, {"audio": "\u00fc/gr\u00fcn.wav"}, {"audio": as_python_writes_it}
    )
    assert [item.audio for item in items] == [data] * 3
    assert [item.id for item in items] == ["\u00e9t\u00e9", "gr\u00fcn", "gr\\xfcn"]


def test_files_that_share_a_stem_have_their_paths_as_ids(directory):
    (directory / "b").mkdir()
    (directory / "b" / "a.wav").write_bytes(audio_file(seconds=0.2))
    items = read(directory, {"audio": "wav/a.wav"}, {"audio": "b/a.wav"}, {"id": "a", "transcript": "x"})
    assert [item.id for item in items] == ["wav/a", "b/a", "a"]


def test_rows_of_copies_are_one_clip(directory):
    """A manifest of every file that is there, of a corpus that was unpacked twice."""
    (directory / "again").mkdir()
    (directory / "again" / "a.wav").write_bytes((directory / "wav" / "a.wav").read_bytes())
    first, second = read(directory, {"audio": "wav/a.wav"}, {"audio": "again/a.wav"})
    assert first.id == "wav/a" and second == Duplicate("again/a", "wav/a")
    first, second = read(directory, {"audio": "wav/a.wav"}, {"audio": "again/a.wav", "transcript": "But this."})
    assert (first.id, second.id) == ("wav/a", "again/a")


def test_copies_are_found_wherever_their_speakers_were_drawn_to(directory):
    rows = []
    for i in range(20):
        clip = audio_file(seconds=0.05 + i / 1000)
        for place in ("one", "two"):
            (directory / place).mkdir(exist_ok=True)
            (directory / place / f"{i}.wav").write_bytes(clip)
            rows.append({"audio": f"{place}/{i}.wav"})
    items = read(directory, *rows)
    assert [type(item) for item in items] == 20 * [Utterance, Duplicate]
    assert len({item.split for item in items[::2]}) == 3


def test_a_clip_of_two_files_has_their_common_name(directory):
    (directory / "film").mkdir()
    (directory / "film" / "a.mkv").write_bytes(b"checked later")
    (directory / "features" / "x-UTT").mkdir(parents=True)
    np.save(directory / "features" / "x-UTT" / "a.npy", np.ones(3, np.float32))
    (clip,) = read(directory, {"audio": "wav/a.wav", "video": "film/a.mkv"})
    assert clip.id == "a" and clip.features.keys() == {"x-UTT"}


def test_files_that_differ_in_their_ending_alone_keep_it(directory):
    (directory / "wav" / "a.flac").write_bytes(audio_file("FLAC", seconds=0.2))
    clips = read(directory, {"audio": "wav/a.wav"}, {"audio": "wav/a.flac"})
    assert [clip.id for clip in clips] == ["wav/a.wav", "wav/a.flac"]


def test_labels_are_an_open_set_and_a_map_has_the_first_word(directory):
    raw = ["Helplessness", "hangry", "calm", "Wut", "A-3"]
    rows = [{"id": str(i), "transcript": "x", "label": label} for i, label in enumerate(raw)]
    assert [item.label for item in read(directory, *rows)] == ["helpless", "hangry", "calm", "angry", "a-3"]
    mapped = read(directory, *rows, label_map={"A-3": "Boredom", "calm": "neutral", "hangry": ""})
    assert [item.label for item in mapped] == ["helpless", None, "neutral", "angry", "bored"]


def test_names_of_languages_become_codes_and_others_are_refused_by_clip(directory):
    row = {"audio": "wav/a.wav", "split": "test", "caption": "她很生气。"}
    named, unknown, spoken = read(
        directory,
        row | {"id": "a", "language": "Mandarin", "caption_language": "中文"},
        row | {"id": "b", "caption_language": "Klingon"},
        row | {"id": "c", "language": "xx"},
    )
    assert (named.language, named.attributes["caption_language"]) == ("zh", "zh")
    untold = [row | {"id": text, "transcript": text} for text in ("我不去。", "I said no.")]
    assert [item.language for item in read(directory, *untold)] == ["zh", "en"]
    for bad, id, name in ((unknown, "b", "Klingon"), (spoken, "c", "xx")):
        assert isinstance(bad, BadClip) and bad.id == id and f"'{name}' is no code of a language" in bad.reason
