"""Captions for files: found, decoded ahead in threads, captioned in batches, given out in the order they came in."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mecap_jax.config import ConfigError, DataConfig
from mecap_jax.config.schema import Modality
from mecap_jax.data.clip_prompts import lay_out_clip, request_text
from mecap_jax.data.collate import LaidOutPrompt
from mecap_jax.data.importers.feature_files import DIRECTORY, find_features
from mecap_jax.data.importers.files import MAX_CLIP_BYTES, is_junk
from mecap_jax.data.language import caption_language
from mecap_jax.data.media import MAX_SECONDS, Stretch, streams
from mecap_jax.data.processor import Processor
from mecap_jax.data.stretches import show_stretches
from mecap_jax.data.training_facts import TrainingFacts
from mecap_jax.data.utterance import Utterance
from mecap_jax.json_files import to_json
from mecap_jax.model_config import ModelConfig
from mecap_jax.text_files import printable
from mecap_jax.threads import ahead

SUFFIXES = tuple(".wav .flac .ogg .oga .opus .mp3 .aac .m4a .mp4 .m4v .mov .3gp .mka .mkv .webm .avi".split())
MAX_PROMPT_TOKENS = 32_768  # what Qwen2.5 was trained on
_DECODERS = 2  # threads that decode while the device works


class CaptionModel(Protocol):
    """What captions are made with, as `Captioner` is.

    Attributes:
      data: how files are read: modalities, the longest clip that is shown whole.
      training: what training clips were like; None where nobody tells.
      max_new_tokens: longest answer that was trained.
    """

    model: ModelConfig
    processor: Processor
    data: DataConfig
    training: TrainingFacts | None
    max_new_tokens: int
    generate: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """A clip to caption.

    Attributes:
      clip: a media file, or the id of precomputed features.
      transcript: what is said, where that is to be part of the prompt.
      problem: why there is nothing to caption, found before anything was read.
      modalities: what the model is given of the clip; None gives it all that it reads.
    """

    clip: str
    transcript: str = ""
    problem: str = ""
    modalities: tuple[Modality, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption.

    Attributes:
      text: what it says.
      logprob: the log-probability of all its tokens together.
      finished: whether it came to an end by itself.
      window: the stretch of a longer clip that it is about; None where it is about the whole clip.
    """

    text: str
    logprob: float
    finished: bool
    window: Stretch | None = None


@dataclasses.dataclass(frozen=True)
class Captioned:
    """What became of a request.

    Attributes:
      clip: as requested.
      captions: none where there is an error; those of a window stand together.
      seconds: length of the clip, None for precomputed features.
      note: what part of a clip that is too long was captioned, one line.
      differs: in what the clip is not as training clips were: "longer", "transcript" where it comes without what is
        said, "language", or a modality that it lacks.
      error: one line, "" where all went well.
    """

    clip: str
    captions: tuple[Caption, ...] = ()
    seconds: float | None = None
    note: str = ""
    differs: tuple[str, ...] = ()
    error: str = ""


def caption_clips(
    captioner: CaptionModel,
    requests: Sequence[Request],
    *,
    instruction: str = "",
    features: Path | None = None,
    batch: int = 8,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    long: str = "trim",
    fill: bool = False,
) -> Iterator[Captioned]:
    """Yields an answer to every request, in order, as batches are done.

    A clip that cannot be captioned is an answer with an error. At most one batch of decoded clips waits while another
    is on the device. A clip's captions depend on the seed and its place among the requests, not on its batch.

    Args:
      instruction: the request in the prompt; "" takes the run's, or the default of `DataConfig`.
      features: directory of precomputed features in EmotionTalk's layout, for models that read them.
      samples: captions of each clip.
      temperature: 0 takes the most likely token each time.
      max_new_tokens: longest caption; None takes the longest that was trained.
      long: of a clip that is longer than those of training, "trim" captions the loudest stretch, "windows" as many
        stretches as cover it, each by itself, and "refuse" none.
      fill: fills up the first batch, too, where it has fewer clips than `batch`: for calls that shall share a program.

    Raises:
      ConfigError: the model reads nothing that clips have, it reads features and there are none, or a caption of
        `max_new_tokens` leaves no room for a prompt among the positions that it has learned.
    """
    max_new_tokens = max_new_tokens or captioner.max_new_tokens
    read = ClipReader(captioner, instruction or captioner.data.instruction, features, long, max_new_tokens)
    pending: deque[_Pending] = deque()
    waiting: list[tuple[_Pending, int, LaidOutPrompt]] = []
    width = batch if fill else 0

    def caption(chosen: list[tuple[_Pending, int, LaidOutPrompt]]) -> None:
        nonlocal width
        # The last batch is filled up like those before: one more row costs less than one more program.
        width = max(width, len(chosen))
        filled = chosen + [chosen[-1]] * (width - len(chosen))
        groups = captioner.generate(
            captioner.processor.batch([row for *_, row in filled]),
            group_size=samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            rows=[number for _, number, _ in filled],
        )
        sums = groups.logprobs.sum(axis=-1)
        for (clip, *_), *group in zip(chosen, groups.text, sums.tolist(), groups.finished.tolist()):
            clip.groups.append(list(zip(*group)))

    for number, (answer, shown) in enumerate(ahead(read, requests, batch, _DECODERS)):
        clip = _Pending(answer, [window for window, _ in shown])
        pending.append(clip)
        # The random stream of a clip's first window is its number; the others are far from all numbers.
        waiting += [(clip, number + (place << 24), row) for place, (_, row) in enumerate(shown)]
        while len(waiting) >= batch:
            caption(waiting[:batch])
            waiting = waiting[batch:]
        while pending and pending[0].done:
            yield pending.popleft().answer()
    if waiting:
        caption(waiting)
    yield from (clip.answer() for clip in pending)


