"""Batches: every clip once, the right media at the right tokens, the same on any number of processes, resumable."""

import dataclasses
import pickle
import time

import jax
import numpy as np
import pytest

from mecap_jax.config import AugmentConfig, Bucket, DataConfig
from mecap_jax.data import shards
from mecap_jax.data.clip_prompts import request_text
from mecap_jax.data.clips import ClipCache, DecodedClip, augment, join_features
from mecap_jax.data.collate import LaidOutPrompt, collate, needed
from mecap_jax.data.features import log_mel
from mecap_jax.data.media import MediaError, decode_audio, decode_stretches, decode_video
from mecap_jax.data.pipeline import ClipDataset, DataError
from mecap_jax.data.processor import Processor
from mecap_jax.data.processor_settings import ProcessorSettings
from mecap_jax.data.prompts import FeatureSpan, lay_out, user_turn
from mecap_jax.data.questions import Exercise
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.tokenizer import Tokenizer, train_tokenizer
from mecap_jax.data.utterance import Utterance
from mecap_jax.model_config import (
    AudioTowerConfig,
    DecoderConfig,
    FeatureProjectorConfig,
    ModelConfig,
    VisionTowerConfig,
)
from mecap_jax.tasks.captioning import Captioning
from tests.data.clips import audio_file, video_file

MODEL = ModelConfig(
    name="shapes",
    decoder=DecoderConfig(400, 8, 8, 1, 2, 1, 4),
    audio=AudioTowerConfig(
        num_mel_bins=16, d_model=8, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=8, n_window=20
    ),
    vision=VisionTowerConfig(8, 8, 1, 1, (), window_size=56),
    features=FeatureProjectorConfig(("face",), (3,), 8),
)
DATA = DataConfig(
    modalities=("audio", "video"),
    max_bad_fraction=0.5,
    fps=0,
    max_frames=4,
    min_pixels=56 * 56,
    max_pixels=56 * 56,
    buckets=(Bucket(120, 2, 2, 2), Bucket(260, 8, 2, 2)),
    sft_share=0.5,
)


def about(reader, data, model, tokenizer, known=()):
    """A data set of captioning."""
    return ClipDataset(reader, data, model, tokenizer, Captioning(data.target, data.instruction), known)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """18 short and 6 long clips: sound alone, picture alone, both."""
    short, long = (audio_file(seconds=s) for s in (0.5, 2.0))
    talking, silent = video_file(frames=12, sound="aac"), video_file(frames=12, sound=None)
    items = []
    for i in range(24):
        audio = long if i % 4 == 0 else short
        video = (None, talking, silent)[i % 3]
        items.append(
            Utterance(
                id=f"clip-{i:02}",
                dataset="test",
                split=("train", "train", "train", "validation")[i % 4],
                speaker=f"speaker-{i % 4}",
                transcript=f"Words number {i}.",
                audio=None if video is talking else audio if video is None or i % 2 else None,
                video=video,
                labels={"multimodal": "happy"},
                captions={"overall": tuple(f"caption {i} by {k}" for k in range(3))},
            )
        )
    directory = tmp_path_factory.mktemp("pipeline") / "shards"
    shards.write(items, directory, "a test", {"importer": "test"})
    return ShardReader(directory)


@pytest.fixture(scope="module")
def tokenizer(reader):
    texts = [row.transcript for row in reader.index] + [t for row in reader.index for t in row.captions["overall"]]
    return train_tokenizer([*texts, "user assistant Describe the speaker's emotion."], 400)


@pytest.fixture(scope="module")
def dataset(reader, tokenizer):
    return about(reader, DATA, MODEL, tokenizer)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"target": "style"}, "has no 'style' caption"),
        ({"modalities": ("video",)}, "has none of the modalities ('video',)"),
        ({"buckets": (Bucket(30, 8, 2, 2),)}, "largest of data.buckets: needs prompt_tokens = "),
    ],
)
def test_too_many_bad_clips_stop_the_run(reader, tokenizer, change, reason):
    with pytest.raises(DataError) as caught:
        about(reader, dataclasses.replace(DATA, max_bad_fraction=0.05, **change), MODEL, tokenizer)
    assert reason in str(caught.value) and "data.max_bad_fraction = 5.0%" in str(caught.value)


