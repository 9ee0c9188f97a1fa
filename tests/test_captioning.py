"""Files become the captions that the same clips get inside a run; what cannot be captioned says why."""

import dataclasses
import json
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mecap_jax.captioner import Captioner
from mecap_jax.captioning import (
    Caption,
    Captioned,
    ClipReader,
    Request,
    as_differences,
    as_error,
    as_json,
    as_lines,
    caption_clips,
    find_requests,
)
from mecap_jax.config import ConfigError
from mecap_jax.data import shards
from mecap_jax.data.media import decode_audio
from mecap_jax.data.pipeline import ClipDataset
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.data.training_facts import gather_facts
from mecap_jax.data.utterance import Utterance
from mecap_jax.evaluation.decoding import greedy_captions
from mecap_jax.experiment.setup import save_processor
from mecap_jax.experiment.weights import describe, starting_params
from mecap_jax.experiment.workdir import claim
from mecap_jax.models.checkpoints.hub import save_model
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.sharding import single_device
from mecap_jax.tasks.registry import make_task
from mecap_jax.threads import ahead
from mecap_jax.train_state import init_params, init_state, make_optimizer
from mecap_jax.training.checkpointing import StageCheckpoints
from tests.data.clips import SHARED, audio_file, needs_shared_data, video_file
from tests.experiment.test_story import small
from tests.published_family import open_family
from tests.test_captioner import FEATURES

