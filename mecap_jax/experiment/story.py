"""The whole story of a run: data, SFT, Emo-GRPO, the rows they are compared with, evaluation and report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mecap_jax.config import Config, ConfigError, RowConfig, chosen_rows
from mecap_jax.data.manifest import describe
from mecap_jax.data.shards import ShardReader
from mecap_jax.distributed import first_process
from mecap_jax.evaluation.decoding import Caption
from mecap_jax.evaluation.java_tools import Meteor
from mecap_jax.evaluation.report import write_report
from mecap_jax.evaluation.report_html import Media
from mecap_jax.evaluation.stage import StageResult
from mecap_jax.evaluation.tables import UNTRAINED
from mecap_jax.experiment.forecast import forecast
from mecap_jax.experiment.scoring import RANDOM_TEXT, caption_stage, evaluate_stage, predictions_file, random_text
from mecap_jax.experiment.setup import reopen, set_up
from mecap_jax.experiment.stages import Start, Stop, train_grpo, train_sft
from mecap_jax.experiment.tower_cache import with_tower_cache
from mecap_jax.experiment.weights import (
    RunModel,
    open_model,
    read_kept,
    read_report,
    read_run,
    stage_trainable,
    starting_trainable,
)
from mecap_jax.experiment.workbench import Workbench, common_clips
from mecap_jax.experiment.workdir import CONFIG_FILE, LOCK, check_place, is_claimed
from mecap_jax.json_files import write_json
from mecap_jax.locking import locked
from mecap_jax.models.parameters import merge_params
from mecap_jax.training.logging import RunLogger, jsonl_rows, read_jsonl
from mecap_jax.training.trackers import COMPLETIONS, METRICS, open_trackers

# What the steps of a row follow from that takes the time of another stage.
CONTROL = "control.json"
# As many show where mere text lies, and captioning them costs little beside training, however large the backbone.
_UNTRAINED_CLIPS = 100


def run(
    config: Config,
    workdir: Path,
    should_stop: Stop = lambda step: False,
    traced: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Runs everything that `config` asks for and returns what `report.json` holds.

    Whatever `workdir` already holds is not done again: the same command resumes an interrupted run. Of the steps
    `traced`, from the first to the last, every stage writes a trace.

    Raises:
      LockedError: another process runs in `workdir`.
      Interrupted: `should_stop` said so; the state is saved.
    """
    clock = Clock()
    first = jax.process_index() == 0
    check_place(workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_writer(workdir))
        logger = stack.enter_context(RunLogger(workdir, enabled=first, traced=traced))
        goes_on = is_claimed(workdir)
        with clock.measure("set_up"):
            bench = set_up(config, workdir, logger)
        logger.mirror(functools.partial(open_trackers, config, workdir, goes_on))
        config = bench.config
        logger.say(_describe(bench))
        model = open_model(config, bench.mesh)
        if config.data.tower_cache:
            with clock.measure("tower_cache"):
                bench = with_tower_cache(bench, model, should_stop)
        clips = len(bench.dataset.clips(bench.dataset.evaluated_split))
        ahead = forecast(config, workdir, bench.mesh, config.data.buckets[-1], clips)
        logger.say(f"{ahead} from here on this machine, compilation not counted")

        @contextlib.contextmanager
        def stage(name: str):
            with clock.measure(name):
                yield
            ahead.done(name, clock.parts[name] - clock.compiled[name])
            logger.say(f"{name} is done; {ahead} from here")

        stages: dict[str, Workbench] = {}
        if config.sft is not None:
            with stage("sft"):
                train_sft(bench, "sft", config.sft, model, _first_start(bench), should_stop)
            stages["sft"] = bench
        if config.grpo is not None:
            with stage("grpo"):
                train_grpo(bench, "grpo", config.grpo, model, _second_start(bench), should_stop)
            stages["grpo"] = bench
        for row in chosen_rows(config):
            with stage(row.name):
                stages[row.name] = _train_row(bench, row, model, should_stop)
        with clock.measure("evaluation"):
            evaluated = evaluate_all(stages, _captioner(bench, model))
        return _report(bench, evaluated, clock.report(_step_seconds(workdir)))


