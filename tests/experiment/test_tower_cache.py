"""Media encoded once: the same prompts, losses and captions as with towers that run at every step."""

import dataclasses
import functools
import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from mecap_jax.config import ConfigError, RowConfig, load, row_config, validate
from mecap_jax.data.manifest import read_manifest, write_manifest
from mecap_jax.data.media import MediaError
from mecap_jax.data.pipeline import ClipDataset
from mecap_jax.data.shards import ShardError
from mecap_jax.data.tower_cache import TokenReader
from mecap_jax.experiment import stages, tower_cache, weights
from mecap_jax.experiment import workdir as workdir_module
from mecap_jax.experiment.checks import check_trainable
from mecap_jax.experiment.setup import make_tokenizer, set_up
from mecap_jax.interruption import Interrupted
from mecap_jax.models.parameters import merge_params
from mecap_jax.rewards.combine import RewardFunction
from mecap_jax.sharding import put_batch
from mecap_jax.tasks.captioning import Captioning
from mecap_jax.train_state import init_params
from mecap_jax.training.logging import RunLogger, read_jsonl
from tests import documented
from tests.experiment.test_story import small
from tests.training.harness import Alphabetical

FROZEN = (
    "data.tower_cache=True",
    "data.augment={'modality_dropout': 0.5}",
    *documented.overrides("runs/decoder"),
    "mesh.fsdp=2",
    "sft.steps=2",
    "sft.optimizer.name=adamw",
    "grpo.steps=2",
    "grpo.prompts=8",
    "grpo.optimizer.name=adamw",
    "grpo.loss.reference_likelihood=0",
)


ROOT = Path(__file__).parents[2]


def _never(step):
    return False


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache")
        patch.setattr(workdir_module, "CACHE", path)
        yield path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, shared):
    """(bench, model, params) before the cache is built, and the bench that reads it."""
    config, workdir = small(*shared, *FROZEN), tmp_path_factory.mktemp("tower_cache")
    with RunLogger(workdir) as logger:
        bench = set_up(config, workdir, logger)
        model = weights.open_model(config, bench.mesh)
        params = merge_params(weights.starting_trainable(config, bench.mesh), model.frozen)
        yield bench, model, params, tower_cache.with_tower_cache(bench, model, _never)


def all_batches(dataset, **options):
    rows = sorted(row for split in ("train", "validation", "test") for row in dataset.clips(split))
    return list(dataset.evaluation_batches(rows, 16, **options))


@functools.partial(jax.jit, static_argnames="graphdef")
def embed(graphdef, params, prompt):
    return nnx.merge(graphdef, params).embed_prompt(prompt)


