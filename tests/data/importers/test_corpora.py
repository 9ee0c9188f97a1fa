"""Published corpora are read from their own layouts; what is wrong with a copy is listed at once, by file and line."""

import dataclasses
import importlib
import io
import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from mecap_jax.data import inspection
from mecap_jax.data.importers import IMPORTERS, BadClip, ImporterError, ImportSettings, check_counts, folder, prepare
from mecap_jax.data.importers.emotiontalk import OFFICIAL, clean_transcript, parse_captions
from mecap_jax.data.media import MediaError, decode_video
from mecap_jax.data.pipeline import ClipDataset
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.data.stills import one_frame_video
from mecap_jax.data.tokenizer import train_tokenizer
from mecap_jax.data.utterance import Utterance
from mecap_jax.tasks.captioning import Captioning
from tests.data.clips import audio_file, pattern, video_file
from tests.data.test_pipeline import DATA, MODEL
from tests.fuzz import json_mutant, mutant


def put(root: Path, files: dict):
    """Writes files by name: bytes and text as they are, anything else as JSON."""
    for name, content in files.items():
        (path := root / name).parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes | str):
            content = json.dumps(content, ensure_ascii=False)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def read(source: str, root: Path, **settings) -> tuple[dict[str, Utterance], list[str]]:
    """The utterances of a corpus by id, and what is wrong with the rest."""
    settings = ImportSettings(**settings)
    rows = importlib.import_module(IMPORTERS[source]).rows(root, settings)
    items = list(map(inspection.read, folder.clips_of(root, rows, settings, source)))
    assert len(items) == len(rows)
    good = {item.id: item for item in items if isinstance(item, Utterance)}
    return good, [item.reason for item in items if isinstance(item, BadClip)]


def jpeg(index: int = 0, height: int = 48, width: int = 64) -> bytes:
    file, frame = io.BytesIO(), av.VideoFrame.from_ndarray(pattern(index, height, width), format="rgb24")
    with av.open(file, "w", format="image2pipe") as output:
        stream = output.add_stream("mjpeg", rate=1, width=width, height=height, pix_fmt="yuvj420p")
        output.mux([*stream.encode(frame), *stream.encode()])
    return file.getvalue()


# --- EmotionTalk ------------------------------------------------------------------------------------------------

CAPTIONS = {"spe_cap": "青年男性", "style_cap": "语速很快", "emo_cap": "他很生气", "caption_1": "甲", "caption_2": "乙"}


def emotiontalk(id: str, **changes) -> dict:
    """The files of one clip, as the four archives hold them."""
    group, dialogue, speaker, _ = id.split("_")
    place = f"{group}/{group}_{dialogue}/{group}_{dialogue}_{speaker}/{id}"
    letters = {"A": {"emotion": "angry", "Confidence_degree": "8"}}
    common = {"data": letters, "speaker_id": speaker, "file_path": f"{place}.wav"}
    said = {"content": "[over/]你[[/over] [laughing]好[over[/over]"}
    audio = {"emotion_result": "angry", "paragraphs": {"startTime": 1.0}, "sourceAttr": CAPTIONS} | said | changes
    return {
        f"Audio/json/{place}.json": common | audio,
        f"Text/json/{place}.json": common | {"emotion_result": "neutral"} | said,
        f"Video/json/{place}.json": common | {"emotion_result": "happy"},
        f"Multimodal/json/{place}.json": common | {"emotion_result": "sad", "Continuous label_result": -0.4},
        f"Audio/wav/{place}.wav": audio_file(seconds=0.1),
        f"Multimodal/mp4/{place}.mp4": b"decoded later",
    }


