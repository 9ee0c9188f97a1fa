"""A miniature of the network and random inputs for it, shared by the tests so that programs compile once."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mecap_jax.batch import PromptBatch
from mecap_jax.data.features import vision_patches
from mecap_jax.model_config import (
    AudioTowerConfig,
    DecoderConfig,
    FeatureProjectorConfig,
    LoraConfig,
    ModelConfig,
    TextEncoderConfig,
    VisionTowerConfig,
)
from mecap_jax.models.multimodal_lm import MultimodalLM

END = 2  # end-of-text id of the miniature
CONFIG = ModelConfig(
    name="miniature",
    decoder=DecoderConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        mrope_section=(1, 1, 2),
        tie_word_embeddings=True,
    ),
    audio=AudioTowerConfig(
        num_mel_bins=8, d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=24, n_window=10
    ),
    vision=VisionTowerConfig(
        hidden_size=16, intermediate_size=24, depth=2, num_heads=2, fullatt_block_indexes=(1,), window_size=56
    ),
    features=FeatureProjectorConfig(names=("face",), dims=(6,), hidden_size=16),
)


# The same with GPT-2's decoder, and with BART.
GPT2 = dataclasses.replace(
    CONFIG,
    decoder=dataclasses.replace(CONFIG.decoder, num_key_value_heads=4, mrope_section=None, max_position_embeddings=80),
)


BART = dataclasses.replace(
    GPT2, decoder=dataclasses.replace(GPT2.decoder, encoder=TextEncoderConfig(2, 2, 40, start_ids=(END, 0)))
)


# Adapters in the decoder and in both towers.
LORA = dataclasses.replace(
    CONFIG,
    lora=LoraConfig(
        rank=2,
        alpha=8.0,
        targets=(
            r"language_model\.layers\.\d+\.(self_attn\.[qv]|mlp\.down)_proj",
            r"audio_tower\..*\.fc1",
            r"visual\..*\.q",
        ),
    ),
)


@functools.cache
def model(seed: int = 0, config: ModelConfig = CONFIG):
    """The miniature as (graphdef, params).

    These are distributed as the network's own, but drawn by NumPy: in JAX each shape is several programs to compile.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: MultimodalLM(config, nnx.Rngs(0))))

    def draw(path, x):
        rng = np.random.default_rng((seed, *jax.tree_util.keystr(path).encode()))  # adapters change no other weight
        name, inputs = path[-1].key, math.prod(x.shape[:-1])
        if name in ("kernel", "embedding"):
            drawn = rng.normal(size=x.shape) * (inputs if name == "kernel" else x.shape[-1]) ** -0.5
        elif name == "lora_a":
            drawn = rng.uniform(-1, 1, x.shape) * inputs**-0.5
        else:
            zeros = dict.fromkeys(("bias", "final_logits_bias", "lora_b", "mix"), np.zeros)
            drawn = ({"scale": np.ones} | zeros)[name](x.shape)
        return jnp.asarray(drawn.astype(x.dtype))

    return graphdef, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))


def trained_adapters(params):
    """Parameters of an adapted miniature with B drawn at random, as if it had been trained."""

    def draw(path, x):
        b = path[-1].key == "lora_b"
        return jax.random.normal(jax.random.key(sum(map(ord, str(path)))), x.shape) / 2 if b else x

    return jax.tree_util.tree_map_with_path(draw, params)


def prompts(batch: int = 3, seed: int = 0, length: int = 24, missing: bool = True) -> PromptBatch:
    """Random prompts of mixed length: row 0 has all media; row 1 may lack video, row 2 audio."""
    rng = np.random.default_rng(seed)
    audio, vision = CONFIG.audio, CONFIG.vision
    chunks, audio_tokens = 2, audio.chunk_tokens
    # Two pairs of frames of two windows, of which the second is half full; one cell is padding.
    videos = [vision_patches(rng.integers(256, size=(4, 56, 84, 3), dtype=np.uint8), vision) for _ in range(batch)]
    frames, shown, cells = *videos[0].patches.shape[:2], 7
    lengths = np.array([length - (b % 3) * 4 for b in range(batch)])
    tokens = rng.integers(4, CONFIG.decoder.vocab_size, (batch, length))
    media_index = np.full((batch, length), -1)
    audio_frames = np.tile([audio.chunk_frames, audio.chunk_frames // 2 + 1], (batch, 1))
    patches = np.zeros((batch, frames, cells, vision.cell_patches, vision.patch_dim), np.uint8)
    cell_positions = np.full((batch, frames, cells, 2), -1, np.int32)
    windows = np.full((batch, frames, *videos[0].windows.shape), -1, np.int32)
    video_offset = chunks * audio_tokens
    feature_offset = video_offset + frames * cells
    for b, video in enumerate(videos):
        audio_index = [i for i in range(video_offset) if i < audio_tokens + 3]
        video_index = [video_offset + t * cells + c for t in range(frames) for c in range(shown)]
        features = [feature_offset]
        if missing and b % 3 == 1:
            video_index, features = [], []
        else:
            patches[b, :, :shown], cell_positions[b, :, :shown] = video.patches, video.positions
            windows[b] = video.windows
        if missing and b % 3 == 2:
            audio_index, audio_frames[b] = [], 0
        index = (features + audio_index + video_index)[: lengths[b] - 4]
        media_index[b, 2 : 2 + len(index)] = index
    positions = np.tile(np.arange(length), (batch, 3, 1))
    positions[:, 1:, 3:6] = rng.integers(0, 5, (batch, 2, 3))
    arrays = dict(
        tokens=tokens.astype(np.int32),
        length=lengths.astype(np.int32),
        media_index=media_index.astype(np.int32),
        positions=positions.astype(np.int32),
        next_position=lengths.astype(np.int32),
        audio=rng.normal(size=(batch, chunks, audio.chunk_frames, audio.num_mel_bins)).astype(np.float32),
        audio_frames=audio_frames.astype(np.int32),
        patches=patches,
        cell_positions=cell_positions,
        windows=windows,
        media_tokens=np.zeros((batch, 0, CONFIG.decoder.hidden_size), np.float32),
        instruction=np.zeros((batch, 0), np.int32),
        instruction_length=np.zeros(batch, np.int32),
        features=rng.normal(size=(batch, 1, 6)).astype(np.float32),
    )
    return jax.tree.map(jax.numpy.asarray, PromptBatch(**arrays))


def row(prompt: PromptBatch, b: int) -> PromptBatch:
    """One row of a batch, as a batch of one."""
    return jax.tree.map(lambda x: x[b : b + 1], prompt)


def pad_right(prompt: PromptBatch, tokens: int) -> PromptBatch:
    """The same prompts in a longer bucket, with noise in the padding."""

    def pad(x, value):
        return jax.numpy.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, tokens)], constant_values=value)

    return prompt._replace(
        tokens=pad(prompt.tokens, 5), media_index=pad(prompt.media_index, 3), positions=pad(prompt.positions, 7)
    )
