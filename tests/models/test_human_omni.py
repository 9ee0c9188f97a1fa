"""HumanOmni-0.5B equals a torch network of the published structure, part by part and as a whole."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from mecap_jax.batch import PromptBatch
from mecap_jax.experiment.human_omni import Clip, HumanOmniModel
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
    """(reference in torch, the directory, our model)"""
    directory, reference = tmp_path_factory.mktemp("human_omni"), human_omni.Reference()
    reference.save(directory)
    return reference, directory, HumanOmniModel.from_pretrained(directory)


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
    reference, _, model = published
    states = noise(2, frames, side, side, SEEN)
    part = definition(ConvolutionalBranch, SEEN)
    actual = run(part, model.params["mm_projector"][name], states)
    assert actual.shape == (2, frames, side // 2, side // 2, WIDTH)
    close(actual, reference.language.model.mm_projector.branch(name, torch.tensor(states)))


def projector_loss(graphdef, params, states, weights, wanted):
    return jnp.sum(nnx.merge(graphdef, params)(states, weights) * wanted)


@pytest.mark.parametrize("frames", [1, 3])
def test_projector_and_its_gradients(published, frames):
    reference, _, model = published
    states, wanted = noise(2, frames, 16, SEEN), noise(2, frames * 4, WIDTH, seed=1)
    weights = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32)
    projector = reference.language.model.mm_projector
    projector.zero_grad()
    expected = projector(torch.tensor(states), torch.tensor(weights))
    (expected * torch.tensor(wanted)).sum().backward()
    part = definition(VisionProjector, SEEN)
    close(run(part, model.params["mm_projector"], states, weights), expected)

    gradient = jax.jit(jax.grad(projector_loss, argnums=1), static_argnums=0)
    theirs = {f"model.mm_projector.{name}": value.grad.numpy() for name, value in projector.named_parameters()}
    ours = flatten({"mm_projector": gradient(part, model.params["mm_projector"], states, weights, wanted)})
    assert len(ours) == len(theirs)
    for path, value in ours.items():
        match = by_path(path, TABLE.rules)
        scale = np.abs(theirs[match.key]).max()
        np.testing.assert_allclose(match.to_tensor([np.asarray(value)]), theirs[match.key], atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("states", [30, 31, 32])
def test_sound_is_averaged_by_threes_and_the_rest_left_out(published, states):
    reference, _, model = published
    x = noise(2, states, HEARD)
    part = definition(AudioProjector, HEARD)
    pooled = torch.nn.functional.avg_pool1d(torch.tensor(x).movedim(1, 2), 3, 3).movedim(1, 2)
    close(run(part, model.params["audio_projector"], x), reference.language.model.audio_projector(pooled))


def test_media_of_the_whole_network(published):
    """Towers, gate, projectors, and where in the table their tokens are."""
    reference, _, model = published
    frames, mel = noise(2, 3, 32, 32, 3), noise(2, 3000, 8)
    instruction = np.array([[5, 9, 3, 7, 4], [5, 8, 6, 0, 0]], np.int32)
    lengths = np.array([5, 3], np.int32)
    patches = frames.reshape(2, 3, 4, 8, 4, 8, 3).transpose(0, 1, 2, 4, 6, 3, 5).reshape(2, 3, 16, 1, -1)
    prompt = PromptBatch(*[np.zeros((2, 0), np.int32)] * len(PromptBatch._fields))._replace(
        audio=mel[:, None],
        audio_frames=np.full((2, 1), 3000, np.int32),
        patches=patches,
        instruction=instruction,
        instruction_length=lengths,
    )
    media = jax.jit(lambda params, prompt: nnx.merge(model.graphdef, params).encode_media(prompt))(model.params, prompt)
    mask = torch.tensor(np.arange(5) < lengths[:, None]).long()
    with torch.no_grad():
        audio = reference.encode_audio(torch.tensor(mel))
        video = reference.encode_video(torch.tensor(frames), torch.tensor(instruction).long(), mask)
    assert (audio.shape[1], video.shape[1]) == (500, 12)
    close(media[:, :500], audio, 2e-5)
    close(media[:, 500:], video, 2e-5)


CLIPS = [
    Clip(
        "sad " * 40,  # longer than BERT reads
        np.random.default_rng(0).integers(0, 256, (11, 40, 72, 3), np.uint8),
        noise(7000, seed=1) / 9,
    ),
    Clip("Is she happy?", frames=np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)),
    Clip("他听起来很高兴。", waveform=noise(490_000, seed=2) / 9),  # longer than Whisper hears
]


def their_embeddings(reference, directory, clip):
    """[1, P, D], as R1-Omni's inference has it: each piece of the text between media is tokenised by itself."""
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(directory)
    lines, media = [], []
    if clip.frames is not None:
        stretch = (len(clip.frames) - 1) / human_omni.FRAMES
        middles = [(stretch * i + stretch * (i + 1)) / 2 for i in range(human_omni.FRAMES)]
        chosen = [clip.frames[int(np.round(middle + 1e-6))] for middle in middles]
        processor = transformers.SiglipImageProcessorPil.from_pretrained(directory / VISION)
        pixels = processor(chosen, return_tensors="pt").pixel_values
        words = transformers.PreTrainedTokenizerFast.from_pretrained(directory / TEXT)
        asked = words(clip.instruction, return_tensors="pt", padding=True, truncation=True)
        media.append(reference.encode_video(pixels.movedim(1, -1)[None], asked.input_ids, asked.attention_mask))
        lines.append("<vi_start><video><vi_end>")
    if clip.waveform is not None:
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(directory / AUDIO)
        mel = extractor(clip.waveform, sampling_rate=16_000, return_tensors="pt").input_features
        media.append(reference.encode_audio(mel.movedim(1, 2)))
        lines.append("<au_start><audio><au_end>")
    message = {"role": "user", "content": "\n".join([*lines, clip.instruction])}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    parts = []
    for piece in re.split("<video>|<audio>", text):
        ids = tokenizer(piece, add_special_tokens=False, return_tensors="pt").input_ids
        parts += [reference.language.model.embed_tokens(ids), *media[:1]]
        media = media[1:]
    return torch.cat(parts, dim=1)


