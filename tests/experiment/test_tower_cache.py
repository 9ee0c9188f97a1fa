"""Media encoded once: the same prompts, losses and captions as with towers that run at every step."""

import contextlib
import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from flax import nnx

from mecap_jax.config import ConfigError, load, validate
from mecap_jax.data.media import MediaError
from mecap_jax.data.shards import ShardError
from mecap_jax.experiment import stages, tower_cache, weights
from mecap_jax.experiment.setup import check_trainable, set_up
from mecap_jax.sharding import put_batch
from mecap_jax.training.logging import RunLogger, read_jsonl
from mecap_jax.training.loop import Interrupted
from tests.experiment.test_story import small

FROZEN = (
    "data.tower_cache=True",
    "data.augment={'modality_dropout': 0.5}",
    r"trainable=language_model\..*",
    "mesh.fsdp=2",
    "sft.steps=2",
    "sft.validate_every=1",
    "grpo.steps=2",
    "grpo.loss.references=2",
)
MINIATURES = {
    "qwen2_5_omni_3b": ("model.dtype=bfloat16",),
    "qwen2_5_vl_3b": ("data.max_bad_fraction=1",),  # some clips have no picture
}


def _never(step):
    return False


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache")
        patch.setattr(tower_cache, "CACHE", path)
        yield path


@contextlib.contextmanager
def prepared(config, workdir):
    """(bench, graphdef, params) before the cache is built."""
    with RunLogger(workdir) as logger:
        bench = set_up(config, workdir, logger)
        yield bench, *weights.starting_params(config, bench.mesh)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, shared):
    with prepared(small(*shared, *FROZEN), tmp_path_factory.mktemp("tower_cache")) as made:
        yield *made, tower_cache.with_tower_cache(*made, _never)


def all_batches(dataset, **options):
    rows = sorted(row for split in ("train", "validation", "test") for row in dataset.rows(split))
    return list(dataset.evaluation_batches(rows, 16, **options))


