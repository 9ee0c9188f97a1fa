"""Checks of index and configuration, case by case: what stops a run, what is worked around, and what is said."""

import dataclasses

import pytest

from mecap_jax.config import load
from mecap_jax.data.checks import check_data, references, remark_on_length
from mecap_jax.rewards.anchors import build_anchors
from mecap_jax.tasks.captioning import Captioning
from tests.data.clips import record
from tests.rewards.conftest import TableEncoder

SIZES = ("data.sft_share=0.5", "grpo.clips=held_out", "sft.batch_clips=8", "grpo.prompts=8", "grpo.micro_prompts=0")
RECIPE = load("configs/grpo.py", SIZES)
LABELS = ("happy", "sad", "angry")


def clip(i, split="train", **changes):
    """A clip of the index with sound and pictures, one of three emotions."""
    label = LABELS[i % 3]
    captions = {"overall": (f"a {label} voice", f"sounds {label}")}
    about = dict(position=i, speaker=f"{split}-{i % 5}", labels={"multimodal": label}, captions=captions)
    return record(f"{split}-{i}", **dict(split=split, **about) | changes)


def check(rows, config):
    """What the checks of captioning find."""
    return check_data(rows, config, Captioning.from_config(config))


def corpus(**changes):
    """Forty training clips, ten of the other splits each; `changes` are those of every clip."""
    sizes = {"train": 40, "validation": 10, "test": 10}
    return [clip(i, split, **changes) for split, size in sizes.items() for i in range(size)]


def without(split):
    return [row for row in corpus() if row.split != split]


def test_a_sound_corpus_passes_without_a_word():
    found = check(corpus(), RECIPE)
    assert (found.config, found.problems, found.remarks) == (RECIPE, (), ())


@pytest.mark.parametrize(
    "rows, overrides, problem",
    [
        ([clip(i) for i in range(40)], (), "no clip is in split test or validation"),
        (without("train"), (), "'sft.batch_clips': 8 clips a step, but only 0 train"),
        (corpus(), ("sft.batch_clips=41",), "'sft.batch_clips': 41 clips a step, but only 40 train; lower it"),
        (corpus(), ("grpo.prompts=48",), "'grpo.prompts': 48 clips a step, but only 40 train"),
        (corpus(captions={}), (), "60 x has no 'overall' caption"),
        (corpus(captions={"overall": ("😢",)}), (), "60 x has no 'overall' caption with a word in it"),
        (corpus(has_audio=False, has_video=False), (), "60 x has none of the modalities ('audio', 'video')"),
        (
            corpus(captions={"overall": ("他的声音低沉而悲伤",)}),
            (),
            "captions are in 'zh' (60 clips), and the packaged",
        ),
    ],
)
def test_what_a_run_cannot_work_with_stops_it(rows, overrides, problem):
    config = load("configs/grpo.py", [*SIZES, *overrides])
    assert any(problem in text for text in check(rows, config).problems)


def test_all_problems_are_said_at_once():
    rows = [clip(i, captions={"overall": ("悲伤",)} if i else {}) for i in range(6)]
    found = check(rows, RECIPE)
    words = ("1 of 6 clips cannot be used", "test or validation", "sft.batch_clips", "grpo.prompts", "encoder.path")
    assert len(found.problems) == len(words)
    assert all(word in text for word, text in zip(words, found.problems))


@pytest.mark.parametrize(
    "rows, remark",
    [
        (without("test"), "no clip is in split test: the report is on the 10 validation clips"),
        (without("validation"), "no clip is in split validation: nothing is validated"),
        (corpus(has_video=False), "no clip has video: the model sees audio"),
        (corpus(seconds=40.0), "60 of 60 clips last longer than 30 s (data.max_seconds) and are cut there"),
        (corpus(labels={}), "no emotion labels, too few for anchors of their own: anchors come from template phrases"),
        (corpus(labels={"multimodal": "sad"}), "1 emotion label, too few for anchors"),
        (
            [*corpus(), clip(11, "test", labels={"multimodal": "calm"})],
            "labels that training never sees count as missed in evaluation: 'calm' (1 clips)",
        ),
        (
            corpus(language="de"),
            "captions count as English because their script does not say otherwise",
        ),
        ([*corpus(), clip(40, captions={"overall": ("sad", "😢")})], "1 reference without a word left out: '😢'"),
        ([*corpus(), clip(40, captions={"overall": ("悲伤",)})], "captions are in 'zh' (1 clips), and the packaged"),
        (
            [*corpus(), clip(40, speaker="test-1")],
            "1 speaker of the evaluated clips occur in training clips, too: test-1",
        ),
    ],
)
def test_what_can_be_worked_around_is_said(rows, remark):
    found = check(rows, RECIPE)
    assert not found.problems and len(found.remarks) == 1 and remark in found.remarks[0]


def test_a_share_that_fills_no_batch_gives_way_to_all_clips():
    config = dataclasses.replace(RECIPE, data=dataclasses.replace(RECIPE.data, sft_share=0.99))
    found = check(corpus(), config)
    assert found.config.grpo.clips == "all" and found.config.sft == RECIPE.sft and not found.problems
    (remark,) = found.remarks
    assert remark.startswith("what is held out from SFT is ") and "grpo learns from all 40 training clips" in remark


def test_anchors_from_a_file(tmp_path):
    table = {"joy": [1, 0], "grief": [0, 1]}
    texts = {"happy": ["joy"], "sad": ["grief"]}
    build_anchors(TableEncoder(table), texts, kind="templates", source="a test").save(tmp_path / "a.safetensors")
    encoder = dataclasses.replace(RECIPE.encoder, anchors=str(tmp_path / "a.safetensors"))
    found = check(corpus(), dataclasses.replace(RECIPE, encoder=encoder))
    assert found.remarks == (
        "the anchors of config key 'encoder.anchors' lack labels of the clips: angry",
        "labels that training never sees count as missed in evaluation: 'angry' (3 clips)",
    )


def test_a_multilingual_encoder_and_stages_without_it_take_chinese():
    rows = corpus(captions={"overall": ("悲伤",)})
    encoder = dataclasses.replace(RECIPE.encoder, path="multilingual")
    assert check(rows, dataclasses.replace(RECIPE, encoder=encoder)).problems == ()
    found = check(rows, dataclasses.replace(RECIPE, grpo=None))
    assert not found.problems and "figures that rest on it say nothing of these clips" in found.remarks[0]


def test_references_say_something():
    row = clip(0, captions={"overall": ("sad", "...", "😢", "悲伤")})
    assert references(row, "overall") == ("sad", "悲伤") and references(row, "style") == ()


def test_lengths_within_the_limit_need_no_remark():
    assert remark_on_length(corpus(), 2.0) is None
    assert remark_on_length(corpus(video_seconds=2.5), 2.0).endswith("the longest lasts 2.5 s")
