"""Exports of real (small) runs of every family: `transformers` loads them and computes what we do."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import json
import logging
import os
import re
import subprocess
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from mecap_jax.captioner import Captioner
from mecap_jax.config import ConfigError, MeshConfig, SftConfig, load
from mecap_jax.experiment import export, stages
from mecap_jax.experiment.export import export_stage
from mecap_jax.experiment.setup import set_up
from mecap_jax.experiment.weights import open_model, open_stage, read_run, starting_trainable
from mecap_jax.generation.sampler import generate
from mecap_jax.models.checkpoints.hub import describe_mismatch, published_part, read_model, save_weights
from mecap_jax.models.checkpoints.hub_config import read_config
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.sharding import make_mesh
from mecap_jax.training.logging import RunLogger
from tests import hub_models, miniature
from tests.data.test_features import smooth_frames, voice_like
from tests.hub_layout import special_ids, write_processor
from tests.models.test_family_parity import prompt_logits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
LORA = dict(rank=3, alpha=6.0, targets=(r"language_model\..*[qo]_proj", r"visual\..*up_proj"))
PROMPT = "Say \"why\" ```\n# of it: {x} \\ 'quoted'"  # what must survive quoting in the card's code


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory, shared):
    """Where all runs are; they have the quick encoder."""
    directory = tmp_path_factory.mktemp("export")
    (directory / "encoder").symlink_to(shared[1].removeprefix("encoder.path="))
    return directory


def train(recipe, root, change):
    """One step of SFT of a recipe, as small as it gets; all runs share their clips."""
    overrides = [f"data.path={root / 'shards'}", "data.source=synthetic", f"encoder.path={root / 'encoder'}"]
    config = load(recipe, overrides)
    synthetic = dataclasses.replace(config.data.synthetic, clips=40, features=("log_mel-UTT", "log_mel-FRA"))
    sft = SftConfig(steps=1, batch_clips=8, references=1, clips="all", max_target_tokens=24)
    data = dataclasses.replace(config.data, synthetic=synthetic, instruction=PROMPT, max_bad_fraction=0.5)
    config = change(dataclasses.replace(config, data=data, sft=sft, grpo=None, rows=()))
    workdir = root / f"run_{config.name}"
    with RunLogger(workdir) as logger:
        bench = set_up(config, workdir, logger)
        model = open_model(bench.config, bench.mesh)
        stages.train_sft(
            bench, "sft", sft, model, lambda: starting_trainable(bench.config, bench.mesh), lambda step: False
        )
    return workdir / "checkpoints" / "sft"


def train_from(backbone, family, root, lora=None, **changes):
    """The same from a directory of the family."""

    def change(config):
        features = config.model.features
        if features:  # means and deviations, as if they were two layers
            features = dataclasses.replace(features, layers=(2, 1))
        model = dataclasses.replace(read_config(backbone), param_dtype="float32", features=features, lora=lora)
        return dataclasses.replace(config, backbone=str(backbone), model=model, **changes)

    return train(f"configs/sft.py:{family},smoke", root, change)


@pytest.fixture(scope="module")
def tiny(root):
    """A run without a backbone, and a report of it."""

    def change(config):
        decoder = dataclasses.replace(config.model.decoder, num_hidden_layers=1)
        audio = dataclasses.replace(config.model.audio, encoder_layers=1)
        model = dataclasses.replace(config.model, decoder=decoder, audio=audio)
        return dataclasses.replace(config, model=model)

    checkpoint = train("configs/sft.py", root, change)
    report = {
        "eval": {"sft": {"rouge_l": 0.5, "meteor": None, "emotion_uar": 0.25}},
        "confidence": {"sft": {"rouge_l": [0.25, 0.75], "meteor": None, "emotion_uar": None}},
        "test": {"clips": 9, "speakers": 3},
        "intervals": {"clusters": "speakers", "level": 0.95},
        "data": {
            "source": "synthetic",
            "synthetic": True,
            "splits": {"train": {"records": 30, "speakers": 7}, "test": {"records": 9, "speakers": 3}},
            "used": {"train": 29, "test": 9},
            "licences": {"CC0-1.0": 39},
            "quarantined": [{"id": "x", "reason": "short"}],
        },
    }
    (checkpoint.parent.parent / "report.json").write_text(json.dumps(report))
    return checkpoint


@pytest.fixture(scope="module")
def omni(root):
    """The decoder of a whole Qwen2.5-Omni, published in bfloat16 and trained in float32."""
    backbone = root / "Qwen2.5-Omni-3B"
    write_processor(backbone, "qwen2_5_omni")
    ids = special_ids(backbone, "qwen2_5_omni")
    hub_models.save_as_published(hub_models.make("qwen2_5_omni", special_ids=ids).bfloat16(), backbone, "60KB")
    (backbone / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n")
    return train_from(backbone, "qwen2_5_omni_3b", root), backbone


@pytest.fixture(scope="module")
def vl(root):
    """Adapters of a Qwen2.5-VL."""
    backbone = root / "vl"
    write_processor(backbone, "qwen2_5_vl")
    tokens = transformers.AutoTokenizer.from_pretrained(backbone)
    hub_models.make("qwen2_5_vl", tied=True, special_ids=special_ids(backbone, "qwen2_5_vl")).save_pretrained(backbone)
    end = tokens.convert_tokens_to_ids("<|im_end|>")
    (backbone / "generation_config.json").write_text(json.dumps({"eos_token_id": [end], "temperature": 0.1}))
    lora = load("configs/grpo.py", [f"model.lora={LORA}"]).model.lora
    return train_from(backbone, "qwen2_5_vl_3b", root, lora, trainable=()), backbone


@pytest.fixture(scope="module")
def text(root):
    """A Qwen2 behind precomputed features."""
    backbone = root / "qwen2"
    write_processor(backbone, "qwen2")
    hub_models.make("qwen2").save_pretrained(backbone)
    return train_from(backbone, "features_qwen2_5_0_5b", root), backbone


@pytest.fixture(scope="module")
def gpt2(root):
    """A GPT-2 behind precomputed features; its files say nothing of chats."""
    backbone = root / "gpt2"
    write_processor(backbone, "gpt2")
    hub_models.make("gpt2", tied=True).save_pretrained(backbone)
    return train_from(backbone, "features_gpt2", root), backbone


@pytest.fixture(scope="module")
def bart(root):
    """A BART behind precomputed features, which its encoder reads."""
    backbone = root / "bart"
    write_processor(backbone, "bart")
    hub_models.make("bart").save_pretrained(backbone)
    return train_from(backbone, "features_bart_base", root), backbone


# --- what both compute ---------------------------------------------------------------------------------------------


def clip(model):
    """Arrays under the names that the card's code uses."""
    frames, seconds = smooth_frames(4, 70, 84), 1.7
    values = dict(waveform=voice_like(20_000), frames=frames, seconds=seconds, transcript="It is late, naïve 😀 24.")
    if model.features:
        values["features"] = np.random.default_rng(0).normal(size=(9, sum(model.features.dims)))
        values["features"] = values["features"].astype(np.float32)
    return values