def test_emotiontalk_is_read_from_its_archives(tmp_path, capsys):
    for group, speaker in (("G00002", "05"), ("G00001", "01"), ("G00012", "13"), ("G00003", "13"), ("G00015", "21")):
        put(tmp_path, emotiontalk(f"{group}_04_{speaker}_007"))
    good, bad = read("emotiontalk", tmp_path)
    assert not bad and len(good) == 5
    clip = good["G00002_04_05_007"]
    assert clip.labels == {"text": "neutral", "audio": "angry", "video": "happy", "multimodal": "sad"}
    assert clip.captions == {
        "speaker": ("青年男性",),
        "style": ("语速很快",),
        "emotion": ("他很生气",),
        "overall": ("甲", "乙"),
    }
    assert (clip.transcript, clip.attributes) == ("你 好", {"cues": "laughing"})
    assert (clip.speaker, clip.dialogue, clip.language) == ("emotiontalk_05", "G00002_04", "zh")
    assert clip.valence == -0.4 and clip.audio == audio_file(seconds=0.1) and clip.video == b"decoded later"
    assert {id[:6]: clip.split for id, clip in good.items()} == {
        "G00002": "train",
        "G00001": "validation",
        "G00012": "validation",
        "G00003": "test",
        "G00015": "test",
    }
    assert "share the speakers 02 and 13" in capsys.readouterr().err


def test_emotiontalks_captions_come_from_the_authors_table_where_the_archive_has_none(tmp_path):
    put(tmp_path, emotiontalk("G00002_04_05_007", sourceAttr={}) | emotiontalk("G00002_04_05_008"))
    table = '\ufefffile_name,emotion,content\nG00002_04_05_007,angry,"{\'emo_cap\': \'来自""表格""\'}"\n'
    table += "G00002_04_05_008,angry,{'emo_cap': 'x'}\nG00002_04_05_009,angry,__import__('os').getcwd()\n"
    put(tmp_path, {"mm-process/audio.csv": table})
    good, bad = read("emotiontalk", tmp_path)
    assert good["G00002_04_05_007"].captions == {"emotion": ('来自"表格"',)}
    assert good["G00002_04_05_008"].captions["emotion"] == ("他很生气",)
    (problem,) = bad
    assert problem.startswith("audio.csv, line 4: captions are no Python dictionary: malformed node")


def test_a_clip_that_a_copy_of_emotiontalk_names_twice_is_listed(tmp_path):
    id = "G00002_04_05_007"
    put(tmp_path, emotiontalk(id) | {f"Audio/json/copy/{id}.json": {"emotion_result": "happy"}})
    put(tmp_path, {"audio.csv": f"file_name,emotion\n{id},angry\n{id}.wav,sad\n"})
    good, bad = read("emotiontalk", tmp_path)
    assert list(good) == [id] and good[id].labels["audio"] == "angry"
    assert bad[0] == f"audio.csv, line 3: {id!r} is there twice"
    assert "Audio/json/copy/" in bad[1] and "has a file there already: 'Audio/json/G00002/" in bad[1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{'emo_cap': open('/etc/passwd').read()}", "malformed node"),
        ("['a']", "it is a list"),
        ("{'a': 'b'", "was never closed"),
        ("(" * 5000, "nested"),
        ("-" * 16000 + "1", ""),
        ("{'a': '" + "x" * 20000 + "'}", "characters, at most 16384"),
    ],
)
def test_captions_are_parsed_and_never_run(text, message):
    with pytest.raises(ValueError, match=f"captions are no Python dictionary: .*{message}"):
        parse_captions(text)


@pytest.mark.parametrize(
    "raw, said, cues",
    [
        ("[over/]你好[/over]", "你好", []),
        ("[[/over]你", "你", []),
        ("[/over/]你", "你", []),
        ("[over/你]好", "你好", []),
        ("你[over[/over]好", "你好", []),
        ("[Sobbing] 不 [interrupted]", "不", ["sobbing"]),
        ("[overjoyed] ok", "[overjoyed] ok", []),
    ],
)
def test_marks_are_no_part_of_what_is_said(raw, said, cues):
    assert clean_transcript(raw) == (said, cues)


