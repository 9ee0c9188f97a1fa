"""What a run's training gave its model: written once, beside the run, for everything that uses the model later."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mecap_jax.config import Bucket, ConfigError, DataConfig
from mecap_jax.data.fitting import length
from mecap_jax.data.manifest import ClipRecord
from mecap_jax.json_files import as_json, read_json_object, write_json

FACTS_FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class TrainingFacts:
    """What the clips that a run learns from are like.

    Resuming and evaluation take their shapes from it; captioning compares a clip with it and can say where the clip is
    longer, in another language or without the transcript that training clips had (`read_facts`).

    Attributes:
      clips: how many.
      modalities: what the model sees of them, those that no clip has left out.
      max_seconds: of a longer clip the model sees the beginning only.
      longest_seconds: the longest clip, before that.
      transcribed: share of the prompts that hold a transcript, dropout included.
      languages: clips by language of the speech.
      caption_languages: clips by language of the captions.
      buckets: the static shapes of the run's batches.
    """

    clips: int
    modalities: tuple[str, ...]
    max_seconds: float
    longest_seconds: float
    transcribed: float
    languages: Mapping[str, int]
    caption_languages: Mapping[str, int]
    buckets: tuple[Bucket, ...]

    def save(self, workdir: Path) -> None:
        """Writes `data.json`."""
        write_json(workdir / FACTS_FILE, as_json(dataclasses.asdict(self)))


def gather_facts(records: Sequence[ClipRecord], config: DataConfig) -> TrainingFacts:
    """Facts about training clips under a configuration that has been fitted to them."""
    shown = config.include_transcript * (1 - config.transcript_dropout)
    return TrainingFacts(
        clips=len(records),
        modalities=config.modalities,
        max_seconds=config.max_seconds,
        longest_seconds=max(map(length, records), default=0.0),
        transcribed=shown * sum(bool(record.transcript) for record in records) / max(len(records), 1),
        languages=dict(Counter(record.language for record in records).most_common()),
        caption_languages=dict(Counter(record.caption_language for record in records).most_common()),
        buckets=config.buckets,
    )


def read_facts(workdir: Path) -> TrainingFacts | None:
    """Reads `data.json` of a run; None where it has none.

    Raises:
      ConfigError: the file is not what `TrainingFacts.save` writes; names it.
    """
    path = workdir / FACTS_FILE
    if not path.is_file():
        return None
    try:
        fields = read_json_object(path)
        fields["modalities"] = tuple(fields["modalities"])
        fields["buckets"] = tuple(Bucket(**bucket) for bucket in fields["buckets"])
        return TrainingFacts(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} does not say what training gave: {error}") from error
