"""The synthetic corpus: `plan` decides what each clip is, `render` makes its media, labels, captions and rationale.

A plan is a function of the configuration alone, and a rendered clip a function of its entry in the plan, so clips
can be rendered in any order and in any process. Where voice and face disagree, the more intense one decides the
multimodal label.
"""

from __future__ import annotations

import dataclasses
import io
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
from PIL import Image

from mecap_jax.config import SyntheticConfig, checked
from mecap_jax.data.features import SAMPLE_RATE, log_mel
from mecap_jax.data.stills import one_frame_video
from mecap_jax.data.synthetic import chinese, english, expression, face, mp4, prosody
from mecap_jax.data.synthetic.facts import LEVEL_WORDS, Facts, facts_of, level_word
from mecap_jax.data.synthetic.speakers import Speaker, cast
from mecap_jax.data.synthetic.transcripts import SENTENCES
from mecap_jax.data.utterance import Utterance
from mecap_jax.emotions import EMOTIONS

DATASET = "synthetic"
INTENSITIES = ("mild", "moderate", "strong")
FRAME_RATE = 10

SPLIT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
_AUDIO_ONLY_SHARE = 0.15
_DECK = ("neutral",) + tuple(emotion for emotion in EMOTIONS for _ in range(2))  # neutral 20 %, the others 13 % each
_GRAMMARS = {"en": english, "zh": chinese}


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """What one clip is to be.

    Attributes:
      id: unique in the corpus.
      seed: seeds of everything that is drawn while rendering.
      speaker: who speaks.
      language: of the speech.
      transcript: what is said.
      emotion, intensity: of voice and face together.
      conflict: the modality that departs from it, "audio" or "video", or "none".
      other_emotion, other_intensity: what the departing modality shows.
      has_video: whether there is a face.
      caption_language: of the captions.
      features: names of precomputed features that the clip carries (see `SyntheticConfig.features`).
      still: whether it is a picture of the face alone.
      pencil: whether the face is drawn in pencil.
      captioned: whether there are captions and a rationale.
      argued: the emotion that the rationale argues for, where it contradicts the label.
    """

    id: str
    seed: tuple[int, int]
    speaker: Speaker
    language: str
    transcript: str
    emotion: str
    intensity: str
    conflict: str
    other_emotion: str
    other_intensity: str
    has_video: bool
    caption_language: str
    features: tuple[str, ...] = ()
    still: bool = False
    pencil: bool = False
    captioned: bool = True
    argued: str | None = None

    def shown(self, modality: str) -> tuple[str, str]:
        """Returns emotion and intensity in "audio" or "video"."""
        if self.conflict == modality:
            return self.other_emotion, self.other_intensity
        return self.emotion, self.intensity


def plan(config: SyntheticConfig) -> list[ClipSpec]:
    """Returns the clips of the corpus: train, then validation, then test; speakers are disjoint between them.

    Raises:
      ConfigError: a setting that the corpus cannot have; the message names the key.
    """
    config = checked(config, "data.synthetic")
    sizes = {split: round(share * config.clips) for split, share in SPLIT_SHARES.items()}
    sizes["train"] = config.clips - sizes["validation"] - sizes["test"]
    rng = np.random.default_rng(config.seed)
    specs: list[ClipSpec] = []
    for split, size in sizes.items():
        specs += _plan_split(split, size, len(specs), config, rng)
    return _silence(_contradict(specs, config.contradicting_share), config.captioned_share)


def captions_of(spec: ClipSpec) -> dict[str, tuple[str, ...]]:
    """Returns the captions of a clip by kind, which a still has not; no media are made."""
    if spec.still or not spec.captioned:
        return {}
    caption_rng = _generators(spec)[2]
    return _GRAMMARS[spec.caption_language].write(_draw(spec).facts, caption_rng)


def facts_of_clip(spec: ClipSpec) -> Facts:
    """Returns what can truly be said about a clip; no media are made."""
    return _draw(spec).facts


def attributes_of(spec: ClipSpec) -> dict[str, str]:
    """Returns what is known of a clip beside its labels; no media are made."""
    facts = facts_of_clip(spec)
    return _attributes(spec, facts) | _GRAMMARS[spec.caption_language].describe(facts, _generators(spec)[4])


def labels_of(spec: ClipSpec) -> dict[str, str]:
    """Returns the emotion by modality; what is said carries none."""
    heard = {} if spec.still else {"text": "neutral", "audio": spec.shown("audio")[0]}
    labels = heard | {"multimodal": spec.emotion}
    return labels | ({"video": spec.shown("video")[0]} if spec.has_video else {})