def test_all_that_is_wrong_with_a_copy_of_emotiontalk_is_listed(tmp_path):
    root = tmp_path / "raw"
    put(root, emotiontalk("G00002_04_05_001", emotion_result="glad") | emotiontalk("G00002_04_05_002", content=3))
    put(root, emotiontalk("G00099_04_05_003") | {"Text/json/G00002_04_05_004.json": '{"emotion_result": '})
    put(root, emotiontalk("G00002_04_05_005"))
    put(root, emotiontalk("G00002_04_05_006", emotion_result="glad", sourceAttr=["a"]))
    next(root.rglob("*_005.wav")).unlink()
    with pytest.raises(ShardError) as error:
        prepare("emotiontalk", root, tmp_path / "out", progress=False)
    text = str(error.value)
    for part in (
        "6 of 6 clips are bad",
        "label 'glad' is none of neutral, happy",
        "'sourceAttr' must be an object",
        "'G00099_04_05_003' is not the name of a clip",
        "no such file: 'Audio/wav/",
        "_004.json",
    ):
        assert part in text, part
    assert list(tmp_path.iterdir()) == [root]


def test_a_directory_without_emotiontalk_is_refused(tmp_path):
    with pytest.raises(ImporterError, match="holds no EmotionTalk"):
        read("emotiontalk", tmp_path)


def test_counts_are_compared_with_the_official_ones(tmp_path):
    assert {split: counts["clips"] for split, counts in OFFICIAL.items()} == {
        "train": 15413,
        "validation": 1908,
        "test": 1929,
    }
    for counts in OFFICIAL.values():
        assert sum(counts.values()) == 2 * counts["clips"]
    whole = {
        "records": 19250,
        "splits": {
            split: {"records": counts["clips"], "labels": {name: n for name, n in counts.items() if name != "clips"}}
            for split, counts in OFFICIAL.items()
        },
    }
    assert check_counts("emotiontalk", whole) == []
    whole["splits"]["test"]["labels"]["sad"] -= 1
    del whole["splits"]["validation"]
    assert check_counts("emotiontalk", whole)[-1] == "test: 122 sad, official 123"
    assert "validation: 0 clips, official 1908" in check_counts("emotiontalk", whole)
    with pytest.raises(ImporterError, match="'folder' has no official counts"):
        check_counts("folder", whole)


# --- the others -------------------------------------------------------------------------------------------------


def test_mafw_is_divided_by_its_folds(tmp_path):
    lists = "Train & Test Set/single/no_caption/set_"
    put(tmp_path, {f"data/clips/{n:05d}.mp4": b"clip" for n in (1, 2, 3)})
    put(tmp_path, {f"{lists}1/train.txt": "00001.mp4 anger\n", f"{lists}1/test.txt": "00002.mp4 contempt\n"})
    put(tmp_path, {f"{lists}5/train.txt": "00002.mp4 contempt\n00009.mp4 anger\n"})
    put(tmp_path, {f"{lists}5/test.txt": "00001.mp4 anger\n\n00003.mp4 glee\n"})
    first, bad = read("mafw", tmp_path, fold=1)
    assert not bad and {id: (c.split, c.label) for id, c in first.items()} == {
        "mafw_00001": ("train", "angry"),
        "mafw_00002": ("test", "contemptuous"),
    }
    fifth, bad = read("mafw", tmp_path)
    assert {id: c.split for id, c in fifth.items()} == {"mafw_00002": "train", "mafw_00001": "test"}
    assert bad[0] == "train.txt, line 2: no such clip: '00009.mp4'" and bad[1].startswith(
        "test.txt, line 3: label 'glee'"
    )
    with pytest.raises(ImporterError, match=r"lacks .*set_2/train.txt, .*set_2/test.txt"):
        read("mafw", tmp_path, fold=2)