CONTAINERS = {
    "a.wav": lambda: audio_file(),
    "b.flac": lambda: audio_file("FLAC", seconds=0.6),
    "c.mp4": lambda: video_file(),
    "d.ogg": lambda: audio_file("OGG"),
    "e.webm": lambda: video_file("webm", "libvpx-vp9", sound="libopus"),
    "f.MP3": lambda: audio_file("MP3"),
    "g.mkv": lambda: video_file("matroska"),
    "h.mp4": lambda: video_file(sound=None),
}
BAD = {
    "aa.wav": (lambda: audio_file()[:999], "truncated or corrupt wav file"),
    "bb.flac": (lambda: b"", "empty file"),
    "cc.mp4": (lambda: b"<!DOCTYPE html>", "unsupported container: an HTML page"),
    "hh.wav": (lambda: audio_file(rate=8000, seconds=600.5), "longer than 600 s"),
    "ii.wav": (lambda: audio_file(seconds=0.005), "is too short to hear anything"),
}


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    return Captioner.from_pretrained(open_family("qwen2_5_omni", tmp_path_factory.mktemp("omni")).directory)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A directory with every container, bad files among them, and something that is no clip."""
    directory = tmp_path_factory.mktemp("clips")
    for name, make in (CONTAINERS | {name: make for name, (make, _) in BAD.items()}).items():
        (directory / name).write_bytes(make())
    (directory / "notes.txt").write_text("not a clip")
    return directory


def test_a_directory_stands_for_the_media_in_it(tmp_path):
    endings = "wav flac ogg opus mp3 aac m4a mp4 mkv webm avi".split()
    for name in [*(f"{ending}.{ending}" for ending in endings), "notes.txt", "._wav.wav"]:
        (tmp_path / name).touch()
    assert {Path(request.clip).name for request in find_requests([str(tmp_path)])} == {f"{e}.{e}" for e in endings}


def test_every_container_in_order_with_bad_files_between(omni, clips):
    requests = find_requests([str(clips), str(clips / "absent.wav")])
    answers = list(caption_clips(omni, requests, batch=3, max_new_tokens=6))
    names = sorted([*CONTAINERS, *BAD])
    assert [answer.clip for answer in answers] == [str(clips / name) for name in [*names, "absent.wav"]]
    for answer, name in zip(answers, names):
        assert bool(answer.error) == (name in BAD) == (not answer.captions)
        assert not answer.error or BAD[name][1] in answer.error
    assert answers[-1].error == "no such file"
    by_name = dict(zip(names, answers))
    assert by_name["b.flac"].seconds == pytest.approx(0.6, abs=0.02)
    assert by_name["h.mp4"].seconds == pytest.approx(1.0, abs=0.02)


def test_names_that_no_file_can_have_cost_only_themselves(clips):
    requests = find_requests([], ["x" * 5000, "a\0b", str(clips / "a.wav")])
    assert [bool(request.problem) for request in requests] == [True, True, False]


def test_samples_differ_and_are_the_same_whatever_shares_their_batch(omni, clips):
    requests = find_requests([str(clips / "a.wav"), str(clips / "g.mkv")])
    options = dict(samples=4, temperature=1.0, max_new_tokens=6, seed=3)
    together, single = (list(caption_clips(omni, requests, batch=batch, **options)) for batch in (2, 1))
    for one, other in zip(together, single):
        assert len({caption.text for caption in one.captions}) > 1
        assert [caption.text for caption in one.captions] == [caption.text for caption in other.captions]
        logprobs = [[caption.logprob for caption in answer.captions] for answer in (one, other)]
        np.testing.assert_allclose(*logprobs, atol=1e-3)
    lines = as_json(together[0])
    assert len(lines) == 4 and '"sample": 3' in lines[3] and '"seconds": 1.0' in lines[3]
    assert len(as_lines(together[0])) == 4


def test_a_model_that_only_sees_says_so_of_a_voice(tmp_path, clips):
    captioner = Captioner.from_pretrained(open_family("qwen2_5_vl", tmp_path).directory)
    requests = find_requests([str(clips / "a.wav"), str(clips / "h.mp4")])
    voice, face = caption_clips(captioner, requests, max_new_tokens=2)
    assert voice.error == "has no video, and the model reads nothing else"
    assert face.captions and not face.error


def behind_features(name, directory, clips):
    """A published model of a family that reads features, and in `directory/features` those of these clips."""
    family = open_family(name, directory / "model")
    model = dataclasses.replace(family.config, features=dataclasses.replace(FEATURES, names=("face-UTT", "voice-FRA")))
    _, drawn = init_params(model, 1, single_device())
    (family.directory / "model.safetensors").unlink()
    save_model(family.directory, model, family.params | {"feature_projector": drawn["feature_projector"]})
    rng = np.random.default_rng(0)
    for name, shape in (("face-UTT", 3), ("voice-FRA", (4, 2))):
        (directory / "features" / name).mkdir(parents=True)
        for clip in clips:
            np.save(directory / "features" / name / f"{clip}.npy", rng.normal(size=shape).astype(np.float32))
    return family.directory


def test_features_by_id(tmp_path):
    captioner = Captioner.from_pretrained(behind_features("qwen2", tmp_path, ("G1_0.5", "G2")))
    (tmp_path / "features" / "voice-FRA" / "G2.npy").unlink()
    requests = find_requests(["G1_0.5", "G2", "G3", "G1_0.5"], ids=True)
    first, *others = caption_clips(captioner, requests, features=tmp_path, max_new_tokens=4)
    assert first.captions and first.seconds is None and "seconds" not in as_json(first)[0]
    assert [answer.error for answer in others] == [
        "lacks the features 'voice-FRA'; it has ['face-UTT']",
        "has no features, and the model reads nothing else",
        "is named twice",
    ]
    with pytest.raises(ConfigError, match="face-UTT, voice-FRA.*--features"):
        next(caption_clips(captioner, requests))
    with pytest.raises(ConfigError, match="--features: no such directory"):
        next(caption_clips(captioner, requests, features=tmp_path / "absent"))


@pytest.fixture(params=["gpt2", "bart"])
def positioned(request, tmp_path):
    """A captioner with 512 learned positions, and the directory of the features that it reads, of two clips."""
    directory = behind_features(request.param, tmp_path, "ab")
    return Captioner.from_pretrained(directory), tmp_path


def test_a_prompt_without_room_among_learned_positions_costs_only_itself(positioned):
    """And one that has just enough is padded no further than that."""
    captioner, features = positioned
    options = dict(features=features, max_new_tokens=4)
    read = ClipReader(captioner, captioner.data.instruction, features, max_new_tokens=4)
    room = captioner.model.decoder.prompt_room(4)
    assert room == (512 if captioner.model.decoder.encoder else 508)

    def tokens(words):
        _, ((_, row),) = read(Request("b", "a" * words))
        return len(row.layout.tokens)

    full = next(n for n in range(400, 600) if tokens(n) == room)
    good, bad = caption_clips(captioner, [Request("a"), Request("b", "word " * 300)], **options)
    (alone,) = caption_clips(captioner, [Request("a")], **options)
    assert good.captions[0].text == alone.captions[0].text
    assert "there is room for" in bad.error and "max_position_embeddings is 512" in bad.error and not bad.captions
    short, whole, over = caption_clips(
        captioner, [Request("a"), *(Request("b", "a" * n) for n in (full, full + 1))], **options
    )
    assert short.captions[0].text == alone.captions[0].text and whole.captions and not over.captions

    with pytest.raises(ConfigError, match="captions of up to 600 tokens .*max_new_tokens.* is 512"):
        next(caption_clips(captioner, [Request("a")], features=features, max_new_tokens=600))
    row = [{"role": "user", "content": "word " * 1000}]
    with pytest.raises(ValueError, match="a prompt of .* tokens, and beside an answer of up to 4 there is room for"):
        captioner.generate(captioner.processor([row]), max_new_tokens=4)


def test_what_no_clip_can_help_is_said_at_once(tmp_path, omni):
    words = Captioner.from_pretrained(open_family("qwen3", tmp_path).directory)
    with pytest.raises(ConfigError, match="reads text only"):
        next(caption_clips(words, [Request("a.wav")]))
    with pytest.raises(ConfigError, match="reads no precomputed features"):
        next(caption_clips(omni, [Request("a.wav")], features=tmp_path))


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a checkpoint of random weights over clips of three kinds, the clips as files, its data and weights."""
    root = tmp_path_factory.mktemp("run")
    media = {"voice": audio_file(seconds=2.4), "film": video_file(), "mute": video_file(sound=None)}
    said = {"voice": "Dogs sit by the door.", "film": "", "mute": "Kids talk."}
    suffix = {"voice": "wav", "film": "mp4", "mute": "mp4"}
    items, files = [], {}
    for name, data in media.items():
        files[name] = root / f"{name}.{suffix[name]}"
        files[name].write_bytes(data)
        kind = "audio" if suffix[name] == "wav" else "video"
        captions = {"overall": ("a sad voice",)}
        items.append(Utterance(name, "t", "train", name, transcript=said[name], captions=captions, **{kind: data}))
    shards.write(items, root / "shards", "a test", {"importer": "test"})
    config = small(f"data.path={root / 'shards'}", "data.instruction=How do they feel?", "data.max_seconds=2.4")
    workdir, mesh, reader = root / "run", single_device(), ShardReader(root / "shards")
    workdir.mkdir()
    save_processor(config, reader, workdir / "processor")
    graphdef, params = starting_params(config, mesh)
    tokenizer = Tokenizer.from_directory(workdir / "processor", config.model.family)
    dataset = ClipDataset(reader, config.data, config.model, tokenizer, make_task(config))
    claim(workdir, config, gather_facts(reader.index, dataset.config))
    batches = dataset.training_batches(dataset.clips("train"), batch_size=1, steps=1, seed=0)
    state = init_state(params, make_optimizer(config.sft.optimizer, 1), mesh)
    stages = workdir / "checkpoints"
    with StageCheckpoints(stages / "sft", config.checkpoint, describe(config)) as checkpoints:
        checkpoints.save(1, state, iter(batches))
    shutil.copytree(stages / "sft", stages / "text_only")
    return config, workdir, files, said, dataset, graphdef, params


