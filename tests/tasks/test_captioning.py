"""Clips with a label and no caption: of use where a reward judges by the label, or captions are made of labels."""

import numpy as np
import pytest

from mecap_jax.config import RewardConfig, RewardSpec, load
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.tasks.base import Judges
from mecap_jax.tasks.captioning import Captioning
from tests.data.clips import record
from tests.rewards.captions import CAPTIONS
from tests.rewards.conftest import anchors, encoder, sample  # noqa: F401

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
    ids=str,
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


def test_silent_clips_say_nothing_of_the_captions_language():
    config = load("configs/grpo.py", ["grpo.reward.terms.emotion.options.against=label"])
    found = Captioning.from_config(config).check(config, [TOLD, LABELLED], [TOLD], [TOLD, LABELLED])
    assert found.problems == [] and not any("captions are in" in remark for remark in found.remarks)


def test_a_caption_of_a_silent_clip_is_judged_by_the_label(encoder, anchors):  # noqa: F811
    terms = (RewardSpec("emotion", 2.0, options={"against": "label"}), RewardSpec("fluency"), RewardSpec("cider_d"))
    task = Captioning("overall", "Describe.", by_label=True)
    train = [record(f"clip-{i}", captions={"overall": texts[:3]}) for i, texts in enumerate(CAPTIONS.values())]
    reward = task.rewards(RewardConfig(terms), Judges(encoder, anchors["captions"], [*train, LABELLED]))
    samples = [
        sample(text, label=label, group=group)
        for group, label in enumerate(CAPTIONS)
        for text in (CAPTIONS[label][5], CAPTIONS[list(CAPTIONS)[group - 3]][5])
    ]
    judged = reward(samples)
    right, wrong = judged.terms["emotion"].reshape(-1, 2).T
    assert (right > wrong).all() and (right - wrong).mean() > 0.3
    assert np.isnan(judged.terms["cider_d"]).all() and np.isfinite(judged.total).all() and judged.failures == {}
