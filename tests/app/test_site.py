"""What the page answers: captions of files good and bad, groups with their clips, data, and nothing from elsewhere."""

import base64
import io
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from mecap_jax.app import rendering
from mecap_jax.app.captions import EVERYTHING, OpenModel, Sampling, as_csv, describe_clip, outline, shown_of, table_rows
from mecap_jax.app.clips import choose_clips, open_clips
from mecap_jax.app.site import Site, chosen_clip
from mecap_jax.captioning import Caption, Captioned
from mecap_jax.config import ConfigError
from mecap_jax.data.importers import ImporterError
from mecap_jax.data.media import decode_audio
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.experiment.workdir import claim_data
from mecap_jax.generation.sampler import generate
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.tasks.protocols import PROTOCOLS
from tests.app.test_rollouts import append, completion, group
from tests.data.clips import audio_file, video_file
from tests.test_captioning import run  # noqa: F401 - a fixture

HOSTILE = '<script>alert(1)</script>\u202e"&'
SHORT = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def place(run):  # noqa: F811
    """A directory that holds a run with one sampled group of each clip, its data and a file that is no clip."""
    _, workdir, *_ = run
    append(workdir / "completions.jsonl", group(1, completion("A sad voice."), completion("sad"), clip="film"))
    append(workdir / "completions.jsonl", group(2, completion(HOSTILE, format=0.0), clip="elsewhere", label=HOSTILE))
    claim_data(workdir, ShardReader(workdir.parent / "shards"))
    append(workdir / "metrics.jsonl", {"stage": "grpo", "step": 1, "reward": 1.0})
    return workdir.parent


@pytest.fixture(scope="module")
def site(place):
    return Site({"mine": place / "run" / "checkpoints" / "sft"}, runs=place, data=place)


def wav(waveform):
    file = io.BytesIO()
    soundfile.write(file, waveform, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def text(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r'"data:[^"]*"', "", html)))


def test_a_clip_is_captioned_from_everything_and_from_each_modality(site, run, tmp_path):  # noqa: F811
    _, _, files, said, *_ = run
    model = site.models["mine"]
    answer = describe_clip(model, str(files["film"]), sampling=SHORT)
    assert list(answer.answers) == [EVERYTHING, "sound only", "picture only"]
    assert all(len(one.captions) == 1 and not one.error for one in answer.answers.values())
    # What the command line says of it, and what it says of a file without the pictures.
    assert answer.answers[EVERYTHING].captions[0].text == model.captioner.caption(files["film"], max_new_tokens=4)
    (tmp_path / "film.wav").write_bytes(wav(decode_audio(files["film"].read_bytes())))
    sound = describe_clip(model, str(tmp_path / "film.wav"), sampling=SHORT).answers[EVERYTHING].captions[0].text
    assert answer.answers["sound only"].captions[0].text == sound
    assert answer.coordinates.shape == (1, len(answer.labels)) and np.isfinite(answer.coordinates).all()
    programs = generate._cache_size()
    mute = describe_clip(model, str(files["mute"]), said["mute"], SHORT)
    assert generate._cache_size() == programs  # whatever a clip is made of, nobody waits for another compilation
    assert mute.answers["sound only"].error == "has no audio, and the model reads nothing else"
    assert not mute.answers["picture only"].differs
    shown = shown_of(model, files["film"])
    assert len(shown.frames) and shown.waveform.shape[1] == 2 and shown.seconds == pytest.approx(1.0, abs=0.1)
    assert shown_of(model, files["mute"]).waveform is None


def test_one_checkpoint_or_two_stand_on_the_page(site, run):  # noqa: F811
    _, _, files, *_ = run
    names = site.checkpoint_names()
    assert names == ["mine", "run/checkpoints/text_only"]  # one of the run's stages is the one that has a name
    page = site.caption(["mine", "run/checkpoints/sft"], str(files["film"]), "", SHORT)
    assert all(name in text(page) for name in ("mine", "run/checkpoints/sft", "picture only", "frames", "sound, 1.0"))
    assert page.count("<dt>") == 2 * len(site.models["mine"].anchors.labels)
    assert base64.b64encode(files["film"].read_bytes()).decode() in page
    with pytest.raises(ConfigError, match="reads text only"):
        site.caption(["mine", "run/checkpoints/text_only"], str(files["film"]), "", SHORT)
    voice = site.caption(["mine"], str(files["voice"]), "", SHORT)
    assert "<audio" in voice and "has no video" in text(voice)


