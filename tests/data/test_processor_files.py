"""Directories: what is published can be read, what we write can be read by transformers, and oddities are refused."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import concurrent.futures
import dataclasses
import json
import multiprocessing
import pickle
import resource

import numpy as np
import pytest
import tokenizers
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5OmniProcessor, Qwen2_5_VLProcessor

from mecap_jax.data import template_sandbox
from mecap_jax.data.chat_template import default_template, render
from mecap_jax.data.processor import Processor
from mecap_jax.data.processor_settings import ProcessorSettings, read_settings
from mecap_jax.data.tokenizer import Tokenizer, train_tokenizer
from mecap_jax.json_files import read_json_object
from mecap_jax.model_config import ModelConfig
from tests.data.test_processor import MODELS, OMNI, VL, audio, image, published, text, user, video
from tests.hub_layout import TEXTS, chat_template, write_processor

CLASSES = {"qwen2_5_omni": Qwen2_5OmniProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}
CONVERSATION = user(image(60, 90), text("Describe the emotion, 24 times."), video(3, 56, 56))
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


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


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gpt2", "bart"])
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
    with pytest.raises(ValueError, match="tokenizer.json must hold a JSON object"):
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


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ 1 + 'a' }}",
        "{% include 'x' %}",
        "{{ messages.nothing.there }}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**9 * ['a'] }}",
        "{{ 10 ** 10000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{width}}'.format(1, width=1000000000) }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ messages|tojson(indent=1000000000) }}",
        "{{ range(1000000000)|list }}",
        "{% set x = 'a' * 1000000 %}{{ x|replace('a', x) }}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% set u = 'a' * 100 %}{% set x = u * 80000 %}{% set l = [" + "x[1:]," * 2000 + "] %}",
        "{% set f = '{0:\U0001f600>999}' * 750000 %}{{ f.format(1)|length }}",
        "{% set x = (('f' * 100) * 80000)|int(0, 16) %}{% set y = (('e' * 100) * 40000)|int(0, 16) %}{{ x // y }}",
        "x" * 200_000,
        "{{ 'x' * 2000000 }}",
    ],
)
def test_no_template_crashes_or_takes_all_memory(template):
    with pytest.raises(ValueError, match=r"^the chat template .*") as error:
        render(template, [{"role": "user", "content": "x"}], "qwen2")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        ENDLESS,
        "{% for i in range(99999) %}{% for j in range(99999) %}words{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set n = namespace(x=['a'], y=['a']) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}"
        "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
        "{{ ([[0]] * 400000)|sum(start=[])|length }}",
    ],
)
def test_no_template_runs_for_ever(monkeypatch, template):
    monkeypatch.setattr(template_sandbox, "_CPU_SECONDS", 0.2)
    with pytest.raises(ValueError, match="^the chat template of here runs for more than 0.2 s$"):
        render(template, [{"role": "user", "content": "x"}], "qwen2", "the chat template of here")


def test_the_operating_system_bounds_a_templates_memory():
    render("{{ messages[0].role }}", [{"role": "user", "content": "x"}], "qwen2")
    limits = resource.prlimit(template_sandbox._worker._process.pid, resource.RLIMIT_AS)
    assert limits == (template_sandbox.MEMORY,) * 2 and limits[0] < 512 * 2**20


def test_what_a_template_did_is_forgotten_by_the_next_one(monkeypatch):
    """Also by threads that ask at the same time, by another process, and after something else ended the worker."""
    monkeypatch.setattr(template_sandbox, "_CPU_SECONDS", 0.2)
    good, bad = "{{ messages[0].content }}", ENDLESS

    def ask(number):
        try:
            return render(bad if number % 4 == 3 else good, [{"role": "user", "content": f"fork {number}"}], "qwen2")
        except ValueError:
            return None

    expected = [None if number % 4 == 3 else f"fork {number}" for number in range(12)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(12))) == expected
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(render, (good, [{"role": "user", "content": "other process"}], "qwen2")) == "other process"
    template_sandbox._worker._process.kill()
    template_sandbox._worker._process.wait()
    assert ask(100) == "fork 100"


def test_a_hostile_template_is_refused_with_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(template_sandbox, "_CPU_SECONDS", 0.2)
    messages = [{"role": "user", "content": "x"}]
    for name, content in (
        ("chat_template.jinja", ENDLESS),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ 'a' * 10**10 }}"})),
    ):
        write_processor(tmp_path / name, "qwen2")
        (tmp_path / name / name).write_text(content)
        with pytest.raises(
            ValueError, match=f"^the chat template of {tmp_path / name / name} (runs for|takes) more than"
        ):
            Tokenizer.from_directory(tmp_path / name, "qwen2").encode_conversation(messages)


def test_templates_see_what_transformers_gives_them(tmp_path):
    """Helpers, loops, concatenation and formats render as they do there; long conversations fit the bounds."""
    template = (
        "{% for message in messages %}{{ loop.index ~ '/' ~ loop.length ~ loop.last }} {{ '%-9s|' % message.role }}"
        "{% if message.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}\n{{ message.content.split('</think>')[-1].replace('\n', ' ') * 2 }}{% endgeneration %}"
        "{% else %}none{% endfor %}{{ strftime_now('%Y') }}{{ 'x'.rjust(4) + ['a', 1]|join('-') }}{{ 2 ** 3 % 5 }}"
        "{{ messages[0]|tojson(ensure_ascii=True, indent=1, separators=(',', ': '), sort_keys=True) }}"
        "{{ messages|map(attribute='role')|join(', ') }}"
    )
    write_processor(tmp_path, "qwen2")
    messages = [{"role": role, "content": "他 </think>\nWell. " * 2000} for role in ("system", "user", "assistant") * 7]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert render(template, messages, "qwen2") == expected


@pytest.mark.parametrize(
    "change, message",
    [
        ({"min_pixels": None, "size": [1]}, r"size = \[1\] is not an object"),
        ({"min_pixels": None, "size": {"shortest_edge": []}}, r"size.shortest_edge = \[\] is not a whole number"),
        ({"image_mean": [{}]}, "image_mean .* is not implemented"),
        ({"image_std": ["0.26862954", "0.26130258", "0.27577711"]}, "image_std .* is not implemented"),
        ({"patch_size": 10**400}, "patch_size .* is not implemented"),
        ({"min_pixels": True}, "min_pixels = True is not a whole number"),
        ({"min_pixels": "many"}, "min_pixels = 'many' is not a whole number"),
        ({"max_pixels": 1e14}, "max_pixels = 1.* is not a whole number"),
        ({"fps": "2"}, "fps = '2' is not a positive number"),
        ({"max_frames": "x"}, "max_frames = 'x' is not a whole number"),
    ],
)
def test_settings_of_the_wrong_type_are_refused(tmp_path, change, message):
    write_processor(tmp_path, "qwen2_5_vl")
    edit(tmp_path / "preprocessor_config.json", **change)
    with pytest.raises(ValueError, match=f"preprocessor_config.json: {message}"):
        read_settings(tmp_path, VL)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("processor_config.json", '{"image_processor": 5}', "processor_config.json: image_processor = 5"),
        ("processor_config.json", '{"videos_kwargs": [1]}', "processor_config.json: videos_kwargs = "),
        ("processor_config.json", "[" * 200_000, "processor_config.json is not JSON"),
        ("preprocessor_config.json", "[1]", "preprocessor_config.json must hold a JSON object, got list"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json must hold a JSON object, got list"),
        ("tokenizer_config.json", '{"chat_template": 5}', "tokenizer_config.json: 'chat_template' is a int"),
        ("tokenizer_config.json", '{"chat_template": {"default": 5}}', "tokenizer_config.json: 'chat_template'"),
        ("tokenizer_config.json", '{"chat_template": [{"x": 1}]}', "tokenizer_config.json: 'chat_template' is a list"),
        ("tokenizer_config.json", '{"chat_template": [1]}', "tokenizer_config.json: 'chat_template' is a list"),
    ],
)
def test_files_that_hold_something_else_are_refused_by_name(tmp_path, name, content, message):
    write_processor(tmp_path, "qwen2_5_omni")
    (tmp_path / "chat_template.json").unlink()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Processor.from_directory(tmp_path, OMNI)


def test_json_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nowhere\.json"):
        read_json_object(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be read"):
        read_json_object(tmp_path)


def test_cutting_and_padding_in_a_tokenizers_file_are_ignored(tmp_path):
    """Files that were saved after training often hold both."""
    write_processor(tmp_path, "qwen2")
    path, words = str(tmp_path / "tokenizer.json"), "A woman sounds sad and tired."
    expected = Tokenizer.from_directory(tmp_path, "qwen2").encode(words)
    backend = tokenizers.Tokenizer.from_file(path)
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(path)
    assert Tokenizer.from_directory(tmp_path, "qwen2").encode(words) == expected


def test_the_vocabulary_reaches_to_the_largest_id(tmp_path):
    write_processor(tmp_path, "qwen2")
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][-1]["id"] = 5000
    content["model"]["vocab"].pop(content["added_tokens"][-1]["content"], None)
    content["model"]["vocab"]["gap"] = 5001
    path.write_text(json.dumps(content))
    assert Tokenizer.from_directory(tmp_path, "qwen2").vocab_size == 5002
