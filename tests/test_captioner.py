"""The public face answers as `transformers` does, from the same directories and the same conversations."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import peft
import pytest
import torch

from mecap_jax import Captioner
from mecap_jax.batch import Completions
from mecap_jax.config import MeshConfig
from mecap_jax.generation.scoring import completion_logprobs
from mecap_jax.model_config import FeatureProjectorConfig
from mecap_jax.models.checkpoints.hub import save_model
from mecap_jax.models.checkpoints.hub_config import read_config
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.sharding import make_mesh, single_device
from mecap_jax.train_state import init_params
from tests import hub_models
from tests.data.test_processor import audio, text, user
from tests.published_family import conversations, open_family, their_inputs

FEATURES = FeatureProjectorConfig(("face", "voice"), (3, 2), 8)


@pytest.fixture(scope="module", params=hub_models.FAMILIES)
def family(request, tmp_path_factory):
    """A published-like directory with both models, and the captioner in it."""
    family = open_family(request.param, tmp_path_factory.mktemp(request.param))
    family.captioner = Captioner.from_pretrained(family.directory)
    family.captioner.processor.settings = family.ours.settings
    rows = conversations(family.name)
    family.rows = rows[::-2][:3] if len(rows) > 2 else rows
    return family


def last_logits(family, row):
    begun = {"decoder_input_ids": torch.tensor([[2, 0]])} if family.name == "bart" else {}
    with torch.no_grad():
        return family.reference(**their_inputs(family, row), **begun).logits[0, -1].numpy()


def test_next_token_logits_equal_transformers(family):
    prompts = family.captioner.processor(family.rows)
    assert len(set(prompts.length)) > 1
    logits = family.captioner.next_token_logits(prompts)
    assert logits.dtype == np.float32 and logits.shape == (len(family.rows), family.config.decoder.vocab_size)
    expected = np.stack([last_logits(family, row) for row in family.rows])
    print(f"{family.name}: largest difference of a logit {np.abs(logits - expected).max():.1e}")
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_greedy_text_equals_transformers(family):
    captioner = family.captioner
    completions = captioner.generate(captioner.processor(family.rows), temperature=0, max_new_tokens=8)
    tokenizer = getattr(family.theirs, "tokenizer", family.theirs)
    for row, group, lengths in zip(family.rows, completions.text, completions.lengths):
        inputs = their_inputs(family, row)
        with torch.no_grad():
            ends = list(captioner.processor.tokenizer.end_ids)
            longest = 9 if family.name == "bart" else 8  # the second token that it begins with counts there
            out = family.reference.generate(**inputs, max_new_tokens=longest, do_sample=False, eos_token_id=ends)
        new = out[0, 2 if family.name == "bart" else inputs["input_ids"].shape[1] :]
        assert group == [tokenizer.decode(new, skip_special_tokens=True).strip()] and lengths[0] == len(new)


def test_sampled_log_probabilities_are_those_of_scoring(family):
    captioner = family.captioner
    prompts = captioner.processor(family.rows)
    sampled = captioner.generate(prompts, group_size=3, temperature=0.7, max_new_tokens=6, seed=5)
    shape = (len(family.rows), 3, 6)
    assert sampled.tokens.shape == sampled.logprobs.shape == shape
    assert sampled.lengths.shape == sampled.finished.shape == shape[:2]
    assert [len(group) for group in sampled.text] == [3] * len(family.rows)
    mask = np.arange(6) < sampled.lengths[..., None]
    scored = completion_logprobs(
        family.graphdef, family.params, prompts, Completions(sampled.tokens, mask), temperature=0.7
    )
    np.testing.assert_allclose(sampled.logprobs, scored, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2"], indirect=True)
def test_draws_follow_the_seed_and_the_prompt_alone(family):
    captioner, (first, second, *_) = family.captioner, family.rows
    options = dict(group_size=2, max_new_tokens=6, top_p=0.9, seed=2**40 + 3)
    both = captioner.generate(captioner.processor([first, second]), **options)
    again = captioner.generate(captioner.processor([first, second]), **options)
    jax.tree.map(np.testing.assert_array_equal, both[1:], again[1:])
    alone = captioner.generate(captioner.processor([second]), **options, rows=[1])
    np.testing.assert_array_equal(alone.tokens[0], both.tokens[1])
    other = captioner.generate(captioner.processor([first, second]), **{**options, "seed": 3})
    assert (other.tokens != both.tokens).any()


def test_decoder_behind_features(tmp_path):
    """An export with a projector loads whole; its tokens are what the projector makes of the features."""
    family = open_family("qwen2", tmp_path)
    model = dataclasses.replace(family.config, features=FEATURES)
    _, drawn = init_params(model, 1, single_device())
    params = family.params | {"feature_projector": jax.tree.map(lambda x: x + 0.1, drawn["feature_projector"])}
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    save_model(tmp_path, model, params)
    captioner = Captioner.from_pretrained(tmp_path)
    assert captioner.data.modalities == ("features",)
    rng = np.random.default_rng(0)
    arrays = {"face": rng.normal(size=3).astype(np.float32), "voice": rng.normal(size=(4, 2)).astype(np.float32)}
    row = user({"type": "features", "features": arrays}, text())
    prompts = captioner.processor([row, user(text("Only words."))])
    logits = captioner.next_token_logits(prompts)

    projector = {name: torch.tensor(np.asarray(x)) for name, x in flat(params["feature_projector"])}
    x = torch.tensor(np.concatenate([np.repeat(arrays["face"][None], 4, 0), arrays["voice"]], axis=1))
    functional = torch.nn.functional
    x = functional.layer_norm(x, x.shape[1:], projector["norm.scale"], projector["norm.bias"])
    x = functional.gelu(x @ projector["fc1.kernel"] + projector["fc1.bias"])
    x = x @ projector["fc2.kernel"] + projector["fc2.bias"]
    embedded = family.reference.get_input_embeddings()(torch.tensor(prompts.tokens[:1, : prompts.length[0]].copy()))
    embedded = embedded.detach().clone()
    embedded[0, prompts.media_index[0, : prompts.length[0]] >= 0] = x
    with torch.no_grad():
        expected = family.reference(inputs_embeds=embedded).logits[0, -1].numpy()
    np.testing.assert_allclose(logits[0], expected, atol=1e-4, rtol=0)


def flat(tree):
    return [(f"{module}.{name}", x) for module, part in tree.items() for name, x in part.items()]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapter_equals_peft(tmp_path):
    family = open_family("qwen2_5_omni", tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "down_proj", "fc1"], init_lora_weights=False)
    adapted = peft.get_peft_model(family.reference, config)
    adapted.save_pretrained(tmp_path / "adapter")
    captioner = Captioner.from_pretrained(family.directory, adapter=tmp_path / "adapter")
    captioner.processor.settings = family.ours.settings
    row = user(audio(0.5), text())
    with torch.no_grad():
        expected = adapted(**their_inputs(family, row)).logits[0, -1].numpy()
        with adapted.disable_adapter():
            plain = adapted(**their_inputs(family, row)).logits[0, -1].numpy()
    assert np.abs(expected - plain).max() > 0.01
    logits = captioner.next_token_logits(captioner.processor([row]))
    np.testing.assert_allclose(logits[0], expected, atol=1e-4, rtol=0)

    other = open_family("qwen3", tmp_path / "other")
    with pytest.raises(CheckpointError, match="adapter .* of another model: qwen3 has none of its modules"):
        Captioner.from_pretrained(other.directory, adapter=tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="it holds an adapter: load its base model"):
        Captioner.from_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="no adapter in"):
        Captioner.from_pretrained(family.directory, adapter=tmp_path)


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
def test_several_devices_answer_for_the_given_rows_only(family):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    captioner = Captioner.from_pretrained(family.directory, mesh=mesh)
    prompts = family.captioner.processor(family.rows)
    logits = captioner.next_token_logits(prompts)
    assert len(logits) == len(family.rows)
    np.testing.assert_allclose(logits, family.captioner.next_token_logits(prompts), atol=1e-4, rtol=0)
    options = dict(group_size=2, max_new_tokens=4)
    ours, single = captioner.generate(prompts, **options), family.captioner.generate(prompts, **options)
    assert ours.text == single.text


@pytest.mark.parametrize("family", ["qwen2_5_omni"], indirect=True)
def test_dtypes(family):
    stored = [x.dtype.name for x in jax.tree.leaves(family.captioner._params)]
    assert set(stored) == {"float32"} and family.captioner.model.dtype == "float32"
    half = Captioner.from_pretrained(family.directory, dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(half._params)} == {"bfloat16"}
    prompts = family.captioner.processor(family.rows)
    logits = half.next_token_logits(prompts)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, family.captioner.next_token_logits(prompts), atol=0.5, rtol=0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        Captioner.from_pretrained(family.directory, dtype="int8")


def test_half_precision_files_keep_their_dtype(tmp_path):
    reference = open_family("qwen3", tmp_path).reference
    for stored, params, products in (("bfloat16", "bfloat16", "bfloat16"), ("float16", "float32", "float32")):
        reference.to(getattr(torch, stored)).save_pretrained(tmp_path)
        model = Captioner.from_pretrained(tmp_path).model
        assert (model.param_dtype, model.dtype) == (params, products)


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
@pytest.mark.parametrize(
    "setting",
    [
        {"group_size": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"min_p": 1},
        {"max_new_tokens": 0},
    ]
    + [{"rows": [1, 2, 3]}],
)
def test_settings_out_of_range_are_named(family, setting):
    prompts = family.captioner.processor([user(text())])
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be"):
        family.captioner.generate(prompts, **setting)


@pytest.mark.parametrize("family", ["qwen2_5_omni"], indirect=True)
def test_the_processor_names_the_row(family):
    with pytest.raises(ValueError, match="row 1: audio of 16 samples is too short"):
        family.captioner.processor([user(text("hello")), user(audio(0.001), text())])


def test_what_is_no_model_is_explained(tmp_path):
    with pytest.raises(CheckpointError, match="the model Qwen/Qwen2.5-Omni-3B of the Hugging Face hub, download its"):
        Captioner.from_pretrained("Qwen/Qwen2.5-Omni-3B")
    with pytest.raises(CheckpointError, match="expected a directory in the Hugging Face layout .* or a stage of a run"):
        Captioner.from_pretrained(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="has no config.json; expected a directory in"):
        Captioner.from_pretrained(tmp_path)
    (tmp_path / "checkpoints" / "sft").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="has no config.json; expected a directory in"):
        Captioner.from_pretrained(tmp_path / "checkpoints" / "sft")


def test_files_that_are_missing_are_named(tmp_path):
    family = open_family("qwen3", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no such file: .*tokenizer.json"):
        Captioner.from_pretrained(family.directory)
    (tmp_path / "model.safetensors").unlink()
    assert read_config(tmp_path) == family.config


def test_importing_a_configuration_loads_no_jax():
    code = "import sys, mecap_jax.config, mecap_jax; assert 'jax' not in sys.modules; from mecap_jax import Captioner"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Caption'"):
        import mecap_jax

        mecap_jax.Caption  # noqa: B018