def report_again(workdir: Path, logger: RunLogger) -> dict[str, Any]:
    """Writes the report of a run anew from the captions that it keeps: nothing is captioned, no weights are read.

    Raises:
      ConfigError: there is no run, or a stage of it has not been captioned yet.
      LockedError: another process runs in `workdir`.
    """
    read_run(workdir)  # where there is none, nothing is made
    with _only_writer(workdir):
        bench, evaluated = evaluated_again(workdir, logger)
        timing = read_report(workdir).get("timing") or {"steps": _step_seconds(workdir)}
        return _report(bench, evaluated, timing)


def _only_writer(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Within it no other run writes in `workdir`; the first process holds the lock for all."""
    return locked(workdir / LOCK, str(workdir)) if jax.process_index() == 0 else contextlib.nullcontext()


def evaluated_again(workdir: Path, logger: RunLogger) -> tuple[Workbench, Evaluated]:
    """Scores the captions that a run keeps. Errors as in `report_again`."""

    def refuse(bench: Workbench, stage: str, title: str, numbers: list[int]):
        raise ConfigError(f"{workdir} keeps no captions of {title}; scripts/train.py with this --workdir makes them")

    bench = reopen(workdir, None, logger)
    stages = {name: bench for name in ("sft", "grpo") if getattr(bench.config, name) is not None}
    stages |= {row.name: bench.for_row(row) for row in chosen_rows(bench.config)}
    kept = predictions_file(bench, UNTRAINED).is_file()
    return bench, evaluate_all(stages, refuse, untrained=kept or not _starts_from_backbone(bench.config))


def _first_start(bench: Workbench) -> Start:
    """Where a run starts."""
    return lambda: starting_trainable(bench.config, bench.mesh)


def _second_start(bench: Workbench) -> Start:
    """Where SFT ended; where the run starts if it has none."""
    if bench.config.sft is None:
        return _first_start(bench)
    return lambda: stage_trainable(bench.config, bench.workdir, bench.mesh, "sft")


# --- rows that the result is compared with --------------------------------------------------------------------------


def _train_row(bench: Workbench, row: RowConfig, model: RunModel, should_stop: Stop) -> Workbench:
    """Trains a row of comparison; returns the bench that it was trained on."""
    changed = bench.for_row(row)
    model = _model_of(changed, bench, model)
    start = _second_start(bench) if row.after else _first_start(changed)
    settings = getattr(changed.config, row.stage)
    if row.time_of:
        settings = dataclasses.replace(settings, steps=_steps_in_time_of(bench, row))
    train = train_sft if row.stage == "sft" else train_grpo
    train(changed, row.name, settings, model, start, should_stop)
    return changed


def _model_of(view: Workbench, bench: Workbench, model: RunModel) -> RunModel:
    """The model of a stage: the run's, or that of a row with a network of its own."""
    return model if view.config.model == bench.config.model else open_model(view.config, view.mesh)


def _steps_in_time_of(bench: Workbench, row: RowConfig) -> int:
    """Steps that take as long as all those of another stage; how long steps take is measured once a run, by the
    median."""
    path = bench.workdir / CONTROL
    first_process(lambda: path.exists() or write_json(path, {"seconds_per_step": _step_seconds(bench.workdir)}))
    seconds = read_kept(path, {"seconds_per_step": dict})["seconds_per_step"]
    return max(1, round(getattr(bench.config, row.time_of).steps * seconds[row.time_of] / seconds[row.stage]))


def _step_seconds(workdir: Path) -> dict[str, float]:
    """Median seconds of a step by stage."""
    seconds = defaultdict(list)
    for row in jsonl_rows(workdir / METRICS):
        if "timing_s/step" in row:
            seconds[row["stage"]].append(row["timing_s/step"])
    return {stage: float(np.median(values)) for stage, values in seconds.items()}


# --- evaluation and report -------------------------------------------------------------------------------------------


# Makes captions: (bench, stage, what is done, for people, the clips' numbers) -> captions by number.
MakeCaptions = Callable[[Workbench, str, str, list[int]], Mapping[int, Caption]]


class Evaluated(NamedTuple):
    """What the stages of a run are worth.

    Attributes:
      results: by stage, on the run's own clips.
      ablation: by stage and modality, where the stage saw no other.
      untrained: what text is worth without any training, on some of the clips: what the backbone says, or, where random
        weights are the start, random text; None where that is not known.
      others: by name of further clips and stage.
    """

    results: dict[str, StageResult]
    ablation: dict[str, dict[str, StageResult]]
    untrained: StageResult | None
    others: dict[str, dict[str, StageResult]]


def evaluate_all(stages: dict[str, Workbench], caption: MakeCaptions, untrained: bool = True) -> Evaluated:
    """Scores every finished stage on all clips that the run is evaluated on; arguments as in `evaluate`."""
    with Meteor(ahead=next(iter(stages.values())).task.asks_meteor) as meteor:
        own = evaluate(stages, caption, meteor, untrained=untrained)
        return Evaluated(*own, evaluate_others(stages, caption, meteor))


def evaluate_others(
    stages: dict[str, Workbench], caption: MakeCaptions, meteor: Meteor
) -> dict[str, dict[str, StageResult]]:
    """Scores what every finished stage says of the clips of `evaluation.others`, by the name of their directory."""
    found = {}
    for directory in map(Path, next(iter(stages.values())).config.evaluation.others):
        reader = ShardReader(directory)
        over = {name: bench.over(reader) for name, bench in stages.items()}
        found[directory.name], *_ = evaluate(over, caption, meteor, directory.name)
    return found


def evaluate(
    stages: dict[str, Workbench], caption: MakeCaptions, meteor: Meteor, other: str = "", untrained: bool = False
) -> tuple[dict[str, StageResult], dict[str, dict[str, StageResult]], StageResult | None]:
    """Scores what every finished stage says of the evaluated clips, the ablation of modalities, and text without any
    training.

    All are scored on the same clips: those that every row of comparison can use, and that can be decoded.

    Args:
      caption: makes the captions that are not kept yet.
      meteor: scores all of them.
      other: the name of clips that are not the run's own; of them there is no ablation.
      untrained: whether text without any training is scored, too, on a bounded number of the clips.
    """
    bench = next(iter(stages.values()))
    config, numbers = bench.config, common_clips(stages)
    results, ablation = {}, defaultdict(dict)
    for name, stage_bench in stages.items():
        # Of other clips by what they are, too: ids may be alike, and what is in a directory may change.
        title, kept = (f"{name} on {other}", f"on-{other}-{bench.reader.checksum[:12]}") if other else (name, "")
        make = functools.partial(caption, stage_bench, name, title, numbers)
        results[name] = evaluate_stage(stage_bench, name, numbers, meteor, make, kept)
        captioned = {clip.id for clip in results[name].clips}
        numbers = [number for number in numbers if bench.dataset.index[number].id in captioned]
        if other or not (config.evaluation.ablation and name in ("sft", "grpo") and len(config.data.modalities) > 1):
            continue
        for modality in config.data.modalities:
            alone = stage_bench.with_data(stage_bench.dataset.with_modalities((modality,)))
            make = functools.partial(caption, alone, name, f"{name} from {modality} only", numbers)
            ablation[name][modality] = evaluate_stage(alone, name, numbers, meteor, make, modality)
    floor = _untrained(bench, caption, numbers, next(iter(results.values())), meteor) if untrained else None
    return results, dict(ablation), floor


def _untrained(
    bench: Workbench, caption: MakeCaptions, numbers: list[int], scored: StageResult, meteor: Meteor
) -> StageResult:
    """Scores text without any training on some of the clips, of which `scored` is a stage's result: what the backbone
    says, or random text where there is none."""
    some = sorted(random.Random(bench.config.seed).sample(numbers, min(_UNTRAINED_CLIPS, len(numbers))))
    make = functools.partial(caption, bench, UNTRAINED, UNTRAINED, some)
    if not _starts_from_backbone(bench.config):
        make = functools.partial(random_text, bench, some, {clip.id: clip.references for clip in scored.clips})
    return evaluate_stage(bench, UNTRAINED, some, meteor, make)


def _starts_from_backbone(config: Config) -> bool:
    """Whether the run starts from published weights, which say something before any training; random weights do not,
    and another run's stage is not untrained."""
    return bool(config.backbone) and not config.init_from


def _captioner(bench: Workbench, model: RunModel) -> Callable[..., Mapping[int, Caption]]:
    """What captions the evaluated clips with a stage's final parameters."""

    held: dict[str, Any] = {}

    def opened(view: Workbench, stage: str) -> tuple[nnx.GraphDef, Any]:
        if stage not in held:
            held.clear()  # before the next are read: memory holds those of one stage
            own = _model_of(view, bench, model)
            if stage == UNTRAINED:
                trained = starting_trainable(bench.config, bench.mesh)
            else:
                trained = stage_trainable(view.config, bench.workdir, bench.mesh, stage)
            held[stage] = own.graphdef, merge_params(trained, own.frozen)
        return held[stage]

    def caption(view: Workbench, stage: str, title: str, numbers: list[int]) -> Mapping[int, Caption]:
        return caption_stage(view, title, *opened(view, stage), numbers, view.config.longest_answer)

    return caption


class Clock:
    """Where a run's time goes: its parts, and what of it was compilation."""

    def __init__(self):
        self._began = time.perf_counter()
        self.parts: dict[str, float] = {}
        self.compiled: dict[str, float] = {}
        self._compile = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_):
        if event.endswith("backend_compile_duration"):
            self._compile += seconds

    @contextlib.contextmanager
    def measure(self, part: str):
        """Counts the time of a block as `part`, and what of it was compilation."""
        began, compiled = time.perf_counter(), self._compile
        yield
        self.parts[part] = round(time.perf_counter() - began, 2)
        self.compiled[part] = self._compile - compiled

    def report(self, step_seconds: dict[str, float]) -> dict[str, Any]:
        return {
            "total_s": round(time.perf_counter() - self._began, 2),
            "compile_s": round(self._compile, 2),
            "parts": self.parts,
            "steps": {stage: round(seconds, 4) for stage, seconds in step_seconds.items()},
        }