def test_a_file_becomes_the_prompt_and_the_caption_that_its_clip_has_in_the_run(run):
    config, workdir, files, said, dataset, graphdef, params = run
    captioner = Captioner.from_pretrained(workdir / "checkpoints" / "sft")
    requests = [Request(str(path), said[name]) for name, path in files.items()]
    rows = dataset.clips("train")
    names = [dataset.index[row].id for row in rows]
    assert sorted(names) == sorted(files)

    read = ClipReader(captioner, captioner.data.instruction)
    bucket = dataset.config.buckets[-1]
    prompts = captioner.processor.batch([read(requests[list(files).index(name)])[1][0][1] for name in names], bucket)
    for field, mine, theirs in zip(prompts._fields, prompts, dataset.assemble(rows, bucket).prompt):
        np.testing.assert_array_equal(mine, theirs, err_msg=field)

    options = dict(max_new_tokens=12)
    theirs = greedy_captions(
        graphdef, params, dataset, rows, captioner.processor.tokenizer, captioner.mesh, batch_clips=3, **options
    )
    for answer, name in zip(caption_clips(captioner, requests, **options), files):
        assert not answer.error
        (mine,), other = answer.captions, theirs[rows[names.index(name)]]
        assert (mine.text, mine.finished) == (other.text, other.finished)
    assert not all(caption.finished for caption in theirs.values())


