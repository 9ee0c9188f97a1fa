"""Captions for files: found, decoded ahead in threads, captioned in batches, given out in the order they came in."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mecap_jax.captioner import Captioner
from mecap_jax.config import ConfigError
from mecap_jax.data.clips import decode_clip
from mecap_jax.data.collate import Row
from mecap_jax.data.importers.feature_files import DIRECTORY, find_features
from mecap_jax.data.importers.files import MAX_CLIP_BYTES, is_junk
from mecap_jax.data.media import streams
from mecap_jax.data.pipeline import clip_row, request_text
from mecap_jax.data.utterance import Utterance
from mecap_jax.json_files import to_json
from mecap_jax.text_files import printable

SUFFIXES = tuple(".wav .flac .ogg .oga .opus .mp3 .aac .m4a .mp4 .m4v .mov .3gp .mka .mkv .webm .avi".split())
_DECODERS = 2  # threads that decode while the device works

T = TypeVar("T")
S = TypeVar("S")


@dataclasses.dataclass(frozen=True)
class Request:
    """A clip to caption.

    Attributes:
      clip: a media file, or the id of precomputed features.
      transcript: what is said, where that is to be part of the prompt.
      problem: why there is nothing to caption, found before anything was read.
    """

    clip: str
    transcript: str = ""
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption, the log-probability of all its tokens together, and whether it came to an end by itself."""

    text: str
    logprob: float
    finished: bool


@dataclasses.dataclass(frozen=True)
class Captioned:
    """What became of a request.

    Attributes:
      clip: as requested.
      captions: none where there is an error.
      seconds: length of the clip, None for precomputed features.
      error: one line, "" where all went well.
    """

    clip: str
    captions: tuple[Caption, ...] = ()
    seconds: float | None = None
    error: str = ""