def test_what_the_import_left_out_is_listed_and_not_counted_again(reader, tokenizer, dataset, monkeypatch):
    gone = [{"id": f"gone-{i}", "reason": "no such file"} for i in range(24)]
    monkeypatch.setitem(reader.manifest, "quarantined", gone)
    found = about(reader, dataclasses.replace(DATA, max_bad_fraction=0.0), MODEL, tokenizer)
    assert [clip.id for clip in found.quarantined] == [clip["id"] for clip in gone]
    assert found.clips("train") == dataset.clips("train")


def test_shares_of_the_training_clips(dataset):
    train = dataset.clips("train")
    sft, held_out = dataset.clips("train", "sft"), dataset.clips("train", "held_out")
    assert sorted(sft + held_out) == sorted(train) and sft and held_out
    assert {dataset.index[row].split for row in train} == {"train"}


def test_what_is_not_known_is_not_quoted():
    assert request_text("Describe it.", "He left.") == '"He left." Describe it.'
    assert request_text("Describe it.", "") == request_text("Describe it.") == "Describe it."


def test_evaluation_visits_every_clip_once(dataset):
    rows = dataset.clips("train")
    seen = [int(row) for batch in dataset.evaluation_batches(rows, 4) for row in batch.numbers[batch.valid]]
    assert sorted(seen) == sorted(rows)


def test_evaluation_reads_ahead(dataset, monkeypatch):
    """The next batches are decoded while the first one is captioned, and not all of them."""
    rows, made, assemble = dataset.clips("train"), [], dataset.assemble
    monkeypatch.setattr(dataset, "assemble", lambda *args, **options: made.append(1) or assemble(*args, **options))
    batches = dataset.evaluation_batches(rows, 1)
    next(batches)
    patience = time.monotonic() + 30
    while len(made) < 2 and time.monotonic() < patience:
        time.sleep(0.01)
    assert 2 <= len(made) < len(rows)
    with pytest.raises(StopIteration):
        next(dataset.evaluation_batches([], 1))


def test_media_stand_where_the_tokens_point(dataset, tokenizer):
    for batch in dataset.evaluation_batches(dataset.clips("train"), 6):
        prompt = batch.prompt
        audio_slots = prompt.audio.shape[1] * MODEL.audio.chunk_tokens
        for b, row in enumerate(batch.numbers[batch.valid]):
            entry, n = dataset.index[row], prompt.length[b]
            tokens, index = prompt.tokens[b, :n], prompt.media_index[b, :n]
            is_audio, is_video = (
                tokens == tokenizer.special(t) for t in (tokenizer.media.audio, tokenizer.media.video)
            )
            assert is_audio.any() == entry.has_audio == bool(prompt.audio_frames[b].sum())
            assert is_video.any() == entry.has_video == bool((prompt.windows[b] >= 0).any())
            np.testing.assert_array_equal(index >= 0, is_audio | is_video)
            np.testing.assert_array_equal(index[is_audio], np.arange(is_audio.sum()))
            assert (index[is_video] >= audio_slots).all() and len(set(index[is_video])) == is_video.sum()
            # Every video token comes of patches that hold pixels.
            cells = index[is_video] - audio_slots
            assert (prompt.cell_positions[b].reshape(-1, 2)[cells] >= 0).all()
            assert (np.diff(prompt.positions[b, 0, :n]) >= -prompt.positions.max()).all()
            assert prompt.next_position[b] == prompt.positions[b, :, :n].max() + 1


