"""What the page does, without the page: each method takes what a person chose and returns what is to be shown."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import re
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path
from typing import Any

from mecap_jax.app import rendering
from mecap_jax.app.captions import (
    COLUMNS,
    OpenModel,
    Sampling,
    as_csv,
    caption_files,
    describe_clip,
    shown_of,
    table_rows,
)
from mecap_jax.app.clips import ClipRow, Clips, choose_clips, open_clips
from mecap_jax.app.curves import MetricsLog
from mecap_jax.app.json_lines import open_own
from mecap_jax.app.places import COMPLETIONS, METRICS, find_data, find_runs, find_stages, inside
from mecap_jax.app.rollouts import GroupRow, RolloutLog, StepRow, by_step, choose, missing_last
from mecap_jax.config import ConfigError, SyntheticConfig
from mecap_jax.data.inspection import read
from mecap_jax.data.synthetic.corpus import plan
from mecap_jax.data.synthetic.corpus import render as render_clip
from mecap_jax.data.training_facts import FACTS_FILE
from mecap_jax.data.utterance import Utterance
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.experiment.weights import CONFIG_FILE, read_run
from mecap_jax.experiment.workdir import DATA, data_of
from mecap_jax.json_files import to_json
from mecap_jax.tasks.protocols import Protocol
from mecap_jax.tasks.registry import make_task
from mecap_jax.text_files import printable

# What one line on the page tells; anything else is a fault of ours, and the terminal has it whole.
SHOWN_ERRORS = (*USER_ERRORS, OSError, ValueError)
SECONDS_FOR_A_CLIP, SECONDS_FOR_FILES = 120.0, 1800.0
MOST_FILES = 200
PAGE = 100  # rows of a table at a time
_LONGEST_CELL = 40  # characters
_OPEN_MODELS, _OPEN_RUNS, _OPEN_DATA = 2, 4, 2
_EXAMPLES = 12
GROUP_COLUMNS = ("group", "stage", "step", "clip", "label", "mean", "best", "worst", "spread", "degenerate",
                 "parse failures", "cut off", "size")  # fmt: skip
STEP_COLUMNS = ("step", "stage", "groups", "mean", "spread", "no spread", "degenerate", "parse failures", "cut off",
                "completions")  # fmt: skip
CLIP_COLUMNS = ("number", "clip", "split", "speaker", "seconds", "label", "other labels", "captions", "transcript")


class Kept:
    """Opens things by name, and keeps the last few; safe under threads."""

    def __init__(self, open_: Callable[[Any], Any], most: int):
        self._open, self._most, self._lock = open_, most, threading.Lock()
        self._found: collections.OrderedDict[Any, Any] = collections.OrderedDict()

    def __getitem__(self, name: Any) -> Any:
        with self._lock:
            if name not in self._found:
                while len(self._found) >= self._most:  # before, not behind: two large models may not fit
                    self._found.popitem(last=False)
                self._found[name] = self._open(name)
            self._found.move_to_end(name)
            return self._found[name]


@dataclasses.dataclass
class OpenRun:
    """A run that is looked at, also while it trains.

    Attributes:
      protocol: how its answers are read; None for captions, and where its configuration does not tell.
      problem: why that cannot be read, in one line.
      data: where its clips are, None where it does not tell.
    """

    name: str
    rollouts: RolloutLog
    metrics: MetricsLog
    protocol: Protocol | None
    problem: str
    data: Path | None

    @classmethod
    def at(cls, root: Path, name: str) -> OpenRun:
        """Raises ConfigError where there is no run of this name in `root`."""
        directory = inside(root, name)
        if not any((directory / log).is_file() for log in (COMPLETIONS, METRICS)):
            raise ConfigError(f"{name!r:.200} holds no run: there is neither {COMPLETIONS} nor {METRICS}")
        protocol, data, problem = None, None, ""
        try:
            for file in (CONFIG_FILE, DATA, FACTS_FILE):
                with contextlib.suppress(FileNotFoundError):
                    open_own(directory / file).close()
            data = data_of(directory)
            protocol = getattr(make_task(read_run(directory)), "protocol", None)
        except SHOWN_ERRORS as error:
            problem = " ".join(str(error).split())
        logs = RolloutLog(directory / COMPLETIONS), MetricsLog(directory / METRICS)
        return cls(name, *logs, protocol, problem, data)

    def update(self) -> None:
        self.rollouts.update()
        self.metrics.update()

    @property
    def state(self) -> str:
        """How much there is, and what of it cannot be read; one line each."""
        rows = self.rollouts.rows
        completions = sum(row.completions for row in rows)
        there = f"{len(rows)} groups, {completions} completions" if rows else "no completions (yet)"
        problems = (self.rollouts.problem, self.metrics.problem, self.problem)
        return "\n".join(filter(None, (f"{self.name}: {there}", *problems)))


class Site:
    """The page's memory.

    Args:
      checkpoints: what was named on the command line, by name.
      runs, data: directories of runs and of data; None: there are none to look at.
      features: as `--features` of `scripts/caption.py`.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        runs: Path | None = None,
        data: Path | None = None,
        dtype: str | None = None,
        features: Path | None = None,
    ):
        self._checkpoints, self._runs, self._data = dict(checkpoints), runs, data
        self.models = Kept(lambda name: OpenModel.load(self._checkpoint(name), name, dtype, features), _OPEN_MODELS)
        self._open_runs = Kept(lambda name: OpenRun.at(self._root(runs, "--runs"), name), _OPEN_RUNS)
        self._open_data = Kept(open_clips, _OPEN_DATA)
        self._device = ThreadPoolExecutor(1, "model")  # the device does one thing at a time

    # --- captions ---------------------------------------------------------------------------------------------

    def checkpoint_names(self) -> list[str]:
        """Those of the command line, and the other stages of all runs."""
        named = {path.resolve() for path in self._checkpoints.values()}
        stages = find_stages(self._runs) if self._runs else ()
        return [*self._checkpoints, *(stage for stage in stages if (self._runs / stage).resolve() not in named)]

    def caption(
        self,
        names: Sequence[str],
        clip: str,
        transcript: str,
        sampling: Sampling,
        seconds: float = SECONDS_FOR_A_CLIP,
        *,
        is_id: bool = False,
    ) -> str:
        """What one checkpoint or several say of a file, or, where `is_id`, of an id of precomputed features.

        Raises:
          ConfigError: a checkpoint reads the other of the two; it took too long; or one of `USER_ERRORS` where a
            checkpoint cannot be opened.
        """

        def describe() -> str:
            models = [self.models[name] for name in names]
            for model in models:
                if model.reads_media == is_id:  # what a person types as an id must not be opened as a path
                    wanted = (
                        "clips, no ids of precomputed features" if is_id else "ids of precomputed features, no clips"
                    )
                    raise ConfigError(f"{model.name} reads {wanted}")
            said = [describe_clip(model, clip, transcript, sampling) for model in models]
            model, path = models[0], Path(clip)
            heard = not all(answer.error for answer in said[0].answers.values())
            media = path.read_bytes() if heard and model.reads_media else None
            return rendering.captions(said, shown_of(model, path) if media else None, media)

        return self._within(seconds, describe)

    def warm_up(self, name: str) -> None:
        """Compiles, beside what else happens, what a checkpoint's first caption needs."""

        def describe() -> None:
            with contextlib.suppress(*SHOWN_ERRORS), self.example(self.examples()[0]) as clip:
                if self.models[name].reads_media:
                    describe_clip(self.models[name], clip)

        self._device.submit(describe)

    def caption_files(
        self, name: str, clips: Sequence[str], sampling: Sampling, progress: Callable[[int, int], None]
    ) -> tuple[str, str]:
        """A table of captions of files, and links to it as CSV and JSON Lines.

        Raises:
          ConfigError: none, or too many files; it took too long; or as `Captioner.from_pretrained` does.
        """
        if not 0 < len(clips) <= MOST_FILES:
            raise ConfigError(f"choose between 1 and {MOST_FILES} files, got {len(clips)}")

        def describe() -> list[dict]:
            answers = []
            for number, answer in caption_files(self.models[name], clips, sampling, SECONDS_FOR_FILES):
                answers.append(answer)
                progress(number + 1, len(clips))
            return table_rows(answers)

        rows = self._within(SECONDS_FOR_FILES + SECONDS_FOR_A_CLIP, describe)
        lines = "".join(f"{to_json(row)}\n" for row in rows)
        files = {"captions.csv": ("text/csv", as_csv(rows)), "captions.jsonl": ("application/jsonl", lines)}
        cells = [[_cell(row.get(key)) for key in COLUMNS] for row in rows]
        return rendering.table(COLUMNS, cells), rendering.downloads(files)

    def examples(self) -> list[str]:
        """Names of clips to try: of the first data set, test clips before others, or else of clips made here."""
        return list(self._examples)

    @contextlib.contextmanager
    def example(self, name: str) -> Iterator[str]:
        """A file with an example, for as long as it is needed.

        Raises:
          ConfigError: there is none of this name, or it cannot be read.
        """
        if name not in self._examples:
            raise ConfigError(f"there is no example {name!r:.100}")
        found = self._examples[name]()
        if not isinstance(found, Utterance) or not (media := found.video or found.audio):
            raise ConfigError(f"{name}: {getattr(found, 'reason', 'it has neither sound nor pictures')}")
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / (re.sub(r"[^\w.-]", "_", found.id)[-100:] + ".clip")
            path.write_bytes(media)
            yield str(path)

    @functools.cached_property
    def _examples(self) -> Mapping[str, Callable[[], Any]]:
        for name in self.data_names():
            with contextlib.suppress(*SHOWN_ERRORS):
                clips = self._clips(name)
                rows = sorted(clips.rows, key=lambda row: row.split != "test")[:_EXAMPLES]
                if rows:
                    titles = (f"{row.id} ({row.labels.get('multimodal', 'no label')})" for row in rows)
                    return {title: functools.partial(clips.__getitem__, row.number) for title, row in zip(titles, rows)}
        made = {}
        for spec in plan(SyntheticConfig(clips=60, conflict_share=0.0, speech_languages=("en",))):
            made.setdefault(f"synthetic: {spec.emotion}", functools.partial(read, functools.partial(render_clip, spec)))
        return made

    # --- rollouts ---------------------------------------------------------------------------------------------

    def run_names(self) -> list[str]:
        return find_runs(self._runs) if self._runs else []

    def run(self, name: str) -> OpenRun:
        """A run as it is now. Raises ConfigError where there is none of this name."""
        found = self._open_runs[name]
        inside(self._root(self._runs, "--runs"), name)  # it may have gone
        found.update()
        return found

    def curves(self, name: str, other: str, stage: str) -> str:
        runs = [self.run(each) for each in (name, other) if each]
        found = [run.metrics.curves(stage) for run in runs]
        return rendering.charts(found[0], found[1] if len(found) > 1 else (), [run.name for run in runs])

    def groups(self, name: str, page: int, **wanted) -> tuple[list[list], str]:
        """A page of the groups that fit (see `rollouts.choose`), and how many there are."""
        chosen = choose(self.run(name).rollouts.rows, **wanted)
        return _paged(chosen, page, _group_cells)

    def steps(self, name: str, page: int, **wanted) -> tuple[list[list], str]:
        """A page of the steps of the groups that fit, and how many there are."""
        order = wanted.pop("order", "newest first")
        steps = by_step(choose(self.run(name).rollouts.rows, order="oldest first", **wanted))
        steps.sort(key=_STEP_ORDERS.get(order, _STEP_ORDERS["newest first"]))
        return _paged(steps, page, _step_cells)

    def group(self, name: str, number: int, other: str = "") -> str:
        """A group with its clip, and the group of the same clip in another run that was sampled nearest to its step."""
        run = self.run(name)
        found = run.rollouts.read(number)
        player = self._player(run, found["utterance_id"])
        if not other:
            return rendering.group(found, player, run.protocol)
        second = self.run(other)
        alike = [row for row in second.rollouts.rows if row.clip == found["utterance_id"]]
        if not alike:
            missing = rendering.page(rendering.note(f"{other} has not sampled this clip."))
            return rendering.group(found, player, run.protocol) + missing
        nearest = min(alike, key=lambda row: (row.stage != found["stage"], abs(row.step - found["step"])))
        theirs = f"{other}, {nearest.stage}, step {nearest.step}"
        beside = rendering.completions(second.rollouts.read(nearest.number), second.protocol, theirs, "second")
        return rendering.group(found, player, run.protocol, name, beside)

    def _player(self, run: OpenRun, clip: str) -> str:
        """The clip of a group: only from data inside the named directories."""
        if run.data is None:
            return ""
        roots = [root for root in (self._data, self._runs) if root is not None]
        place = Path(run.data).resolve()
        if not any(place.is_relative_to(root.resolve()) for root in roots):
            return rendering.note(f"Its clip is in {run.data}; start the page with --data={run.data} to play it.")
        try:
            clips = self._open_data[place]
            if clip not in clips.numbers:
                return rendering.note(f"{run.data} has no clip {clip!r:.100}.")
            found = clips[clips.numbers[clip]]
        except SHOWN_ERRORS as error:
            return rendering.note(" ".join(str(error).split()))
        return rendering.player(found.video) + rendering.player(found.audio)

    # --- data -------------------------------------------------------------------------------------------------

    def data_names(self) -> list[str]:
        return find_data(self._data) if self._data else []

    def about_data(self, name: str) -> tuple[Clips, str]:
        """The clips of a data set, and what is known of it. Raises as `open_clips` does."""
        clips = self._clips(name)
        return clips, rendering.about_clips(clips)

    def clips(self, name: str, page: int, **wanted) -> tuple[list[list], str]:
        """A page of the clips that fit (see `clips.choose_clips`), and how many there are."""
        return _paged(choose_clips(self._clips(name).rows, **wanted), page, _clip_cells)

    def clip(self, name: str, number: int) -> str:
        return rendering.utterance(self._clips(name)[number])

    def _clips(self, name: str) -> Clips:
        return self._open_data[inside(self._root(self._data, "--data"), name)]

    # --- what all share ---------------------------------------------------------------------------------------

    def _checkpoint(self, name: str) -> Path:
        if name in self._checkpoints:
            return self._checkpoints[name]
        return inside(self._root(self._runs, "--runs"), name)

    def _root(self, root: Path | None, flag: str) -> Path:
        if root is None:
            raise ConfigError(f"the page was started without {flag}")
        return root

    def _within(self, seconds: float, work: Callable[[], Any]) -> Any:
        """What `work` returns, done when the device is free; an error in one line where that takes too long."""
        waiting = self._device.submit(work)
        try:
            return waiting.result(seconds)
        except TooLate:
            waiting.cancel()
            raise ConfigError(f"it took longer than {seconds:g} s; try a shorter clip, or again later") from None