@dataclasses.dataclass
class _Pending:
    """A clip that waits for the captions of its windows: lists of (text, log-probability, finished), one a window."""

    captioned: Captioned
    windows: list[Stretch | None]
    groups: list[list[tuple[str, float, bool]]] = dataclasses.field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.groups) == len(self.windows)

    def answer(self) -> Captioned:
        captions = [
            Caption(*fields, window=window)
            for window, group in zip(self.windows, self.groups, strict=True)
            for fields in group
        ]
        return dataclasses.replace(self.captioned, captions=tuple(captions))


class ClipReader:
    """Reads what a model reads of a clip and lays out its prompts; safe under threads."""

    def __init__(
        self,
        captioner: CaptionModel,
        instruction: str,
        features: Path | None = None,
        long: str = "trim",
        max_new_tokens: int | None = None,
    ):
        """As `caption_clips`, and raises as it does."""
        self._processor, self._data, self._training = captioner.processor, captioner.data, captioner.training
        self._instruction, self._features, self._long = instruction, features, long
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
        self._answer = max_new_tokens or captioner.max_new_tokens
        if problem := captioner.model.decoder.lacks_room(1, self._answer):
            raise ConfigError(f"captions of up to {self._answer} tokens are too long (max_new_tokens): {problem}")

    def __call__(self, request: Request) -> tuple[Captioned, list[tuple[Stretch | None, LaidOutPrompt]]]:
        """The answer so far, and the prompt of each stretch that is shown; none where there is an error.

        The stretch is None where the whole clip is shown.
        """
        try:
            if request.problem:
                raise ValueError(request.problem)
            return self._read(request)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return Captioned(request.clip, error=" ".join(reason.split())), []

    def _read(self, request: Request) -> tuple[Captioned, list[tuple[Stretch | None, LaidOutPrompt]]]:
        data, model = self._data, self._processor.model
        if request.modalities is not None:
            data = dataclasses.replace(data, modalities=request.modalities)
        utterance, has = self._utterance(request.clip, data.modalities)
        seconds, shown = show_stretches(utterance, has["audio"] > 0, has["video"], data, model, self._long)
        text = request_text(self._instruction, request.transcript)
        whole = shown[0][0] == (0.0, seconds)
        rows = [
            (None if whole else window, lay_out_clip(clip, text, self._processor.tokenizer, model))
            for window, clip in shown
        ]
        rows = [(window, row) for window, row in rows if row.mels or row.frames or row.features is not None]
        if not rows:
            raise ValueError("is too short to hear anything")
        if (count := max(len(row.layout.tokens) for _, row in rows)) > MAX_PROMPT_TOKENS:
            raise ValueError(f"makes a prompt of {count} tokens (at most {MAX_PROMPT_TOKENS}): cut it into pieces")
        if problem := model.decoder.lacks_room(count, self._answer):
            raise ValueError(f"makes {problem}")
        differs = self._differences(request, has)
        note = ""
        if not whole:
            differs.append("longer")
            note = f"lasts {seconds:.2f} s, longer than the {data.max_seconds:g} s of training clips: "
            begin, end = shown[0][0]
            note += (
                f"captioned in {len(rows)} windows" if len(shown) > 1 else f"captioned from {begin:.2f} to {end:.2f} s"
            )
        length = seconds if self._media else None
        return Captioned(request.clip, seconds=length, note=note, differs=tuple(differs)), rows

    def _differences(self, request: Request, has: Mapping[str, float]) -> list[str]:
        """In what a request is not as training clips were, but for its length."""
        if self._training is None:
            return []
        differs = [name for name in request.modalities or self._data.modalities if not has[name]]
        spoken = caption_language([request.transcript])
        # Only the script tells; an unknown language is none to compare with.
        chinese = {language.partition("-")[0] == "zh" for language in self._training.languages if language}
        if not spoken and self._training.transcribed:
            differs.append("transcript")
        if spoken and chinese and (spoken == "zh") not in chinese:
            differs.append("language")
        return differs

    def _utterance(self, clip: str, modalities: Sequence[str]) -> tuple[Utterance, dict[str, float]]:
        """The encoded clip, and of each modality whether it is there: for video, how long it is."""
        parts: dict[str, Any] = {}
        has: dict[str, float] = {"audio": 0, "video": 0}
        if self._media:
            data = _read_file(Path(clip))
            sound, pictures = streams(data)
            if (pictures or 0) > MAX_SECONDS:
                raise ValueError(f"lasts {pictures:.0f} s (at most {MAX_SECONDS:.0f}): cut it into pieces")
            parts["audio" if pictures is None else "video"] = data
            has = {"audio": sound, "video": pictures or 0}
        if self._features is not None:
            parts["features"] = find_features(self._features, Path(clip).stem if self._media else clip)
        has["features"] = bool(parts.get("features"))
        if not any(has[modality] for modality in modalities):
            missing = " and no ".join(modalities)
            raise ValueError(f"has no {missing}, and the model reads nothing else")
        return Utterance(id=clip, dataset="", split="test", speaker="", **parts), has