def test_training_and_the_processor_see_the_same(dataset, tokenizer, reader):
    """One path from media to inputs: what is learnt from is what captions are asked for with."""
    settings = ProcessorSettings(video_min_pixels=DATA.min_pixels, video_max_pixels=DATA.max_pixels)
    processor = Processor(tokenizer, MODEL, settings)
    for batch in dataset.evaluation_batches(dataset.clips("train"), 6):
        conversations = []
        for row in batch.numbers[batch.valid]:
            utterance, content = reader[row], []
            if dataset.index[row].has_audio:
                sound = utterance.video if utterance.audio is None else utterance.audio
                content.append({"type": "audio", "audio": decode_audio(sound)})
            if utterance.video is not None:
                clip = decode_video(utterance.video, DATA.max_frames, DATA.fps)
                content.append({"type": "video", "video": clip.pixels, "fps": 1 / clip.seconds_per_frame})
            content.append({"type": "text", "text": dataset.ask(row).prompt})
            conversations.append([{"role": "user", "content": content}])
        bucket = Bucket(batch.prompt.tokens.shape[1], batch.prompt.audio.shape[1], *batch.prompt.windows.shape[1:3])
        counted = jax.tree.map(lambda x, valid=batch.valid: x[valid], batch.prompt)
        jax.tree.map(np.testing.assert_array_equal, processor(conversations, bucket=bucket), counted)


def test_a_batch_takes_the_smallest_bucket_that_holds_it(dataset):
    lengths = {
        (b.prompt.tokens.shape[1], bool(b.valid.all())) for b in dataset.evaluation_batches(dataset.clips("train"), 3)
    }
    assert {length for length, _ in lengths} == {120, 260}


def test_without_configured_shapes_those_of_the_data_hold_every_clip(reader, tokenizer):
    data = dataclasses.replace(DATA, buckets=())
    fitted = about(reader, data, MODEL, tokenizer)
    buckets = fitted.config.buckets
    rows = fitted.clips("train")
    seen = [int(row) for batch in fitted.evaluation_batches(rows, 4) for row in batch.numbers[batch.valid]]
    assert sorted(seen) == sorted(rows) and not fitted.quarantined
    assert "24 clips" in fitted.describe_shapes() or len(buckets) > 1
    # A run that goes on keeps its shapes, and other data add what they lack.
    known = (dataclasses.replace(buckets[-1], prompt_tokens=512),)
    assert about(reader, data, MODEL, tokenizer, known).config.buckets == known
    early = (dataclasses.replace(known[0], cells=0),)  # as a run before this one wrote it
    held = known[0].windows * MODEL.vision.window_cells
    assert about(reader, data, MODEL, tokenizer, early).config.buckets == (dataclasses.replace(early[0], cells=held),)
    small = (Bucket(40, 1),)
    assert about(reader, data, MODEL, tokenizer, small).config.buckets[0] == small[0]


def test_of_a_long_clip_the_beginning_is_seen(reader, tokenizer):
    """The prompt of a clip that is cut is that of a file which ends there."""
    long = about(reader, dataclasses.replace(DATA, max_seconds=0.5, fps=10), MODEL, tokenizer)
    row = next(i for i in long.clips("train") if reader.index[i].seconds == 2.0 and not reader.index[i].has_video)
    np.testing.assert_array_equal(
        long._decode(row).mel, log_mel(decode_audio(audio_file(seconds=2.0))[:8000], MODEL.audio.num_mel_bins)
    )
    film = next(i for i in long.clips("train") if reader.index[i].has_video)
    assert reader.index[film].video_seconds == pytest.approx(0.48, abs=0.01)
    brief = dataclasses.replace(DATA, max_seconds=0.2, max_frames=8, buckets=())
    cut = about(reader, brief, MODEL, tokenizer)
    (shown,) = decode_stretches(reader[film].video, [(0.0, 0.2)], 8, 0)
    assert shown.timestamps.max() < 0.2 and shown.seconds_per_frame == pytest.approx(0.04)
    assert len(cut._decode(film).frames) == len(shown.pixels) == 5
    for dataset in (long, cut):
        assert all(batch.valid.any() for batch in dataset.evaluation_batches(dataset.clips("train"), 4))


