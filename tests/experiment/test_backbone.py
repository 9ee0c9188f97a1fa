"""A run that starts from published files: what it takes from them, what it draws, what it refuses."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from mecap_jax.config import ConfigError, load
from mecap_jax.experiment.backbone import check_backbone
from mecap_jax.evaluation.tables import UNTRAINED
from mecap_jax.experiment import scoring, stages, story, weights
from mecap_jax.experiment.setup import set_up
from mecap_jax.model_config import FeatureProjectorConfig, LoraConfig
from mecap_jax.models.checkpoints.hub import save_model
from mecap_jax.models.checkpoints.config_writer import format_config
from mecap_jax.models.checkpoints.hub_config import read_config
from mecap_jax.models.checkpoints.table import CheckpointError, flatten
from mecap_jax.models.parameters import split_params
from mecap_jax.sharding import make_mesh
from mecap_jax.training.logging import RunLogger
from tests import hub_models
from tests.hub_layout import write_processor

FEATURES = FeatureProjectorConfig(("log_mel-UTT", "log_mel-FRA"), (80, 40), 16)


def write_backbone(directory, family):
    write_processor(directory, family, min_pixels=28 * 28, max_pixels=56 * 56)
    model = hub_models.make(family)
    if family == "qwen2_5_omni":
        hub_models.save_as_published(model, directory)
    else:
        model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("omni"), "qwen2_5_omni")


def run_config(directory, *overrides, recipe="qwen2_5_omni_3b,smoke", **model):
    config = load(f"configs/grpo.py:{recipe}", ["sft.steps=1", *overrides])
    found = dataclasses.replace(read_config(directory), name="miniature", **model)
    return dataclasses.replace(config, backbone=str(directory), model=found)


def test_weights_come_from_the_files_and_the_rest_is_drawn(omni, tmp_path):
    lora = LoraConfig(rank=2)
    config = run_config(omni, lora=lora)
    mesh = make_mesh(config.mesh)
    _, params = weights.starting_params(config, mesh)
    adapters, rest = (flatten(part) for part in split_params(params, ()))
    tensors = load_file(omni / "model.safetensors")
    np.testing.assert_array_equal(
        rest["language_model.layers.1.mlp.up_proj.kernel"], tensors["thinker.model.layers.1.mlp.up_proj.weight"].T
    )
    np.testing.assert_array_equal(rest["visual.blocks.0.attn.k.bias"], tensors["thinker.visual.blocks.0.attn.k.bias"])
    assert len(adapters) == 2 * 7 * config.model.decoder.num_hidden_layers
    assert all((np.abs(x).max() > 0) == path.endswith("lora_a") for path, x in adapters.items())
    # What is drawn is what the same seed draws without a backbone.
    _, drawn = weights.starting_params(dataclasses.replace(config, backbone=""), mesh)
    for path, x in flatten(split_params(drawn, ())[0]).items():
        np.testing.assert_array_equal(x, adapters[path])


def test_a_projector_beside_the_files_is_read_and_a_missing_one_drawn(tmp_path):
    directory = write_backbone(tmp_path / "qwen2", "qwen2")
    config = run_config(directory, recipe="features_qwen2_5_0_5b,smoke", features=FEATURES)
    mesh = make_mesh(config.mesh)
    _, params = weights.starting_params(config, mesh)
    trained = jax.tree.map(lambda x: x + 1, params)
    (tmp_path / "export").mkdir()
    save_model(tmp_path / "export", config.model, trained)
    shutil.copy(directory / "config.json", tmp_path / "export")
    _, again = weights.starting_params(dataclasses.replace(config, backbone=str(tmp_path / "export")), mesh)
    jax.tree.map(np.testing.assert_array_equal, again, trained)


@pytest.mark.slow
def test_a_stage_trains_the_backbones_decoder_and_opens_again(omni, common, shared, tmp_path):
    config = run_config(omni, f"data.path={common / 'smoke-shards'}", "data.source=synthetic", shared[1])
    with RunLogger(tmp_path) as logger:
        bench = set_up(config, tmp_path / "run", logger)
        assert bench.tokenizer.template == weights.Processor.from_directory(omni, config.model).tokenizer.template
        model = weights.open_model(config, bench.mesh)
        _, before = weights.starting_params(config, bench.mesh)
        start = functools.partial(weights.starting_trainable, config, bench.mesh)
        stages.train_sft(bench, "sft", config.sft, model, start, lambda step: False)
        assert story._starts_from_backbone(config)  # the report's floor is then what the backbone says before all that
        numbers, say = bench.dataset.clips(bench.dataset.evaluated_split)[:2], story._captioner(bench, model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(story, "stage_trainable", lambda *_: pytest.fail("a trained stage is read"))
            floor = say(bench, UNTRAINED, "", numbers)
        graphdef, params = weights.starting_params(config, bench.mesh)
        assert floor == scoring.caption_stage(bench, "", graphdef, params, numbers, config.longest_answer)
    opened = weights.open_stage(tmp_path / "run" / "checkpoints" / "sft", bench.mesh)
    trained, before = weights.stage_params(config, tmp_path / "run", bench.mesh, "sft"), flatten(before)
    jax.tree.map(np.testing.assert_array_equal, opened.params, trained)
    for path, x in flatten(opened.params).items():
        changed = not np.array_equal(x, before[path])
        assert not changed or path.startswith("language_model"), path
        assert changed or not (path.startswith("language_model") and path.endswith("up_proj.kernel")), path
    assert opened.processor.settings.max_frames == config.data.max_frames
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        assert (tmp_path / "run" / "processor" / name).read_bytes() == (omni / name).read_bytes()
    (tmp_path / "run" / "processor" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"the processor of the run cannot be read: .*tokenizer\.json"):
        weights.open_stage(tmp_path / "run" / "checkpoints" / "sft", bench.mesh)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["qwen2_5_omni_3b", "qwen2_5_omni_7b,lora", "qwen2_5_vl_3b", "features_qwen2_5_0_5b"]
)
def test_a_recipe_takes_the_files_that_it_asks_for(family, tmp_path):
    """The published configuration against the recipe's own model, options of training included."""
    config = load(f"configs/grpo.py:{family}", [f"backbone={tmp_path}"])
    write_processor(tmp_path, config.model.family)
    (tmp_path / "config.json").write_text(json.dumps(format_config(config.model, {})))
    check_backbone(config)


