"""The frozen encoders of sound and pictures equal those of transformers on small random models of every class."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.experiment.frozen_encoder import LAST_FOUR, POOLED, EncoderError, load_encoder

RATE = 16_000
TRANSFORMER = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48)
SPEECH = dict(conv_dim=(8, 12, 12), conv_kernel=(10, 3, 2), conv_stride=(5, 4, 16), num_feat_extract_layers=3,
              num_conv_pos_embedding_groups=4, **TRANSFORMER)  # fmt: skip
WIDE = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
TINY_VISION = dict(image_size=32, patch_size=8, **TRANSFORMER)


def randomised(model):
    """The model with noise on every parameter: biases and norms begin where a mistake would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def whisper():
    config = transformers.WhisperConfig(d_model=32, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=48,
                                        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=16,
                                        vocab_size=64, num_mel_bins=80, pad_token_id=0, bos_token_id=1,
                                        eos_token_id=2, decoder_start_token_id=1)  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


SOUND = {
    "whisper": whisper,
    "hubert": lambda: transformers.HubertModel(transformers.HubertConfig(**SPEECH)),
    "hubert, ctc": lambda: transformers.HubertForCTC(transformers.HubertConfig(vocab_size=8, **SPEECH, **WIDE)),
    "wav2vec2": lambda: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**SPEECH)),
    "wav2vec2, pre-training": lambda: transformers.Wav2Vec2ForPreTraining(
        transformers.Wav2Vec2Config(codevector_dim=8, proj_codevector_dim=8, **SPEECH, **WIDE)
    ),
}
CLIP_CONFIGS = (transformers.CLIPConfig, transformers.CLIPVisionConfig)
CLIP_TEXT = dict(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
PICTURES = {
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=TINY_VISION, text_config=CLIP_TEXT, projection_dim=24)
    ),
    "clip vision": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY_VISION)),
    "clip vision, projected": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(projection_dim=24, **TINY_VISION)
    ),
    "siglip": lambda: transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=TINY_VISION, text_config=CLIP_TEXT)
    ),
    "siglip, patches that do not divide the picture": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**TINY_VISION | {"patch_size": 9})
    ),
    "siglip vision": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY_VISION)),
}


def save(directory, model, extractor):
    model.save_pretrained(directory)
    extractor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=SOUND)
def sound(request, tmp_path_factory):
    """(model, its extractor, the directory)"""
    model = randomised(SOUND[request.param]())
    normalise = "pre-training" in request.param
    extractor = (
        transformers.WhisperFeatureExtractor()
        if request.param == "whisper"
        else transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=True)
    )
    return model, extractor, save(tmp_path_factory.mktemp("sound"), model, extractor)


@pytest.fixture(scope="module", params=PICTURES)
def tower(request, tmp_path_factory):
    """(model, its processor, the directory)"""
    model = randomised(PICTURES[request.param]())
    if "clip" in request.param and "sig" not in request.param:
        kind, size = transformers.CLIPImageProcessorPil, dict(size={"shortest_edge": 32}, crop_size=32)
    else:
        kind, size = transformers.SiglipImageProcessorPil, dict(size={"height": 32, "width": 32})
    processor = kind(**size)
    return model, processor, save(tmp_path_factory.mktemp("tower"), model, processor)


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)


def reference_states(model, extractor, samples):
    """Every hidden state of one clip alone."""
    inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        if hasattr(inputs, "input_features"):
            found = model.get_encoder()(inputs.input_features, output_hidden_states=True)
        else:
            base = getattr(model, model.base_model_prefix, model)
            found = base(inputs.input_values, output_hidden_states=True)
    # Some versions list what goes into the last norm instead of what comes out of it.
    return [state[0].numpy() for state in (*found.hidden_states[:-1], found.last_hidden_state)]