def test_dfew_is_divided_by_its_folds(tmp_path):
    put(
        tmp_path, {"Clip/original/part_1/1.mp4": b"clip", "Clip/original/part_2/00012.mp4": b"clip", "x/notes.mp4": b""}
    )
    put(tmp_path, {"EmoLabel_DataSplit/train(single-labeled)/set_5.csv": "video_name,label\n1,1\n7,2\n1,8\n"})
    with pytest.raises(ImporterError, match=r"lacks EmoLabel_DataSplit/test\(single-labeled\)/set_5.csv"):
        read("dfew", tmp_path)
    put(tmp_path, {"EmoLabel_DataSplit/test(single-labeled)/set_5.csv": "video_name,label\n12,7\n"})
    good, bad = read("dfew", tmp_path)
    assert {id: (clip.split, clip.label) for id, clip in good.items()} == {
        "dfew_00001": ("train", "happy"),
        "dfew_00012": ("test", "fearful"),
    }
    assert bad == [
        "train(single-labeled)/set_5.csv, line 3: no such clip: '7'",
        "train(single-labeled)/set_5.csv, line 4: a label must be 1 to 7, got '8'",
    ]
    put(tmp_path, {"Clip/original/part_2/12.mp4": b"another"})
    with pytest.raises(ImporterError, match="holds clip 12 twice"):
        read("dfew", tmp_path)


def test_dfews_folds_may_have_the_names_that_erv_reads(tmp_path):
    put(tmp_path, {f"DFEW/clip/{number}.mp4": b"clip" for number in (1, 2)})
    put(tmp_path, {"DFEW/label/single_trainset_5.csv": "video_name,label\n1,4\n"})
    with pytest.raises(ImporterError, match="lacks EmoLabel_DataSplit"):
        read("dfew", tmp_path)
    put(tmp_path, {"DFEW/label/single_testset_5.csv": "name,annotation\n2,6\n"})
    good, bad = read("dfew", tmp_path)
    assert not bad and {id: (clip.split, clip.label) for id, clip in good.items()} == {
        "dfew_00001": ("train", "angry"),
        "dfew_00002": ("test", "disgusted"),
    }


def test_meld_is_read_as_it_unpacks(tmp_path):
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
    line = '1,"You\x92re late, Ross.",Monica,{},negative,{},0,8,21,"00:16:16,059","00:16:21,731"\n'
    put(tmp_path, {"train/train_sent_emo.csv": (header + line.format("joy", 0)).encode("latin-1")})
    put(tmp_path, {"dev_sent_emo.csv": header + line.format("fear", 0) + line.format("glee", 1)})
    put(tmp_path, {"train/train_splits/dia0_utt0.mp4": b"a", "dev/dev_splits_complete/dia0_utt0.mp4": b"b"})
    with pytest.raises(ImporterError, match="lacks test_sent_emo.csv, output_repeated_splits_test"):
        read("meld", tmp_path)
    put(tmp_path, {"test_sent_emo.csv": header + line.format("anger", 3)})
    put(tmp_path, {"output_repeated_splits_test/final_videos_testdia3_utt0.mp4": b"c"})
    good, bad = read("meld", tmp_path)
    clip = good["meld_train_dia0_utt0"]
    assert (clip.transcript, clip.speaker, clip.label) == ("You’re late, Ross.", "Monica", "happy")
    assert clip.dialogue == "train_0" and good["meld_dev_dia0_utt0"].split == "validation"
    assert bad[0].startswith("dev_sent_emo.csv, line 3: label 'glee'")
    assert bad[1] == "test_sent_emo.csv, line 2: no such file: 'output_repeated_splits_test/dia3_utt0.mp4'"


def test_crema_ds_names_say_who_says_what_and_how(tmp_path):
    put(tmp_path, {f"AudioWAV/{actor}_DFA_ANG_HI.wav": audio_file(seconds=0.1) for actor in range(1001, 1011)})
    put(
        tmp_path,
        {"AudioWAV/1001_IEO_NEU_XX.wav": b"a", "AudioWAV/1001_IEO_GLEE_XX.wav": b"b", "x/1001_IEO_SAD_X.wav": b"c"},
    )
    put(tmp_path, {"VideoDemographics.csv": '"ActorID","Age","Sex"\n1001,51,"Male"\n'})
    good, bad = read("crema_d", tmp_path)
    clip = good["crema_d_1001_DFA_ANG_HI"]
    assert (clip.transcript, clip.label, clip.speaker) == ("Don't forget a jacket.", "angry", "crema_d_1001")
    assert clip.attributes == {"gender": "Male", "age": "51", "intensity": "high"}
    assert (
        "intensity" not in good["crema_d_1001_IEO_NEU_XX"].attributes and good["crema_d_1001_IEO_SAD_X"].label == "sad"
    )
    assert len({clip.split for clip in good.values() if clip.speaker == "crema_d_1001"}) == 1
    assert Counter(clip.split for clip in good.values() if clip.label == "angry") == {
        "train": 8,
        "validation": 1,
        "test": 1,
    }
    assert bad == ["'1001_IEO_GLEE_XX': '1001_IEO_GLEE_XX' is not named as CREMA-D names its files"]


