"""Whether the files of a backbone are those that a run asks for: tried before anything is read or made."""

from __future__ import annotations

from pathlib import Path

from mecap_jax.config import Config, ConfigError
from mecap_jax.data.processor import Processor
from mecap_jax.data.prompts import AudioSpan, FeatureSpan, VideoGrid, lay_out, user_turn
from mecap_jax.models.checkpoints.hub import describe_mismatch, read_model
from mecap_jax.tasks.registry import make_task

# One token of each modality: enough to see what a chat template makes of it.
_SMALLEST = {"audio": AudioSpan(1), "video": VideoGrid(1, 1, 1, 1.0), "features": FeatureSpan(1)}


def check_backbone(config: Config) -> None:
    """Checks that the backbone's files describe the configured model, before anything is read or made.

    Raises:
      ConfigError: no such directory, another network (every field that differs is named with both values), a
        tokenizer or processor that is missing or asks for what is not implemented, a vocabulary that does not fit, or
        a chat template that cannot lay out the run's prompts.
      CheckpointError: its `config.json` is not one that can be read.
    """
    if not config.backbone:
        return
    directory = Path(config.backbone)
    if directory.is_file():
        raise ConfigError(f"config key 'backbone': {directory} is a file, not the directory of the published files")
    if not directory.is_dir():
        raise ConfigError(
            f"config key 'backbone': no such directory: {directory} (put the published files of "
            f"{config.model.name} there, or name where they are)"
        )
    found = read_model(directory)
    if different := describe_mismatch(config.model, found):
        raise ConfigError(
            f"config key 'backbone': {directory} holds another network than configured:\n  " + "\n  ".join(different)
        )
    try:
        tokenizer = Processor.from_directory(directory, config.model).tokenizer
        if tokenizer.vocab_size > (size := config.model.decoder.vocab_size):
            raise ValueError(f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, the decoder {size}")
        media = {kind: medium for kind, medium in _SMALLEST.items() if kind in config.data.modalities}
        asked = make_task(config).request(None)
        lay_out(tokenizer, config.model, user_turn(media, asked), tuple(media.values()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"config key 'backbone': {error}") from error
