"""A run that trains adapters only, through the real stages in small."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest

from mecap_jax.config import ConfigError, load
from mecap_jax.experiment import stages, weights
from mecap_jax.experiment.checks import check_trainable
from mecap_jax.experiment.setup import set_up
from mecap_jax.models.checkpoints.table import CheckpointError, flatten
from mecap_jax.models.parameters import merge_params, split_params
from mecap_jax.rl.rollout import RolloutEngine
from mecap_jax.training.logging import RunLogger
from tests import documented
from tests.experiment.test_story import SMALL, small

ADAPTERS = (
    "model.lora.rank=2",
    "model.lora.dropout=0.1",
    "sft.steps=2",
    "sft.references=1",
    "grpo.steps=2",
    "grpo.loss.reference_likelihood=0",
)


def _never(step):
    return False


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared):
    """The bench, and the parameters at the start, after SFT and after GRPO, and those of the reference policy."""
    references = []

    class Recorded(RolloutEngine):
        def __init__(self, graphdef, reference, frozen, *rest):
            references.append(merge_params(reference, frozen))
            super().__init__(graphdef, reference, frozen, *rest)

    config = load("configs/grpo.py", [*documented.overrides("runs/adapters"), *SMALL, *shared, *ADAPTERS])
    workdir = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch, RunLogger(workdir) as logger:
        patch.setattr(stages, "RolloutEngine", Recorded)
        bench = set_up(config, workdir, logger)
        model = weights.open_model(bench.config, bench.mesh)
        start = functools.partial(weights.starting_trainable, bench.config, bench.mesh)
        after_sft = functools.partial(weights.stage_trainable, bench.config, workdir, bench.mesh, "sft")
        stages.train_sft(bench, "sft", config.sft, model, start, _never)
        stages.train_grpo(bench, "grpo", config.grpo, model, after_sft, _never)
        yield bench, model, references[0]


@pytest.mark.slow
def test_the_reference_policy_shares_what_is_frozen(run):
    _, model, reference = run
    frozen, kept = flatten(model.frozen), flatten(split_params(reference, ())[1])
    assert kept.keys() == frozen.keys()
    assert all(kept[path] is frozen[path] for path in frozen)


@pytest.mark.slow
def test_each_stage_trains_the_adapters_that_the_other_left(run):
    bench, model, reference = run
    fresh = flatten(weights.starting_trainable(bench.config, bench.mesh))
    sft, grpo = (
        flatten(weights.stage_trainable(bench.config, bench.workdir, bench.mesh, stage)) for stage in ("sft", "grpo")
    )
    kept = flatten(split_params(reference, ())[0])
    assert fresh.keys() == sft.keys() == grpo.keys() == kept.keys() == flatten(model.trainable).keys()
    for path in fresh:
        assert np.any(sft[path] != fresh[path]), path
        np.testing.assert_array_equal(kept[path], sft[path])  # the reference policy is the start of GRPO
    assert any(np.any(grpo[path] != sft[path]) for path in fresh)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_checkpoints_of_adapters_become_whole_models_again(run, stage):
    bench, model, _ = run
    loaded = weights.stage_params(bench.config, bench.workdir, bench.mesh, stage)
    adapters = weights.stage_trainable(bench.config, bench.workdir, bench.mesh, stage)
    jax.tree.map(np.testing.assert_array_equal, loaded, merge_params(adapters, model.frozen))


@pytest.mark.slow
def test_a_run_branches_from_a_stage_of_another(run):
    bench, model, _ = run
    checkpoint = bench.workdir / "checkpoints" / "grpo"
    branch = dataclasses.replace(bench.config, init_from=str(checkpoint), sft=None)
    weights.check_init_from(branch)
    started = weights.starting_trainable(branch, bench.mesh)
    left = weights.stage_trainable(bench.config, bench.workdir, bench.mesh, "grpo")
    jax.tree.map(np.testing.assert_array_equal, started, left)
    jax.tree.map(np.testing.assert_array_equal, weights.open_model(branch, bench.mesh).frozen, model.frozen)
    lora = dataclasses.replace(bench.config.model.lora, rank=5)
    other = dataclasses.replace(branch, model=dataclasses.replace(branch.model, lora=lora))
    with pytest.raises(ConfigError, match=r"'init_from'.* another model:\n  model.lora.rank: \d+ there, 5 asked"):
        weights.check_init_from(other)
    for path, words in ((checkpoint.parent / "none", "no checkpoint in"), (bench.workdir, "expected RUN/checkpoints")):
        with pytest.raises(ConfigError, match=f"'init_from': {words}"):
            weights.check_init_from(dataclasses.replace(branch, init_from=str(path)))


@pytest.mark.slow
def test_what_a_run_started_from_stays_what_it_was(run, tmp_path):
    bench, *_ = run
    shutil.copytree(bench.workdir / "checkpoints" / "sft", stage := tmp_path / "run" / "checkpoints" / "sft")
    branch = dataclasses.replace(bench.config, init_from=str(stage), sft=None)
    weights.note_start(tmp_path, branch)
    weights.check_start(tmp_path, branch)
    (stage / "2").rename(stage / "3")
    with pytest.raises(ConfigError, match=r"'init_from': .* step 2 \(sha256 \w+\) there, step 3 \(sha256 \w+\) now"):
        weights.check_start(tmp_path, branch)
    # What is frozen comes from there; without anything frozen, nothing is asked of it.
    shutil.copytree(stage, tmp_path / "checkpoints" / "grpo")
    with pytest.raises(ConfigError, match="'init_from': .* is not what"):
        weights.stage_params(branch, tmp_path, bench.mesh, "grpo")
    weights.stage_params(branch, tmp_path, bench.mesh, "grpo", lambda path: path.endswith(("lora_a", "lora_b")))


@pytest.mark.slow
def test_a_checkpoint_of_another_part_is_refused(run):
    bench = run[0]
    other = dataclasses.replace(bench.config, trainable=(r"visual\.merger\..*",))
    with pytest.raises(CheckpointError, match=r"trainable: \[\] there, \['visual"):
        weights.stage_params(other, bench.workdir, bench.mesh, "sft")


def test_what_adapters_leave_out_of_an_encoder_is_said():
    """The default is of decoders: by itself it adapts nothing of BART that reads the prompt."""
    bart = load("configs/grpo.py").rows[-1].changes
    (said,) = check_trainable(small(*bart, "trainable=()", "model.lora={'rank': 2}"))
    assert "nothing trains in the encoder and in the attention to the encoder" in said
    whole = load("configs/grpo.py:features_bart_base,lora").model.lora.targets
    assert repr(whole[0]) in said
    assert not check_trainable(small(*bart, "trainable=()", f"model.lora={ {'targets': whole} }"))
    assert not check_trainable(small(*bart, "model.lora={'rank': 2}")) and not check_trainable(small())


@pytest.mark.parametrize(
    "override, words",
    [("trainable=visual,nowhere.*", "'trainable': no parameter matches 'visual', 'nowhere.*'"),
     ("model.lora={'targets': ('q_proj',)}", "'model.lora.targets': no projection matches 'q_proj'")],
)  # fmt: skip
def test_patterns_are_tried_before_anything_is_made(override, words):
    with pytest.raises(ConfigError) as error:
        check_trainable(small(override))
    assert words in str(error.value)