def assert_same_inputs(bench, cached, graphdef, params, atol):
    """Same rows, same layout, and the same vectors go into the decoder."""
    plain_batches, cached_batches = all_batches(bench.dataset), all_batches(cached.dataset)
    assert len(plain_batches) == len(cached_batches)
    for plain, kept in zip(plain_batches, cached_batches):
        for name in ("tokens", "length", "positions", "next_position"):
            np.testing.assert_array_equal(getattr(plain.prompt, name), getattr(kept.prompt, name))
        np.testing.assert_array_equal(plain.prompt.media_index >= 0, kept.prompt.media_index >= 0)
        np.testing.assert_array_equal(plain.numbers, kept.numbers)
        np.testing.assert_array_equal(plain.valid, kept.valid)
        assert kept.prompt.audio.shape[1] == kept.prompt.patches.shape[1] == 0
        expected, actual = (embed(graphdef, params, put_batch(batch.prompt, bench.mesh)) for batch in (plain, kept))
        np.testing.assert_allclose(np.float32(actual), np.float32(expected), rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio",), ("video",), ()])
def test_the_decoder_gets_what_the_towers_would_give(tiny, modalities):
    """Also where a modality is hidden, as in the ablation."""
    bench, model, params, cached = tiny
    hidden = [b.with_data(b.dataset.with_modalities(modalities)) for b in (bench, cached)]
    assert_same_inputs(*hidden, model.graphdef, params, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [("audio",), ()])
def test_a_row_of_comparison_reads_the_same_tokens(tiny, modalities):
    bench, model, params, cached = tiny
    changes = (f"data.modalities={modalities}",)
    rows = [b.for_row(RowConfig("less", "sft", changes=changes)) for b in (bench, cached)]
    assert (rows[1].dataset.tokens is None) == (modalities == ())
    assert_same_inputs(*rows, model.graphdef, params, 1e-5)


def test_a_row_of_comparison_sees_media_as_the_run_does(tiny):
    with pytest.raises(ConfigError, match="row 'finer': .*'data.max_frames': with data.tower_cache"):
        tiny[0].for_row(RowConfig("finer", "sft", changes=("data.max_frames=2",)))
    heard = tiny[0].config
    heard = dataclasses.replace(heard, data=dataclasses.replace(heard.data, modalities=("audio",)))
    row = RowConfig("more", "sft", changes=("data.modalities=('audio', 'video')",))
    with pytest.raises(ConfigError, match="row 'more': .*'data.modalities': data.tower_cache keeps .* without 'video'"):
        row_config(heard, row)
    for cached, change in ((True, "False"), (False, "True")):
        run = dataclasses.replace(heard, data=dataclasses.replace(heard.data, tower_cache=cached))
        row = RowConfig("other", "sft", changes=(f"data.tower_cache={change}",))
        with pytest.raises(ConfigError, match="row 'other': .*'data.tower_cache': all rows read media as the run does"):
            row_config(run, row)
    # As earlier versions have it: a row that reads no media needs no cache.
    blind = RowConfig("blind", "sft", changes=("data.modalities=()", "data.tower_cache=False"))
    assert not row_config(heard, blind).data.tower_cache


@pytest.mark.slow
def test_towers_are_no_part_of_the_program(tiny):
    bench, model, params, cached = tiny
    programs = [
        str(jax.make_jaxpr(nnx.merge(model.graphdef, params).embed_prompt)(next(iter(all_batches(b.dataset))).prompt))
        for b in (bench, cached)
    ]
    assert ["conv_general_dilated" in program for program in programs] == [True, False]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Logs and final parameters of SFT and GRPO, without the cache and with it."""
    outcomes, rows = [], ClipDataset.clips

    def without_validation(self, split, part="all"):  # it would compile programs of its own
        return [] if split == "validation" else rows(self, split, part)

    for bench in (tiny[0], tiny[3]):
        config, workdir = bench.config, tmp_path_factory.mktemp("trained")
        with pytest.MonkeyPatch.context() as patch, RunLogger(workdir) as logger:
            patch.setattr(ClipDataset, "clips", without_validation)
            patch.setattr(Captioning, "rewards", lambda *_: RewardFunction([(Alphabetical(), 1.0)], timeout_s=60))
            bench = dataclasses.replace(bench, workdir=workdir, logger=logger)
            start = functools.partial(weights.starting_trainable, config, bench.mesh)
            after_sft = functools.partial(weights.stage_trainable, config, workdir, bench.mesh, "sft")
            stages.train_sft(bench, "sft", config.sft, tiny[1], start, _never)
            stages.train_grpo(bench, "grpo", config.grpo, tiny[1], after_sft, _never)
        logs = {name: read_jsonl(workdir / f"{name}.jsonl") for name in ("metrics", "completions")}
        outcomes.append((logs, jax.device_get(weights.stage_params(config, workdir, bench.mesh, "grpo"))))
    return outcomes


@pytest.mark.slow
def test_both_stages_take_the_same_steps(trained):
    (plain, expected), (kept, actual) = trained
    assert len(plain["metrics"]) == len(kept["metrics"]) == 4
    for one, other in zip(plain["metrics"], kept["metrics"]):
        assert one.keys() == other.keys()
        for name in one.keys() - {"time", "stage"}:
            if not name.startswith(("timing_s", "perf", "flops")):  # towers are not run again
                np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)
        # A model that has learnt nothing earns nothing for its captions: letters give groups something to learn from.
        assert one["stage"] == "sft" or (one["frac_reward_zero_std"] == 0 and one["grad_norm"] > 0.01)
    texts = [[[c["text"] for c in g["completions"]] for g in log["completions"]] for log in (plain, kept)]
    assert texts[0] == texts[1] and len(texts[0]) == 2 * 8
    # Adam divides a gradient by its own size, which makes rounding visible.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), actual, expected)


@pytest.mark.slow
def test_a_family_without_an_audio_tower(tiny):
    """Windows are larger than the picture there, and text goes on at other positions."""
    overrides = ("data.tower_cache=True", "data.max_bad_fraction=1")
    config = load("configs/grpo.py:qwen2_5_vl_3b,smoke", overrides)
    check_trainable(config)
    tokenizer = make_tokenizer(config, tiny[0].reader)
    dataset = ClipDataset(tiny[0].reader, config.data, config.model, tokenizer, tiny[0].task)
    bench = dataclasses.replace(tiny[0], config=config, dataset=dataset, tokenizer=tokenizer)
    graphdef, params = init_params(config.model, 0, bench.mesh)
    cached = tower_cache.with_tower_cache(bench, weights.RunModel(graphdef, {}, params), _never)
    assert_same_inputs(bench, cached, graphdef, params, 1e-5)


@pytest.mark.slow
def test_two_processes_make_the_same_cache(tiny, cache, tmp_path):
    """Parameters are divided over both; each writes the clips that it decoded, and both read all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(port), str(tiny[0].workdir), str(tmp_path)]
    workers = [
        subprocess.Popen([sys.executable, "-m", "tests.experiment.tower_worker", str(i), "2", *arguments], cwd=ROOT)
        for i in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    (directory,) = tmp_path.iterdir()
    assert directory.name == directory_of(cache, *tiny[:3:2]).name  # it depends on the same things
    assert {path.name[:3] for path in directory.glob("*.arrayrecord")} == {"000", "001"}
    source = tower_cache.describe_source(tiny[0], tiny[2])
    theirs, ours = TokenReader(directory, source), TokenReader(cache / directory.name, source)
    for row in tiny[0].dataset.index:
        for name in ("audio_tokens", "video_tokens"):
            one, other = getattr(theirs[row.id], name), getattr(ours[row.id], name)
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
        assert theirs[row.id].grid == ours[row.id].grid


# --- the files ------------------------------------------------------------------------------------------------------


def directory_of(cache, bench, params):
    source = tower_cache.describe_source(bench, params)
    (found,) = [d for d in cache.iterdir() if json.loads((d / "manifest.json").read_text())["source"] == source]
    return found


@pytest.mark.slow
def test_a_cache_is_made_once_and_is_that_of_its_weights(tiny, cache, monkeypatch):
    bench, model, params, _ = tiny
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    monkeypatch.setattr(tower_cache, "_build", lambda *args: pytest.fail("built again"))
    tower_cache.with_tower_cache(bench, model, _never)
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
    bench, model, params, _ = tiny
    monkeypatch.setattr(workdir_module, "CACHE", tmp_path / "fresh")
    with pytest.raises(Interrupted, match="begins to encode anew"):
        tower_cache.with_tower_cache(bench, model, lambda step: True)
    assert not list((tmp_path / "fresh").iterdir())
    again = tower_cache.with_tower_cache(bench, model, _never)
    for one, other in zip(all_batches(again.dataset), all_batches(tiny[3].dataset)):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_a_cache_that_has_changed_is_refused(tiny, cache, tmp_path, monkeypatch):
    bench, model, params, _ = tiny
    original = directory_of(cache, bench, params)
    copy = tmp_path / original.name
    copy.mkdir()
    for path in original.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(workdir_module, "CACHE", tmp_path)
    shard = copy / "000-00000.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ShardError, match="000-00000.arrayrecord has changed"):
        tower_cache.with_tower_cache(bench, model, _never)
    manifest = read_manifest(copy)
    manifest["source"]["weights"] = "0" * 64
    write_manifest(copy, manifest)
    with pytest.raises(ShardError, match="another source: weights"):
        tower_cache.with_tower_cache(bench, model, _never)


@pytest.mark.slow
def test_a_clip_that_cannot_be_decoded_does_not_count(tiny, tmp_path, monkeypatch, caplog):
    bench, model, params, _ = tiny
    victim = bench.dataset.clips("test")[0]
    decode = type(bench.dataset)._decode

    def failing(self, row):
        if row == victim and self.tokens is None:
            raise MediaError("the disk is on fire")
        return decode(self, row)

    monkeypatch.setattr(type(bench.dataset), "_decode", failing)
    monkeypatch.setattr(workdir_module, "CACHE", tmp_path)
    cached = tower_cache.with_tower_cache(bench, model, _never)
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
