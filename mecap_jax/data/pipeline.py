"""The pipeline: read -> decode -> features -> prompt -> bucket and pad -> batch, by Grain, without JAX.

`ClipDataset` knows which clips a run uses and turns them into batches of what a task asks about them. Training batches
come from a Grain dataset whose iterator is part of the checkpoint; element i of it depends on the seed and i only.

A clip goes by its number in the index; a row is a place in a batch.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from mecap_jax.batch import Completions, PromptBatch
from mecap_jax.config import MODALITIES, AugmentConfig, Bucket, DataConfig
from mecap_jax.data.batch_plan import BatchPlan, assign_bucket, evaluation_batches, take
from mecap_jax.data.checks import in_sft_share, too_many_bad, why_undecodable
from mecap_jax.data.clip_prompts import lay_out_clip, request_text
from mecap_jax.data.clips import ClipCache, DecodedClip, augment, decode_clip, frame_size, joined_length
from mecap_jax.data.collate import TOKEN_DTYPES, collate, collate_targets, needed, video_grid
from mecap_jax.data.fitting import (
    cap_prompts,
    choose_buckets,
    describe_bucket,
    extend_buckets,
    fit_to_data,
    fits,
    of_modalities,
    positions,
)
from mecap_jax.data.manifest import BadClip, ClipRecord
from mecap_jax.data.media import MediaError
from mecap_jax.data.pictures import TEMPORAL_PATCH_SIZE
from mecap_jax.data.prompts import encode_target
from mecap_jax.data.questions import Asked, Exercise, Questions
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.data.tower_cache import TokenReader
from mecap_jax.model_config import ModelConfig
from mecap_jax.text_files import printable

_log = logging.getLogger(__name__)


class ClipBatch(NamedTuple):
    """One process's part of a batch.

    Attributes:
      prompt: the padded prompts.
      numbers: int32 [B], the clips' numbers in the index.
      valid: bool [B], False for a row that fills the batch up and for a clip that could not be decoded after all:
        neither must count.
      asked: what each row is made from.
      targets: tokenised answers [B, R, T], or None.
    """

    prompt: PromptBatch
    numbers: np.ndarray
    valid: np.ndarray
    asked: list[Asked]
    targets: Completions | None

    def split(self, parts: int) -> list[ClipBatch]:
        """Divides the rows into so many batches of one size."""
        size = len(self.numbers) // parts
        return [type(self)(*(_rows_of(field, slice(i * size, (i + 1) * size)) for field in self)) for i in range(parts)]


class EncodingBatch(NamedTuple):
    """One process's part of a batch whose media tokens are to be kept.

    Attributes:
      prompt: the padded prompts.
      ids: id of each clip; None where a row only fills the batch up.
      clips: of each clip which modalities it has, with empty tokens, and the grid; None where it cannot be decoded.
    """

    prompt: PromptBatch
    ids: list[str | None]
    clips: list[DecodedClip | None]


class DataError(ValueError):
    """Data that a run cannot start with."""


class ClipDataset:
    """The clips of a directory of shards as a task's prompts and answers.

    Attributes:
      index: the shards' index; clips are numbered by it.
      config: the configuration with what follows from the data: modalities, longest clip, shapes.
      quarantined: clips that this run leaves out, with the reason, those of the manifest included.
      fixed_shapes: whether the configuration named the shapes; a clip that they do not hold is left out.
      tokens: media tokens that take the place of media, see `with_tokens`.
    """

    def __init__(
        self,
        reader: ShardReader,
        config: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        task: Questions,
        known_buckets: Sequence[Bucket] = (),
        answer_tokens: int = 0,
    ):
        """Checks every clip against the configuration, from the index alone.

        Args:
          known_buckets: shapes that the run uses already. Where the configuration names none, these are used, and one
            more for clips that they do not hold.
          answer_tokens: longest answer behind a prompt. A clip whose prompt leaves no room for it among the positions
            that the model has learned is left out.

        Raises:
          DataError: more than `config.max_bad_fraction` of the clips of the shards are left out (those that the import
            left out are not counted again), none is left, or there is nothing that a model could be shown of them.
        """
        self.index: list[ClipRecord] = reader.index
        self._reader, self._model, self._tokenizer, self.task = reader, model, tokenizer, task
        self._cache = ClipCache(config.cache_mb, max(1, config.workers))
        reasons = {
            i: task.usable(record) or why_undecodable(record, config, model) for i, record in enumerate(self.index)
        }
        usable = [i for i, reason in reasons.items() if not reason]
        self.config = config = fit_to_data(config, [self.index[i] for i in usable])
        if usable and not config.modalities and not any(self.index[i].transcript for i in usable):
            raise DataError("no clip has a transcript, and the model gets to see nothing else")
        self.fixed_shapes = bool(config.buckets)
        configured = of_modalities(config.buckets, config.modalities, model)
        self._needs: dict[int, Bucket] = {}
        for i in usable:
            try:
                clip = self._sized_like(self.index[i])
                need = needed(lay_out_clip(clip, self.ask(i).prompt, tokenizer, model), model)
                if configured:
                    assign_bucket(need, configured)
                if problem := model.decoder.lacks_room(need.prompt_tokens, answer_tokens):
                    raise ValueError(f"makes {problem}")
                self._needs[i] = need
            except ValueError as error:
                reasons[i] = str(error)
        left_out = [BadClip(self.index[i].id, reason) for i, reason in reasons.items() if reason]
        if problem := too_many_bad(left_out, len(self.index), config.max_bad_fraction):
            raise DataError(problem)
        self.quarantined = [*(BadClip(**clip) for clip in reader.manifest["quarantined"]), *left_out]
        # Shapes are rounded up, and not beyond what the model has learned.
        room = model.decoder.prompt_room(answer_tokens)
        shapes = configured or cap_prompts(self._shapes(known_buckets), room)
        self.config = dataclasses.replace(config, buckets=shapes)

    def _shapes(self, known: Sequence[Bucket]) -> tuple[Bucket, ...]:
        needs, known = list(self._needs.values()), of_modalities(known, self.config.modalities, self._model)
        return extend_buckets(known, needs) if known else choose_buckets(needs, self._model)

    # --- which clips ----------------------------------------------------------------------------------------------

    def clips(self, split: str, part: str = "all") -> list[int]:
        """Numbers of a split's usable clips; of the train split also the "sft" share or what is "held_out" from it."""
        chosen = [i for i in self._needs if self.index[i].split == split]
        if part == "all":
            return chosen
        return [i for i in chosen if in_sft_share(self.index[i], self.config.sft_share) == (part == "sft")]

    def teaching(self, split: str, part: str = "all") -> list[int]:
        """Those of `clips` of which the task knows an answer."""
        return [i for i in self.clips(split, part) if self.targets(i)]

    @property
    def evaluated_split(self) -> str:
        """Whose clips the report is on: "test", or "validation" where there are no test clips."""
        return "test" if self.clips("test") else "validation"

    def targets(self, number: int) -> tuple[str, ...]:
        """The answers that a clip teaches."""
        return tuple(self.task.targets(self.index[number]))

    def ask(self, number: int, told: bool = True) -> Asked:
        """What is asked about a clip: where `told`, with what is said in it."""
        record = self.index[number]
        transcript = record.transcript if self.config.include_transcript and told else ""
        return Asked(record, request_text(self.task.request(record), transcript), transcript, self.targets(number))

    def describe_shapes(self) -> str:
        """The shapes of the batches, how many clips go into each, and how much of the work is padding."""
        shapes = {bucket: [] for bucket in self.config.buckets}
        for need in self._needs.values():
            shapes[self.config.buckets[assign_bucket(need, self.config.buckets)]].append(need)
        filled = sum(positions(need, self._model) for needs in shapes.values() for need in needs)
        whole = sum(len(needs) * positions(bucket, self._model) for bucket, needs in shapes.items())
        described = "; ".join(f"{describe_bucket(bucket)}: {len(needs)} clips" for bucket, needs in shapes.items())
        return f"shapes: {described} ({1 - filled / whole:.0%} of their positions are padding)"

    # --- batches --------------------------------------------------------------------------------------------------

    def training_batches(
        self,
        numbers: Sequence[int],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        references: int = 0,
        max_target_tokens: int = 0,
        augmented: bool = True,
        exercises: float = 0.0,
        places: Sequence[int] | None = None,
    ) -> grain.IterDataset:
        """A Grain dataset of `steps` training batches, this process's part of each.

        Args:
          augmented: whether media are changed at random, as `data.augment` says.
          references: how many answers of each clip are tokenised as targets, drawn anew each time.
          exercises: chance that a clip comes with an exercise instead, where the task has one that fits the shape.
          places: which rows of each batch this process reads; one of `batch_size` or more is filled up. None: all.
        """
        plan = BatchPlan(numbers, self._needs, self.config.buckets, batch_size, seed)
        augmentation = self.config.augment if augmented else AugmentConfig()
        drawn = _all(places, batch_size)
        load = _TrainingBatches(self, plan, seed, references, max_target_tokens, augmentation, exercises, drawn)
        return self._iterate(load, steps)

    def encoding_batches(self, batch_size: int, places: Sequence[int] | None = None) -> grain.IterDataset:
        """A Grain dataset of `EncodingBatch`: every usable clip of all splits once; batch i on every process is one.

        Precomputed features are left out. `places` says which rows of each batch this process reads, None: all.
        """
        view = self.with_modalities(tuple(set(self.config.modalities) - {"features"}))
        view._cache = ClipCache(0)  # nothing is read twice
        plan = evaluation_batches(sorted(self._needs), self._needs, self.config.buckets, batch_size)
        return self._iterate(_EncodingBatches(view, plan, _all(places, batch_size)), len(plan))

    def _iterate(self, load: Callable[[int], Any], steps: int) -> grain.IterDataset:
        """Loads batches ahead, in the configured processes."""
        iterator = _read_ahead(load, steps, 4)
        if workers := self.config.workers:
            iterator = iterator.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        return iterator

    def evaluation_batches(
        self,
        numbers: Sequence[int],
        batch_size: int,
        places: Sequence[int] | None = None,
        references: int = 0,
        max_target_tokens: int = 0,
    ) -> Iterator[ClipBatch]:
        """Every clip once, without augmentation, this process's part of each batch.

        The last batch of a bucket is filled up. With `references`, the first ones of each clip are its targets.
        `places` says which rows of each batch this process reads, None: all.

        Two batches are read ahead, in threads: what they decode stays in memory for the next evaluation, and processes
        would take longer to start than most evaluations.
        """
        places = _all(places, batch_size)
        plan = evaluation_batches(numbers, self._needs, self.config.buckets, batch_size)

        def targets(position: int, asked: Asked) -> list[list[int]]:
            return self.encode_targets(asked.targets, range(references), max_target_tokens)

        def load(batch: int) -> ClipBatch:
            chosen, bucket = plan[batch]
            taken, counted = take(chosen, places)
            return self.assemble(
                taken,
                bucket,
                counted,
                targets=targets if references else None,
                target_length=max_target_tokens,
            )

        return iter(_read_ahead(load, len(plan), 2)) if plan else iter(())

    def with_modalities(self, modalities: tuple[str, ...]) -> ClipDataset:
        """The same clips with fewer modalities, for the ablation; decoded clips are shared."""
        view = object.__new__(ClipDataset)
        view.__dict__.update(self.__dict__, _hidden=frozenset(self.config.modalities) - frozenset(modalities))
        return view

    def with_tokens(self, tokens: TokenReader) -> ClipDataset:
        """The same clips with media tokens that were kept, in the same batches; no medium is decoded any more."""
        view = object.__new__(ClipDataset)
        cache = ClipCache(self.config.cache_mb, max(1, self.config.workers))
        view.__dict__.update(self.__dict__, tokens=tokens, _cache=cache)
        return view

    _hidden: frozenset[str] = frozenset()
    tokens: TokenReader | None = None

    def assemble(
        self,
        numbers: Sequence[int],
        bucket: Bucket,
        counted: np.ndarray | None = None,
        *,
        asked: list[Asked] | None = None,
        change: Callable[[int, DecodedClip], DecodedClip] = lambda position, clip: clip,
        targets: Callable[[int, Asked], list[list[int]]] | None = None,
        target_length: int = 0,
    ) -> ClipBatch:
        """Decodes, lays out and pads the clips of `numbers`.

        Rows outside `counted` are not even read. A clip that fails to decode is logged and marked as not valid, too;
        both keep the text of the prompt only, and their targets are masked. Rows are asked what the task asks of their
        clips, or what `asked` says.
        """
        prepared, valid = [], np.ones(len(numbers), bool) if counted is None else counted.copy()
        asked = [self.ask(int(number)) for number in numbers] if asked is None else asked
        for position, number in enumerate(numbers):
            clip = DecodedClip()
            try:
                if valid[position]:
                    clip = change(position, self._cache.get(int(number), self._decode).without(self._hidden))
            except MediaError as error:
                _log.warning(
                    "clip %s cannot be decoded, its row does not count: %s",
                    printable(self.index[number].id),
                    printable(str(error)),
                )
                valid[position] = False
            prepared.append(lay_out_clip(clip, asked[position].prompt, self._tokenizer, self._model))
        prompt = collate(prepared, bucket, self._model, self._tokenizer.pad_id, encoded=self.tokens is not None)
        encoded = None
        if targets is not None:
            ids = [targets(*pair) for pair in enumerate(asked)]
            encoded = collate_targets(ids, target_length, self._tokenizer.pad_id)
            encoded = encoded._replace(mask=encoded.mask & valid[:, None, None])
        return ClipBatch(prompt, np.asarray(numbers, np.int32), valid, asked, encoded)

    def exercise(self, number: int, other: int, bucket: Bucket, rng: np.random.Generator) -> Exercise | None:
        """One of the task's exercises on a clip, beside another one; None where there is none, or it has no room."""
        found = self.task.exercise(self.index[number], self.index[other], rng)
        if found is None:
            return None
        clip = self._sized_like(self.index[number]) if found.media else DecodedClip()
        need = needed(lay_out_clip(clip, found.prompt, self._tokenizer, self._model), self._model)
        return found if fits(need, bucket) else None

    def encode_targets(self, targets: Sequence[str], chosen: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Tokenised answers that are taught; no tokens where there are none."""
        return [
            encode_target(self._tokenizer, targets[i % len(targets)], max_tokens) if targets else [] for i in chosen
        ]

    # --- one clip -------------------------------------------------------------------------------------------------

    def _decode(self, number: int) -> DecodedClip:
        entry, config = self.index[number], self.config
        if self.tokens is None:
            return decode_clip(self._reader[number], entry.has_audio, config, self._model)
        clip = self.tokens[entry.id].without({"audio", "video"} - set(config.modalities))
        if "features" not in config.modalities:
            return clip
        rest = dataclasses.replace(config, modalities=("features",))
        features = decode_clip(self._reader[number], entry.has_audio, rest, self._model).features
        return dataclasses.replace(clip, features=features)

    def outline(self, clip: DecodedClip) -> DecodedClip:
        """What is known of a decoded clip that has yet to be encoded: its modalities, and the grid of its video."""
        empty = np.zeros((0, self._model.decoder.hidden_size), TOKEN_DTYPES[self._model.dtype])
        grid = None if clip.frames is None else video_grid(clip.frames, clip.seconds_per_frame, self._model)
        return DecodedClip(
            audio_tokens=empty if clip.has_audio else None, video_tokens=empty if grid else None, grid=grid
        )

    # --- sizes ----------------------------------------------------------------------------------------------------

    def _sized_like(self, record: ClipRecord) -> DecodedClip:
        """A clip of the size that decoding will give, from the index alone (arrays without memory of their own)."""
        config, mel, frames, features = self.config, None, None, None
        if "audio" in config.modalities and record.has_audio:
            # Resampling may round up by one frame.
            count = int(min(record.seconds, config.max_seconds) * 100) + 2
            mel = np.broadcast_to(np.float32(0), (count, self._model.audio.num_mel_bins))
        if "video" in config.modalities and record.has_video:
            count = min(config.max_frames, record.frames)
            if config.fps:
                seconds = min(record.video_seconds + 1e-4, config.max_seconds)  # the index rounds to four digits
                wanted = min(max(seconds * config.fps, 4), count)
                count = max(int(wanted) // TEMPORAL_PATCH_SIZE * TEMPORAL_PATCH_SIZE, 1)
            height, width = frame_size(record.height, record.width, config, self._model)
            frames = np.broadcast_to(np.uint8(0), (count, height, width, 3))
        if "features" in config.modalities and record.features:
            length = joined_length(record.features, self._model.features)
            features = np.broadcast_to(np.float32(0), (length, sum(self._model.features.dims)))
        return DecodedClip(mel, frames, 1.0, features)


def _read_ahead(load: Callable[[int], Any], count: int, ahead: int) -> grain.IterDataset:
    """Loads number after number in threads, up to so many ahead."""
    return grain.MapDataset.range(count).map(load).to_iter_dataset(grain.ReadOptions(2, ahead))


class _Load:
    """What reader processes are given."""

    def __setstate__(self, state):
        self.__dict__.update(state)
        os.environ["JAX_PLATFORMS"] = "cpu"  # unpickled in a reader process, which must never grab an accelerator


class _EncodingBatches(_Load):
    """Number -> batch."""

    def __init__(self, dataset, plan, places):
        self._dataset, self._plan, self._places = dataset, plan, places

    def __call__(self, number: int) -> EncodingBatch:
        chosen, bucket = self._plan[number]
        numbers, counted = take(chosen, self._places)
        clips: list[DecodedClip | None] = [None] * len(numbers)

        def note(position: int, clip: DecodedClip) -> DecodedClip:
            clips[position] = self._dataset.outline(clip)
            return clip

        batch = self._dataset.assemble(numbers, bucket, counted, change=note)
        ids = [self._dataset.index[number].id if counts else None for number, counts in zip(numbers, counted)]
        return EncodingBatch(batch.prompt, ids, clips)


class _TrainingBatches(_Load):
    """Step -> batch."""

    def __init__(self, dataset, plan, seed, references, max_target_tokens, augmentation, exercises, places):
        self._dataset, self._plan, self._seed, self._augmentation = dataset, plan, seed, augmentation
        self._exercises, self._others = exercises, dataset.clips("train") if exercises else []
        self._references, self._max_target_tokens, self._places = references, max_target_tokens, places

    def __call__(self, step: int) -> ClipBatch:
        chosen, bucket = self._plan.batch(step)
        # One generator a row, by its place in the whole batch: the same draws on any number of processes.
        generators = [np.random.default_rng((self._seed, step, place)) for place in self._places]
        dropout = self._dataset.config.transcript_dropout
        told = [generator.random() >= dropout for generator in generators]

        def targets(position: int, asked: Asked) -> list[list[int]]:
            order = generators[position].permutation(max(self._references, len(asked.targets)))
            return self._dataset.encode_targets(asked.targets, order[: self._references], self._max_target_tokens)

        def change(position: int, clip: DecodedClip) -> DecodedClip:
            clip = clip.without(MODALITIES) if position in unseen else clip
            return augment(clip, self._augmentation, generators[position])

        numbers, counted = take(chosen, self._places)
        asked = [self._dataset.ask(int(number), t) for number, t in zip(numbers, told)]
        unseen = set()
        if self._exercises:
            for position, generator in enumerate(generators):
                if (exercise := self._exercise(int(numbers[position]), bucket, generator)) is not None:
                    answers = (exercise.answer,)
                    asked[position] = dataclasses.replace(asked[position], prompt=exercise.prompt, targets=answers)
                    unseen |= set() if exercise.media else {position}
        return self._dataset.assemble(
            numbers,
            bucket,
            counted,
            asked=asked,
            change=change,
            targets=targets if self._references else None,
            target_length=self._max_target_tokens,
        )

    def _exercise(self, number: int, bucket: Bucket, generator: np.random.Generator) -> Exercise | None:
        if generator.random() >= self._exercises:
            return None
        other = self._others[generator.integers(len(self._others))]
        return self._dataset.exercise(number, other, bucket, generator)


def _rows_of(field: Any, part: slice) -> Any:
    """Some rows of a field of a batch: an array, arrays by name, a list, or None."""
    if isinstance(field, tuple):
        return type(field)(*(_rows_of(value, part) for value in field))
    return None if field is None else field[part]


def _all(places: Sequence[int] | None, batch_size: int) -> np.ndarray:
    return np.arange(batch_size) if places is None else np.asarray(places)
