"""Clips with a label and no caption: of use where a reward judges by the label, or captions are made of labels."""

import pytest

from mecap_jax.config import load
from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.tasks.captioning import Captioning
from tests.data.clips import record

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


def test_silent_clips_say_nothing_of_the_captions_language():
    config = load("configs/grpo.py", ["grpo.reward.terms.emotion.options.against=label"])
    found = Captioning.from_config(config).check(config, [TOLD, LABELLED], [TOLD], [TOLD, LABELLED])
    assert found.problems == [] and not any("captions are in" in remark for remark in found.remarks)