def our_prompt(stage, values):
    data, content = stage.config.data, []
    if "audio" in data.modalities:
        content.append({"type": "audio", "audio": values["waveform"]})
    if "video" in data.modalities:
        fps = len(values["frames"]) / values["seconds"]
        content.append({"type": "video", "video": values["frames"], "fps": fps})
    if "features" in data.modalities:
        both, parts, start = values["features"], {}, 0
        for name, dim in zip(stage.config.model.features.names, stage.config.model.features.dims):
            parts[name], start = both[:, start : start + dim], start + dim
        content.append({"type": "features", "features": parts})
    text = f'"{values["transcript"]}" {data.instruction}' if data.include_transcript else data.instruction
    return stage.processor([[{"role": "user", "content": [*content, {"type": "text", "text": text}]}]])


def card_code(directory):
    card = (directory / "README.md").read_text()
    return re.search(r"## Use with transformers.*?^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE).group(1)


@pytest.fixture
def said(monkeypatch):
    """What transformers logs."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield records
    logger.setLevel(level)
    logger.removeHandler(handler)


def check(checkpoint, directory, monkeypatch, base=None):
    """Runs the card's own code on raw media and compares logits with ours."""
    stage = open_stage(checkpoint, make_mesh(MeshConfig()))
    values = clip(stage.config.model)
    monkeypatch.chdir(directory)
    code = card_code(directory)
    if base is not None:
        code = code.replace(repr(base.name), repr(str(base)))
    theirs = dict(values)
    exec(compile(code, "card", "exec"), theirs)
    prompt = our_prompt(stage, values)
    ours = np.asarray(prompt_logits(stage.graphdef, stage.params, jax.tree.map(jax.numpy.asarray, prompt)))[0]
    given = (
        {"inputs_embeds": theirs["prompt_states"]} if "features" in stage.config.data.modalities else theirs["inputs"]
    )
    if encoder := stage.config.model.decoder.encoder:  # then logits are of the first token of an answer
        given = {**given, "decoder_input_ids": torch.tensor([encoder.start_ids])}
    with torch.inference_mode():
        expected = theirs["model"](**given).logits[0].float().numpy()
    expected = expected[-1:] if encoder else expected
    assert len(expected) == (1 if encoder else prompt.length[0]) and expected.std() > 0.1
    worst = np.abs(ours[: len(expected)] - expected).max()
    print(f"{directory.name}: largest difference of a logit {worst:.1e}")
    assert worst <= 1e-4
    return theirs


def tensors_of(directory):
    return {key: value for path in directory.glob("model*.safetensors") for key, value in load_file(path).items()}


def check_keys(directory, cls, said):
    model, info = cls.from_pretrained(directory, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    assert not said
    return model


# --- every family --------------------------------------------------------------------------------------------------


def test_a_run_without_a_backbone(tiny, tmp_path, monkeypatch, said):
    directory = tmp_path / "deep" / "tiny"
    export_stage(tiny, directory, max_shard_bytes=100_000)
    model = check_keys(directory, transformers.Qwen2_5OmniThinkerForConditionalGeneration, said)
    assert len(list(directory.glob("model-*.safetensors"))) > 1 and model.dtype == torch.float32
    assert model.generation_config.eos_token_id and model.generation_config.pad_token_id is not None
    assert not describe_mismatch(read_run(tiny.parent.parent).model, read_model(directory))
    theirs = check(tiny, directory, monkeypatch)
    stage = open_stage(tiny, make_mesh(MeshConfig()))
    sampled = generate(
        stage.graphdef, stage.params, our_prompt(stage, clip(stage.config.model)), np.zeros(2, np.uint32),
        np.zeros(1, np.int32),
        group_size=1, max_new_tokens=24, temperature=0.0, end_ids=stage.processor.tokenizer.end_ids,
    )  # fmt: skip
    caption = stage.processor.tokenizer.decode(sampled.tokens[0, 0][: int(sampled.length[0, 0])])
    assert theirs["caption"].strip() == caption
    card = (directory / "README.md").read_text()
    assert "| 0.500 [0.250, 0.750] |" in card and "| unavailable |" in card
    for words in (
        "data are synthetic",
        "CC0-1.0 |",
        "| clips used, test | 9 |",
        "trained from random weights",
        "adamw",
    ):
        assert words.lower() in card.lower(), words
    assert "Not evaluated" not in card and "reconstruction" not in card
    assert sorted(path.name for path in directory.parent.iterdir()) == ["tiny"]


def test_a_whole_omni(omni, tmp_path, monkeypatch, said):
    """Frozen towers come out as the bytes that went in; in float32 both compute the same."""
    checkpoint, backbone = omni
    export_stage(checkpoint, tmp_path / "out")
    before, after = tensors_of(backbone), tensors_of(tmp_path / "out")
    assert {key.removeprefix("thinker.") for key in before if key.startswith("thinker.")} == after.keys()
    trained = {key for key, value in after.items() if value.tobytes() != before[f"thinker.{key}"].tobytes()}
    assert trained and all(key.startswith(("model.", "lm_head.")) for key in trained)
    assert {value.dtype for value in after.values()} == {np.dtype(ml_dtypes.bfloat16)}
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == ["Qwen2_5OmniThinkerForConditionalGeneration"]
    assert fields["dtype"] == "bfloat16" and "torch_dtype" not in fields
    processor = checkpoint.parent.parent / "processor"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        copies = {(directory / name).read_bytes() for directory in (backbone, processor, tmp_path / "out")}
        assert len(copies) == 1
    model = check_keys(tmp_path / "out", transformers.Qwen2_5OmniThinkerForConditionalGeneration, said)
    assert model.dtype == torch.bfloat16
    monkeypatch.chdir(tmp_path / "out")
    values = clip(read_run(checkpoint.parent.parent).model)
    exec(compile(card_code(tmp_path / "out"), "card", "exec"), values)  # nothing in it trips over bfloat16

    export_stage(checkpoint, tmp_path / "exact", dtype="float32")
    check(checkpoint, tmp_path / "exact", monkeypatch)
    exact = tensors_of(tmp_path / "exact")
    for key, value in after.items():
        assert exact[key].astype(ml_dtypes.bfloat16).tobytes() == value.tobytes(), key  # rounded once
    card = (tmp_path / "exact" / "README.md").read_text()
    assert 'base_model: "Qwen/Qwen2.5-Omni-3B"' in card and "other / qwen-research" in card
    assert "Not evaluated" in card and str(tmp_path.parent) not in card and str(backbone) not in card


def test_the_layout_of_a_whole_omni(omni, tmp_path, said):
    """What vLLM asks for; `transformers`' thinker reads the same weights out of it, and so do we."""
    checkpoint, _ = omni
    export_stage(checkpoint, tmp_path / "thinker")
    export_stage(checkpoint, tmp_path / "whole", whole_omni=True)
    check_keys(tmp_path / "whole", transformers.Qwen2_5OmniThinkerForConditionalGeneration, said)
    before, after = tensors_of(tmp_path / "thinker"), tensors_of(tmp_path / "whole")
    assert {f"thinker.{key}" for key in before} == after.keys()
    assert all(after[f"thinker.{key}"].tobytes() == value.tobytes() for key, value in before.items())
    assert read_model(tmp_path / "whole") == read_model(tmp_path / "thinker")


def test_adapters_of_a_vl(vl, tmp_path, monkeypatch, said):
    """Merged by default, by themselves where asked; both compute the same."""
    checkpoint, backbone = vl
    export_stage(checkpoint, tmp_path / "merged")
    check_keys(tmp_path / "merged", transformers.Qwen2_5_VLForConditionalGeneration, said)
    merged = check(checkpoint, tmp_path / "merged", monkeypatch)
    before, after = tensors_of(backbone), tensors_of(tmp_path / "merged")
    assert before.keys() == after.keys()
    same = {key for key in after if after[key].tobytes() == before[key].tobytes()}
    assert all(re.search(r"[qo]_proj.weight|visual.*up_proj.weight", key) for key in after.keys() - same)
    assert len(same) < len(after)
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    original = json.loads((backbone / "generation_config.json").read_text())
    assert generation["eos_token_id"] == original["eos_token_id"] and "temperature" not in generation

    export_stage(checkpoint, tmp_path / "adapters", adapter_only=True)
    assert not list((tmp_path / "adapters").glob("model*"))
    settings = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(backbone)
    adapted = check(checkpoint, tmp_path / "adapters", monkeypatch, base=backbone)
    assert isinstance(adapted["model"], peft.PeftModel) and adapted["caption"] == merged["caption"]
    card = (tmp_path / "adapters" / "README.md").read_text()
    assert 'library_name: "peft"' in card and 'base_model: "vl"' in card


@pytest.mark.parametrize("family", ["text", "gpt2", "bart"])
def test_a_decoder_behind_features(request, family, tmp_path, monkeypatch, said):
    checkpoint, backbone = request.getfixturevalue(family)
    export_stage(checkpoint, tmp_path / "out")
    kind = transformers.AutoModelForSeq2SeqLM if family == "bart" else transformers.AutoModelForCausalLM
    check_keys(tmp_path / "out", kind, said)
    theirs = check(checkpoint, tmp_path / "out", monkeypatch)
    if family == "bart":  # what it begins with is no part of its answer, and does not shorten it
        captioner = Captioner.from_pretrained(tmp_path / "out")
        prompt = our_prompt(open_stage(checkpoint, make_mesh(MeshConfig())), clip(captioner.model))
        (words,) = captioner.generate(prompt, temperature=0, max_new_tokens=24).text
        assert words == [theirs["caption"].strip()]
    found = read_model(tmp_path / "out")
    assert found.features == read_run(checkpoint.parent.parent).model.features


@pytest.mark.parametrize("family", ["tiny", "omni", "vl", "text", "gpt2"])
def test_earlier_versions_of_transformers_compute_the_same(request, family, tmp_path):
    """The card's own code under transformers 4.57, in an environment that the variable names.

    There Qwen2.5-VL counts whole seconds from one pair of frames to the next, so that only words come out the same;
    its card asks for a later version.
    """
    python = os.environ.get("MECAP_TRANSFORMERS_4")
    if python is None:
        pytest.skip("MECAP_TRANSFORMERS_4 does not name a Python with transformers 4.57")
    fixture = request.getfixturevalue(family)
    checkpoint = fixture if family == "tiny" else fixture[0]
    export_stage(checkpoint, tmp_path / "out", dtype="float32")
    stage = open_stage(checkpoint, make_mesh(MeshConfig()))
    values = clip(stage.config.model)
    prompts = {
        "logits": our_prompt(stage, values),
        "words": stage.processor([[{"role": "user", "content": "How does he feel?"}]]),
    }
    ids = prompts["words"].tokens[:, : prompts["words"].length[0]]
    code, arrays, output = (str(tmp_path / name) for name in ("card.py", "clip.npz", "logits.npz"))
    (tmp_path / "card.py").write_text(card_code(tmp_path / "out"))
    np.savez(arrays, **values, ids=ids.astype(np.int64))
    script = Path(__file__).with_name("run_card.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [python, script, code, arrays, output], cwd=tmp_path / "out", env=environment, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    assert "newly initialized" not in done.stderr
    with np.load(output) as theirs:
        assert str(theirs["version"]).startswith("4.57.")
        for name in ("words",) if family == "vl" else ("words", "logits"):
            prompt = jax.tree.map(jax.numpy.asarray, prompts[name])
            ours = np.asarray(prompt_logits(stage.graphdef, stage.params, prompt))[0, : len(theirs[name])]
            worst = np.abs(ours - theirs[name]).max()
            print(f"{family}: largest difference of a logit under transformers 4.57 ({name}) {worst:.1e}")
            assert worst <= 1e-4


# --- what is refused -----------------------------------------------------------------------------------------------


def test_nothing_half_written_stays(tiny, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(export, "save_model", fail)
    with pytest.raises(OSError, match="disk full"):
        export_stage(tiny, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    for taken in (tmp_path / "out", tmp_path / "out" / "mine.txt"):
        with pytest.raises(ConfigError, match="is there already"):
            export_stage(tiny, taken)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_two_exports_to_one_place_do_not_disturb_each_other(tmp_path):
    with pytest.raises(ConfigError, match="out is there now: another export"), export._at_once(tmp_path / "out") as one:
        (one / "model.safetensors").write_text("one")
        with export._at_once(tmp_path / "out") as other:
            (other / "model.safetensors").write_text("other")
    (left,) = tmp_path.iterdir()
    assert left.name == "out" and (left / "model.safetensors").read_text() == "other"


def test_what_cannot_be_exported_is_named(tiny, vl, tmp_path):
    with pytest.raises(ConfigError, match="RUN/checkpoints/STAGE"):
        export_stage(tiny.parent.parent, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no checkpoint in .*grpo"):
        export_stage(tiny.parent / "grpo", tmp_path / "out")
    with pytest.raises(ConfigError, match="trained no adapters"):
        export_stage(tiny, tmp_path / "out", adapter_only=True)
    with pytest.raises(ConfigError, match="--whole_omni"):
        export_stage(vl[0], tmp_path / "out", whole_omni=True)
    assert not list(tmp_path.iterdir())


def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path):
    config, params = miniature.CONFIG, jax.tree.map(lambda x: x, published_part(miniature.model()[1]))
    kernel = params["language_model"]["norm"]["scale"]
    params["language_model"]["norm"]["scale"] = kernel.at[0].set(1e5)
    with pytest.raises(CheckpointError, match="model.norm.weight holds 1e.05, which is too large for float16"):
        save_weights(tmp_path, config, params, dtype="float16")