def tells(batch):
    """Which prompts of a batch say what is said."""
    return [bool(asked.transcript) for asked in batch.asked]


def test_transcripts_are_dropped_in_training_alone(reader, tokenizer):
    told_and_not = about(reader, dataclasses.replace(DATA, transcript_dropout=0.4), MODEL, tokenizer)
    told = []
    for batch in batches(told_and_not, steps=40):
        for b, row in enumerate(batch.numbers):
            text = tokenizer.decode(batch.prompt.tokens[b, : batch.prompt.length[b]])
            assert (reader.index[row].transcript in text) == bool(batch.asked[b].transcript)
            assert batch.asked[b] == told_and_not.ask(int(row), bool(batch.asked[b].transcript))
            assert batch.asked[b].prompt in text
        told += tells(batch)
    assert 0.5 < np.mean(told) < 0.7
    assert told == [tell for batch in batches(told_and_not, steps=40) for tell in tells(batch)]
    first, second = (
        np.array([tells(batch) for batch in batches(told_and_not, places, steps=40)]) for places in ((0, 1), (2, 3))
    )
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1).ravel(), told)
    for batch in told_and_not.evaluation_batches(told_and_not.clips("validation"), 6):
        assert all(tells(batch))


def test_a_hidden_modality_leaves_no_trace(dataset, tokenizer):
    deaf = dataset.with_modalities(("video",))
    for batch in deaf.evaluation_batches(dataset.clips("validation"), 6):
        assert not batch.prompt.audio.any() and not batch.prompt.audio_frames.any()
        assert not (batch.prompt.tokens == tokenizer.special(tokenizer.media.audio)).any()
    blind = dataset.with_modalities(())
    for batch in blind.evaluation_batches(dataset.clips("validation"), 6):
        assert (batch.prompt.media_index == -1).all()


def batches(dataset, places=None, steps=6, seed=3, augmentation=None):
    if augmentation is not None:
        dataset = about(dataset._reader, dataclasses.replace(DATA, augment=augmentation), MODEL, dataset._tokenizer)
    return dataset.training_batches(
        dataset.clips("train"), batch_size=4, steps=steps, seed=seed, references=2, max_target_tokens=12, places=places
    )


AUGMENT = AugmentConfig(0.5, 3.0, 10, 4, 0.2, 2)


def test_processes_divide_a_batch_and_change_nothing(dataset):
    whole = list(batches(dataset, augmentation=AUGMENT))
    # The second one has a place more than there are rows.
    parts = zip(batches(dataset, (2, 0), augmentation=AUGMENT), batches(dataset, (1, 3, 4), augmentation=AUGMENT))
    for batch, (first, second) in zip(whole, parts, strict=True):
        asked = [[*first.asked, *second.asked][i] for i in (1, 2, 0, 3)]
        joined = jax.tree.map(
            lambda a, b: np.concatenate([a, b])[[1, 2, 0, 3]], first._replace(asked=()), second._replace(asked=())
        )
        jax.tree.map(np.testing.assert_array_equal, joined, batch._replace(asked=()))
        assert asked == batch.asked
        assert second.valid.tolist() == [True, True, False] and not second.targets.mask[2].any()
        assert (second.prompt.media_index[2] == -1).all() and second.prompt.length[2] > 0


def test_a_batch_is_divided_by_rows(dataset):
    (whole, *_) = batches(dataset)
    parts = whole.split(2)
    assert [len(part.numbers) for part in parts] == [2, 2]
    assert [asked for part in parts for asked in part.asked] == whole.asked
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(part._replace(asked=()) for part in parts))
    jax.tree.map(np.testing.assert_array_equal, joined, whole._replace(asked=()))
    assert whole._replace(targets=None).split(2)[1].targets is None


