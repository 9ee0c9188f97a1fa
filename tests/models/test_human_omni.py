"""HumanOmni-0.5B equals a torch network of the published structure, part by part and as a whole."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from mecap_jax.models.checkpoints.human_omni import TABLE, read_human_omni
from mecap_jax.models.checkpoints.table import CheckpointError, by_path, flatten
from mecap_jax.models.human_omni import load_human_omni
from mecap_jax.models.human_omni_projector import AudioProjector, ConvolutionalBranch, VisionProjector
from mecap_jax.models.layers import Dtypes
from tests import human_omni
from tests.human_omni import AUDIO, HEARD, SEEN, TEXT, VISION, WIDTH

FLOAT32 = Dtypes(jnp.dtype(jnp.float32), jnp.dtype(jnp.float32))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(reference in torch, the directory, our definition, our parameters)"""
    directory, reference = tmp_path_factory.mktemp("human_omni"), human_omni.Reference()
    reference.save(directory)
    return reference, directory, *load_human_omni(directory, read_human_omni(directory))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def definition(part, in_dim):
    """A part of the network, without its parameters."""
    return nnx.split(nnx.eval_shape(lambda: part(in_dim, WIDTH, FLOAT32, nnx.Rngs(0))))[0]


def run(graphdef, params, *inputs):
    return jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs))(params, *inputs)


def close(actual, expected, tolerance=1e-5):
    expected = expected.detach().numpy()
    assert expected.std() > 0.1, "a mistake would not show"
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["video", "body"])
@pytest.mark.parametrize("frames, side", [(1, 4), (3, 4), (2, 5)], ids=str)
def test_a_branch_sees_the_frame_before_and_crops_an_odd_grid(published, name, frames, side):
    reference, _, _, params = published
    states = noise(2, frames, side, side, SEEN)
    part = definition(ConvolutionalBranch, SEEN)
    actual = run(part, params["mm_projector"][name], states)
    assert actual.shape == (2, frames, side // 2, side // 2, WIDTH)
    close(actual, reference.language.model.mm_projector.branch(name, torch.tensor(states)))


def projector_loss(graphdef, params, states, weights, wanted):
    return jnp.sum(nnx.merge(graphdef, params)(states, weights) * wanted)


@pytest.mark.parametrize("frames", [1, 3])
def test_projector_and_its_gradients(published, frames):
    reference, _, _, params = published
    states, wanted = noise(2, frames, 16, SEEN), noise(2, frames * 4, WIDTH, seed=1)
    weights = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32)
    projector = reference.language.model.mm_projector
    projector.zero_grad()
    expected = projector(torch.tensor(states), torch.tensor(weights))
    (expected * torch.tensor(wanted)).sum().backward()
    part = definition(VisionProjector, SEEN)
    close(run(part, params["mm_projector"], states, weights), expected)

    gradient = jax.jit(jax.grad(projector_loss, argnums=1), static_argnums=0)
    theirs = {f"model.mm_projector.{name}": value.grad.numpy() for name, value in projector.named_parameters()}
    ours = flatten({"mm_projector": gradient(part, params["mm_projector"], states, weights, wanted)})
    assert len(ours) == len(theirs)
    for path, value in ours.items():
        match = by_path(path, TABLE.rules)
        scale = np.abs(theirs[match.key]).max()
        np.testing.assert_allclose(match.to_tensor([np.asarray(value)]), theirs[match.key], atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("states", [30, 31, 32])
def test_sound_is_averaged_by_threes_and_the_rest_left_out(published, states):
    reference, _, _, params = published
    x = noise(2, states, HEARD)
    part = definition(AudioProjector, HEARD)
    pooled = torch.nn.functional.avg_pool1d(torch.tensor(x).movedim(1, 2), 3, 3).movedim(1, 2)
    close(run(part, params["audio_projector"], x), reference.language.model.audio_projector(pooled))


def test_media_and_logits_of_the_whole_network(published):
    reference, _, graphdef, params = published
    frames, mel = noise(2, 3, 32, 32, 3), noise(2, 62, 8)
    instruction = np.array([[5, 9, 3, 7, 4], [5, 8, 6, 0, 0]], np.int32)
    lengths = np.array([5, 3], np.int32)

    def call(name, *inputs):
        return jax.jit(lambda params, *inputs: getattr(nnx.merge(graphdef, params), name)(*inputs))(params, *inputs)

    seen, heard = call("encode_video", frames, instruction, lengths), call("encode_audio", mel)
    mask = torch.tensor(np.arange(5) < lengths[:, None]).long()
    with torch.no_grad():
        video = reference.encode_video(torch.tensor(frames), torch.tensor(instruction).long(), mask)
        audio = reference.encode_audio(torch.tensor(mel))
    assert (video.shape[1], audio.shape[1]) == (12, 10)
    close(seen, video, 2e-5)
    close(heard, audio, 2e-5)

    before, between, behind = [7, 8, 9], [11, 12], [13, 14, 15, 16]
    index = np.concatenate([[-1] * 3, np.arange(12), [-1] * 2, 12 + np.arange(10), [-1] * 4, [-1] * 3])
    media = np.concatenate([seen, heard], axis=1)
    tokens = np.zeros(len(index), np.int32)
    tokens[:3], tokens[15:17], tokens[27:31] = before, between, behind
    rows = [np.stack([x, x]) for x in (tokens, index)]  # padded by three
    logits = call("logits", rows[0], np.array([31, 31], np.int32), rows[1], media)
    with torch.no_grad():
        embed = reference.language.model.embed_tokens
        text = [embed(torch.tensor(ids)).expand(2, -1, -1) for ids in (before, between, behind)]
        expected = reference.language(inputs_embeds=torch.cat([text[0], video, text[1], audio, text[2]], dim=1)).logits
    close(logits[:, :31], expected, 1e-4)


# --- what does not fit --------------------------------------------------------------------------------------------


@pytest.fixture
def copy(published, tmp_path):
    """A copy of the directory, to be broken."""
    return shutil.copytree(published[1], tmp_path / "copy")


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"mm_projector_type": "all_in_one"}, "mm_projector_type = 'all_in_one' is not implemented"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer = -1 is not implemented"),
        ({"mm_use_x_start_end": False}, "mm_use_x_start_end = False is not implemented"),
        ({"model_type": "qwen2"}, "model_type 'qwen2' is not 'HumanOmni_qwen2'"),
        ({"use_sliding_window": True}, "use_sliding_window is not implemented"),
        ({"mm_face_tower": "x"}, "mm_face_tower = 'x' is not implemented"),
        ({"mm_vision_tower": ".."}, "mm_vision_tower = '..' names no directory"),
        ({"mm_audio_tower": None}, "mm_audio_tower = None names no directory"),
        ({"mm_audio_tower": "whisper-tiny"}, "whisper-tiny/config.json"),
        ({"mm_hidden_size": 32}, f"{VISION}/config.json: a width of 16"),
    ],
)
def test_what_a_configuration_cannot_ask_for(copy, fields, words):
    change(copy / "config.json", **fields)
    with pytest.raises(CheckpointError) as error:
        read_human_omni(copy)
    assert words in str(error.value) and str(copy) in str(error.value)


