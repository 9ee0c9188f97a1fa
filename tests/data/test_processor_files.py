"""Directories: what is published can be read, what we write can be read by transformers, and oddities are refused."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import json
import pickle

import numpy as np
import pytest
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5OmniProcessor, Qwen2_5_VLProcessor

from mecap_jax.data.chat_template import default_template, render
from mecap_jax.data.processor import Processor
from mecap_jax.data.processor_settings import ProcessorSettings, read_settings
from mecap_jax.data.tokenizer import Tokenizer, train_tokenizer
from mecap_jax.model_config import ModelConfig
from tests.data.test_processor import MODELS, OMNI, VL, audio, image, published, text, user, video
from tests.hub_layout import TEXTS, chat_template, write_processor

CLASSES = {"qwen2_5_omni": Qwen2_5OmniProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}
CONVERSATION = user(image(60, 90), text("Describe the emotion, 24 times."), video(3, 56, 56))


@pytest.fixture(params=list(MODELS))
def family(request):
    return request.param


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_published_directories_are_read_and_written_back(tmp_path, family):
    write_processor(tmp_path / "published", family, min_pixels=784, max_pixels=100_352)
    ours = Processor.from_directory(tmp_path / "published", MODELS[family])
    assert (ours.settings.image_min_pixels, ours.settings.image_max_pixels) == (784, 100_352)
    limits = (ours.settings.video_min_pixels, ours.settings.video_max_pixels)
    assert limits == ((128 * 784, 768 * 784) if family == "qwen2_5_omni" else (784, 100_352))

    ours.save(tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "published" / name).read_bytes()
    again = Processor.from_directory(tmp_path / "ours", MODELS[family])
    assert again.settings == ours.settings
    again.save(tmp_path / "ours")  # onto itself
    theirs = [AutoProcessor.from_pretrained(tmp_path / name) for name in ("published", "ours")]
    assert type(theirs[1]) is CLASSES[family]
    first, second = (published(processor, CONVERSATION) for processor in theirs)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_what_transformers_writes_is_read(tmp_path, family):
    """Since its version 5 everything is nested in one file, and the template stands alone."""
    write_processor(tmp_path / "published", family, min_pixels=784, max_pixels=100_352)
    AutoProcessor.from_pretrained(tmp_path / "published").save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "preprocessor_config.json").exists()
    published_one, theirs = (Processor.from_directory(tmp_path / d, MODELS[family]) for d in ("published", "theirs"))
    assert theirs.settings == published_one.settings
    np.testing.assert_array_equal(theirs([CONVERSATION]).tokens, published_one([CONVERSATION]).tokens)


def test_a_trained_tokenizer_becomes_a_directory_that_transformers_loads(tmp_path, family):
    """The tiny model's processor: another splitting rule, template and size than published ones."""
    model = dataclasses.replace(ModelConfig.tiny(), family=family)
    model = model if family == "qwen2_5_omni" else dataclasses.replace(model, audio=None)
    settings = ProcessorSettings(3136, 50_176, 3136, 12_544, fps=3.0, max_frames=16)
    ours = Processor(train_tokenizer(TEXTS, 400, family), model, settings)
    ours.save(tmp_path)
    theirs = CLASSES[family].from_pretrained(tmp_path)
    conversation = [*CONVERSATION, {"role": "assistant", "content": "It's 2024!\n\n  他"}, *user(text(" And now?"))]
    if family == "qwen2_5_omni":
        conversation += user(audio(1.0))
        assert theirs.feature_extractor.feature_size == 64 and theirs.feature_extractor.chunk_length == 300
    size = {"shortest_edge": settings.video_min_pixels, "longest_edge": settings.video_max_pixels}
    assert dict(theirs.video_processor.size) | size == dict(theirs.video_processor.size)
    expected = published(theirs, conversation, videos_kwargs={"size": size})
    for processor in (ours, again := Processor.from_directory(tmp_path, model)):
        batch = processor([conversation])
        np.testing.assert_array_equal(batch.tokens[0, : batch.length[0]], expected["input_ids"][0])
    assert again.settings == settings and again.tokenizer.template == ours.tokenizer.template
    again.save(tmp_path / "second")
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_trained_text_tokenizer_becomes_a_directory(tmp_path, family):
    """Also beside a model's configuration, by which transformers may take another class than the one named."""
    model = dataclasses.replace(OMNI, family=family, audio=None, vision=None)
    ours = Processor(train_tokenizer([*TEXTS, "It's 2024!\n\n  IT'S 2024"] * 3, 400, family), model)
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.tokenizer.vocab_size
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "IT'S 2024!\n\n  他"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    batch = Processor.from_directory(tmp_path, model)([messages])
    np.testing.assert_array_equal(batch.tokens[0, : batch.length[0]], expected)