def test_the_seed_decides_and_an_iterator_resumes(dataset):
    first = list(batches(dataset))
    assert any(not np.array_equal(a.numbers, b.numbers) for a, b in zip(first, batches(dataset, seed=4)))
    iterator = iter(batches(dataset))
    for _ in range(2):
        next(iterator)
    state = iterator.get_state()
    again = iter(batches(dataset))
    again.set_state(state)
    for expected in first[2:]:
        jax.tree.map(np.testing.assert_array_equal, next(again), expected)


def test_targets_are_references_with_their_end(dataset, tokenizer):
    for batch in batches(dataset):
        for b, row in enumerate(batch.numbers):
            texts = set()
            for tokens, mask in zip(batch.targets.tokens[b], batch.targets.mask[b]):
                ids = tokens[mask]
                assert len(ids) == 12 or ids[-1] == tokenizer.end_ids[0]
                texts.add(tokenizer.decode(ids))
            assert len(texts) == 2  # drawn without repetition
            assert all(any(r.startswith(text) for r in dataset.targets(int(row))) for text in texts)


def test_a_clip_that_cannot_be_decoded_does_not_count(dataset, tokenizer, monkeypatch, caplog):
    victim = dataset.clips("train")[0]
    fresh = about(dataset._reader, DATA, MODEL, tokenizer)
    decode = fresh._decode

    def failing(row):
        if row == victim:
            raise MediaError("the disk is \x1b[31m on fire")
        return decode(row)

    monkeypatch.setattr(fresh, "_decode", failing)
    (batch,) = fresh.evaluation_batches([victim], 1, references=2, max_target_tokens=8)
    assert not batch.valid.any() and not batch.targets.mask.any()
    assert "the disk is \\x1b[31m on fire" in caplog.text and fresh.index[victim].id in caplog.text
    assert batch.prompt.length[0] > 0  # the row keeps the text of its prompt: no empty softmax anywhere


def test_reader_processes_get_a_dataset_without_its_cache(dataset):
    list(dataset.evaluation_batches(dataset.clips("train"), 4))
    assert len(pickle.dumps(dataset._cache)) < 1000
    assert dataset._cache._clips


def test_reader_processes_share_a_budget():
    clip = DecodedClip(mel=np.zeros((1024, 256), np.float32))  # one mebibyte
    cache = ClipCache(budget_mb=2, readers=2)
    for number in range(2):
        cache.get(number, lambda _: clip)
    copy, calls = pickle.loads(pickle.dumps(cache)), []
    for number in (0, 1, 0, 1):
        copy.get(number, lambda number: calls.append(number) or clip)
    assert calls == [0, 1, 1]


def test_the_cache_keeps_to_its_budget():
    clip, calls = DecodedClip(mel=np.zeros((1024, 256), np.float32)), []  # one mebibyte

    def decode(row):
        calls.append(row)
        return clip

    cache = ClipCache(budget_mb=2)
    for row in (0, 1, 2, 0, 1, 2):
        cache.get(row, decode)
    assert calls == [0, 1, 2, 2]


def test_augmentation_stays_within_its_limits():
    rng = np.random.default_rng(0)
    clip = DecodedClip(
        mel=rng.normal(size=(50, 16)).astype(np.float32), frames=rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    )
    off = augment(clip, AugmentConfig(), rng)
    np.testing.assert_array_equal(off.mel, clip.mel)
    np.testing.assert_array_equal(off.frames, clip.frames)
    dropped = {"mel": 0, "frames": 0}
    for _ in range(300):
        changed = augment(clip, AugmentConfig(modality_dropout=0.5, gain_db=4.0), rng)
        assert changed.mel is not None or changed.frames is not None
        dropped["mel"] += changed.mel is None
        dropped["frames"] += changed.frames is None
        if changed.mel is not None:
            np.testing.assert_allclose(changed.mel - clip.mel, (changed.mel - clip.mel)[0, 0], atol=1e-5)
            assert abs((changed.mel - clip.mel)[0, 0]) <= 0.1 + 1e-6  # 4 dB on Whisper's log10 / 4 scale
    assert 50 < dropped["mel"] < 100 and 50 < dropped["frames"] < 100
    masked = augment(clip, AugmentConfig(time_mask_frames=5, frequency_mask_bins=3), rng).mel
    assert ((masked != clip.mel).all(1).sum() <= 5) and ((masked != clip.mel).all(0).sum() <= 3)