def test_all_problems_of_a_configuration_are_named_at_once(copy):
    change(copy / "config.json", mm_projector_type="all_in_one", hidden_act="gelu", num_frames=0)
    with pytest.raises(CheckpointError, match=r"(?s)mm_projector_type.*num_frames = 0 is out of range.*hidden_act"):
        read_human_omni(copy)


def test_towers_that_do_not_fit_are_named(copy):
    change(copy / VISION / "config.json", image_size=40)
    with pytest.raises(CheckpointError, match=f"{VISION}/config.json: 5 x 5 patches do not divide by 2 x 2"):
        read_human_omni(copy)
    change(copy / VISION / "config.json", image_size=32)
    change(copy / AUDIO / "config.json", encoder_layers=-1)
    with pytest.raises(CheckpointError, match=f"{AUDIO}/config.json: encoder_layers must be a positive integer"):
        read_human_omni(copy)


def test_every_problem_of_the_tensors_is_listed_at_once(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    block = "model.mm_projector.s1_video.b1"
    del tensors[f"{block}.conv2.conv.weight"]
    tensors["model.speaker.weight"] = np.zeros(2, np.float32)
    tensors["model.mm_projector.s1_video.b3.conv1.conv.weight"] = np.zeros((2, 2, 1, 1), np.float32)
    tensors["model.mm_projector.s1_body.b2.downsample.bn.weight"] = np.zeros(WIDTH, np.float32)
    tensors["model.mm_projector.sampler_body.0.weight"] = np.zeros((WIDTH, WIDTH, 1, 2, 2), np.float32)
    tensors[f"{block}.se.fc1.weight"] = tensors[f"{block}.se.fc1.weight"][:, :, 0, 0]
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as error:
        load_human_omni(copy, read_human_omni(copy))
    for text in (
        str(copy),
        "no tensor for parameter mm_projector.video.s1.blocks.0.conv2.kernel",
        "unknown tensor model.speaker.weight",
        "unknown tensor model.mm_projector.s1_video.b3.conv1.conv.weight",
        "s1_body.b2.downsample.bn.weight has no parameter mm_projector.body.s1.blocks.1.shortcut_norm.scale",
        f"sampler_body.0.weight has shape ({WIDTH}, {WIDTH}, 1, 2, 2), parameter",
        "se.fc1.weight has shape (4, 24), parameter mm_projector.video.s1.blocks.0.squeeze.kernel wants (4, 24, 1, 1)",
    ):
        assert text in str(error.value)


@pytest.mark.parametrize("name", [VISION, AUDIO, TEXT])
def test_a_tower_without_a_tensor_is_named(copy, name):
    path = copy / name / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(key for key in tensors if "encoder.layer" in key)]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"(?s){name}.*no tensor for parameter"):
        load_human_omni(copy, read_human_omni(copy))
