"""A run that trains adapters only, through the real stages in small."""

import dataclasses

import jax
import numpy as np
import pytest

from mecap_jax.config import ConfigError
from mecap_jax.experiment import stages, weights
from mecap_jax.experiment.setup import check_trainable, set_up
from mecap_jax.models.checkpoints.table import CheckpointError, flatten
from mecap_jax.models.parameters import split_params
from mecap_jax.rl.rollout import RolloutEngine
from mecap_jax.training.logging import RunLogger
from tests.experiment.test_story import small

ADAPTERS = (
    "trainable=()",
    "model.lora={'rank': 2, 'targets': ('language_model.layers.*_proj', 'audio_tower.*fc1'), 'dropout': 0.1}",
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
        def __init__(self, graphdef, reference_params, *rest):
            references.append(reference_params)
            super().__init__(graphdef, reference_params, *rest)

    config, workdir = small(*shared, *ADAPTERS), tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch, RunLogger(workdir) as logger:
        patch.setattr(stages, "RolloutEngine", Recorded)
        bench = set_up(config, workdir, logger)
        graphdef, start = weights.starting_params(bench.config, bench.mesh)
        after_sft = stages.train_sft(bench, "sft", config.sft, graphdef, start, _never)
        after_grpo = stages.train_grpo(bench, "grpo", config.grpo, graphdef, after_sft, _never)
        yield bench, start, after_sft, after_grpo, references[0]


@pytest.mark.slow
def test_frozen_parameters_are_one_set_of_arrays_from_start_to_end(run):
    _, start, *others = run
    expected = flatten(split_params(start, ())[1])
    for params in others:
        frozen = flatten(split_params(params, ())[1])
        assert frozen.keys() == expected.keys()
        assert all(frozen[path] is expected[path] for path in frozen)


@pytest.mark.slow
def test_each_stage_trains_the_adapters_that_the_other_left(run):
    bench, _, after_sft, after_grpo, reference = run
    fresh = flatten(split_params(weights.starting_params(bench.config, bench.mesh)[1], ())[0])
    sft, grpo, kept = (flatten(split_params(params, ())[0]) for params in (after_sft, after_grpo, reference))
    for path in fresh:
        assert np.any(sft[path] != fresh[path]), path
        assert kept[path] is sft[path] and not sft[path].is_deleted()  # the reference policy is the start of GRPO
    assert any(np.any(grpo[path] != sft[path]) for path in fresh)


@pytest.mark.slow
@pytest.mark.parametrize("stage, number", [("sft", 2), ("grpo", 3)])
def test_checkpoints_of_adapters_become_whole_models_again(run, stage, number):
    bench = run[0]
    loaded = weights.stage_params(bench.config, bench.workdir, bench.mesh, stage)
    jax.tree.map(np.testing.assert_array_equal, loaded, run[number])
    frozen = split_params(run[1], ())[1]
    assert weights.stage_params(bench.config, bench.workdir, bench.mesh, stage, frozen)["visual"] == frozen["visual"]


@pytest.mark.slow
def test_a_checkpoint_of_another_part_is_refused(run):
    bench = run[0]
    other = dataclasses.replace(bench.config, trainable=(r"visual\.merger\..*",))
    with pytest.raises(CheckpointError, match=r"trainable: \[\] there, \['visual"):
        weights.stage_params(other, bench.workdir, bench.mesh, "sft")


@pytest.mark.parametrize(
    "override, words",
    [("trainable=visual,nowhere.*", "'trainable': no parameter matches 'visual', 'nowhere.*'"),
     ("model.lora={'targets': ('q_proj',)}", "'model.lora.targets': no projection matches 'q_proj'")],
)  # fmt: skip
def test_patterns_are_tried_before_anything_is_made(override, words):
    with pytest.raises(ConfigError) as error:
        check_trainable(small(override))
    assert words in str(error.value)