@pytest.mark.parametrize(
    "change, field",
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"image_std": 0.5}, "image_std"),
        ({"patch_size": 16}, "patch_size"),
        ({"temporal_patch_size": 1}, "temporal_patch_size"),
        ({"merge_size": "two"}, "merge_size"),
        ({"do_resize": False}, "do_resize"),
        ({"resample": 2}, "resample"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"hop_length": 320}, "hop_length"),
        ({"n_fft": 512}, "n_fft"),
        ({"sampling_rate": 24_000}, "sampling_rate"),
        ({"feature_size": 80}, "feature_size"),
        ({"feature_size": None}, "feature_size = 80"),
        ({"chunk_length": 30}, "chunk_length"),
        ({"padding_side": "left"}, "padding_side"),
        ({"dither": 0.1}, "dither"),
    ],
)
def test_settings_that_are_not_implemented_are_refused(tmp_path, change, field):
    write_processor(tmp_path, "qwen2_5_omni")
    edit(tmp_path / "preprocessor_config.json", **change)
    with pytest.raises(ValueError, match=rf"preprocessor_config.json: {field}.* is not implemented"):
        Processor.from_directory(tmp_path, OMNI)


def test_settings_of_frames_may_stand_alone(tmp_path):
    write_processor(tmp_path, "qwen2_5_vl")
    file = tmp_path / "video_preprocessor_config.json"
    file.write_text('{"size": {"shortest_edge": 784, "longest_edge": 7840}, "fps": 4, "max_frames": 32}')
    settings = read_settings(tmp_path, VL)
    assert (settings.video_min_pixels, settings.video_max_pixels, settings.fps, settings.max_frames) == (
        784,
        7840,
        4,
        32,
    )
    assert settings.image_max_pixels == 12_845_056
    edit(file, cap_pixels_per_frame=True)
    with pytest.raises(ValueError, match="video_preprocessor_config.json: cap_pixels_per_frame = True"):
        read_settings(tmp_path, VL)
    edit(file, cap_pixels_per_frame=False, size={"shortest_edge": 784, "longest_edge": 28})
    with pytest.raises(ValueError, match="video_max_pixels = 28 leave no size"):
        read_settings(tmp_path, VL)
    file.write_text("not json")
    with pytest.raises(ValueError, match="video_preprocessor_config.json is not JSON"):
        read_settings(tmp_path, VL)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        Processor.from_directory(tmp_path, OMNI)
    write_processor(tmp_path, "qwen2_5_omni")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json"):
        Processor.from_directory(tmp_path, OMNI)
    with pytest.raises(ValueError, match="image_pad.*of the family 'qwen2_5_vl'"):
        Tokenizer.from_directory(tmp_path, "qwen2_5_vl")
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
        Tokenizer.from_directory(tmp_path, "qwen2_5_omni")


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen2"])
def test_a_processor_travels_to_reader_processes(tmp_path, family):
    write_processor(tmp_path, family)
    model = dataclasses.replace(OMNI, family=family, audio=None, vision=None)
    processor = Processor.from_directory(tmp_path, model)
    again = pickle.loads(pickle.dumps(processor))
    np.testing.assert_array_equal(again([user(text("Hello"))]).tokens, processor([user(text("Hello"))]).tokens)
    assert again.tokenizer.special("<|FEATURES|>") == processor.tokenizer.features_id


def test_where_templates_come_from(tmp_path):
    """The order in which transformers' processors look; "default" of several; ours where there is none."""
    write_processor(tmp_path, "qwen2")
    config = tmp_path / "tokenizer_config.json"

    def template():
        return Tokenizer.from_directory(tmp_path, "qwen2").template

    assert template() == chat_template("qwen2")
    edit(config, chat_template=[{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}])
    assert template() == "b"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "c"}')
    assert template() == "c"
    (tmp_path / "chat_template.jinja").write_text("d")
    assert template() == "d"
    for name in ("chat_template.json", "chat_template.jinja"):
        (tmp_path / name).unlink()
    edit(config, chat_template=[{"name": "tools", "template": "a"}])
    with pytest.raises(ValueError, match="no 'default'"):
        template()
    edit(config, chat_template=None)
    assert template() == default_template("qwen2")
    (tmp_path / "copy").mkdir()
    Tokenizer.from_directory(tmp_path, "qwen2").save_directory(tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template == default_template("qwen2")


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('roles must alternate') }}", "the chat template fails: roles must alternate"),
        ("{% for %}", "the chat template cannot be read, line 1"),
        ("{{ messages.__class__.__mro__ }}", "the chat template fails: .*unsafe"),
        ("{{ messages.append(1) }}", "the chat template fails"),
    ],
)
def test_templates_run_in_a_sandbox_and_fail_with_a_reason(template, message):
    with pytest.raises(ValueError, match=message):
        render(template, [{"role": "user", "content": "x"}], "qwen2")
