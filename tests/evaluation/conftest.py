"""A small corpus of captions with known structure."""

import random

import numpy as np
import pytest

from mecap_jax.emotions import EMOTIONS, LEXICON
from mecap_jax.evaluation.java_tools import Meteor, ptb_tokenize
from mecap_jax.evaluation.stage import EvaluatedClip, StageResult, score_stage


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def caption(emotion: str, rng: random.Random) -> str:
    subject = rng.choice(["The speaker", "She", "He", "The voice"])
    word = rng.choice(LEXICON["en"][emotion][:5])
    return f"{subject} {rng.choice(['sounds', 'seems', 'is'])} {word}, with a {rng.choice(['low', 'bright'])} tone."


@pytest.fixture(scope="session")
def corpus() -> tuple[list[EvaluatedClip], list[str]]:
    """Sixty clips of five speakers, and captions of which about a fifth name another emotion."""
    rng = random.Random(0)
    clips, captions = [], []
    for i in range(60):
        emotion = EMOTIONS[i % 7]
        references = tuple(caption(emotion, rng) for _ in range(3))
        clips.append(EvaluatedClip(f"clip-{i}", f"speaker-{i % 5}", references, emotion))
        captions.append(caption(emotion if rng.random() < 0.8 else rng.choice(EMOTIONS), rng))
    return clips, captions


def tokenized(references) -> list[list[str]]:
    """The tokens of every text of every clip, from one start of the tokenizer: it takes most of a second."""
    tokens = iter(ptb_tokenize([text for texts in references for text in texts]))
    return [[next(tokens) for _ in texts] for texts in references]


def encode(texts) -> np.ndarray:
    """A stand-in sentence encoder: normalised counts of letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    counts = np.array([[text.lower().count(letter) for letter in letters] for text in texts], dtype=np.float32) + 1e-3
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def make_stage(
    clips: list[EvaluatedClip], captions: list[str], accuracy: float, meteor: Meteor | None = None
) -> StageResult:
    """Scores captions with emotion coordinates that point to the label in `accuracy` of the clips."""
    rng = np.random.default_rng(0)
    right = rng.random(len(clips)) < accuracy
    truth = [EMOTIONS.index(clip.label) + (0 if ok else 1) for clip, ok in zip(clips, right)]
    coordinates = np.eye(7)[np.array(truth) % 7]
    return score_stage(
        clips, captions, EMOTIONS, encode=encode, coordinates=coordinates, rewards=0.5 + 0.5 * right, meteor=meteor
    )