def assert_same_inputs(bench, cached, graphdef, params, atol):
    """Same rows, same layout, and the same vectors go into the decoder."""
    embed = jax.jit(lambda params, prompt: nnx.merge(graphdef, params).embed_prompt(prompt))
    plain_batches, cached_batches = all_batches(bench.dataset), all_batches(cached.dataset)
    assert len(plain_batches) == len(cached_batches)
    for plain, kept in zip(plain_batches, cached_batches):
        for name in ("tokens", "length", "positions", "next_position"):
            np.testing.assert_array_equal(getattr(plain.prompt, name), getattr(kept.prompt, name))
        np.testing.assert_array_equal(plain.prompt.media_index >= 0, kept.prompt.media_index >= 0)
        np.testing.assert_array_equal(plain.rows, kept.rows)
        np.testing.assert_array_equal(plain.valid, kept.valid)
        assert kept.prompt.audio.shape[1] == kept.prompt.patches.shape[1] == 0
        expected, actual = (embed(params, put_batch(batch.prompt, bench.mesh)) for batch in (plain, kept))
        np.testing.assert_allclose(np.float32(actual), np.float32(expected), rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio",), ("video",), ()])
def test_the_decoder_gets_what_the_towers_would_give(tiny, modalities):
    """Also where a modality is hidden, as in the ablation."""
    bench, graphdef, params, cached = tiny
    hidden = [b.with_data(b.dataset.with_modalities(modalities)) for b in (bench, cached)]
    assert_same_inputs(*hidden, graphdef, params, 1e-5)


@pytest.mark.slow
def test_towers_are_no_part_of_the_program(tiny):
    bench, graphdef, params, cached = tiny
    programs = [
        str(jax.make_jaxpr(nnx.merge(graphdef, params).embed_prompt)(next(iter(all_batches(b.dataset))).prompt))
        for b in (bench, cached)
    ]
    assert ["conv_general_dilated" in program for program in programs] == [True, False]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Logs and final parameters of SFT and GRPO, without the cache and with it."""
    outcomes = []
    for bench in (tiny[0], tiny[3]):
        config, workdir = bench.config, tmp_path_factory.mktemp("trained")
        with RunLogger(workdir) as logger:
            bench = dataclasses.replace(bench, workdir=workdir, logger=logger)
            graphdef, params = weights.starting_params(config, bench.mesh)
            params = stages.train_sft(bench, "sft", config.sft, graphdef, params, _never)
            params = stages.train_grpo(bench, "grpo", config.grpo, graphdef, params, _never)
        logs = {name: read_jsonl(workdir / f"{name}.jsonl") for name in ("metrics", "completions")}
        outcomes.append((logs, jax.device_get(params)))
    return outcomes


@pytest.mark.slow
def test_both_stages_take_the_same_steps(trained):
    (plain, expected), (kept, actual) = trained
    assert len(plain["metrics"]) == len(kept["metrics"]) == 4
    for one, other in zip(plain["metrics"], kept["metrics"]):
        assert one.keys() == other.keys()
        for name in one.keys() - {"time", "stage"}:
            if not name.startswith("timing_s"):
                np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)
    texts = [[[c["text"] for c in g["completions"]] for g in log["completions"]] for log in (plain, kept)]
    assert texts[0] == texts[1] and len(texts[0]) == 2 * 16
    # Muon divides a gradient by its own size, which makes rounding visible.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", MINIATURES)
def test_published_families(family, shared, tmp_path):
    """Every window is not full there, and bfloat16 tokens come back bit by bit."""
    overrides = ("data.tower_cache=True", "data.max_pixels=12544", "evaluation.batch_clips=16", *MINIATURES[family])
    bucket = "{'prompt_tokens': 200, 'audio_chunks': 2, 'frames': 2, 'windows': 1}"
    if family == "qwen2_5_vl_3b":
        bucket = bucket.replace("'audio_chunks': 2, ", "")
    config = load(
        f"configs/grpo.py:{family},smoke",
        [
            *shared,
            *overrides,
            f"data.buckets=({bucket},)",
            "sft.micro_clips=0",
            "grpo.prompts=8",
            "grpo.micro_prompts=0",
        ],
    )
    with prepared(config, tmp_path) as made:
        bench, graphdef, params = made
        cached = tower_cache.with_tower_cache(*made, _never)
        exact = config.model.dtype == "bfloat16"
        assert all_batches(cached.dataset)[0].prompt.media_tokens.dtype == (np.uint16 if exact else np.float32)
        assert_same_inputs(bench, cached, graphdef, params, 0 if exact else 1e-5)


# --- the files ------------------------------------------------------------------------------------------------------


def directory_of(cache, bench, params):
    source = tower_cache.describe_source(bench, params)
    (found,) = [d for d in cache.iterdir() if json.loads((d / "manifest.json").read_text())["source"] == source]
    return found


@pytest.mark.slow
def test_a_cache_is_made_once_and_is_that_of_its_weights(tiny, cache, monkeypatch):
    bench, graphdef, params, _ = tiny
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    monkeypatch.setattr(tower_cache, "_build", lambda *args: pytest.fail("built again"))
    tower_cache.with_tower_cache(bench, graphdef, params, _never)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    source = tower_cache.describe_source(bench, params)
    other = jax.tree.map(lambda x: x, params)
    other["audio_tower"]["proj"]["bias"] = params["audio_tower"]["proj"]["bias"] + 1
    changed = tower_cache.describe_source(bench, other)
    assert {key for key in source if source[key] != changed[key]} == {"weights"}
    other = {**params, "language_model": jax.tree.map(lambda x: x + 1, params["language_model"])}
    assert tower_cache.describe_source(bench, other) == source


@pytest.mark.slow
def test_an_interrupted_build_leaves_nothing(tiny, cache, tmp_path, monkeypatch):
    bench, graphdef, params, _ = tiny
    monkeypatch.setattr(tower_cache, "CACHE", tmp_path / "fresh")
    with pytest.raises(Interrupted, match="begins to encode anew"):
        tower_cache.with_tower_cache(bench, graphdef, params, lambda step: True)
    assert not list((tmp_path / "fresh").iterdir())
    again = tower_cache.with_tower_cache(bench, graphdef, params, _never)
    for one, other in zip(all_batches(again.dataset), all_batches(tiny[3].dataset)):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_a_cache_that_has_changed_is_refused(tiny, cache, tmp_path, monkeypatch):
    bench, graphdef, params, _ = tiny
    original = directory_of(cache, bench, params)
    copy = tmp_path / original.name
    copy.mkdir()
    for path in original.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(tower_cache, "CACHE", tmp_path)
    shard = copy / "000-00000.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ShardError, match="000-00000.arrayrecord has changed"):
        tower_cache.with_tower_cache(bench, graphdef, params, _never)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["source"]["weights"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="another source: weights"):
        tower_cache.with_tower_cache(bench, graphdef, params, _never)


@pytest.mark.slow
def test_a_clip_that_cannot_be_decoded_does_not_count(tiny, tmp_path, monkeypatch, caplog):
    bench, graphdef, params, _ = tiny
    victim = bench.dataset.rows("test")[0]
    decode = type(bench.dataset)._decode

    def failing(self, row):
        if row == victim and self._tokens is None:
            raise MediaError("the disk is on fire")
        return decode(self, row)

    monkeypatch.setattr(type(bench.dataset), "_decode", failing)
    monkeypatch.setattr(tower_cache, "CACHE", tmp_path)
    cached = tower_cache.with_tower_cache(bench, graphdef, params, _never)
    caplog.clear()
    (batch,) = cached.dataset.evaluation_batches([victim], 1)
    assert not batch.valid.any() and (batch.prompt.media_index == -1).all() and batch.prompt.length[0] > 0
    assert bench.dataset.index[victim].id in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


# --- the configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, words",
    [
        (("trainable=.*",), ("'data.tower_cache'", "'audio_tower.", "trains", "'trainable'")),
        ((r"trainable=language_model\..*,visual\.merger\..*",), ("'visual.merger.", "'trainable'")),
        (
            ("model.lora={'targets': ('audio_tower.*fc1',)}",),
            ("'audio_tower.layers.0.fc1.lora_a' trains", "'model.lora.targets'"),
        ),
    ],
)
def test_towers_must_be_frozen(overrides, words):
    with pytest.raises(ConfigError) as error:
        check_trainable(small(*FROZEN, *overrides))
    assert all(word in str(error.value) for word in words)


def test_a_tower_that_the_run_does_not_use_may_train():
    check_trainable(small(*FROZEN, "trainable=(r'language_model\\..*', r'visual\\..*')", "data.modalities=audio"))


@pytest.mark.parametrize(
    "override, words",
    [
        ("data.augment.gain_db=3", "'data.augment.gain_db': must be 0 with data.tower_cache"),
        ("data.augment.shift_pixels=1", "'data.augment.shift_pixels': must be 0"),
        ("data.modalities=()", "'data.modalities': data.tower_cache needs audio or video"),
    ],
)
def test_media_must_stay_as_they_are(override, words):
    with pytest.raises(ConfigError) as error:
        validate(small(*FROZEN, override))
    assert words in str(error.value)
