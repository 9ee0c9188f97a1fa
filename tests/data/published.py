"""Positions by the published code, as references for ours."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

from types import SimpleNamespace

import numpy as np
import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniPreTrainedModelForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.model_config import ModelConfig


def positions(
    ids: np.ndarray,
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    images: list | None = None,
    videos: list | None = None,
    seconds: list | None = None,
    mel_frames: list | None = None,
    use_audio_in_video: bool = False,
) -> tuple[np.ndarray, int]:
    """Positions [3, n] of a prompt by `get_rope_index`, and that of the first token behind it.

    Args:
      images, videos: grids [temporal, height, width] in patches.
      seconds: between temporal patches of each video.
      mel_frames: of each stretch of sound.
    """
    ids = torch.tensor(np.asarray(ids))[None].long()
    grids = {
        "image_grid_thw": torch.tensor(images) if images else None,
        "video_grid_thw": torch.tensor(videos) if videos else None,
        "attention_mask": torch.ones_like(ids),
    }
    seconds = torch.tensor(seconds, dtype=torch.float32) if seconds else None
    names, special = tokenizer.media, tokenizer.special
    if model.family == "qwen2_5_vl":
        rate = model.position_id_per_seconds
        vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=rate)
        host = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
        host.get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids.__get__(host)
        kinds = (ids == special(names.image)).int() + 2 * (ids == special(names.video)).int()
        result, delta = Qwen2_5_VLModel.get_rope_index(host, ids, kinds, second_per_grid_ts=seconds, **grids)
    else:
        config = SimpleNamespace(
            image_token_id=special(names.image),
            video_token_id=special(names.video),
            audio_token_id=special(names.audio),
            vision_start_token_id=special(names.vision_start),
            audio_start_token_id=special(names.audio_start),
            position_id_per_seconds=model.position_id_per_seconds,
            seconds_per_chunk=model.seconds_per_chunk,
        )
        base = Qwen2_5OmniPreTrainedModelForConditionalGeneration
        host = SimpleNamespace(spatial_merge_size=2, config=config)
        for name in ("get_llm_pos_ids_for_vision", "get_chunked_index"):
            setattr(host, name, getattr(base, name).__get__(host))
        result, delta = base.get_rope_index(
            host,
            ids,
            use_audio_in_video=use_audio_in_video,
            audio_seqlens=torch.tensor(mel_frames) if mel_frames else None,
            second_per_grids=seconds,
            **grids,
        )
    return result[:, 0].numpy(), int(delta) + ids.shape[1]