def test_secaps_captions_are_a_test_set(tmp_path):
    captions = {"tx_emotion_1": "悲痛到无法自拔", "tx_emotion_2": ""}
    put(tmp_path, {"fid2captions.json": captions, "wav/tx_emotion_1.wav": audio_file(seconds=0.1)})
    with pytest.raises(ImporterError, match=r"lacks text.txt$"):
        read("secap", tmp_path)
    put(tmp_path, {"text.txt": "tx_emotion_1 你在 哪里\nanother\n"})
    good, bad = read("secap", tmp_path)
    clip = good["tx_emotion_1"]
    assert clip.captions == {"emotion": ("悲痛到无法自拔",)} and clip.transcript == "你在 哪里"
    assert (clip.split, clip.language) == ("test", "zh")
    assert bad == ["fid2captions.json, 'tx_emotion_2': a caption must be a string that says something, got ''"]


@pytest.mark.parametrize(
    "source, files, name",
    [
        (
            "secap",
            {"fid2captions.json": '{"a": "悲", "b": "喜", "a": "悲"}', "text.txt": "", "wav/a.wav": b"a"},
            "a",
        ),
        ("merr", {"MERR_fine_grained.json": '{"x": {}, "x": {"smp_reason_caption": "It."}}'}, "x"),
    ],
)
def test_a_clip_that_an_object_names_twice_is_no_clip_of_either(tmp_path, source, files, name):
    put(tmp_path, files)
    with pytest.raises(ImporterError, match=f"there is more than one value of '{name}'"):
        read(source, tmp_path)


def test_merrs_rationales_explain_their_labels(tmp_path):
    fine = {"smp_reason_caption": "The brows are knit.", "pseu_emotion": "worried", "text": "Oh no.", "AU_list": []}
    put(tmp_path, {"video/sample_1.mp4": b"a", "video/sample_2.avi": b"b"})
    put(tmp_path, {"MERR_coarse_grained.json": {"sample_2": {"caption": "He smiles."}, "sample_3": {"caption": " "}}})
    put(tmp_path, {"MERR_coarse_grained.txt": "sample_2 12 happy\n"})
    good, bad = read("merr", tmp_path)
    assert good["merr_sample_2"].rationale == "He smiles." and good["merr_sample_2"].label == "happy"
    assert good["merr_sample_2"].language == "zh"
    assert bad == ["MERR_coarse_grained.json, 'sample_3': it holds no rationale"]
    put(tmp_path, {"MERR_fine_grained.json": {"sample_1": fine, "sample_2": [], "sample_4": fine}})
    good, bad = read("merr", tmp_path)
    clip = good["merr_sample_1"]
    assert (clip.rationale, clip.label, clip.transcript) == ("The brows are knit.", "worried", "Oh no.")
    assert [problem.partition(": ")[2] for problem in bad] == ["expected an object, got []", "no such clip: 'sample_4'"]