@pytest.fixture
def long_clips(tmp_path):
    """Clips longer than the run's 2.4 s: loud behind 3 s, or silent."""
    quiet, loud = audio_file(seconds=3.0)[44:], audio_file(seconds=2.0)[44:]
    quiet = (np.frombuffer(quiet, "<i2") // 100).astype("<i2").tobytes()
    header = bytearray(audio_file(seconds=5.0)[:44])
    (tmp_path / "a_voice.wav").write_bytes(bytes(header) + quiet + loud)
    (tmp_path / "b_film.mp4").write_bytes(video_file(frames=100))
    (tmp_path / "c_mute.mp4").write_bytes(video_file(frames=100, sound=None))
    (tmp_path / "d_short.wav").write_bytes(audio_file())
    return tmp_path


def test_a_long_clip_is_captioned_from_its_loudest_stretch(run, long_clips):
    captioner = Captioner.from_pretrained(run[1] / "checkpoints" / "sft")
    assert (captioner.data.instruction, captioner.data.max_seconds) == ("How do they feel?", 2.4)
    answers = list(caption_clips(captioner, find_requests([str(long_clips)]), max_new_tokens=4))
    assert [len(answer.captions) for answer in answers] == [1, 1, 1, 1]
    voice, film, mute, short = answers
    (begin, end), length = voice.captions[0].window, voice.seconds
    assert length == 5.0 and begin == pytest.approx(2.6, abs=0.05) and end == pytest.approx(5.0, abs=0.05)
    assert (
        voice.note
        == f"lasts 5.00 s, longer than the 2.4 s of training clips: captioned from {begin:.2f} to {end:.2f} s"
    )
    assert film.captions[0].window[1] - film.captions[0].window[0] == pytest.approx(2.4)
    assert mute.captions[0].window == pytest.approx((0.8, 3.2))  # where nothing is heard, the middle
    assert short.captions[0].window is None and not short.note
    fields = json.loads(as_json(voice)[0])
    assert fields["window"] == pytest.approx([begin, end]) and fields["note"] == voice.note
    assert "window" not in as_json(short)[0] and as_lines(voice)[0].startswith(f"{voice.clip}: ")

    # What the model sees of the stretch is what it sees of a file that holds nothing else.
    cut = long_clips / "cut.wav"
    wave = (long_clips / "a_voice.wav").read_bytes()[44:]
    header = audio_file(seconds=2.4)[:44]
    cut.write_bytes(header + wave[round(begin * 16_000) * 2 :][: 2 * round(2.4 * 16_000)])
    (alone,) = caption_clips(captioner, [Request(str(cut))], max_new_tokens=4)
    assert alone.captions[0].text == voice.captions[0].text


def test_windows_cover_a_long_clip_and_each_is_captioned(run, long_clips):
    captioner = Captioner.from_pretrained(run[1] / "checkpoints" / "sft")
    requests = find_requests([str(long_clips)])
    options = dict(samples=2, temperature=1.0, max_new_tokens=4)
    answers = list(caption_clips(captioner, requests, batch=2, long="windows", **options))
    assert [len(answer.captions) for answer in answers] == [6, 4, 4, 2]
    windows = [caption.window for caption in answers[0].captions[::2]]
    assert windows == [pytest.approx(window) for window in [(0, 2.4), (1.3, 3.7), (2.6, 5.0)]]
    lines = [json.loads(line) for line in as_json(answers[0])]
    assert [line["sample"] for line in lines] == [0, 1] * 3 and lines[0]["note"].endswith("captioned in 3 windows")
    assert "[1.3-3.7 s]: " in as_lines(answers[0])[2]
    single = list(caption_clips(captioner, requests, batch=8, long="windows", **options))
    assert [a.captions[-1].text for a in answers] == [a.captions[-1].text for a in single]

    (refused,) = caption_clips(captioner, requests[:1], long="refuse")
    assert refused.error == "lasts 5.00 s, longer than the 2.4 s that the model was trained on"


def test_clips_that_are_not_as_in_training_are_counted_by_kind(run, long_clips):
    captioner = Captioner.from_pretrained(run[1] / "checkpoints" / "sft")
    requests = find_requests([str(long_clips)])
    requests[0] = dataclasses.replace(requests[0], transcript="Dogs sit.")
    differs = Counter(
        kind for answer in caption_clips(captioner, requests, max_new_tokens=2) for kind in answer.differs
    )
    assert differs == {"video": 2, "longer": 3, "transcript": 3, "audio": 1}
    requests[0] = dataclasses.replace(requests[0], transcript="\u72d7\u5750\u7740")
    (chinese,) = caption_clips(captioner, requests[:1], max_new_tokens=2)
    assert chinese.differs == ("video", "language", "longer")
    lines = as_differences(differs, 4)
    assert "note: 3 of 4 clips came without what is said, which training prompts held" in " ".join(lines)
    assert "note: 2 of 4 clips have no video, which training clips had" in lines


def test_what_is_too_long_for_any_model_is_one_line(run, tmp_path, monkeypatch):
    captioner = Captioner.from_pretrained(run[1] / "checkpoints" / "sft")
    monkeypatch.setattr("mecap_jax.captioning.MAX_SECONDS", 3)
    (tmp_path / "film.mp4").write_bytes(video_file(frames=100))
    (tmp_path / "voice.wav").write_bytes(audio_file())
    requests = find_requests([str(tmp_path)])
    film, voice = caption_clips(captioner, requests, max_new_tokens=2)
    assert film.error == "lasts 4 s (at most 3): cut it into pieces" and not voice.error
    monkeypatch.setattr("mecap_jax.captioning.MAX_PROMPT_TOKENS", 10)
    (voice,) = caption_clips(captioner, requests[1:], max_new_tokens=2)
    assert "tokens (at most 10): cut it into pieces" in voice.error
    monkeypatch.setattr("mecap_jax.data.stretches.MAX_WINDOWS", 1)
    (tmp_path / "voice.wav").write_bytes(audio_file(seconds=3))
    (voice,) = caption_clips(captioner, requests[1:], long="windows")
    assert "that makes 2 windows (at most 1)" in voice.error


def test_captions_of_paths(run, caplog, tmp_path):
    """A path gives a caption, several a list; the same captions that the script prints."""
    _, workdir, files, said, *_ = run
    captioner = Captioner.from_pretrained(workdir / "checkpoints" / "sft")
    paths = list(files.values())
    requests = [Request(str(path), said[name]) for name, path in files.items()]
    expected = [answer.captions[0].text for answer in caption_clips(captioner, requests, max_new_tokens=6)]
    transcripts = list(said.values())
    assert captioner.caption(paths, transcript=transcripts, max_new_tokens=6) == expected
    assert captioner.caption(str(paths[0]), transcript=transcripts[0], max_new_tokens=6) == expected[0]
    groups = captioner.caption(paths[:2], group_size=3, temperature=1.0, max_new_tokens=4)
    assert [len(group) for group in groups] == [3, 3]
    assert "2 of 2 clips came without what is said" in caplog.text
    with pytest.raises(ValueError, match="absent.wav: no such file"):
        captioner.caption([paths[0], "absent.wav"])
    with pytest.raises(ValueError, match="1 transcripts for 2 clips"):
        captioner.caption(paths[:2], transcript=["hello"])


def test_paths_beside_a_stage_are_explained(run):
    _, workdir, *_ = run
    with pytest.raises(CheckpointError, match=r"is a run; name one of its stages.*found: sft, text_only"):
        Captioner.from_pretrained(workdir)
    with pytest.raises(CheckpointError, match="no such directory.*RUN/checkpoints/STAGE"):
        Captioner.from_pretrained(workdir / "checkpoints" / "grpo")
    with pytest.raises(ConfigError, match="reads text only"):
        next(caption_clips(Captioner.from_pretrained(workdir / "checkpoints" / "text_only"), [Request("a.wav")]))


# --- requests ---------------------------------------------------------------------------------------------------------


def test_names_cannot_write_to_the_terminal():
    hostile = "a\x1b[2J\n\u202eb\udcff.wav"
    answer = Captioned(hostile, captions=(Caption("calm\x1b[1m voice", -1.0, True),))
    assert as_lines(answer) == ["a\\x1b[2J\\n\\u202eb\\xff.wav: calm\\x1b[1m voice"]
    assert as_error(Captioned(hostile, error="no\x07")) == "error: a\\x1b[2J\\n\\u202eb\\xff.wav: no\\x07"
    (line,) = as_json(answer)
    assert line.encode() and "\n" not in line and json.loads(line)["caption"] == "calm\x1b[1m voice"


def test_what_systems_leave_in_a_directory_is_no_clip(tmp_path):
    for name in ("a.wav", "._a.wav", ".DS_Store", "b.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find_requests([str(tmp_path)]) == [Request(str(tmp_path / "a.wav"))]
    (tmp_path / "a.wav").unlink()
    assert "holds no media files" in find_requests([str(tmp_path)])[0].problem


def test_arguments_become_requests(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.wav", "in/a.MP4", "in/x.txt", "in/deep/c.wav", "d.wav", "none/y.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    lines = ["d.wav\tHe said so. \n", "\n", "in/b.wav\n"]
    requests = find_requests(["in", "in/", "none", "absent.wav"], lines)
    assert [(r.clip, r.transcript, r.problem.partition(" (")[0]) for r in requests] == [
        ("in/a.MP4", "", ""),
        ("in/b.wav", "", ""),
        ("in/", "", "is named twice"),
        ("none", "", "holds no media files"),
        ("absent.wav", "", ""),
        ("d.wav", "He said so.", ""),
        ("in/b.wav", "", "is named twice"),
    ]


def test_files_that_are_too_large_are_not_read(omni, clips, monkeypatch):
    monkeypatch.setattr("mecap_jax.captioning.MAX_CLIP_BYTES", 1000)
    answer, folder = caption_clips(omni, [Request(str(clips / "a.wav")), Request(str(clips))])
    assert "bytes (at most 1000)" in answer.error and folder.error == "is not a file"


def test_one_batch_at_most_is_decoded_ahead():
    started, lock = [], threading.Lock()

    def decode(item):
        with lock:
            started.append(item)
        return item

    results = ahead(decode, range(100), 4, 2)
    for taken in range(1, 20):
        assert next(results) == taken - 1
        assert len(started) <= taken + 4
    results.close()
    assert len(started) <= 24


@needs_shared_data
def test_real_voices_and_faces(omni):
    voices = sorted((SHARED / "audio").rglob("*.flac"))[:2]
    requests = find_requests([*map(str, voices), str(SHARED / "video")])
    answers = list(caption_clips(omni, requests, batch=2, max_new_tokens=2))
    assert len(answers) == 4 and not [answer.error for answer in answers if answer.error]
    assert all(1 < answer.seconds < 6 for answer in answers)


@needs_shared_data
def test_real_voices_longer_than_training_clips(run):
    """RAVDESS takes last 3 to 5 s and begin and end in silence: what is said is in the stretch that is shown."""
    captioner = Captioner.from_pretrained(run[1] / "checkpoints" / "sft")
    voices = sorted((SHARED / "audio/ravdess").glob("*.flac"))[:12]
    answers = list(caption_clips(captioner, [Request(str(path)) for path in voices], max_new_tokens=2))
    for path, answer in zip(voices, answers, strict=True):
        assert not answer.error and answer.seconds > 2.4
        begin, end = answer.captions[0].window
        energy = np.square(decode_audio(path.read_bytes()))
        assert energy[round(begin * 16_000) : round(end * 16_000)].sum() > 0.9 * energy.sum(), path.name
