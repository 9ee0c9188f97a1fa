"""Emotion can be heard and seen: classifiers on simple statistics recognise it in speakers they never met."""

import io

import av
import librosa
import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import recall_score

from mecap_jax.config import SyntheticConfig
from mecap_jax.data import media
from mecap_jax.data.importers import ImportSettings, synthetic
from mecap_jax.data.inspection import in_processes
from mecap_jax.data.media import MAX_SECONDS

RATE = 16_000


@pytest.fixture(scope="module")
def utterances():
    settings = ImportSettings(SyntheticConfig(clips=480))
    return [clip for clip, _ in in_processes(synthetic.clips(None, settings), MAX_SECONDS)]


def audio_statistics(utterance) -> np.ndarray:
    """Pitch, energy, length, spectral centroid and MFCCs: levels, deviations and the course of the pitch."""
    x = media.decode_audio(utterance.video or utterance.audio, RATE)
    frames = dict(y=x, hop_length=512)
    level = librosa.feature.rms(frame_length=1024, **frames)[0]
    f0 = fundamental(x)[: len(level)]
    pitch = np.log2(f0[level[: len(f0)] > 0.15 * level.max()])
    third = max(len(pitch) // 3, 1)
    centroid = librosa.feature.spectral_centroid(sr=RATE, n_fft=1024, **frames)[0]
    mfcc = librosa.feature.mfcc(sr=RATE, n_mfcc=13, n_fft=1024, **frames)
    fine = librosa.feature.rms(y=x, frame_length=256, hop_length=128)[0]
    modulation = np.abs(np.fft.rfft(fine, 1024))
    bands = [band.sum() / modulation.sum() for band in np.split(modulation[:480], 12)]
    return np.array(
        [
            *np.percentile(pitch, (10, 50, 90)),
            pitch.std(),
            pitch[-third:].mean() - pitch[:third].mean(),
            np.log(level.mean()),
            len(x) / RATE,
            centroid.mean(),
            centroid.std(),
            *mfcc.mean(1),
            *mfcc.std(1),
            *bands,
        ]
    )


def fundamental(x: np.ndarray) -> np.ndarray:
    """Pitch by autocorrelation, frame by frame (librosa's trackers take longer to compile than all of this)."""
    spectrum = np.fft.rfft(librosa.util.frame(np.pad(x, 512), frame_length=1024, hop_length=512), 2048, axis=0)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)
    shortest, longest = RATE // 600, RATE // 60
    return RATE / (shortest + correlation[shortest:longest].argmax(axis=0))


def mean_frame(utterance) -> np.ndarray:
    with av.open(io.BytesIO(utterance.video)) as container:
        frames = [f.to_image().convert("L").resize((56, 56), Image.Resampling.BOX) for f in container.decode(video=0)]
    return np.mean([np.asarray(frame, np.float64) for frame in frames], axis=0).ravel()


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "statistics"), [("audio", audio_statistics), ("video", mean_frame)])
def test_emotion_is_recognised_in_unseen_speakers(utterances, modality, statistics):
    clips = [u for u in utterances if modality in u.labels]
    features = np.stack([statistics(u) for u in clips])
    labels = np.array([u.labels[modality] for u in clips])
    train = np.array([u.split == "train" for u in clips])
    forest = RandomForestClassifier(300, random_state=0).fit(features[train], labels[train])
    assert recall_score(labels[~train], forest.predict(features[~train]), average="macro") > 0.7
