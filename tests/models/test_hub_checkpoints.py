"""Weights of every family come in and go out exactly, and what does not fit is named."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from mecap_jax.config import MeshConfig
from mecap_jax.model_config import FeatureProjectorConfig, ModelConfig
from mecap_jax.models.checkpoints.hub import describe_mismatch, load_weights, published_part, save_weights
from mecap_jax.models.checkpoints.config_writer import format_config
from mecap_jax.models.checkpoints.hub_config import parse_config, read_config
from mecap_jax.models.checkpoints.safetensors_files import TensorFiles
from mecap_jax.models.checkpoints.table import CheckpointError, flatten
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.sharding import make_mesh
from mecap_jax.train_state import abstract_model
from tests import hub_models


@pytest.fixture(
    scope="module", params=[*((f, t) for f in hub_models.DECODERS for t in (False, True)), ("bart", True)], ids=str
)
def saved(request, tmp_path_factory):
    family, tied = request.param
    directory = tmp_path_factory.mktemp(family)
    model = hub_models.make(family, tied)
    model.save_pretrained(directory)
    return model, directory


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    directory = tmp_path_factory.mktemp("omni")
    hub_models.make("qwen2_5_omni").save_pretrained(directory)
    return directory


def abstract(config: ModelConfig):
    _, state = nnx.split(nnx.eval_shape(lambda: MultimodalLM(config, nnx.Rngs(0))))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))
    return published_part(shapes)


def tensors_of(directory):
    return {key: value for path in directory.glob("*.safetensors") for key, value in load_file(path).items()}


def test_import_and_export_give_the_same_bytes(saved, tmp_path):
    _, directory = saved
    config = read_config(directory)
    params = load_weights(directory, config, abstract(config))
    save_weights(tmp_path, config, params, source=directory, max_shard_bytes=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    before, after = tensors_of(directory), tensors_of(tmp_path)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and value.tobytes() == after[key].tobytes(), key


def test_a_written_configuration_describes_the_same_network(saved):
    model, directory = saved
    config = read_config(directory)
    written = json.loads(json.dumps(format_config(config, {})))
    assert parse_config(written, "written") == config
    again = type(model.config).from_dict(written)
    for part in ("", "text_config", "vision_config", "audio_config"):
        ours, theirs = (getattr(c, part, None) if part else c for c in (again, model.config))
        for name in ("hidden_size", "num_hidden_layers", "rope_parameters", "vocab_size", "depth", "d_model"):
            assert getattr(ours, name, None) == getattr(theirs, name, None), (part, name)


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_the_published_layout_of_a_whole_omni(omni, tmp_path, shard):
    model = hub_models.make("qwen2_5_omni")
    hub_models.save_as_published(model, tmp_path, shard)
    config = read_config(tmp_path)
    assert not describe_mismatch(config, read_config(omni))
    ours, theirs = (load_weights(path, config, abstract(config)) for path in (tmp_path, omni))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_values_go_straight_to_their_mesh_sharding(omni):
    config = read_config(omni)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    _, shapes = abstract_model(config, mesh)
    params = load_weights(omni, config, shapes)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s.sharding, params, shapes))
    single = load_weights(omni, config, abstract(config))
    jax.tree.map(np.testing.assert_array_equal, params, single)
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(params))


def test_bfloat16_stays_bfloat16_and_float16_is_converted(omni, tmp_path):
    for dtype, stored in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        directory = tmp_path / dtype
        shutil.copytree(omni, directory)
        path = directory / "model.safetensors"
        save_file({key: value.astype(stored) for key, value in load_file(path).items()}, path)
        config = dataclasses.replace(read_config(omni), param_dtype="bfloat16")
        params = load_weights(directory, config, abstract(config))
        assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(ml_dtypes.bfloat16)}
        if dtype == "bfloat16":
            (tmp_path / "out").mkdir()
            save_weights(tmp_path / "out", config, params, directory)
            before, after = tensors_of(directory), tensors_of(tmp_path / "out")
            assert all(before[key].tobytes() == after[key].tobytes() for key in before)


def test_transformers_loads_an_export_without_a_word(saved, tmp_path, caplog):
    model, directory = saved
    config = read_config(directory)
    params = load_weights(directory, config, abstract(config))
    save_weights(tmp_path, config, params)
    (tmp_path / "config.json").write_text(json.dumps(format_config(config, {"pad_token_id": 0})))
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    ids = torch.arange(12)[None] + 5
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=0, rtol=0)


# --- what does not fit ---------------------------------------------------------------------------------------------


def test_every_problem_of_the_tensors_is_listed_at_once(omni, tmp_path):
    shutil.copytree(omni, tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(path)
    del tensors["visual.merger.ln_q.weight"]
    tensors["speaker.weight"] = np.zeros(2, np.float32)
    tensors["model.layers.9.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    tensors["model.norm.weight"] = np.zeros(7, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int32)
    save_file(tensors, path)
    config = read_config(omni)
    with pytest.raises(CheckpointError) as error:
        load_weights(tmp_path / "broken", config, abstract(config))
    for text in (
        "no tensor for parameter visual.merger.ln_q.scale",
        "unknown tensor speaker.weight",
        "layers.9.mlp.up_proj.weight has no parameter",
        "model.norm.weight has shape (7,)",
        "lm_head.weight has dtype int32",
    ):
        assert text in str(error.value)


def test_files_that_are_missing_truncated_or_at_odds_with_the_index(omni, tmp_path):
    config = read_config(omni)
    with pytest.raises(CheckpointError, match="holds neither model.safetensors"):
        load_weights(tmp_path, config, abstract(config))
    save_weights(tmp_path, config, load_weights(omni, config, abstract(config)), max_shard_bytes=20_000)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    files[1].unlink()
    files[2].write_bytes(b"\xff" * 64)
    tensors = load_file(files[3])
    gone = next(iter(tensors))
    tensors["odd.weight"] = tensors.pop(gone)
    save_file(tensors, files[3])
    with pytest.raises(CheckpointError) as error:
        load_weights(tmp_path, config, abstract(config))
    for text in (*(f.name for f in files[:4]), f"lacks the tensor {gone}", "does not name odd.weight"):
        assert text in str(error.value)


@pytest.fixture
def sharded(omni, tmp_path):
    """(directory, configuration, its shards)."""
    config = read_config(omni)
    save_weights(tmp_path, config, load_weights(omni, config, abstract(config)), max_shard_bytes=20_000)
    return tmp_path, config, sorted(tmp_path.glob("model-*.safetensors"))


@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("fault", ["missing", "dangling", "directory", "unreadable"])
def test_a_shard_that_cannot_be_read_is_named(sharded, monkeypatch, which, fault):
    directory, config, shards = sharded
    shard = shards[which]
    expected = {"missing": "no such file", "dangling": "a link to ../blobs/5e6f", "directory": "Is a directory"}
    if fault == "unreadable":  # whoever runs the tests may be allowed to read everything
        unpatched = Path.open

        def refuse(path, *args, **kwargs):
            if path == shard:
                raise PermissionError(13, "Permission denied")
            return unpatched(path, *args, **kwargs)

        monkeypatch.setattr(Path, "open", refuse)
    else:
        shard.unlink()
        if fault == "dangling":
            shard.symlink_to("../blobs/5e6f")
        elif fault == "directory":
            shard.mkdir()
    with pytest.raises(CheckpointError) as error:
        load_weights(directory, config, abstract(config))
    assert f"{shard.name}: " in str(error.value) and expected.get(fault, "Permission denied") in str(error.value)
    assert "no tensor for parameter" not in str(error.value)


def test_links_to_nowhere_are_not_passed_over(omni, tmp_path):
    config = read_config(omni)
    for name in ("model.safetensors", "model.safetensors.index.json", "config.json"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / name).symlink_to("../blobs/5e6f")
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)}.*a link to \.\./blobs/5e6f, which is not there"):
            read_config(directory) if name == "config.json" else load_weights(directory, config, abstract(config))


@pytest.mark.parametrize(
    "index",
    [
        "{", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 200_000, '{"weight_map": {"a": {}}}',
        *(json.dumps({"weight_map": {"a": name}}) for name in ("../x.safetensors", "/x.safetensors", "..", ".", "")),
        *(json.dumps({"weight_map": {"a": name}}) for name in ("a/b.safetensors", "config.json", "\0.safetensors", 3)),
    ],
)  # fmt: skip
def test_a_hostile_index(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="index"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(omni, tmp_path, dtype, value):
    shutil.copytree(omni, tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    tensors = {key: np.asarray(x, dtype) for key, x in load_file(path).items()}
    bad = ("model.norm.weight", "visual.blocks.1.attn.k.weight")
    for key in bad:
        tensors[key].reshape(-1)[-1] = value
    tensors["model.layers.0.input_layernorm.weight"][:2] = -0.0, np.finfo(np.float16).max  # as large as float16 goes
    save_file(tensors, path)
    config = read_config(omni)
    with pytest.raises(CheckpointError, match=f"NaN or infinity: {', '.join(bad)}$"):
        load_weights(path.parent, config, abstract(config))


@pytest.mark.parametrize(
    "suffix, dtype, words",
    [
        ("weight", torch.float8_e4m3fn, r"float8_e4m3fn weights \(quantised\) are not supported"),
        ("weight", torch.float8_e5m2, r"float8_e5m2 weights \(quantised\) are not supported"),
        ("qweight", torch.int32, "quantised with GPTQ or AWQ are not supported"),
        ("weight_packed", torch.int32, "quantised with compressed-tensors are not supported"),
        ("weight.absmax", torch.float32, "quantised with bitsandbytes are not supported"),
    ],
)
def test_quantised_weights_are_refused_in_words(omni, tmp_path, suffix, dtype, words):
    shutil.copytree(omni, tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[f"model.layers.0.mlp.up_proj.{suffix}"] = torch.zeros((48, 32), dtype=dtype)
    safetensors.torch.save_file(tensors, path)
    config = read_config(omni)
    with pytest.raises(CheckpointError, match=f"{words}.*up_proj.*use the bfloat16 release"):
        load_weights(path.parent, config, abstract(config))


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda c: c["text_config"].update(hidden_act="gelu"), "text_config.hidden_act"),
        (lambda c: c["text_config"].update(use_sliding_window=True), "text_config.use_sliding_window"),
        (lambda c: c["text_config"].update(layer_types=["sliding_attention"] * 2), "text_config.layer_types"),
        (lambda c: c["text_config"]["rope_parameters"].update(rope_type="yarn", factor=4.0), "factor"),
        (lambda c: c["text_config"].update(num_experts=8), "text_config.num_experts = 8"),
        (lambda c: c["vision_config"].update(out_hidden_size=64), "vision_config.out_hidden_size"),
        (lambda c: c["vision_config"].update(hidden_size="many"), "vision_config.hidden_size"),
        (lambda c: c["audio_config"].update(scale_embedding=True), "audio_config.scale_embedding"),
        (lambda c: c.update(text_config=None), "text_config: expected an object"),
        (lambda c: c.update(quantization_config={"bits": 4}), "quantization_config"),
        (lambda c: c.update(model_type="llama"), "llama"),
    ],
)
def test_configuration_fields_that_are_not_implemented_are_refused_by_name(omni, tmp_path, change, named):
    config = json.loads((omni / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["text_config"].update(hidden_size=float("inf")),
        lambda c: c["text_config"].update(rms_norm_eps=float("nan")),
        lambda c: c["text_config"].update(num_hidden_layers=10**9),
        lambda c: c["text_config"].update(num_key_value_heads=3),
        lambda c: c["text_config"].update(layer_types=[[1]]),
        lambda c: c["text_config"]["rope_parameters"].update(rope_theta=10**400),
        lambda c: c["text_config"]["rope_parameters"].update(rope_theta=True),
        lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[-1, 3, 2]),
        lambda c: c["vision_config"].update(rope_parameters=[1]),
        lambda c: c["vision_config"].update(num_heads=7),
        lambda c: c["vision_config"].update(fullatt_block_indexes=[99]),
        lambda c: c["vision_config"].update(window_size=100),
        lambda c: c["audio_config"].update(encoder_attention_heads=3),
        lambda c: c.update(seconds_per_chunk=float("inf")),
        lambda c: c.update(model_type=[]),
        lambda c: c.update(model_type="qwen2_5_omni"),
        lambda c: c.update(model_type="qwen2_5_vl", text_config=5),
    ],
)
def test_hostile_values_are_refused_in_one_message(omni, tmp_path, change):
    config = json.loads((omni / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        read_config(tmp_path)


def test_dumps_of_earlier_versions_say_the_same(omni):
    """transformers 4 writes every default of its base class into every part."""
    config = json.loads((omni / "config.json").read_text())
    expected = parse_config(config, "now")
    defaults = {"tie_word_embeddings": True, "torchscript": False, "tf_legacy_loss": False, "top_k": 50}
    for part in ("audio_config", "vision_config", "text_config"):
        config[part] |= defaults
    whole = {"model_type": "qwen2_5_omni", "thinker_config": config, "talker_config": {}, "token2wav_config": {}}
    assert parse_config(whole, "then") == expected
    assert parse_config(whole | {"hidden_size": 32}, "fine-tune") == expected
    with pytest.raises(CheckpointError, match="hidden_size = 64 differs"):
        parse_config(whole | {"hidden_size": 64}, "odd")
    vl = format_config(ModelConfig.qwen2_5_vl_3b(), {})
    inner = vl | {"tie_word_embeddings": False, "text_config": vl["text_config"] | {"tie_word_embeddings": True}}
    assert parse_config(inner, "before 5").decoder.tie_word_embeddings
    assert parse_config(vl | {"dtype": None, "torch_dtype": "bfloat16"}, "null").param_dtype == "bfloat16"


def test_tied_output_weights_that_are_stored_a_second_time(tmp_path):
    hub_models.make("qwen3", tied=True).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, path)
    config = read_config(tmp_path)
    load_weights(tmp_path, config, abstract(config))
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, path)
    with pytest.raises(CheckpointError, match="lm_head.weight has no parameter"):
        load_weights(tmp_path, config, abstract(config))


def test_shapes_are_those_of_the_published_tensors(tmp_path):
    """Parts that happen to fit, or values in another order, are not enough."""
    hub_models.make("qwen2_5_vl").save_pretrained(tmp_path)
    path, config = tmp_path / "model.safetensors", read_config(tmp_path)
    tensors = load_file(path)
    qkv, patch = "visual.blocks.0.attn.qkv.weight", "visual.patch_embed.proj.weight"
    scrambled = np.ascontiguousarray(tensors[patch].transpose(0, 1, 3, 4, 2))
    save_file(tensors | {qkv: np.zeros((50, 16), np.float32), patch: scrambled}, path)
    with pytest.raises(CheckpointError) as error:
        load_weights(tmp_path, config, abstract(config))
    assert f"{qkv} has shape (50, 16)" in str(error.value) and "wants (48, 16)" in str(error.value)
    assert f"{patch} has shape (16, 3, 14, 14, 2)" in str(error.value)


def test_loaded_values_do_not_change_with_the_file(omni, tmp_path):
    shutil.copytree(omni, tmp_path / "copy")
    path, config = tmp_path / "copy" / "model.safetensors", read_config(omni)
    _, shapes = abstract_model(config, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    loaded = [load_weights(path.parent, config, tree) for tree in (abstract(config), shapes)]
    before = [jax.tree.map(np.array, params) for params in loaded]
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x11" * (path.stat().st_size // 2))
    for params, values in zip(loaded, before):
        jax.tree.map(np.testing.assert_array_equal, params, values)


def test_a_shard_that_is_cut_off_hides_no_other_problem(omni, tmp_path):
    config = read_config(omni)
    save_weights(tmp_path, config, load_weights(omni, config, abstract(config)), max_shard_bytes=20_000)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    tensors = load_file(files[1])
    key = next(iter(tensors))
    save_file(tensors | {key: np.zeros(3, np.float32)}, files[1])
    with pytest.raises(CheckpointError) as error:
        load_weights(tmp_path, config, abstract(config))
    assert files[0].name in str(error.value) and f"{key} has shape (3,)" in str(error.value)
    assert "no tensor for" not in str(error.value)
    with pytest.raises(CheckpointError, match="holds weights already"):
        save_weights(tmp_path, config, load_weights(omni, config, abstract(config)))


def test_a_part_is_read_alone_and_all_is_checked(omni):
    config = read_config(omni)
    part = load_weights(omni, config, abstract(config), lambda path: path.startswith("visual"))
    assert set(part) == {"visual"}
    whole = load_weights(omni, config, abstract(config))
    jax.tree.map(np.testing.assert_array_equal, part["visual"], whole["visual"])


def test_a_configuration_that_is_no_json_object(tmp_path):
    for text, match in ((None, "no such file"), ("{", "not JSON"), ("[]", "JSON object")):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=match):
            read_config(tmp_path)


# --- presets -----------------------------------------------------------------------------------------------------

# What the published files say (Qwen/Qwen2.5-VL-3B-Instruct, Qwen/Qwen2.5-VL-7B-Instruct, Qwen/Qwen2.5-Omni-7B), in the
# layout of the version that wrote them.
_PUBLISHED_VISION = dict(
    depth=32, hidden_act="silu", hidden_size=1280, intermediate_size=3420, num_heads=16, in_chans=3, patch_size=14,
    spatial_merge_size=2, spatial_patch_size=14, window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
    tokens_per_second=2, temporal_patch_size=2,
)  # fmt: skip
_PUBLISHED_TEXT = dict(
    attention_dropout=0.0, bos_token_id=151643, eos_token_id=151645, hidden_act="silu", initializer_range=0.02,
    max_position_embeddings=128000, rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=32768,
    use_cache=True, use_sliding_window=False, torch_dtype="bfloat16",
    rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
)  # fmt: skip
_3B = dict(hidden_size=2048, intermediate_size=11008, max_window_layers=70, num_attention_heads=16,
           num_hidden_layers=36, num_key_value_heads=2, vocab_size=151936)  # fmt: skip
_7B = dict(hidden_size=3584, intermediate_size=18944, max_window_layers=28, num_attention_heads=28,
           num_hidden_layers=28, num_key_value_heads=4, vocab_size=152064)  # fmt: skip


@pytest.mark.parametrize(
    "preset, sizes, tied", [(ModelConfig.qwen2_5_vl_3b, _3B, True), (ModelConfig.qwen2_5_vl_7b, _7B, False)]
)
def test_presets_of_vl_are_the_published_configurations(preset, sizes, tied):
    published = dict(
        architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", vision_start_token_id=151652,
        vision_end_token_id=151653, vision_token_id=151654, image_token_id=151655, video_token_id=151656,
        transformers_version="4.41.2", tie_word_embeddings=tied,
        vision_config=_PUBLISHED_VISION | dict(out_hidden_size=sizes["hidden_size"]), **_PUBLISHED_TEXT, **sizes,
    )  # fmt: skip
    assert not describe_mismatch(preset(), parse_config(published, "published"))
    assert parse_config(published, "published").param_dtype == "bfloat16"


@pytest.mark.parametrize("preset, sizes", [(ModelConfig.qwen2_5_omni_3b, _3B), (ModelConfig.qwen2_5_omni_7b, _7B)])
def test_presets_of_omni_are_the_published_configurations(preset, sizes):
    width = sizes["hidden_size"]
    text = {key: value for key, value in _PUBLISHED_TEXT.items() if key != "torch_dtype"}
    audio = dict(
        num_mel_bins=128, d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120,
        n_window=100, max_source_positions=1500, output_dim=width, scale_embedding=False, dropout=0, init_std=0.02,
        activation_function="gelu", encoder_layerdrop=0,
    )  # fmt: skip
    vision = _PUBLISHED_VISION | dict(embed_dim=1280, out_hidden_size=width, tokens_per_second=25)
    thinker = dict(
        model_type="qwen2_5_omni_thinker", audio_token_index=151646, audio_start_token_id=151647,
        audio_end_token_id=151648, image_token_index=151655, video_token_index=151656, user_token_id=872,
        vision_start_token_id=151652, position_id_per_seconds=25, seconds_per_chunk=2, ignore_index=-100,
        text_config=text | sizes | dict(model_type="qwen2_5_omni_text", tie_word_embeddings=False),
        audio_config=audio, vision_config=vision,
    )  # fmt: skip
    whole = dict(model_type="qwen2_5_omni", architectures=["Qwen2_5OmniModel"], torch_dtype="bfloat16",
                 thinker_config=thinker, talker_config={}, token2wav_config={}, enable_audio_output=True)  # fmt: skip
    assert not describe_mismatch(preset(), parse_config(whole, "published"))


def test_text_presets_are_the_published_configurations():
    features = FeatureProjectorConfig(("clip",), (8,), 16)
    text = {key: value for key, value in _PUBLISHED_TEXT.items() if key != "rope_scaling"}
    half = dict(hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_hidden_layers=24,
                num_key_value_heads=2, vocab_size=151936, max_window_layers=21)  # fmt: skip
    for preset, sizes, tied in (
        (ModelConfig.features_qwen2_5_0_5b, half, True),
        (ModelConfig.features_qwen2_5_7b, _7B, False),
    ):
        published = dict(model_type="qwen2", tie_word_embeddings=tied, **text, **sizes)
        assert not describe_mismatch(preset(features), parse_config(published, "published"))


def test_the_preset_of_gpt2_is_the_published_configuration():
    published = dict(
        model_type="gpt2", activation_function="gelu_new", attn_pdrop=0.1, bos_token_id=50256, embd_pdrop=0.1,
        eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-05, n_ctx=1024, n_embd=768, n_head=12,
        n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1,
        summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True, vocab_size=50257,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    )  # fmt: skip
    preset = ModelConfig.features_gpt2(FeatureProjectorConfig(("clip",), (8,), 16))
    assert not describe_mismatch(preset, parse_config(published, "published"))
    for field, value in (("scale_attn_by_inverse_layer_idx", True), ("activation_function", "relu"), ("n_head", 7)):
        with pytest.raises(CheckpointError, match=field):
            parse_config(published | {field: value}, "odd")


def test_the_published_files_of_gpt2_hold_the_part_without_a_head(tmp_path):
    """As in openai-community/gpt2: no prefix, no output weights, and the causal mask beside every layer's weights."""
    hub_models.make("gpt2", tied=True).save_pretrained(tmp_path)
    config, path = read_config(tmp_path), tmp_path / "model.safetensors"
    expected = load_weights(tmp_path, config, abstract(config))
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    assert "h.0.attn.c_attn.weight" in tensors and "lm_head.weight" not in tensors
    save_file(tensors | {f"h.{i}.attn.bias": np.ones((1, 1, 8, 8), np.float32) for i in range(2)}, path)
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path, config, abstract(config)), expected)


