"""Everything that the stages of a run share, and how a row of comparison or other clips change it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from mecap_jax.config import Config, ConfigError, RowConfig, row_config
from mecap_jax.data.pipeline import ClipDataset, DataError
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.data.utterance import SPLITS
from mecap_jax.generation.weights import sampling_params
from mecap_jax.models.sentence_encoder import SentenceEncoder
from mecap_jax.rewards.anchors import Anchors
from mecap_jax.tasks.base import Judges, Task
from mecap_jax.tasks.registry import make_task
from mecap_jax.training.logging import RunLogger


@dataclasses.dataclass(frozen=True)
class Workbench:
    """Everything that the stages of a run share."""

    config: Config
    workdir: Path
    mesh: Mesh
    reader: ShardReader
    dataset: ClipDataset
    task: Task
    tokenizer: Tokenizer
    encoder: SentenceEncoder
    anchors: Anchors
    logger: RunLogger

    def with_data(self, dataset: ClipDataset) -> Workbench:
        """The same bench over another view of the data."""
        return dataclasses.replace(self, dataset=dataset)

    def for_row(self, row: RowConfig) -> Workbench:
        """The bench of a row of comparison: what it is asked and what it sees may be another thing.

        Raises:
          ConfigError: a change that the run cannot have.
          DataError: data that the row cannot use; both name the row.
        """
        config = row_config(self.config, row)
        try:
            task = make_task(config)
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from error
        shapes = config.data.buckets
        room = config.model.decoder.prompt_room(config.answer_tokens)
        # A task follows from more than its own settings: which clips can be used, from the reward as well.
        if (config.task, config.data, task) == (self.config.task, self.config.data, self.task):
            if room is None or shapes[-1].prompt_tokens <= room:
                return dataclasses.replace(self, config=config)
        if shapes == self.config.data.buckets and not self.dataset.fixed_shapes:
            # They came from what the run asks: where the row's prompts need more room, it gets a shape more, and where
            # its network has room for less, shapes that are cut to that.
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, buckets=()))
        try:
            dataset = ClipDataset(
                self.reader, config.data, config.model, self.tokenizer, task, shapes, config.answer_tokens
            )
        except (ConfigError, DataError) as error:
            raise type(error)(f"row {row.name!r}: {error}") from error
        if config.data.tower_cache:
            mine, theirs = ({i for split in SPLITS for i in view.clips(split)} for view in (self.dataset, dataset))
            if lacking := theirs - mine:
                raise ConfigError(
                    f"row {row.name!r}: with data.tower_cache a row has the run's clips, and this one has "
                    f"{len(lacking)} more, such as {self.dataset.index[min(lacking)].id!r}"
                )
            if self.dataset.tokens is not None:
                dataset = dataset.with_tokens(self.dataset.tokens)
        config = dataclasses.replace(config, data=dataset.config)
        return dataclasses.replace(self, config=config, task=task, dataset=dataset)

    def over(self, reader: ShardReader) -> Workbench:
        """The bench over other shards, of which clips that cannot be used are left out, however many they are.

        They are seen as the run's own: the same modalities, no more of a long clip, and the run's shapes, with one more
        where they hold what those do not.

        Raises:
          DataError: no clip can be used.
        """
        config = self.config
        data = dataclasses.replace(config.data, max_bad_fraction=1.0, buckets=())
        dataset = ClipDataset(
            reader, data, config.model, self.tokenizer, self.task, config.data.buckets, config.longest_answer
        )
        config = dataclasses.replace(config, data=dataset.config)
        return dataclasses.replace(self, reader=reader, dataset=dataset, config=config)

    def sampling(self, params: Any) -> Any:
        """The run's parameters, or a part of them, as completions are sampled with them."""
        return sampling_params(params, self.config.model.dtype, self.config.mesh.gather)

    @property
    def judges(self) -> Judges:
        """What rewards and metrics may ask."""
        train = [self.dataset.index[number] for number in self.dataset.clips("train")]
        return Judges(self.encoder, self.anchors, train, self.config.longest_answer)


def common_clips(stages: Mapping[str, Workbench]) -> list[int]:
    """The numbers of the evaluated clips that every stage can use, in the order of the first one."""
    first, *others = (bench.dataset for bench in stages.values())
    split = first.evaluated_split
    usable = [set(dataset.clips(split)) for dataset in others]
    return [number for number in first.clips(split) if all(number in known for known in usable)]