@pytest.mark.parametrize("layer", [0, 2, -1, LAST_FOUR])
def test_states_of_sound_equal_those_of_transformers(sound, layer):
    model, extractor, directory = sound
    encoder = load_encoder(directory)
    clips = [noise(0.93), noise(1.37, seed=1)]
    pieces = [piece for clip in clips for piece in encoder.prepare(clip)]
    assert (encoder.modality, encoder.layers, len(pieces)) == ("audio", 4, 2)
    for clip, piece, actual in zip(clips, pieces, encoder.encode(pieces, layer)):
        states = reference_states(model, extractor, clip)
        expected = sum(states[-4:]) if layer == LAST_FOUR else states[layer]
        assert len(actual) == piece.states and actual.dtype == np.float32
        assert len(expected) == (1500 if hasattr(extractor, "n_fft") else piece.states)
        np.testing.assert_allclose(actual, expected[: len(actual)], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def whisper_files(tmp_path_factory):
    """(model, its extractor, the directory)"""
    model, extractor = randomised(whisper()), transformers.WhisperFeatureExtractor()
    return model, extractor, save(tmp_path_factory.mktemp("whisper"), model, extractor)


def test_whisper_hears_long_sound_by_windows(whisper_files):
    model, extractor, directory = whisper_files
    encoder = load_encoder(directory)
    samples = noise(30.5)
    first, second = encoder.prepare(samples)
    assert (first.states, second.states) == (1500, 25)
    actual = encoder.encode([first], -1)[0]
    np.testing.assert_allclose(actual, reference_states(model, extractor, samples[: 30 * RATE])[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [0, 2, POOLED])
def test_vectors_of_pictures_equal_those_of_transformers(tower, layer):
    model, processor, directory = tower
    encoder = load_encoder(directory)
    assert (encoder.modality, encoder.rate) == ("video", None)
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), np.uint8)
    actual = np.stack(encoder.encode(encoder.prepare([encoder.shrink(frame) for frame in frames]), layer))[:, 0]
    pixels = processor(list(frames), return_tensors="pt").pixel_values
    with torch.no_grad():
        if layer == POOLED:
            expected = getattr(model, "get_image_features", model)(pixels)
            for name in ("image_embeds", "pooler_output"):
                expected = getattr(expected, name, expected)
        else:
            states = getattr(model, "vision_model", model)(pixels, output_hidden_states=True).hidden_states
            patches = slice(1 if isinstance(model.config, CLIP_CONFIGS) else 0, None)  # without CLIP's class token
            expected = states[layer][:, patches].mean(dim=1)
    assert np.std(expected.numpy(), axis=0).max() > 1e-3  # the pictures are told apart
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-4, rtol=0)


def test_long_sound_is_heard_by_windows(hubert):
    model, encoder = transformers.HubertModel.from_pretrained(hubert).eval(), load_encoder(hubert)
    samples = noise(23.7)
    whole = transformers.Wav2Vec2FeatureExtractor()(samples, sampling_rate=RATE).input_values[0]
    windows = encoder.prepare(samples)
    assert [window.states for window in windows] == [395, 395, 395] and max(len(x.array) for x in windows) <= 10 * RATE
    with torch.no_grad():
        frames = model.feature_extractor(torch.tensor(whole)[None]).shape[-1]
    assert sum(window.states for window in windows) == frames == (len(samples) - 40) // 320 + 1
    begin = 0
    for window, actual in zip(windows, encoder.encode(windows, -1)):
        np.testing.assert_array_equal(window.array, whole[begin * 320 :][: len(window.array)])
        with torch.no_grad():
            expected = model(torch.tensor(window.array)[None]).last_hidden_state[0].numpy()
        np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)
        begin += window.states


def test_sound_of_any_length_has_few_shapes(hubert):
    encoder, shapes = load_encoder(hubert), set()
    for samples in [*range(40, 12 * RATE, 997), 10 * RATE - 1, 10 * RATE, 10 * RATE + 1, 601 * RATE]:
        pieces = encoder.prepare(np.zeros(samples, np.float32))
        assert (len(pieces) == 1) == (samples < 500 * 320 + 40)  # what transformers gives for 10 s is 499 states
        for piece in pieces:
            shapes.add(shape := encoder.shape(piece))
            assert len(piece.array) <= shape[0] <= max(RATE, 1.6 * len(piece.array)) + 320
    assert len(shapes) == 6 and max(shapes) < (10.1 * RATE,)


def broken(directory, tmp_path, **changes):
    """A copy of a directory with other values in config.json."""
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    return tmp_path


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    model = randomised(SOUND["hubert"]())
    return save(tmp_path_factory.mktemp("hubert"), model, transformers.Wav2Vec2FeatureExtractor())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "wavlm"}, "model_type 'wavlm' is none of whisper, wav2vec2, hubert, clip, siglip"),
        ({"hidden_size": -1}, "hidden_size must be a positive integer, got -1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is out of range"),
        ({"conv_dim": [8] * 10**5}, "conv_dim has 100000 convolutions, which is out of range"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim 16 is not implemented"),
        ({"hidden_size": True}, "hidden_size must be a positive integer, got True"),
        ({"hidden_size": 34}, "hidden_size 34 is no multiple of num_conv_pos_embedding_groups 4"),
        ({"num_attention_heads": 5}, "a width of 32 does not divide over 5 heads"),
        ({"conv_dim": [8, "12", 12]}, "must be lists of positive integers"),
        ({"conv_stride": [5, 4]}, "must be of one length"),
        ({"conv_stride": [5, 4, 1]}, "conv_stride [5, 4, 1] is not implemented, only a state every 320 samples is"),
        ({"conv_kernel": [10, 3, 9999]}, "conv_kernel [10, 3, 9999] needs 199980 samples for a state"),
        ({"hidden_act": "relu"}, "activation 'relu' is none of gelu"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps must be a number from 0 to 1, got 'x'"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm True is not implemented"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not implemented"),
    ],
)
def test_what_a_configuration_cannot_ask_for(hubert, tmp_path, changes, words):
    with pytest.raises(EncoderError) as error:
        load_encoder(broken(hubert, tmp_path, **changes))
    assert words in str(error.value) and str(tmp_path) in str(error.value)