def test_a_mismatch_names_every_field_with_both_values():
    asked, found = ModelConfig.qwen2_5_omni_3b(), ModelConfig.qwen2_5_omni_7b()
    lines = describe_mismatch(asked, found)
    assert "model.decoder.hidden_size: 2048 asked, 3584 there" in lines and len(lines) > 4


def test_parameters_of_the_presets_in_billions():
    """3.75 as published for Qwen2.5-VL-3B; the thinker of Omni-3B adds an audio tower and untied output weights."""
    depths = {"decoder": "num_hidden_layers", "audio": "encoder_layers", "vision": "depth"}

    def parameters(config, **layers):
        parts = {name: getattr(config, name) for name in depths if getattr(config, name)}
        shallow = {name: dataclasses.replace(x, **{depths[name]: layers.get(name, 1)}) for name, x in parts.items()}
        shapes = flatten(abstract(dataclasses.replace(config, **shallow)))
        return sum(int(np.prod(x.shape)) for x in shapes.values())

    for preset, billions in (("qwen2_5_vl_3b", 3.755), ("qwen2_5_omni_3b", 4.703)):
        config = getattr(ModelConfig, preset)()
        count = one = parameters(config)
        for name in depths:  # all layers of a part are alike
            if part := getattr(config, name):
                count += (getattr(part, depths[name]) - 1) * (parameters(config, **{name: 2}) - one)
        assert count / 1e9 == pytest.approx(billions, abs=1e-3)