def chosen_clip(source: str, clips: Mapping[str, str | None], sent: Collection[str], uploads: Path) -> str:
    """What is to be captioned, of the sources that there are.

    Args:
      clips: by source; None or "" where there is nothing.
      sent: sources whose clips a browser sends, into the directory `uploads`.

    Raises:
      ConfigError: there is nothing, or a clip that was not sent.
    """
    if not (clip := clips.get(source)):
        raise ConfigError(f"there is nothing to caption yet: choose or record something under {source!r:.40}")
    if source in sent and not Path(os.path.realpath(clip)).is_relative_to(os.path.realpath(uploads)):
        raise ConfigError("that is no file that was sent to this page")
    return clip


# --- tables -----------------------------------------------------------------------------------------------------------


def _paged(rows: Sequence, page: int, cells: Callable[[Any], list]) -> tuple[list[list], str]:
    pages = max(1, -(-len(rows) // PAGE))
    page = min(max(1, int(page or 1)), pages)
    shown = rows[(page - 1) * PAGE : page * PAGE]
    first = (page - 1) * PAGE + 1 if shown else 0
    last = first + len(shown) - bool(shown)
    return [cells(row) for row in shown], f"{first} to {last} of {len(rows)}, page {page} of {pages}"


def _group_cells(row: GroupRow) -> list:
    rewards = map(_cell, (row.mean, row.best, row.worst, row.spread))
    counts = (row.degenerate, row.misread, row.unfinished, row.completions)
    return [row.number, _short(row.stage), row.step, _short(row.clip), _short(row.label), *rewards, *counts]


def _step_cells(row: StepRow) -> list:
    counts = (row.no_spread, row.degenerate, row.misread, row.unfinished, row.completions)
    return [row.step, _short(row.stage), row.groups, _cell(row.mean), _cell(row.spread), *counts]


def _clip_cells(row: ClipRow) -> list:
    label, captions = row.labels.get("multimodal", ""), sum(map(len, row.captions.values()))
    differing = ", ".join(f"{modality} {other}" for modality, other in row.labels.items() if other != label)
    known, told = map(_short, (row.id, row.split, row.speaker)), map(_short, (label, differing))
    return [row.number, *known, _cell(row.seconds), *told, captions, _short(row.transcript)]


_STEP_ORDERS: Mapping[str, Callable[[StepRow], Any]] = {
    "newest first": lambda row: -row.step,
    "oldest first": lambda row: row.step,
    "highest mean reward": lambda row: missing_last(row.mean, -1),
    "lowest mean reward": lambda row: missing_last(row.mean),
    "most disagreeing": lambda row: missing_last(row.spread, -1),
    "most degenerate": lambda row: -row.degenerate,
    "most parse failures": lambda row: -row.misread,
}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    return "" if value is None else value if isinstance(value, int | str) else to_json(value)


def _short(text: str) -> str:
    """Foreign text for a cell: what is longer than a line or two would hide the other rows."""
    text = printable(text[: _LONGEST_CELL + 1])
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