def _report(bench: Workbench, evaluated: Evaluated, timing: Mapping[str, Any]) -> dict[str, Any]:
    config = bench.config
    log = read_jsonl(bench.workdir / METRICS)
    if jax.process_index() != 0:
        return {}
    report = write_report(
        bench.workdir,
        seed=config.seed,
        config=read_kept(bench.workdir / CONFIG_FILE, {}),  # as it was asked for, on whatever devices this is
        data=_data_summary(bench),
        results=evaluated.results,
        metrics_log=log,
        timing=timing,
        ablation=evaluated.ablation,
        others=evaluated.others,
        untrained=evaluated.untrained,
        untrained_is="the backbone before the first step" if _starts_from_backbone(config) else RANDOM_TEXT,
        resamples=config.evaluation.bootstrap,
        confidence=config.evaluation.confidence,
        samples=config.evaluation.samples,
        groups=jsonl_rows(groups) if (groups := bench.workdir / COMPLETIONS).is_file() else (),
        media=_media(bench),
    )
    bench.logger.say(f"report: {bench.workdir / 'report.md'}")
    return report


def _media(bench: Workbench) -> Media:
    """What reads the files of a clip by its id."""
    numbers = {record.id: number for number, record in enumerate(bench.dataset.index)}

    def files(clip: str) -> list[bytes]:
        utterance = bench.reader[numbers[clip]]
        return [data for data in (utterance.video, utterance.audio) if data]

    return files


def _data_summary(bench: Workbench) -> dict[str, Any]:
    """Counts for the report."""
    manifest, dataset = bench.reader.manifest, bench.dataset
    return {
        "source": manifest["source"],
        **describe(bench.reader.index, manifest["source"]),
        "splits": manifest["splits"],
        "evaluated_split": dataset.evaluated_split,
        "used": {split: len(dataset.clips(split)) for split in ("train", "validation", "test")},
        "sft_clips": len(dataset.teaching("train", "sft")),
        "held_out_from_sft": len(dataset.clips("train", "held_out")),
        "licences": manifest["licences"],
        "quarantined": [dataclasses.asdict(clip) for clip in dataset.quarantined],
    }


def _describe(bench: Workbench) -> str:
    dataset = bench.dataset
    counts = ", ".join(f"{len(dataset.clips(split))} {split}" for split in ("train", "validation", "test"))
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device(s), {jax.process_count()} process(es)"
    return f"{bench.config.name}: {counts} clips, {len(dataset.quarantined)} quarantined; {devices}"