def test_noise_on_features_is_new_each_time_and_moves_no_other_draw():
    clip = DecodedClip(mel=np.ones((50, 16), np.float32), features=np.ones((1, 2000), np.float32))
    rng = np.random.default_rng(0)
    first, second = (augment(clip, AugmentConfig(feature_noise=0.5), rng).features - clip.features for _ in range(2))
    assert first.dtype == np.float32 and abs(first.std() - 0.5) < 0.05 and abs(first.mean()) < 0.05
    assert abs(np.corrcoef(first[0], second[0])[0, 1]) < 0.1
    draws = []
    for some in (clip, clip.without(("features",))):
        augment(some, AugmentConfig(feature_noise=0.5), rng := np.random.default_rng(0))
        draws.append(rng.random())
    assert draws[0] == draws[1]


def test_features_become_tokens(tokenizer):
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    layout = lay_out(tokenizer, MODEL, user_turn(["features"], "Describe."), [FeatureSpan(4)])
    row = LaidOutPrompt(layout, features=features)
    need = needed(row, MODEL)
    assert need.feature_frames == 4 and need.audio_chunks == need.frames == 0
    batch = collate([row], Bucket(len(layout.tokens) + 3, 1, 1, 1, 6), MODEL, pad_id=0)
    places = np.flatnonzero(batch.media_index[0] >= 0)
    start = MODEL.audio.chunk_tokens + MODEL.vision.window_cells
    np.testing.assert_array_equal(batch.media_index[0, places], start + np.arange(4))
    np.testing.assert_array_equal(batch.features[0, :4], features)
    with pytest.raises(ValueError, match="row 0 does not fit: it needs prompt_tokens"):
        collate([row], Bucket(4, 0, 0, 0, 6), MODEL, pad_id=0)


def test_one_vector_for_the_utterance_stands_beside_every_frame():
    config = FeatureProjectorConfig(("face-FRA", "voice-UTT"), (3, 2), 8)
    arrays = {"face-FRA": np.arange(12).reshape(4, 3), "voice-UTT": np.array([[7, 8]]), "other": np.ones(5)}
    joined = join_features(arrays, config)
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, np.hstack([arrays["face-FRA"], np.tile([7, 8], (4, 1))]))


@pytest.fixture(scope="module")
def featured(tmp_path_factory):
    """Clips with precomputed features: as the model reads them, of one vector beside frames, others, too wide."""
    features = {
        "good": {"face": np.ones((5, 3)), "voice": np.ones((5, 2))},
        "vector": {"face": np.ones((1, 3)), "voice": np.ones((7, 2)), "unread": np.ones((90, 4))},
        "others": {"posture": np.ones((5, 3))},
        "wide": {"face": np.ones((5, 4)), "voice": np.ones((5, 2))},
    }
    items = [
        Utterance(
            id=name,
            dataset="test",
            split="train",
            speaker="someone",
            features={kind: array.astype(np.float32) for kind, array in arrays.items()},
            captions={"overall": ("sad",)},
        )
        for name, arrays in features.items()
    ]
    directory = tmp_path_factory.mktemp("features") / "shards"
    shards.write(items, directory, "a test", {"importer": "test"})
    return ShardReader(directory)