def test_weights_that_do_not_fit_are_named(hubert, tmp_path):
    with pytest.raises(CheckpointError, match="encoder.layers.3.*has no parameter"):
        load_encoder(broken(hubert, tmp_path, num_hidden_layers=3))
    tensors = load_file(hubert / "model.safetensors")
    name = next(name for name in tensors if "feature_projection.projection.weight" in name)
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"hold NaN or infinity: {name}"):
        load_encoder(broken(tmp_path, tmp_path, num_hidden_layers=4))


def test_what_else_is_missing_is_named(hubert, tmp_path):
    with pytest.raises(EncoderError, match="no such directory"):
        load_encoder(tmp_path / "absent")
    directory = broken(hubert, tmp_path)
    encoder = load_encoder(directory)
    with pytest.raises(EncoderError, match="has no layer 5, only all, last4, 0 to 4"):
        encoder.encode(encoder.prepare(noise(1)), 5)
    with pytest.raises(EncoderError, match="has no layer 'pooled'"):
        encoder.encode(encoder.prepare(noise(1)), POOLED)
    with pytest.raises(ValueError, match="20 samples are fewer than the"):
        encoder.prepare(noise(1)[:20])
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(EncoderError, match="preprocessor_config.json"):
        load_encoder(directory)


PICTURE_SETTINGS = [
    ({"image_mean": [0.5]}, "image_mean must be three numbers up to 1000.0, got [0.5]"),
    ({"image_mean": [True, 0, 0]}, "image_mean must be three numbers"),
    ({"image_std": [0.5, 0.0, 0.5]}, "image_std must be at least 0.001, got [0.5, 0.0, 0.5]"),
    ({"image_std": [0.5, 1e-30, 0.5]}, "image_std must be at least 0.001"),
    ({"image_std": [10**400, 1, 1]}, "image_std must be three numbers"),
    ({"image_std": None}, "image_std must be three numbers"),
    ({"resample": 2}, "resample 2 is not implemented, only 3 is"),
    ({"do_rescale": None}, "do_rescale None is not implemented, only True is"),
    ({"do_pad": True}, "do_pad True is not implemented"),
    ({"do_center_crop": "no"}, "do_center_crop must be true or false, got 'no'"),
    ({"size": {"height": 16, "width": 32}}, "do not come out as 32 x 32"),
    ({"size": {"shortest_edge": 32}}, "do not come out as 32 x 32"),
    ({"size": None}, "size must be shortest_edge, or height and width in pixels, got None"),
    ({"size": {"shortest_edge": 32.5}, "do_center_crop": True}, "size must be shortest_edge, or height and width"),
    ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "size must be shortest_edge, or height and width"),
    ({"size": {"shortest_edge": 60000}, "do_center_crop": True}, "is not between 32 and 256 pixels"),
    ({"size": {"height": 16, "width": 64}, "do_center_crop": True}, "16 x 64 is not between 32 and 256 pixels"),
    ({"crop_size": {"height": 32, "width": 16}, "do_center_crop": True}, "do not come out as 32 x 32"),
    ({"crop_size": {"height": "32"}, "do_center_crop": True}, "crop_size must be height and width in pixels"),
]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return save(tmp_path_factory.mktemp("siglip"), PICTURES["siglip vision"](), processor)


@pytest.mark.parametrize("changes, words", PICTURE_SETTINGS)
def test_pictures_are_prepared_as_published_or_refused(siglip, changes, words):
    check_refused(siglip, changes, words)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sampling_rate": 8000}, "sampling_rate 8000 is not implemented, only 16000 is"),
        ({"feature_size": 80}, "feature_size 80 is not implemented, only 1 is"),
        ({"do_normalize": "yes"}, "do_normalize must be true or false, got 'yes'"),
    ],
)
def test_samples_are_prepared_as_published_or_refused(hubert, changes, words):
    check_refused(hubert, changes, words)


@pytest.mark.parametrize(
    "name, value, only",
    [
        ("feature_size", 128, 80),
        ("sampling_rate", 8000, 16000),
        ("hop_length", 80, 160),
        ("n_fft", 512, 400),
        ("chunk_length", 20, 30),
        ("padding_side", "left", "right"),
        ("padding_value", 1.0, 0.0),
        ("dither", 0.1, 0.0),
    ],
)
def test_spectrograms_are_prepared_as_published_or_refused(whisper_files, name, value, only):
    check_refused(whisper_files[2], {name: value}, f"{name} {value!r} is not implemented, only {only!r} is")


def check_refused(directory, changes, words):
    path = directory / "preprocessor_config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    try:
        with pytest.raises(EncoderError) as error:
            load_encoder(directory)
        assert words in str(error.value) and str(path) in str(error.value)
    finally:
        path.write_text(before)


def test_a_picture_of_one_line_does_not_fill_the_memory(tower):
    _, processor, directory = tower
    encoder = load_encoder(directory)
    line = np.zeros((1, 5000, 3), np.uint8)
    if "CLIP" in type(processor).__name__:  # resized by its shorter side
        with pytest.raises(ValueError, match="aspect ratio of 1 x 5000 exceeds 200"):
            encoder.shrink(line)
    else:
        assert encoder.shrink(line).shape == (32, 32, 3)