def test_conversations_hold_a_thought_and_an_answer(tmp_path):
    def item(video, answer):
        turns = [{"from": "human", "value": "<video>\n<audio>\nWhich?"}, {"from": "gpt", "value": answer}]
        return {"video": video, "conversations": turns}

    answer = "<think>She looks away.</think>\n<answer>anxious</answer>"
    put(tmp_path, {"clips/a.mp4": b"a", "b.mp4": b"b"})
    put(
        tmp_path,
        {
            "cold.json": [
                item("/data1/EMER/a.mp4", answer),
                item("b.mp4", "sad"),
                item("c.mp4", "sad"),
                3,
                item("b.mp4", "<think>" + "x" * 99),
            ]
        },
    )
    good, bad = read("emer", tmp_path)
    assert (good["emer_a"].rationale, good["emer_a"].label) == ("She looks away.", "anxious")
    assert (good["emer_b"].rationale, good["emer_b"].label) == (None, "sad")
    assert bad == ["cold.json, item 3: no such clip: 'c.mp4'", "cold.json, item 4: it names no 'video'", bad[2]]
    assert bad[2].startswith("cold.json, item 5: the answer is neither a label nor")
    put(tmp_path, {"more.json": "{", "third.json": {}})
    with pytest.raises(ImporterError, match=r"(?s)more.json: .*third.json: it is no list"):
        read("emer", tmp_path)


def test_pictures_become_clips_of_one_frame(tmp_path):
    root = tmp_path / "Emotion6"
    put(root, {f"{label}/{n}.jpg": jpeg(n) for n, label in enumerate(["anger", "joy", "fear"] * 2)})
    put(root, {"anger/9.jpg": jpeg()[:100]})
    prepare("images", root, tmp_path / "out", max_bad_fraction=0.2, progress=False)
    reader = ShardReader(tmp_path / "out")
    assert {row.label for row in reader.index} == {"angry", "happy", "fearful"} and len(reader) == 6
    assert {(row.dataset, row.has_video, row.has_audio, row.frames) for row in reader.index} == {
        ("emotion6", True, False, 1)
    }
    clip = next(clip for clip in reader if clip.id == "anger/3")
    pixels = decode_video(clip.video, max_frames=8, fps=2.0).pixels
    assert pixels.shape == (1, 48, 64, 3) and abs(int(pixels[0, 40, 50, 0]) - int(pattern(3)[40, 50, 0])) < 8
    assert jpeg(3) in clip.video  # byte for byte
    (bad,) = reader.manifest["quarantined"]
    assert "a JPEG picture that is damaged" in bad["reason"]


def test_pictures_reach_a_batch(tmp_path):
    rows = [{"file": f"{n}.jpg", "split": "train", "label": "happy", "caption": "Joy."} for n in (1, 2)]
    put(tmp_path, {"raw/1.jpg": jpeg(1), "raw/2.jpg": jpeg(2), "raw/manifest.jsonl": "\n".join(map(json.dumps, rows))})
    prepare("folder", tmp_path / "raw", tmp_path / "out", progress=False)
    tokenizer = train_tokenizer(["Joy."], 400)
    data = dataclasses.replace(DATA, buckets=(), modalities=("video",))
    dataset = ClipDataset(ShardReader(tmp_path / "out"), data, MODEL, tokenizer, Captioning("overall", "Describe it."))
    (batch,) = dataset.evaluation_batches(dataset.clips("train"), 2)
    assert batch.valid.all() and (batch.prompt.media_index >= 0).any(axis=1).all()
    assert batch.prompt.patches.any() and not np.array_equal(*batch.prompt.patches)


def test_emoset_is_read_from_its_lists(tmp_path):
    put(tmp_path, {f"image/awe/awe_{n}.jpg": jpeg(n) for n in (1, 2)})
    item = ["awe", "awe_1", "image/awe/awe_1.jpg", "annotation/awe/awe_1.json"]
    put(
        tmp_path,
        {"train.json": [item, ["awe"]], "test.json": [["awe", "image/awe/awe_2.jpg", "annotation/awe_2.json"]]},
    )
    good, bad = read("images", tmp_path)
    assert {id: (clip.split, clip.label) for id, clip in good.items()} == {
        "image/awe/awe_1": ("train", "awe"),
        "image/awe/awe_2": ("test", "awe"),
    }
    assert bad == ["train.json, item 2: it names no picture"]


def test_a_picture_that_is_none_or_too_large_is_refused():
    for data in (b"\xff\xd8\xff" + b"x" * 100, jpeg()[:60], jpeg(height=3000, width=4000)):
        with pytest.raises(MediaError, match="damaged, or has more than 9437184 pixels"):
            one_frame_video(data)