def caption_clips(
    captioner: Captioner,
    requests: Sequence[Request],
    *,
    instruction: str = "",
    features: Path | None = None,
    batch: int = 8,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Iterator[Captioned]:
    """Yields an answer to every request, in order, as batches are done.

    A clip that cannot be captioned is an answer with an error. At most one batch of decoded clips waits while another
    is on the device. A clip's captions depend on the seed and its place among the requests, not on its batch.

    Args:
      instruction: the request in the prompt; "" takes the run's, or the default of `DataConfig`.
      features: directory of precomputed features in EmotionTalk's layout, for models that read them.
      samples: captions of each clip.
      temperature: 0 takes the most likely token each time.

    Raises:
      ConfigError: the model reads nothing that clips have, or it reads features and there are none.
    """
    read = ClipReader(captioner, instruction or captioner.data.instruction, features)
    ready, numbers, width = [], itertools.count(), 0
    for answer in _ahead(read, requests, batch):
        ready.append((next(numbers), answer))
        good = [(number, row) for number, (_, row) in ready if row is not None]
        if not good or len(good) == batch or len(requests) == ready[-1][0] + 1:
            captions: Iterator[tuple[Caption, ...]] = iter(())
            if good:
                # The last batch is filled up like those before: one more row costs less than one more program.
                width = max(width, len(good))
                filled = good + [good[-1]] * (width - len(good))
                captions = _caption(captioner, filled, samples, temperature, max_new_tokens, seed)
            for _, (captioned, row) in ready:
                yield captioned if row is None else dataclasses.replace(captioned, captions=next(captions))
            ready = []


def _caption(
    captioner: Captioner,
    numbered: Sequence[tuple[int, Row]],
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> Iterator[tuple[Caption, ...]]:
    groups = captioner.generate(
        captioner.processor.batch([row for _, row in numbered]),
        group_size=samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        rows=[number for number, _ in numbered],
    )
    sums = groups.logprobs.sum(axis=-1)
    for texts, logprobs, finished in zip(groups.text, sums.tolist(), groups.finished.tolist()):
        yield tuple(map(Caption, texts, logprobs, finished))


class ClipReader:
    """Reads what a model reads of a clip and lays out its prompt; safe under threads."""

    def __init__(self, captioner: Captioner, instruction: str, features: Path | None = None):
        """Raises as `caption_clips` does."""
        self._processor, self._data = captioner.processor, captioner.data
        self._instruction, self._features = instruction, features
        modalities = set(self._data.modalities)
        if not modalities:
            raise ConfigError("the model reads text only: there is nothing of a clip that it could caption")
        if "features" in modalities and features is None:
            names = ", ".join(captioner.model.features.names)
            raise ConfigError(f"the model reads precomputed features ({names}); name their directory (--features)")
        if features is not None and "features" not in modalities:
            raise ConfigError("the model reads no precomputed features (--features)")
        if features is not None and not (features / DIRECTORY).is_dir():
            raise ConfigError(f"--features: no such directory: {features / DIRECTORY}")
        self._media = modalities - {"features"}

    def __call__(self, request: Request) -> tuple[Captioned, Row | None]:
        """The answer so far, and the prompt; None where there is an error."""
        try:
            if request.problem:
                raise ValueError(request.problem)
            seconds, row = self._row(request)
            return Captioned(request.clip, seconds=seconds), row
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return Captioned(request.clip, error=" ".join(reason.split())), None

    def _row(self, request: Request) -> tuple[float | None, Row]:
        utterance, has_audio = self._utterance(request.clip)
        clip = decode_clip(utterance, has_audio, self._data, self._processor.model)
        text = request_text(self._instruction, request.transcript)
        row = clip_row(clip, text, self._processor.tokenizer, self._processor.model)
        if not (row.mels or row.frames or row.features is not None):
            raise ValueError("is too short to hear anything")
        lengths = [len(mel) / 100 for mel in row.mels]
        lengths += [len(frames) * clip.seconds_per_frame for frames in row.frames]
        return max(lengths, default=None), row

    def _utterance(self, clip: str) -> tuple[Utterance, bool]:
        """The encoded clip, and whether it has sound."""
        parts: dict[str, Any] = {}
        sound, pictures = False, None
        if self._media:
            data = _read_file(Path(clip))
            sound, pictures = streams(data)
            parts["video" if pictures is not None else "audio"] = data
        if self._features is not None:
            parts["features"] = find_features(self._features, Path(clip).stem if self._media else clip)
        has = {"audio": sound, "video": pictures is not None, "features": bool(parts.get("features"))}
        if not any(has[modality] for modality in self._data.modalities):
            missing = " and no ".join(self._data.modalities)
            raise ValueError(f"has no {missing}, and the model reads nothing else")
        return Utterance(id=clip, dataset="", split="test", speaker="", **parts), sound


def _read_file(path: Path) -> bytes:
    if not path.exists():
        raise ValueError("no such file")
    if not path.is_file():
        raise ValueError("is not a file")
    if (size := path.stat().st_size) > MAX_CLIP_BYTES:
        raise ValueError(f"has {size} bytes (at most {MAX_CLIP_BYTES})")
    return path.read_bytes()


def _ahead(function: Callable[[S], T], items: Iterable[S], count: int) -> Iterator[T]:
    """Applies `function` in threads; results in order, `count` of them at most waiting."""
    pool, waiting = ThreadPoolExecutor(_DECODERS), deque[Future]()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# --- requests and answers as text -------------------------------------------------------------------------------------


def find_requests(arguments: Iterable[str], lines: Iterable[str] = (), ids: bool = False) -> list[Request]:
    """Requests for files, and for the media files in directories (sorted by name), in the order of the arguments.

    What is named twice is a request with a problem.

    Args:
      lines: more of them, one a line; behind a tab, what is said in that clip.
      ids: they are ids of precomputed features, not paths.
    """
    named = [(argument, "") for argument in arguments]
    for line in lines:
        if line.strip():
            clip, _, transcript = line.rstrip("\r\n").partition("\t")
            named.append((clip.strip(), transcript.strip()))
    requests, seen = [], set()
    for clip, transcript in named:
        if (real := os.path.realpath(clip)) in seen:
            requests.append(Request(clip, problem="is named twice"))
            continue
        seen.add(real)
        if ids or not Path(clip).is_dir():
            requests.append(Request(clip, transcript))
            continue
        try:
            found = sorted(path for path in Path(clip).iterdir() if path.suffix.lower() in SUFFIXES)
        except OSError as error:
            requests.append(Request(clip, problem=error.strerror))
            continue
        inside = [path for path in found if not is_junk(path)]
        if not inside:
            requests.append(Request(clip, problem=f"holds no media files ({', '.join(SUFFIXES)})"))
        for path in inside:
            twice = (real := os.path.realpath(path)) in seen
            seen.add(real)
            requests.append(Request(str(path), transcript, "is named twice" if twice else ""))
    return requests


def as_lines(answer: Captioned) -> list[str]:
    """`CLIP: caption`, one line a caption."""
    return [f"{printable(answer.clip)}: {printable(' '.join(caption.text.split()))}" for caption in answer.captions]


def as_json(answer: Captioned) -> list[str]:
    """A JSON object a caption, or one with the error.

    Keys: file, caption, logprob (of the whole caption, in nats), finished (False: cut off), seconds (of the clip,
    where it has a length), sample (its number, where there are several); or file, error.
    """
    whole: dict[str, Any] = {"file": printable(answer.clip)}
    if answer.error:
        return [to_json(whole | {"error": printable(answer.error)})]
    lines = []
    for number, caption in enumerate(answer.captions):
        fields = whole | {"caption": caption.text, "logprob": round(caption.logprob, 4), "finished": caption.finished}
        if answer.seconds is not None:
            fields["seconds"] = round(answer.seconds, 3)
        if len(answer.captions) > 1:
            fields["sample"] = number
        lines.append(to_json(fields))
    return lines


def as_error(answer: Captioned) -> str:
    """`error: CLIP: reason`, for a person."""
    return f"error: {printable(answer.clip)}: {printable(answer.error)}"
