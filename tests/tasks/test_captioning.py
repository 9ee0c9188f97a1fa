"""Clips with a label and no caption: of use where a reward judges by the label, or captions are made of labels."""

import dataclasses

import pytest

from mecap_jax.config import load
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.rewards.anchors import build_anchors
from mecap_jax.tasks.captioning import Captioning
from tests.data.clips import record
from tests.rewards.conftest import TableEncoder

TOLD = record("told", labels={"multimodal": "happy"}, captions={"overall": ("She laughs.",)}, split="train")
LABELLED = record("labelled", labels={"multimodal": "angry"}, captions={}, split="train")
UNKNOWN = record("unknown", labels={}, captions={}, split="train")
UNSEEN = record("unseen", labels={"multimodal": "angry"}, captions={}, split="test")


@pytest.mark.parametrize(
    "changes, used, taught",
    [
        ([], {"told"}, {"told"}),
        (["grpo.reward.terms.emotion.options.against=label"], {"told", "labelled"}, {"told"}),
        (["data.label_captions=en"], {"told", "labelled"}, {"told", "labelled"}),
    ],
    ids=["captions", "reward by the label", "captions from the label"],
)
def test_which_clips_are_used_and_which_teach_words(changes, used, taught):
    """Clips to be evaluated on always need references."""
    task = Captioning.from_config(load("configs/grpo.py", changes))
    clips = (TOLD, LABELLED, UNKNOWN, UNSEEN)
    assert {clip.id for clip in clips if task.usable(clip) is None} == used
    assert {clip.id for clip in clips if task.targets(clip)} == taught
    assert task.usable(UNKNOWN) == "has no 'overall' caption" and task.targets(TOLD) == ("She laughs.",)
    if "labelled" in taught:
        assert {first_emotion_word(text) for text in task.targets(LABELLED)} == {"angry"}


def test_captions_without_a_word_give_way_to_templates():
    task = Captioning.from_config(load("configs/grpo.py", ["data.label_captions=en"]))
    taught = task.targets(dataclasses.replace(LABELLED, captions={"overall": ("😢",)}))
    assert "😢" not in taught and {first_emotion_word(text) for text in taught} == {"angry"}


def test_a_label_that_nothing_stands_for_judges_no_clip(tmp_path):
    config = load("configs/grpo.py", ["grpo.reward.terms.emotion.options.against=label"])
    sad = record("sad", labels={"multimodal": "sad"}, captions={"overall": ("She weeps.",)}, split="train")

    def problems(config, *train):
        return Captioning.from_config(config).check(config, train, [TOLD], train).problems

    (problem,) = problems(config, TOLD, sad, LABELLED)
    assert "by the anchor of their label, and there is none for 'angry' (1 clips)" in problem
    # Anchors from template phrases have the usual labels, those of a file what is in it.
    odd = dataclasses.replace(LABELLED, labels={"multimodal": "smug"})
    assert problems(config, TOLD, LABELLED) == [] and "'smug' (1 clips)" in problems(config, TOLD, odd)[0]
    table = TableEncoder({"grim": [1, 0], "glad": [0, 1]})
    path = tmp_path / "a.safetensors"
    build_anchors(table, {"smug": ["grim"], "happy": ["glad"]}, kind="templates", source="a test").save(path)
    named = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, anchors=str(path)))
    assert problems(named, TOLD, odd) == [] and "'angry' (1 clips)" in problems(named, TOLD, LABELLED)[0]


def test_chinese_templates_are_foreign_to_an_english_encoder():
    config = load("configs/grpo.py", ["data.label_captions=zh"])
    (problem,) = Captioning.from_config(config).check(config, [TOLD, LABELLED], [TOLD], [TOLD, LABELLED]).problems
    assert problem.startswith("captions are in 'zh' (1 clips), and the packaged sentence encoder reads English only")


def test_silent_clips_say_nothing_of_the_captions_language():
    config = load("configs/grpo.py", ["grpo.reward.terms.emotion.options.against=label"])
    found = Captioning.from_config(config).check(config, [TOLD, LABELLED], [TOLD], [TOLD, LABELLED])
    assert found.problems == [] and not any("captions are in" in remark for remark in found.remarks)