BAD = {
    "words.wav": (b"not a sound at all", "not a media file|unsupported"),
    "empty.wav": (b"", "empty file"),
    "nothing.wav": (audio_file(seconds=0.0), "has no audio samples"),
    "long.wav": (audio_file(rate=4000, seconds=7200.0), "longer than 600 s"),
    "long.mp4": (video_file(frames=2, starts=[0.0, 7200.0], sound=None), "lasts 7200 s"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(site, tmp_path, name):
    data, reason = BAD[name]
    (tmp_path / name).write_bytes(data)
    page = site.caption(["mine"], str(tmp_path / name), "", SHORT)
    (line,) = re.findall(r'<p class="error" role="alert">([^\n]*?)</p>', page)
    assert re.search(reason, line), line


def test_a_checkpoint_that_is_gone_and_a_path_that_leads_out_are_said(site, tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        Site({"mine": tmp_path / "gone"}).caption(["mine"], "a.wav", "", SHORT)
    for name in ("../../etc", "/etc"):
        with pytest.raises(ConfigError, match="leads out of"):
            site.caption([name], "a.wav", "", SHORT)
        with pytest.raises(ConfigError, match="leads out of"):
            site.run(name)
        with pytest.raises(ConfigError, match="leads out of"):
            site.about_data(name)
    with pytest.raises(ConfigError, match="started without --runs"):
        Site({}).run("run")


def test_a_clip_is_one_that_was_sent(tmp_path):
    (tmp_path / "a.wav").touch()
    clips = {"file": str(tmp_path / "a.wav"), "microphone": None, "camera": "/etc/passwd", "example": "sad"}
    sent = ("file", "microphone", "camera")
    assert chosen_clip("file", clips, sent, tmp_path) == clips["file"]
    assert chosen_clip("example", clips, sent, tmp_path) == "sad"
    for source, reason in (("camera", "no file that was sent"), ("microphone", "nothing to caption yet")):
        with pytest.raises(ConfigError, match=reason):
            chosen_clip(source, clips, sent, tmp_path)
    with pytest.raises(ConfigError, match="nothing to caption yet"):
        chosen_clip("features", clips, sent, tmp_path)  # which this page does not offer


def opened(name, *modalities):
    """A checkpoint of which no more is known than what it reads."""
    captioner = SimpleNamespace(data=SimpleNamespace(modalities=modalities))
    return OpenModel(name, captioner, None, None, None, "")


def test_an_id_of_features_is_no_path(monkeypatch):
    described = []
    monkeypatch.setattr("mecap_jax.app.site.describe_clip", lambda model, *_: described.append(model.name))
    several = Site({})
    models = (opened("ids", "features"), opened("media", "audio"), opened("both", "audio", "features"))
    several.models = {model.name: model for model in models}
    for names in (["media"], ["both"], ["ids", "media"], ["ids", "both"]):
        with pytest.raises(ConfigError, match=f"{names[-1]} reads clips, no ids"):
            several.caption(names, "/etc/passwd", "", SHORT, is_id=True)
    for names in (["ids"], ["both", "ids"]):
        with pytest.raises(ConfigError, match="ids reads ids of precomputed features, no clips"):
            several.caption(names, "a.wav", "", SHORT)
    assert not described
    for name, is_id in (("ids", True), ("media", False), ("both", False)):
        with pytest.raises(AttributeError):  # nothing is said by what was described
            several.caption([name], "a", "", SHORT, is_id=is_id)
    assert described == ["ids", "media", "both"]


def test_waiting_has_an_end(site, tmp_path):
    (tmp_path / "a.wav").write_bytes(audio_file())
    busy = site._device.submit(time.sleep, 0.5)
    with pytest.raises(ConfigError, match="took longer than 0.1 s"):
        site.caption(["mine"], str(tmp_path / "a.wav"), "", SHORT, seconds=0.1)
    busy.result()


def test_many_files_become_a_table_and_files(site, run, tmp_path):  # noqa: F811
    _, _, files, *_ = run
    (tmp_path / "=bad.wav").write_bytes(b"")
    done = []
    clips = [str(files["voice"]), str(tmp_path / "=bad.wav")]
    shown, links = site.caption_files("mine", clips, SHORT, lambda n, total: done.append((n, total)))
    head, *rows = (re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in shown.split("<tr>")[1:])
    assert done == [(1, 2), (2, 2)] and [row[0] for row in rows] == ["voice.wav", "=bad.wav"]
    assert head[0] == "file" and "sample" not in head  # what is empty in all is left out
    assert rows[1][head.index("error")] == "empty file (0 bytes)" and str(tmp_path) not in links + shown
    table, lines = (base64.b64decode(part).decode() for part in re.findall(r"base64,([^\"]*)", links))
    assert "\n'=bad.wav," in table and [json.loads(line)["file"] for line in lines.splitlines()] == [r[0] for r in rows]
    with pytest.raises(ConfigError, match="between 1 and 200 files, got 0"):
        site.caption_files("mine", [], SHORT, lambda *_: None)
    windows = Captioned("d/x.wav", (Caption("a, b", -1.0, True, (0.0, 2.0)),), seconds=9.0, note="long")
    assert as_csv(table_rows([windows])).splitlines()[1] == 'x.wav,"a, b",,-1.0,True,9.0,"[0.0, 2.0]",long,'


def test_examples(site, place):
    assert site.examples() == ["voice (no label)", "film (no label)", "mute (no label)"]
    with site.example("film (no label)") as path:
        assert Path(path).read_bytes() == video_file()
    with pytest.raises(ConfigError, match="no example"), site.example("../../secret"):
        pass
    made = Site({})
    assert "synthetic: sad" in made.examples()
    with made.example("synthetic: sad") as path:
        assert len(Path(path).read_bytes()) > 1000


def test_a_group_stands_beside_its_clip_and_that_of_another_run(site, place):
    rows, count = site.groups("run", 1, order="oldest first")
    assert [row[3] for row in rows] == ["film", "elsewhere"] and count == "1 to 2 of 2, page 1 of 1"
    page = site.group("run", 0, other="run")
    assert page.count("<video") == 1 and page.count("<mark>A </mark>sad <mark>voice.</mark>") == 2
    sides = re.findall(r'<div class="card (first|second)"><h3>([^<]*)</h3>', page)
    assert sides == [(side, "run, grpo, step 1: completions, the best first") for side in ("first", "second")]
    assert "reward" in text(page) and "references" in text(page) and "A sad voice." in page
    hostile = site.group("run", 1)
    assert "<script" not in hostile and "\u202e" not in hostile and "has no clip" in text(hostile)
    assert "parse failure" in text(hostile)
    outside = Site({}, runs=place / "run")
    assert "start the page with --data=" in text(outside.group(".", 0)) and "<video" not in outside.group(".", 0)
    steps, _ = site.steps("run", 1, order="lowest mean reward")
    assert [row[0] for row in steps] == [1, 2]
    assert "grpo: reward" in site.curves("run", "run", "")
    assert site.run("run").state == "run: 2 groups, 3 completions"


def test_a_long_name_does_not_hide_the_other_rows(tmp_path):
    (tmp_path / "run").mkdir()
    append(
        tmp_path / "run" / "completions.jsonl", group(1, completion(), clip="很长的名字\u202e" * 99, label="x" * 900)
    )
    ((number, _, _, clip, label, *_),), _ = Site({}, runs=tmp_path).groups("run", 1)
    assert number == 0 and clip.startswith("很长的名字") and clip.endswith("…") and "\u202e" not in clip
    assert len(clip) <= 40 == len(label)


def test_a_run_of_another_version_is_still_shown_and_said(tmp_path):
    (tmp_path / "old").mkdir()
    append(tmp_path / "old" / "completions.jsonl", group(1, completion()), '{"prompt": 1}')
    (tmp_path / "old" / "config.json").write_text('{"colour": "blue"}')
    state = Site({}, runs=tmp_path).run("old").state.splitlines()
    assert state[0] == "old: 1 groups, 1 completions" and "1 line is left out" in state[1] and "colour" in state[2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no run"):
        Site({}, runs=tmp_path).run("empty")


def test_only_plain_files_of_the_run_are_read(tmp_path):
    mine, secret = tmp_path / "runs" / "a", tmp_path / "secret.jsonl"
    mine.mkdir(parents=True)
    append(secret, group(1, completion("secret")))
    append(mine / "kept.jsonl", {"stage": "grpo", "step": 1, "reward": 1.0})
    (mine / "completions.jsonl").symlink_to(secret)
    (mine / "metrics.jsonl").symlink_to("kept.jsonl")  # a link within the run
    (mine / "config.json").symlink_to(secret)
    found = Site({}, runs=tmp_path / "runs").run("a")
    assert not found.rollouts.rows and found.metrics.stages() == ["grpo"]
    leads_out = "is not read: it is a link that leads out of its directory"
    assert found.state.splitlines()[1:] == [f"completions.jsonl {leads_out}", f"config.json {leads_out}"]
    for replace in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (mine / "completions.jsonl").unlink()
        replace(mine / "completions.jsonl")
        found.update()
        assert (
            re.fullmatch("completions.jsonl is not read: it is .*", found.rollouts.problem) and found.metrics.stages()
        )
    (mine / "config.json").unlink()
    os.mkfifo(mine / "shards.json")
    assert Site({}, runs=tmp_path / "runs").run("a").problem == "shards.json is not read: it is no plain file"


def test_blocks_of_an_answer():
    found = group(1, completion("<think>tears</think><answer>sad</answer>"), completion("sad"))
    page = rendering.group(found, "", PROTOCOLS["think_answer"])
    assert "parse failure: no &lt;think&gt;" in page


def test_of_a_large_group_a_part_is_shown_and_said():
    terms = {f"term-{i:02}": 1.0 for i in range(41)}
    page = rendering.group(group(1, *[completion(f"says {i}", reward=-i, **terms) for i in range(65)]), "", None)
    assert (
        "says</mark> 63" not in page
        and "63" in page
        and page.count('<dl class="values">') == 64 == page.count("term-39")
    )
    assert "term-40" not in page and "64 of 65 completions are shown." in page
    assert "40 of 41 terms of rewards are shown." in page
    assert "are shown." not in rendering.group(group(1, completion()), "", None)


def test_data(site, place, tmp_path):
    clips = open_clips(place / "shards")
    assert [row.id for row in choose_clips(clips.rows, words="DOGS")] == ["voice"]
    assert choose_clips(clips.rows, split="test") == [] == choose_clips(clips.rows, label="sad", disagree=True)
    assert "<video" in site.clip("shards", 1) and "a sad voice" in site.clip("shards", 1)
    with pytest.raises(ConfigError, match="no clip 7, only 3"):
        site.clip("shards", 7)
    mine = tmp_path / "mine"
    mine.mkdir()
    for path in (mine / "a.wav", tmp_path / "b.wav"):
        path.write_bytes(audio_file())
    (mine / "manifest.csv").write_text('file,labels,caption\na.wav,"{""audio"": ""sad""}",low\n../b.wav,,x\n')
    folder = Site({}, data=tmp_path)
    found, about = folder.about_data("mine")
    assert found.rows[0].labels == {"audio": "sad"} and folder.data_names() == ["mine"]
    assert "<audio" in folder.clip("mine", 0)
    with pytest.raises(ConfigError, match="b: .*leads out of the input directory: '../b.wav'"):
        folder.clip("mine", 1)
    (mine / "manifest.csv").unlink()
    with pytest.raises(ImporterError, match="holds no manifest"):
        open_clips(mine)
    (mine / "manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises(ShardError, match="schema version 1"):
        open_clips(mine)


def test_small_things():
    assert outline(np.zeros(0, np.float32)) is None and len(outline(np.ones(7, np.float32))) == 7
    assert "<script" not in rendering.error(HOSTILE)
    assert rendering.player(b"no media").startswith('<p class="small">It cannot be played')