def _read_file(path: Path) -> bytes:
    if not path.exists():
        raise ValueError("no such file")
    if not path.is_file():
        raise ValueError("is not a file")
    if (size := path.stat().st_size) > MAX_CLIP_BYTES:
        raise ValueError(f"has {size} bytes (at most {MAX_CLIP_BYTES})")
    return path.read_bytes()


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
        try:
            if (real := os.path.realpath(clip)) in seen:
                requests.append(Request(clip, problem="is named twice"))
                continue
            seen.add(real)
            if ids or not Path(clip).is_dir():
                requests.append(Request(clip, transcript))
                continue
            found = sorted(path for path in Path(clip).iterdir() if path.suffix.lower() in SUFFIXES)
        except (OSError, ValueError) as error:  # no permission; a name that no file can have
            requests.append(Request(clip, problem=getattr(error, "strerror", None) or str(error)))
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
    """`CLIP: caption`, one line a caption; where a clip was captioned in windows, `CLIP [0.0-2.4 s]: caption`."""
    several, lines = len({caption.window for caption in answer.captions}) > 1, []
    for caption in answer.captions:
        place = " [{:.1f}-{:.1f} s]".format(*caption.window) if several else ""
        lines.append(f"{printable(answer.clip)}{place}: {printable(' '.join(caption.text.split()))}")
    return lines


def as_json(answer: Captioned) -> list[str]:
    """A JSON object a caption, or one with the error.

    Keys: file, caption, logprob (of the whole caption, in nats), finished (False: cut off), seconds (of the clip,
    where it has a length), sample (its number, where there are several), window and note (of a clip that is longer
    than those of training: from where to where in seconds this caption is about it, and why); or file, error.
    """
    whole: dict[str, Any] = {"file": printable(answer.clip)}
    if answer.error:
        return [to_json(whole | {"error": printable(answer.error)})]
    lines, numbers = [], Counter[Stretch | None]()
    for caption in answer.captions:
        fields = whole | {"caption": caption.text, "logprob": round(caption.logprob, 4), "finished": caption.finished}
        if answer.seconds is not None:
            fields["seconds"] = round(answer.seconds, 3)
        if caption.window is not None:
            fields |= {"window": [round(second, 3) for second in caption.window], "note": answer.note}
        if sum(other.window == caption.window for other in answer.captions) > 1:
            fields["sample"] = numbers[caption.window]
        numbers[caption.window] += 1
        lines.append(to_json(fields))
    return lines


def as_note(answer: Captioned) -> str:
    """`note: CLIP: what of it was captioned`, for a person."""
    return f"note: {printable(answer.clip)}: {printable(answer.note)}"


def as_differences(differs: Mapping[str, int], total: int) -> list[str]:
    """One line for each way in which clips were not as training clips were; `differs` counts them."""
    says = {
        "transcript": "came without what is said, which training prompts held (a --list can hold it)",
        "language": "are in a language that training clips were not in, by what is said",
        "longer": "are longer than training clips (--long=windows captions all of them, --long=refuse none)",
    }
    lines = []
    for name, count in differs.items():
        lines.append(f"note: {count} of {total} clips {says.get(name, f'have no {name}, which training clips had')}")
    return lines


def as_error(answer: Captioned) -> str:
    """`error: CLIP: reason`, for a person."""
    return f"error: {printable(answer.clip)}: {printable(answer.error)}"
