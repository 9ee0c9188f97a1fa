"""What the page says of a clip: captions by one checkpoint or two, from everything and from each modality alone."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8

from mecap_jax.batch import PromptBatch
from mecap_jax.captioner import Captioner
from mecap_jax.captioning import Captioned, ClipReader, Request, as_json, caption_clips
from mecap_jax.config import Bucket, ConfigError
from mecap_jax.config.schema import Modality
from mecap_jax.data.collate import LaidOutPrompt, needed
from mecap_jax.data.features import SAMPLE_RATE
from mecap_jax.data.fitting import fits
from mecap_jax.data.media import MediaError, decode_audio
from mecap_jax.data.processor import Processor
from mecap_jax.emotions import EMOTIONS
from mecap_jax.experiment.published import is_stage
from mecap_jax.experiment.setup import ANCHORS
from mecap_jax.experiment.trained_task import read_trained_task
from mecap_jax.experiment.weights import read_run, run_of
from mecap_jax.json_files import parse_json
from mecap_jax.models.sentence_encoder import SentenceEncoder, load_sentence_encoder
from mecap_jax.rewards.anchors import Anchors, build_anchors, check_encoder
from mecap_jax.rewards.base import normalise_text
from mecap_jax.rewards.emotion import emotion_coordinates
from mecap_jax.rewards.templates import template_sentences
from mecap_jax.tasks.captioning import DEFAULT_FORM
from mecap_jax.tasks.protocols import PROTOCOLS, Parsed, Protocol
from mecap_jax.tasks.registry import make_task

EVERYTHING = "everything"
_ALONE: Mapping[Modality, str] = {"audio": "sound only", "video": "picture only"}
_KEPT = 2  # sentence encoders at a time
_POINTS = 600  # of a waveform
# Of the captions' own log, as a table has them.
COLUMNS = ("file", "caption", "sample", "logprob", "finished", "seconds", "window", "note", "error")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How captions are drawn; as in `caption_clips`. `max_new_tokens` 0 takes the longest that was trained."""

    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 0
    seed: int = 0


class TrainedShapes:
    """A processor whose batches have a shape of the run's training, where one holds them: all clips, with pictures or
    without, then share the programs of that shape, and only the first of them waits for its compilation."""

    def __init__(self, processor: Processor, buckets: Sequence[Bucket]):
        self.tokenizer, self.model = processor.tokenizer, processor.model
        self._processor, self._buckets = processor, buckets

    def batch(self, rows: Sequence[LaidOutPrompt]) -> PromptBatch:
        """As `Processor.batch`."""
        needs = [needed(row, self.model) for row in rows]
        bucket = next((bucket for bucket in self._buckets if all(fits(need, bucket) for need in needs)), None)
        return self._processor.batch(rows, bucket)


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A checkpoint with what judges its captions.

    Attributes:
      name: as it was asked for.
      protocol: how its answers are read; None for free captions.
      anchors: the run's emotion anchors; of template phrases for a model without a run.
      form: of the emotion coordinates, see `rewards.emotion`.
      features: directory of precomputed features, for a model that reads them.
    """

    name: str
    captioner: Captioner
    protocol: Protocol | None
    anchors: Anchors
    encoder: SentenceEncoder
    form: str
    features: Path | None = None

    @classmethod
    def load(cls, path: Path, name: str, dtype: str | None = None, features: Path | None = None) -> OpenModel:
        """Raises as `Captioner.from_pretrained` does, and AnchorsError where the run's anchors cannot be read."""
        captioner = Captioner.from_pretrained(path, dtype=dtype)
        if captioner.training is not None:
            captioner.processor = TrainedShapes(captioner.processor, captioner.training.buckets)
        protocol, form = None, DEFAULT_FORM
        if is_stage(path):
            workdir = run_of(path)
            config = read_run(workdir)
            task = make_task(config)
            protocol, form = getattr(task, "protocol", None), getattr(task, "form", form)
            encoder = _encoder(config.encoder.path)
            if (workdir / ANCHORS).exists():
                anchors = Anchors.load(workdir / ANCHORS)
                check_encoder(anchors, encoder)
            else:
                anchors = _template_anchors(encoder)
        else:
            trained = read_trained_task(path)
            if trained is not None and trained.task.name == "recognition":
                protocol = PROTOCOLS.get(trained.task.protocol)
            encoder = _encoder("")
            anchors = _template_anchors(encoder)
        model = cls(name, captioner, protocol, anchors, encoder, form, features)
        model.reader  # noqa: B018 - says now what no clip could help
        return model

    @functools.cached_property
    def reader(self) -> ClipReader:
        return ClipReader(self.captioner, self.captioner.data.instruction, self.features)

    @property
    def reads_media(self) -> bool:
        """Whether it hears or sees; a model behind precomputed features is asked for ids."""
        return set(self.captioner.data.modalities) != {"features"}

    def coordinates(self, texts: Sequence[str]) -> Float[np.ndarray, "N K"]:
        """Where texts lie among the anchors: what is in their blocks, or, without blocks, all of each."""
        embeddings = self.encoder.encode([normalise_text(self._said(text)) for text in texts])
        return emotion_coordinates(embeddings, self.anchors, self.form)

    def blocks(self, text: str) -> Parsed | None:
        """The parts of an answer, or why it has none; None where captions are free text."""
        return None if self.protocol is None else self.protocol.parse(text)

    def _said(self, text: str) -> str:
        parsed = self.blocks(text)
        return " ".join(parsed.fields.values()) if parsed and parsed.fields else text