def test_clips_whose_features_the_model_cannot_read_are_left_out(featured, tokenizer):
    model = dataclasses.replace(MODEL, features=FeatureProjectorConfig(("face", "voice"), (3, 2), 8))
    buckets = (Bucket(120, feature_frames=5), Bucket(120, feature_frames=7))
    data = dataclasses.replace(DATA, modalities=("features",), buckets=buckets)
    dataset = about(featured, data, model, tokenizer)
    reasons = {clip.id: clip.reason for clip in dataset.quarantined}
    assert set(reasons) == {"others", "wide"}
    assert "lacks the features 'face'; it has ['posture']" in reasons["others"]
    assert "features 'face' have the shape [5, 4]" in reasons["wide"]
    # What is foreseen from the index is what decoding gives.
    batches = list(dataset.evaluation_batches(dataset.clips("train"), 1))
    assert {dataset.index[int(b.numbers[0])].id: int(b.prompt.features.shape[1]) for b in batches} == {
        "good": 5,
        "vector": 7,
    }
    assert all(batch.valid.all() for batch in batches)


def test_a_template_that_leaves_media_out_is_the_clips_problem(reader, tokenizer):
    deaf = Tokenizer(tokenizer._backend, template="{{ messages[0].content[-1].text }}")
    with pytest.raises(DataError, match=r"the rendered prompt has placeholders for \[\]"):
        about(reader, DATA, MODEL, deaf)


# --- exercises ------------------------------------------------------------------------------------------------------


class Drilled(Captioning):
    """Captioning with exercises: with the media one about the other clip, and one about the words alone."""

    def exercise(self, record, other, rng):
        if rng.random() < 0.5:
            return Exercise(f"Is it {other.id}?", "yes" if other.id == record.id else "no", media=True)
        return Exercise(f"Which is it? {record.id}" + "?" * 200 * (record.id == "clip-01"), record.id, media=False)


@pytest.fixture(scope="module")
def drilled(reader, tokenizer):
    return ClipDataset(reader, DATA, MODEL, tokenizer, Drilled(DATA.target, DATA.instruction))


def exercised(dataset, share, **options):
    numbers = dataset.clips("train")
    return dataset.training_batches(
        numbers, batch_size=4, steps=20, seed=3, references=2, max_target_tokens=12, exercises=share, **options
    )


def test_exercises_take_the_place_of_what_the_task_asks(drilled, tokenizer):
    media, seen = {tokenizer.special(tokenizer.media.audio), tokenizer.special(tokenizer.media.video)}, []
    for batch in exercised(drilled, 0.5):
        for b, (row, asked) in enumerate(zip(batch.numbers, batch.asked)):
            text = tokenizer.decode(batch.prompt.tokens[b, : batch.prompt.length[b]])
            answer = tokenizer.decode(batch.targets.tokens[b, 0][batch.targets.mask[b, 0]])
            assert asked.prompt in text
            seen.append(asked.prompt.partition(" ")[0])
            if seen[-1] in ("Is", "Which"):
                assert batch.targets.mask[b, 1].any() and asked.targets == (answer,)
                assert bool(media & set(batch.prompt.tokens[b])) == (seen[-1] == "Is")
            else:
                assert any(reference.startswith(answer) for reference in drilled.targets(int(row)))
            # An exercise that has no room in the shape is left out.
            assert seen[-1] != "Which" or batch.prompt.tokens.shape[1] > 120 or drilled.index[row].id != "clip-01"
    assert 0.15 < seen.count("Is") / len(seen) < 0.35 and 0.1 < seen.count("Which") / len(seen) < 0.35


def test_exercises_are_drawn_by_place_and_change_nothing_where_there_are_none(dataset, drilled):
    parts = [exercised(drilled, 0.5, places=places) for places in ((0, 1), (2, 3))]
    for whole, *halves in zip(exercised(drilled, 0.5), *parts):
        assert [asked.prompt for half in halves for asked in half.asked] == [asked.prompt for asked in whole.asked]
    for plain, never, none in zip(exercised(dataset, 0.0), exercised(drilled, 0.0), exercised(dataset, 0.5)):
        jax.tree.map(np.testing.assert_array_equal, plain.prompt, never.prompt)
        jax.tree.map(np.testing.assert_array_equal, plain.targets, never.targets)
        assert [asked.prompt for asked in plain.asked] == [asked.prompt for asked in none.asked]
