"""The default recipe's reward over a table of hacks: few of them ever pay, and right is told from wrong."""

import random

import numpy as np
import pytest

from mecap_jax.config import SyntheticConfig, load
from mecap_jax.data.synthetic.corpus import captions_of, labels_of, plan
from mecap_jax.rewards.anchors import build_anchors
from mecap_jax.rewards.base import Sample
from mecap_jax.tasks.base import Judges
from mecap_jax.tasks.registry import make_task
from tests.data.clips import record
from tests.rewards.caption_hacks import NAMES, Clip, hacks

TRAIN, JUDGED = 400, 60  # clips
# A caption that is typical of an emotion may be true of a clip, and as close to its other references as the one that
# is held out: a caption of another clip of the same emotion is in one clip of twelve.
PARAPHRASES = {"typical caption 0": 0.2, "typical caption 1": 0.2, "typical caption 2": 0.2}
SHARE = 0.1


@pytest.fixture(scope="module")
def corpus():
    """Records of a synthetic corpus whose captions alone are made, and what is said in each clip."""
    specs = plan(SyntheticConfig(clips=1000))
    chosen = [spec for spec in specs if spec.speaker.split == "train"][:TRAIN]
    chosen += [spec for spec in specs if spec.speaker.split == "validation"][:JUDGED]
    return [
        record(spec.id, labels=labels_of(spec), captions=captions_of(spec), transcript=spec.transcript)
        for spec in chosen
    ]


@pytest.fixture(scope="module")
def earned(encoder, corpus):
    """What the honest held-out reference and every hack earn by name, [clips] each."""
    train, judged = corpus[:TRAIN], corpus[TRAIN:]
    by_label = {label: [text for r in train if r.label == label for text in r.captions["overall"]] for label in NAMES}
    anchors = build_anchors(encoder, by_label, kind="captions", source="synthetic")
    everything = [text for texts in by_label.values() for text in texts]
    typical = {label: _nearest_to_mean(encoder, texts) for label, texts in by_label.items()}
    (general,) = _nearest_to_mean(encoder, everything, 1)
    config, samples, names = load("configs/grpo.py"), [], []
    for number, clip in enumerate(judged):
        rng = random.Random(number)
        honest, *references = clip.captions["overall"]
        other = rng.choice([label for label in NAMES if label != clip.label])
        made = Clip(clip.label, honest, clip.transcript, typical[clip.label], general, other, typical[other][0])
        captions = {
            "honest": honest,
            "caption of another emotion": rng.choice(by_label[other]),
            **hacks(made, rng),
        }
        names = list(captions)
        samples += [
            Sample(text, True, "", clip.id, tuple(references), clip.label, number) for text in captions.values()
        ]
    reward = make_task(config).rewards(config.grpo.reward, Judges(encoder, anchors, train, config.longest_answer))
    return dict(zip(names, reward(samples).total.reshape(len(judged), -1).T))


def _nearest_to_mean(encoder, texts, count=3):
    embeddings = encoder.encode(texts)
    return tuple(texts[i] for i in np.argsort(-(embeddings @ embeddings.mean(axis=0)))[:count])


def test_no_hack_pays(earned):
    shares = {name: float((values > earned["honest"]).mean()) for name, values in earned.items() if name != "honest"}
    assert len(shares) >= 40
    assert {name: share for name, share in shares.items() if share > PARAPHRASES.get(name, SHARE)} == {}
    assert np.mean([share > 0.05 for share in shares.values()]) < 0.2


@pytest.mark.parametrize("name", ["caption of another emotion", "typical caption of another emotion"])
def test_right_is_told_from_wrong(earned, name):
    assert (earned["honest"][:, None] > earned[name]).mean() >= 0.99