def test_ravdess_videos_and_sound_of_one_take_are_one_clip(tmp_path):
    """The names of its audio-visual release: 01 has sound and picture, 02 the picture, 03 the sound."""
    put(tmp_path, {f"Video_Speech_Actor_01/Actor_01/{m}-01-03-01-01-01-01.mp4": video_file() for m in ("01", "02")})
    module = importlib.import_module(IMPORTERS["ravdess"])
    takes, left_out = module._find_takes(tmp_path, False)
    (files,) = takes.values()
    assert not left_out and list(files) == ["video"] and "/01-01" in files["video"]


def test_labels_that_a_map_or_a_placeholder_deals_with_pass(tmp_path):
    put(tmp_path, emotiontalk("G00002_04_05_001", emotion_result="glad") | emotiontalk("G00002_04_05_002"))
    put(tmp_path, emotiontalk("G00002_04_05_002", emotion_result="unknown"))
    good, bad = read("emotiontalk", tmp_path, label_map={"glad": "happy"})
    assert not bad and good["G00002_04_05_001"].labels["audio"] == "happy"
    assert "audio" not in good["G00002_04_05_002"].labels
    assert np.array_equal(sorted(good), ["G00002_04_05_001", "G00002_04_05_002"])


LAYOUTS = {
    "emotiontalk": emotiontalk("G00002_04_05_001")
    | {"audio.csv": "file_name,emotion,content\nG00002_04_05_001,angry,\"{'emo_cap': 'x'}\"\n"},
    "mafw": {f"Train & Test Set/single/no_caption/set_5/{split}.txt": "1.mp4 anger\n" for split in ("train", "test")}
    | {"1.mp4": b"a"},
    "dfew": {f"EmoLabel_DataSplit/{s}(single-labeled)/set_5.csv": "video_name,label\n1,2\n" for s in ("train", "test")}
    | {"1.mp4": b"a"},
    "meld": {
        f"{part}_sent_emo.csv": "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\nHi,Joey,joy,0,0\n"
        for part in ("train", "dev", "test")
    }
    | {
        f"{name}/dia0_utt0.mp4": b"a" for name in ("train_splits", "dev_splits_complete", "output_repeated_splits_test")
    },
    "crema_d": {"VideoDemographics.csv": "ActorID,Age,Sex\n1001,51,Male\n", "1001_DFA_ANG_HI.wav": b"a"},
    "secap": {"fid2captions.json": {"a": "喜悦"}, "text.txt": "a 你好\n", "wav/a.wav": b"a"},
    "merr": {"MERR_fine_grained.json": {"a": {"smp_reason_caption": "x", "pseu_emotion": "sad"}}, "a.mp4": b"a"},
    "emer": {"list.json": [{"video": "a.mp4", "conversations": [{"value": "?"}, {"value": "sad"}]}], "a.mp4": b"a"},
    "images": {"train.json": [["awe", "a.jpg"]], "a.jpg": b"a"},
}


def damage_and_read(source: str, root: Path, random: np.random.Generator) -> bool:
    """Damages one table of a tiny corpus and reads it; returns whether all of it was read."""
    put(root, LAYOUTS[source])
    tables = sorted(path for path in root.rglob("*.*") if path.suffix in (".json", ".csv", ".txt"))
    path = tables[random.integers(len(tables))]
    whole = path.read_bytes()
    if path.suffix == ".json" and random.random() < 0.5:
        path.write_text(json.dumps(json_mutant(json.loads(whole), random)))
    else:
        path.write_bytes(mutant(whole, random))
    try:
        return not read(source, root)[1]
    except ImporterError:
        return False


@pytest.mark.parametrize("source", LAYOUTS)
def test_damaged_tables_cost_their_rows_or_are_refused(source, tmp_path):
    put(tmp_path, LAYOUTS[source])
    assert read(source, tmp_path)[0]
    read_in_full = [damage_and_read(source, tmp_path, np.random.default_rng((0, number))) for number in range(60)]
    assert not all(read_in_full)
