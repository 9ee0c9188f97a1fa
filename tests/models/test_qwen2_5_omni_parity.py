"""The network equals `transformers`' Qwen2.5-Omni thinker, part by part, on random weights."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import functools

import chex
import jax
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from mecap_jax.models.checkpoints.families import LAYOUTS
from mecap_jax.models.checkpoints.table import CheckpointError, flatten, load_tensors
from mecap_jax.models.vision_tower import normalised
from tests import miniature

CONFIG = miniature.CONFIG
TABLE = LAYOUTS["qwen2_5_omni"].table
PATCH = (3, 2, 14, 14)  # channels, frames, height, width


@pytest.fixture(scope="module")
def reference():
    decoder, audio, vision = CONFIG.decoder, CONFIG.audio, CONFIG.vision
    config = Qwen2_5OmniThinkerConfig(
        text_config=dict(
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.hidden_size,
            intermediate_size=decoder.intermediate_size,
            num_hidden_layers=decoder.num_hidden_layers,
            num_attention_heads=decoder.num_attention_heads,
            num_key_value_heads=decoder.num_key_value_heads,
            rope_parameters=dict(
                rope_type="default", rope_theta=decoder.rope_theta, mrope_section=list(decoder.mrope_section)
            ),
            pad_token_id=0,
        ),
        audio_config=dict(
            num_mel_bins=audio.num_mel_bins,
            d_model=audio.d_model,
            encoder_layers=audio.encoder_layers,
            encoder_attention_heads=audio.encoder_attention_heads,
            encoder_ffn_dim=audio.encoder_ffn_dim,
            n_window=audio.n_window,
            output_dim=decoder.hidden_size,
        ),
        vision_config=dict(
            depth=vision.depth,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_heads=vision.num_heads,
            window_size=vision.window_size,
            out_hidden_size=decoder.hidden_size,
            fullatt_block_indexes=list(vision.fullatt_block_indexes),
        ),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    with torch.no_grad():  # the published initialisation is so small that errors would hide
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.1 if parameter.ndim == 1 else (parameter[0].numel()) ** -0.5)
    return model


@pytest.fixture(scope="module")
def tensors(reference):
    return {TABLE.key(key): x.numpy() for key, x in reference.state_dict().items() if key != "lm_head.weight"}


@pytest.fixture(scope="module")
def abstract():
    graphdef, params = miniature.model()
    return graphdef, {k: v for k, v in params.items() if k != "feature_projector"}


@pytest.fixture(scope="module")
def ours(tensors, abstract):
    graphdef, params = miniature.model()
    loaded = load_tensors(tensors, TABLE.rules, TABLE.ignored, abstract[1], patch=PATCH)
    loaded = jax.tree.map(jax.numpy.asarray, loaded)
    params = {**params, **loaded}

    class Jitted:
        """Methods of the loaded network, each one compiled program."""

        @functools.partial(jax.jit, static_argnums=0)
        def audio_tower(self, *inputs):
            return nnx.merge(graphdef, params).audio_tower(*inputs)

        @functools.partial(jax.jit, static_argnums=0)
        def visual(self, *inputs):
            return nnx.merge(graphdef, params).visual(*inputs)

        @functools.partial(jax.jit, static_argnums=0)
        def completion_logits(self, prompt, tokens):
            model = nnx.merge(graphdef, params)
            return model.language_model.logits(model.completion_states(prompt, tokens))

    return Jitted()


@pytest.mark.parametrize("frames", [1, 7, 20, 21, 39, 40])
def test_audio_tower(reference, ours, frames):
    audio = CONFIG.audio
    mel = np.random.default_rng(frames).normal(size=(frames, audio.num_mel_bins)).astype(np.float32)
    chunks = np.full((1, 2, audio.chunk_frames, audio.num_mel_bins), 9.0, np.float32)  # garbage behind the end
    chunks.reshape(-1, audio.num_mel_bins)[:frames] = mel
    lengths = np.clip([[frames, frames - audio.chunk_frames]], 0, audio.chunk_frames)
    with torch.no_grad():
        expected = reference.model.audio_tower(torch.tensor(mel.T), feature_lens=torch.tensor([frames])).pooler_output
    actual = ours.audio_tower(jax.numpy.asarray(chunks), jax.numpy.asarray(lengths))[0, : len(expected)]
    chex.assert_trees_all_close(actual, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 4, 4), (2, 6, 10), (3, 2, 8)])
def test_vision_tower(reference, ours, grid):
    vision = CONFIG.vision
    cell = vision.spatial_merge_size**2
    pixels = np.random.default_rng(0).integers(256, size=(np.prod(grid), vision.patch_dim), dtype=np.uint8)
    grids, values = torch.tensor([grid]), torch.tensor(np.asarray(normalised(jax.numpy.asarray(pixels))))
    with torch.no_grad():
        expected = reference.model.visual(values, grid_thw=grids).pooler_output.numpy()
    index, bounds = get_vision_window_index(grids, vision.spatial_merge_size, vision.window_size, vision.patch_size)
    index, bounds = index.numpy(), bounds.numpy() // cell
    times, cells = grid[0], len(index) // grid[0]
    windows = np.full((len(bounds) - 1, vision.window_cells), -1, np.int32)
    for window, start, end in zip(windows, bounds[:-1], bounds[1:]):
        window[: end - start] = index[start:end] % cells
    patches = np.full((times, cells + 3, cell, vision.patch_dim), 9, np.uint8)  # garbage behind the end
    patches[:, :cells] = pixels.reshape(times, cells, cell, -1)
    positions = np.full((times, cells + 3, 2), -1, np.int32)
    places = get_vision_position_ids(grids, vision.spatial_merge_size).numpy().reshape(times, cells, cell, 2)
    positions[:, :cells] = places[:, :, 0] // vision.spatial_merge_size
    # Room for three more windows, more than the cells would fill.
    windows = np.pad(windows.reshape(times, -1, vision.window_cells), [(0, 0), (0, 3), (0, 0)], constant_values=-1)
    tokens = ours.visual(*(jax.numpy.asarray(x[None]) for x in (patches, positions, windows)))
    tokens = np.asarray(tokens).reshape(times, cells + 3, -1)[:, :cells]
    chex.assert_trees_all_close(tokens.reshape(expected.shape), expected, atol=1e-5)


def test_decoder_scores_a_group_as_separate_sequences_do(reference, ours):
    """Multimodal positions included; the reference runs [prompt, completion] G times, we run the prompt once."""
    rng = np.random.default_rng(0)
    batch, group, length = 2, 3, 5
    prompt = miniature.prompts(batch, missing=False)
    prompt = prompt._replace(
        media_index=jax.numpy.full_like(prompt.media_index, -1),
        audio=prompt.audio[:, :0],
        patches=prompt.patches[:, :0],
        features=prompt.features[:, :0],
    )
    completions = rng.integers(4, CONFIG.decoder.vocab_size, (batch, group, length))
    actual = ours.completion_logits(prompt, jax.numpy.asarray(completions))
    for b in range(batch):
        n = int(prompt.length[b])
        after = np.broadcast_to(int(prompt.next_position[b]) + np.arange(length), (3, length))
        positions = np.concatenate([np.asarray(prompt.positions[b])[:, :n], after], axis=1)
        for g in range(group):
            ids = np.concatenate([np.asarray(prompt.tokens[b])[:n], completions[b, g]])
            with torch.no_grad():
                expected = reference(
                    input_ids=torch.tensor(ids)[None],
                    position_ids=torch.tensor(positions)[:, None],
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                ).logits[0, n - 1 : -1]
            chex.assert_trees_all_close(actual[b, g], expected.numpy(), atol=1e-5)


def test_loading_names_every_problem_at_once(tensors, abstract):
    broken = {k: v for k, v in tensors.items() if k != "visual.blocks.0.attn.q.bias"}
    broken["model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    broken["speaker.weight"] = np.zeros(1, np.float32)
    broken["audio_tower.proj.bias"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as error:
        load_tensors(broken, TABLE.rules, TABLE.ignored, abstract[1], patch=PATCH)
    for name in ("visual.blocks.0.attn.q.bias", "layers.7.mlp.up_proj", "speaker.weight", "audio_tower.proj.bias"):
        assert name in str(error.value)


def test_every_parameter_is_filled_from_the_table(tensors, abstract):
    loaded = flatten(load_tensors(tensors, TABLE.rules, TABLE.ignored, abstract[1], patch=PATCH))
    assert set(loaded) == set(flatten(abstract[1]))
    np.testing.assert_array_equal(
        loaded["language_model.layers.1.mlp.up_proj.kernel"],
        tensors["model.layers.1.mlp.up_proj.weight"].T,
    )