def rationale_of(spec: ClipSpec) -> str:
    """Returns why the clip's emotion is what it is, in the language of the captions; no media are made.

    Where the rationale contradicts the label, all that is heard and seen is true still, and read as another emotion.
    """
    facts = _draw(spec).facts
    if spec.argued is not None:
        intensity = "none" if spec.argued == "neutral" else facts.intensity.replace("none", "mild")
        facts = dataclasses.replace(facts, emotion=spec.argued, intensity=intensity)
    return _GRAMMARS[spec.caption_language].explain(facts, _generators(spec)[3])


def render(spec: ClipSpec) -> Utterance:
    """Returns the utterance of a clip: an mp4 file with sound, a wav file where it has no video, or a picture.

    Raises:
      SpeechError: the sentence cannot be spoken as planned.
    """
    media_rng = _generators(spec)[1]
    drawn = _draw(spec)
    if spec.still:
        motion = expression.at_apex(media_rng)
        (picture,) = _drawn_in(spec, face.render(drawn.identity, drawn.expression, motion, np.zeros(1)))
        return _utterance(spec, video=one_frame_video(_jpeg(picture)))
    waveform = prosody.speak(spec.transcript, spec.language, spec.speaker, drawn.prosody, media_rng)
    audio = video = None
    if drawn.expression is None:
        audio = _wav(waveform)
    else:
        opening = _mouth_opening(waveform)
        motion = expression.motion_of(len(opening), media_rng)
        frames = _drawn_in(spec, face.render(drawn.identity, drawn.expression, motion, opening))
        video = mp4.encode(frames, FRAME_RATE, waveform, prosody.SAMPLE_RATE)
    features = _features(waveform, spec.features)
    return _utterance(
        spec, audio=audio, video=video, transcript=spec.transcript, language=spec.language, features=features
    )


def _drawn_in(spec: ClipSpec, frames: np.ndarray) -> np.ndarray:
    return face.in_pencil(frames) if spec.pencil else frames


def _utterance(spec: ClipSpec, **media) -> Utterance:
    return Utterance(
        id=spec.id,
        dataset=DATASET,
        split=spec.speaker.split,
        speaker=spec.speaker.id,
        labels=labels_of(spec),
        captions=captions_of(spec),
        rationale=rationale_of(spec) if spec.captioned else None,
        attributes=attributes_of(spec),
        licence="CC0-1.0",
        **media,
    )


_FEATURE_BANDS, _FEATURE_STRIDE = 40, 10