def test_a_backbone_that_is_not_there_names_the_key():
    config = load("configs/grpo.py:qwen2_5_vl_3b")
    with pytest.raises(ConfigError, match="'backbone': no such directory: checkpoints/Qwen2.5-VL-3B-Instruct"):
        check_backbone(config)


def test_a_backbone_of_another_network_names_every_field(omni):
    config = run_config(omni)
    decoder = dataclasses.replace(config.model.decoder, num_hidden_layers=5, rope_theta=1e4)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    with pytest.raises(ConfigError) as error:
        check_backbone(other)
    for text in ("decoder.num_hidden_layers: 5 asked, 2 there", "decoder.rope_theta: 10000.0 asked, 1000000.0 there"):
        assert text in str(error.value)
    vl = load("configs/grpo.py:qwen2_5_vl_3b", [f"backbone={omni}"])
    with pytest.raises(ConfigError, match="model.family: 'qwen2_5_vl' asked, 'qwen2_5_omni' there"):
        check_backbone(vl)


def test_a_file_is_no_backbone(omni):
    config = dataclasses.replace(run_config(omni), backbone=str(omni / "config.json"))
    with pytest.raises(ConfigError, match=r"'backbone': .*config\.json is a file"):
        check_backbone(config)


@pytest.mark.parametrize(
    "template, message",
    [
        ("{% for %}", "cannot be read, line 1"),
        (
            "{% for m in messages %}{{ m.role }}{% endfor %}",
            r"for \[\], the media are \[audio, video\]",
        ),
    ],
)
def test_a_template_that_cannot_lay_out_the_runs_prompts_is_refused(omni, tmp_path, template, message):
    shutil.copytree(omni, tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text(template)
    config = run_config(tmp_path / "other")
    with pytest.raises(ConfigError, match=f"config key 'backbone': .*{message}"):
        check_backbone(config)


def test_a_vocabulary_that_is_larger_than_the_decoders_is_refused(omni, tmp_path):
    shutil.copytree(omni, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["far"] = 9999
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="config key 'backbone': .* the tokenizer has 10000 ids, the decoder 640"):
        check_backbone(run_config(tmp_path / "other"))


def test_files_that_do_not_fit_stop_the_run(omni, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(omni, broken)
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    config = run_config(broken)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        weights.starting_params(config, make_mesh(config.mesh))
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="'backbone': no such file: .*tokenizer.json"), RunLogger(tmp_path) as logger:
        set_up(config, tmp_path / "run", logger)
    assert not (tmp_path / "run").exists()  # nothing was begun