@dataclasses.dataclass(frozen=True)
class Said:
    """What a checkpoint says of a clip.

    Attributes:
      answers: by what the model was given: `EVERYTHING`, and each modality alone where it reads two.
      labels, coordinates: the K anchors, and where each caption of `EVERYTHING` lies among them.
      blocks: of each caption of each answer, see `OpenModel.blocks`.
      seconds: how long it took.
    """

    model: str
    answers: Mapping[str, Captioned]
    labels: tuple[str, ...]
    coordinates: Float[np.ndarray, "N K"]
    blocks: Mapping[str, tuple[Parsed | None, ...]]
    seconds: float


def describe_clip(model: OpenModel, clip: str, transcript: str = "", sampling: Sampling = Sampling()) -> Said:
    """Captions one clip. One that cannot be captioned is an answer with an error.

    Args:
      clip: a media file, or an id of precomputed features.
      transcript: what is said in it.

    Raises:
      ConfigError: the device has not memory enough.
    """
    began = time.perf_counter()
    views = {EVERYTHING: None}
    if set(_ALONE) <= set(model.captioner.data.modalities):
        views |= {name: (modality,) for modality, name in _ALONE.items()}
    requests = [Request(clip, transcript, modalities=modalities) for modalities in views.values()]
    # One batch of the same width for all: one program, whatever the clip is made of.
    answers = dict(zip(views, _captions(model, requests, sampling), strict=True))
    texts = [caption.text for caption in answers[EVERYTHING].captions]
    coordinates = model.coordinates(texts) if texts else np.zeros((0, len(model.anchors.labels)))
    blocks = {
        name: tuple(model.blocks(caption.text) for caption in answer.captions) for name, answer in answers.items()
    }
    return Said(model.name, answers, model.anchors.labels, coordinates, blocks, time.perf_counter() - began)


def caption_files(
    model: OpenModel, clips: Sequence[str], sampling: Sampling, longest: float
) -> Iterator[tuple[int, Captioned]]:
    """Yields (number, answer) of each clip as it is done; those not begun after `longest` seconds say so."""
    end = time.monotonic() + longest
    problem = f"was not reached within {longest:g} s"
    answers = _captions(model, [Request(clip) for clip in clips], sampling)
    for number, clip in enumerate(clips):
        yield number, Captioned(clip, error=problem) if time.monotonic() > end else next(answers)


def _captions(model: OpenModel, requests: Sequence[Request], sampling: Sampling) -> Iterator[Captioned]:
    try:
        yield from caption_clips(
            model.captioner,
            requests,
            features=model.features,
            batch=len(_ALONE) + 1,
            samples=sampling.samples,
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens or None,
            seed=sampling.seed,
            fill=True,
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(f"the device's memory is not enough: {str(error).splitlines()[0]}") from error


# --- what the model was shown -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a model reads of a clip.

    Attributes:
      waveform: lowest and highest value of equal pieces of the sound, full scale 1; None without sound.
      seconds: length of the sound.
      frames: the pictures, as they go into the model; empty without.
    """

    waveform: Float[np.ndarray, "P 2"] | None
    seconds: float
    frames: Sequence[UInt8[np.ndarray, "H W 3"]]


def shown_of(model: OpenModel, clip: Path) -> Shown:
    """What the model reads of a clip that it can caption."""
    _, rows = model.reader(Request(str(clip)))
    frames = [frame for _, row in rows[:1] for video in row.frames for frame in video]
    try:
        sound = decode_audio(clip.read_bytes(), SAMPLE_RATE)
    except (MediaError, OSError):  # no sound in it
        return Shown(None, 0.0, frames)
    return Shown(outline(sound), len(sound) / SAMPLE_RATE, frames)


def outline(sound: Float[np.ndarray, " T"]) -> Float[np.ndarray, "P 2"] | None:
    """Lowest and highest value of at most a few hundred equal pieces of a waveform; None of an empty one."""
    if not len(sound):
        return None
    pieces = np.array_split(sound, min(_POINTS, len(sound)))
    return np.array([(piece.min(), piece.max()) for piece in pieces], np.float32)


# --- many files ---------------------------------------------------------------------------------------------------


def table_rows(answers: Sequence[Captioned]) -> list[dict]:
    """A row a caption or error, with the keys of `captioning.as_json`; files by name alone, without directories."""
    named = [dataclasses.replace(answer, clip=Path(answer.clip).name) for answer in answers]
    return [parse_json(line) for answer in named for line in as_json(answer)]


def as_csv(rows: Sequence[Mapping]) -> str:
    """The rows as a CSV file with a header; no cell begins as a formula of a spreadsheet does."""

    def cell(value):
        return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r")) else value

    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


@functools.lru_cache(maxsize=_KEPT)
def _encoder(path: str) -> SentenceEncoder:
    return load_sentence_encoder(path)


@functools.lru_cache(maxsize=_KEPT)
def _template_anchors(encoder: SentenceEncoder) -> Anchors:
    return build_anchors(encoder, template_sentences(EMOTIONS), kind="templates", source="template phrases")