def test_logits_and_greedy_text_from_raw_media(published):
    reference, directory, model = published

    @jax.jit
    def logits(params, batch):
        network = nnx.merge(model.graphdef, params)
        mask = jnp.arange(batch.tokens.shape[1]) < batch.length[:, None]
        x = network.embed_prompt(batch)
        hidden, _ = network.language_model.prefill(x, batch.positions, mask, batch.next_position)
        return network.language_model.logits(hidden)

    ours, answers = logits(model.params, model.processor(CLIPS)), model.answer(CLIPS, max_new_tokens=12)
    for row, clip, (answer,) in zip(ours, CLIPS, answers, strict=True):
        with torch.no_grad():
            embeddings = their_embeddings(reference, directory, clip)
            expected = reference.language(inputs_embeds=embeddings).logits[0]
            mask = torch.ones(embeddings.shape[:2])
            settings = dict(do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
            ids = reference.language.generate(inputs_embeds=embeddings, attention_mask=mask, **settings)[0]
        close(row[: len(expected)], expected, 1e-4)
        assert answer == model.processor.tokenizer.decode(ids.tolist())
    # Alone, a prompt has no media of others to stand beside its own.
    assert model.answer([CLIPS[1]], max_new_tokens=12) == answers[1:2]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("What is <audio>?",), "an instruction holds <audio>"),
        (("What?", np.zeros((2, 8, 8, 4), np.uint8)), r"frames are uint8 \[2, 8, 8, 4\]"),
        (("What?", np.zeros((0, 8, 8, 3), np.uint8)), r"frames are uint8 \[0, 8, 8, 3\]"),
        (("What?", None, np.full(9, np.nan)), r"a waveform is float64 \[9\], not one channel of finite floats"),
        (("What?", None, np.zeros((2, 9))), r"a waveform is float64 \[2, 9\]"),
    ],
)
def test_clips_that_cannot_be_read_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Clip(*arguments)


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


@pytest.mark.parametrize(
    "file, fields, words",
    [
        (f"{AUDIO}/preprocessor_config.json", {"feature_size": 80}, "feature_size 80 is not implemented, only 8 is"),
        (f"{VISION}/preprocessor_config.json", {"size": None}, "size must be shortest_edge, or height and width"),
        (f"{VISION}/preprocessor_config.json", {"do_normalize": False}, "do_normalize False is not implemented"),
        (f"{TEXT}/tokenizer.json", {"model": None}, f"{TEXT}/tokenizer.json: the model is none of"),
        ("tokenizer.json", {"model": None}, "copy/tokenizer.json: the model is none of"),
    ],
)
def test_processors_that_do_not_fit_are_named(copy, file, fields, words):
    change(copy / file, **fields)
    with pytest.raises(CheckpointError, match=words):
        HumanOmniModel.from_pretrained(copy)


@pytest.mark.parametrize("name", [VISION, AUDIO, TEXT])
def test_a_tower_without_a_tensor_is_named(copy, name):
    path = copy / name / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(key for key in tensors if "encoder.layer" in key)]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"(?s){name}.*no tensor for parameter"):
        load_human_omni(copy, read_human_omni(copy))
