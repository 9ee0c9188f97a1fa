"""Shapes follow from the data: they hold every clip, nest, are few, and save more than another program costs."""

import dataclasses

import numpy as np
import pytest

from mecap_jax.config import Bucket, DataConfig, load
from mecap_jax.data.collate import collate
from mecap_jax.data.fitting import (
    bucket_for,
    choose_buckets,
    extend_buckets,
    fit_to_data,
    fits,
    of_modalities,
    positions,
)
from mecap_jax.model_config import ModelConfig
from tests.data.test_checks import clip

MODEL = ModelConfig.tiny()


def needs(seconds, pictures):
    """What clips of these lengths need."""
    chunks = -(-(100 * seconds).astype(int) // MODEL.audio.chunk_frames)
    return [
        Bucket(20 + 30 * n + 16 * p, n, p, int(p > 0), cells=4 * int(p > 0))
        for n, p in zip(chunks.tolist(), (4 * pictures).tolist())
    ]


def work(sizes, buckets):
    return sum(next(positions(b, MODEL) for b in buckets if fits(size, b)) for size in sizes)


@pytest.mark.parametrize("seed", range(5))
def test_shapes_hold_every_clip_nest_and_save_padding(seed):
    rng = np.random.default_rng(seed)
    sizes = needs(rng.lognormal(1, 0.6, 300), rng.random(300) < 0.8)
    buckets = choose_buckets(sizes, MODEL)
    assert 1 < len(buckets) <= 3 and all(fits(a, b) for a, b in zip(buckets, buckets[1:]))
    assert all(fits(size, buckets[-1]) for size in sizes)
    assert work(sizes, buckets) < 0.85 * work(sizes, buckets[-1:])
    # What rounding costs on top of the sizes themselves.
    assert positions(buckets[-1], MODEL) < 1.125 * positions(
        Bucket(*np.max([dataclasses.astuple(s) for s in sizes], 0)), MODEL
    )


def test_alike_clips_share_one_shape_and_a_rare_long_one_does_not_cost_the_others():
    alike = needs(np.linspace(1.3, 2.3, 100), np.ones(100, bool))
    (bucket,) = choose_buckets(alike, MODEL)

    with_long = [*alike, *needs(np.array([25.0]), np.ones(1, bool))]
    buckets = choose_buckets(with_long, MODEL)
    assert buckets[0] == bucket and len(buckets) == 2


def test_similar_data_share_their_programs():
    first, second = (choose_buckets([Bucket(n, 4)], MODEL) for n in (121, 127))
    assert first == second


def test_other_data_add_a_shape_only_where_they_need_one():
    known = (Bucket(64, 2), Bucket(128, 4))
    assert extend_buckets(known, [Bucket(100, 3)]) == known
    assert extend_buckets(known, [Bucket(40, 1), Bucket(150, 3), Bucket(90, 3, 2, 1)]) == (*known, Bucket(160, 4, 2, 1))


def test_no_clips_no_shapes():
    with pytest.raises(ValueError, match="no clips"):
        choose_buckets([], MODEL)


def test_modalities_and_length_follow_from_the_clips():
    data = DataConfig()
    voices = [clip(0, seconds=4.0, video_seconds=0.0, has_video=False), clip(1, seconds=7.5, has_video=False)]
    fitted = fit_to_data(data, voices)
    assert (fitted.modalities, fitted.max_seconds) == (("audio",), 7.5)
    assert fit_to_data(fitted, voices) == fitted
    assert fit_to_data(data, [*voices, clip(2, seconds=80.0)]).max_seconds == 30
    assert fitted.include_transcript
    assert not fit_to_data(data, [clip(0, transcript=""), clip(1, transcript="")]).include_transcript
    asked = dataclasses.replace(data, max_seconds=900.0)
    assert fit_to_data(asked, voices).max_seconds == 300  # all that the sound's front end takes
    assert fit_to_data(dataclasses.replace(asked, max_seconds=5.0), voices).max_seconds == 5
    silent = [clip(0, has_audio=False, video_seconds=3.0)]
    assert fit_to_data(asked, silent).modalities == ("video",) and fit_to_data(asked, silent).max_seconds == 900


def test_a_plan_without_data():
    config = load("configs/grpo.py:qwen2_5_omni_3b")
    bucket = bucket_for(10, config.data, config.model)
    assert (bucket.audio_chunks, bucket.frames) == (5, 8)
    assert bucket.prompt_tokens == 128 + 250 + 8 * 11 * 11 and (bucket.windows, bucket.cells) == (9, 11 * 11)


def test_a_clip_travels_as_its_pixels():
    """One byte each, and nothing to speak of beside them: windows are filled up on the device."""
    config = load("configs/grpo.py:qwen2_5_omni_3b")
    prompt = collate([], bucket_for(8, config.data, config.model), config.model, 0)
    video = (prompt.patches, prompt.cell_positions, prompt.windows)
    size = sum(np.prod(x.shape[1:]) * x.dtype.itemsize for x in video)
    assert size < 1.01 * 16 * 308 * 308 * 3


def test_shapes_of_earlier_runs_hold_what_their_windows_do():
    (old,) = of_modalities([Bucket(64, 2, 2, 3)], ("audio", "video"), MODEL)
    assert old == Bucket(64, 2, 2, 3, cells=3 * 4)
    assert of_modalities([Bucket(64, 2, 2, 3, cells=7)], ("audio",), MODEL) == (Bucket(64, 2),)
    # No frame has more cells than its windows.
    assert of_modalities([Bucket(64, 2, 2, 3, cells=90)], ("video",), MODEL) == (Bucket(64, 0, 2, 3, cells=12),)