def _features(waveform: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What an extractor of features would have left: of a whole utterance, or ten frames a second."""
    if not names:
        return {}
    bands = log_mel(soxr.resample(waveform, prosody.SAMPLE_RATE, SAMPLE_RATE), _FEATURE_BANDS)
    known = {
        "log_mel-UTT": np.concatenate([bands.mean(axis=0), bands.std(axis=0)])[None],
        "log_mel-FRA": bands[::_FEATURE_STRIDE],
    }
    return {name: known[name] for name in names}


class _Drawn(NamedTuple):
    prosody: prosody.Prosody
    identity: face.Identity
    expression: expression.Expression | None
    facts: Facts


def _generators(spec: ClipSpec) -> list[np.random.Generator]:
    """Returns a generator each for parameters, media, captions, rationale, its parts, and whether it contradicts the
    label: none depends on another."""
    return np.random.default_rng(spec.seed).spawn(6)


def _draw(spec: ClipSpec) -> _Drawn:
    rng = _generators(spec)[0]
    sound = prosody.prosody_of(*spec.shown("audio"), rng)
    identity = face.identity_of(spec.speaker.gender, np.random.default_rng(spec.speaker.face_seed))
    units = expression.expression_of(*spec.shown("video"), rng) if spec.has_video else None
    facts = facts_of(
        spec.emotion,
        spec.intensity,
        spec.conflict,
        spec.other_emotion,
        spec.other_intensity,
        spec.speaker,
        spec.language,
        sound,
        identity,
        units,
        has_voice=not spec.still,
    )
    return _Drawn(sound, identity, units, facts)


def _plan_split(split: str, size: int, first: int, config: SyntheticConfig, rng: np.random.Generator) -> list[ClipSpec]:
    speakers = _deal([speaker for speaker in cast(config.domain) if speaker.split == split], size, rng)
    emotions = _deal(_DECK, size, rng)
    audio_only = set(rng.permutation(size)[: round((not config.stills) * _AUDIO_ONLY_SHARE * size)].tolist())
    # Only a clip with both modalities and something to contradict can hold a conflict.
    candidates = [i for i in range(size) if emotions[i] != "neutral" and i not in audio_only]
    candidates = [candidates[i] for i in rng.permutation(len(candidates))]
    kinds = _deal(
        [(modality, contradicts) for modality in ("audio", "video") for contradicts in (False, True)],
        round((not config.stills) * config.conflict_share * len(candidates)),
        rng,
    )
    conflicts = dict(zip(candidates, kinds))
    specs = []
    for i in range(size):
        conflict, contradicts = conflicts.get(i, ("none", False))
        # The deciding modality of a conflict is at least moderate, so that there is a lower intensity left.
        level = int(rng.integers(1 if i in conflicts else 0, len(INTENSITIES)))
        other = [e for e in EMOTIONS if e not in ("neutral", emotions[i])]
        language = _language(speakers[i], config.speech_languages, rng)
        specs.append(
            ClipSpec(
                id=f"{DATASET}-{first + i:07d}",
                seed=(config.seed, first + i),
                speaker=speakers[i],
                language=language,
                transcript=SENTENCES[language][rng.integers(len(SENTENCES[language]))],
                emotion=emotions[i],
                intensity="none" if emotions[i] == "neutral" else INTENSITIES[level],
                conflict=conflict,
                other_emotion=other[rng.integers(len(other))] if contradicts else "neutral",
                other_intensity=INTENSITIES[rng.integers(level)] if contradicts else "none",
                has_video=i not in audio_only,
                caption_language=config.caption_language,
                features=() if config.stills else config.features,
                still=config.stills,
                pencil=config.domain == "other",
            )
        )
    return specs


def _contradict(specs: list[ClipSpec], share: float) -> list[ClipSpec]:
    """Lets a share of the rationales argue for another emotion; those of a larger share hold those of a smaller one."""

    def argued(spec: ClipSpec) -> str | None:
        rng = _generators(spec)[5]
        drawn, other = rng.random(), [emotion for emotion in EMOTIONS if emotion != spec.emotion]
        return other[rng.integers(len(other))] if drawn < share else None

    return [dataclasses.replace(spec, argued=argued(spec)) for spec in specs] if share else specs


def _silence(specs: list[ClipSpec], share: float) -> list[ClipSpec]:
    """Takes the captions of all training speakers but a share; those of a larger share hold those of a smaller one."""
    speakers = sorted({spec.speaker.id for spec in specs if spec.speaker.split == "train"})
    order = np.random.default_rng(len(speakers)).permutation(speakers)
    silent = set(order[round(share * len(order)) :])
    return [dataclasses.replace(spec, captioned=spec.speaker.id not in silent) for spec in specs]


def _deal(cards, count: int, rng: np.random.Generator) -> list:
    """Returns `count` cards from decks that are shuffled one by one, so that every stretch is balanced."""
    dealt: list = []
    while len(dealt) < count:
        dealt += [cards[i] for i in rng.permutation(len(cards))]
    return dealt[:count]


def _language(speaker: Speaker, languages: tuple[str, ...], rng: np.random.Generator) -> str:
    """Everybody speaks English, where it is spoken at all; bilingual speakers also speak the other languages."""
    if "en" in languages and not speaker.bilingual:
        return "en"
    return languages[rng.integers(len(languages))]


def _mouth_opening(waveform: np.ndarray) -> np.ndarray:
    """Returns how far speech opens the mouth in each frame, in [0, 1], from the loudness around the frame's time."""
    step = prosody.SAMPLE_RATE // FRAME_RATE
    frames = -(-len(waveform) // step)
    padded = np.pad(waveform, (0, frames * step - len(waveform))).reshape(frames, step)
    level = np.sqrt(np.mean(np.square(padded), axis=1))
    return np.clip(level / np.quantile(level, 0.9), 0.0, 1.0)


def _jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return file.getvalue()


def _wav(waveform: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, prosody.SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _attributes(spec: ClipSpec, facts: Facts) -> dict[str, str]:
    return {
        "gender": spec.speaker.gender,
        "intensity": spec.intensity,
        **({} if spec.still else {"voice": prosody.voice_name(spec.speaker, spec.language)}),
        **({} if spec.still else {scale: level_word(scale, getattr(facts, scale)) for scale in LEVEL_WORDS}),
        **({"face": ", ".join(facts.visible)} if facts.has_face else {}),
        "conflict": spec.conflict,
        "synthetic": "drawn faces" if spec.still else "eSpeak NG and drawn faces",
    }
