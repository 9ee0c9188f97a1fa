"""Plans: what they count is what the compiler finds, and what cannot be planned is said."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from mecap_jax.config import load
from mecap_jax.data.fitting import bucket_for
from mecap_jax.planning.chips import CHIPS, chip_of
from mecap_jax.planning.costs import cost_of, plan
from mecap_jax.planning.programs import Program, gigabytes, plan_stage
from mecap_jax.sharding import divide, make_mesh
from tests.test_layers import ROOT as PACKAGE

RECIPE = "configs/grpo.py:features_qwen2_5_0_5b,smoke"


@pytest.fixture(scope="module")
def planned():
    config = load(RECIPE, ["mesh.fsdp=8", "grpo.prompts=12", "grpo.micro_prompts=1"])
    mesh, lines = make_mesh(config.mesh), []
    bucket = bucket_for(4.0, config.data, config.model)
    return config, mesh, bucket, plan(config, "grpo", mesh, bucket, CHIPS["v5e"], lines.append), lines


def test_a_step_is_planned_program_by_program(planned):
    config, mesh, bucket, result, lines = planned
    json.dumps(result, allow_nan=False)
    programs = result["programs"]
    assert list(programs) == ["gather", "sample", "gather_reference", "reference", "gradient", "update"]
    assert len(lines) == len(programs)
    division = divide(12, mesh, 1)
    assert (division.parts, division.size) == (2, 1)
    assert [cost["calls"] for cost in programs.values()] == [1, 2, 1, 2, 2, 1] and result["filled_up"] == 0.25
    # Divided parameters are brought together once before they are sampled with, and within a gradient.
    sent = {name: sum(cost["collective_gb"].values()) for name, cost in programs.items()}
    assert min(sent["gather"], sent["gather_reference"], sent["gradient"]) > 100 * sent["sample"]
    assert programs["sample"]["copies_gb"] == programs["reference"]["copies_gb"] > result["kept_gb"]["parameters"]
    assert result["fits"] and result["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    seconds = result["seconds_at_least"]
    assert np.isclose(seconds["step"], sum(seconds[name] for name in programs)) and seconds["sample"] > 0
    assert 0 < result["utilisation_at_most"] < 1


def test_memory_that_is_counted_is_what_the_compiler_finds(planned):
    config, mesh, bucket, result, _ = planned
    staged = plan_stage(config, "grpo", mesh, bucket)
    kept = result["kept_gb"]
    arguments = kept["parameters"] + kept["optimiser"] + kept["gradient"]
    update = result["programs"]["update"]["arguments_gb"]
    assert abs(arguments - update) < 0.1 * update  # nothing is frozen here
    # A decoder without axes of its positions counts tokens, and reads none of those that a batch holds.
    read = gigabytes(staged.batch) - gigabytes((staged.batch.positions, staged.batch.next_position))
    gradient = kept["parameters"] + kept["gradient"] + read
    assert 0.9 < gradient / result["programs"]["gradient"]["arguments_gb"] <= 1.0
    assert result["needed_gb"] >= sum(kept.values())


def test_weights_that_stay_divided_are_brought_together_while_sampling(planned):
    _, mesh, bucket, result, _ = planned
    divided = load(RECIPE, ["mesh.fsdp=8", "mesh.gather=False", "grpo.prompts=8"])
    staged = plan_stage(divided, "grpo", mesh, bucket)
    assert "gather" not in staged.programs and not staged.programs["sample"].copies
    sent = sum(cost_of(staged.programs["sample"], mesh.size).collective_gb.values())
    assert sent > sum(result["programs"]["gather"]["collective_gb"].values())


def test_media_are_encoded_once_where_no_tower_trains():
    config = load("configs/grpo.py:qwen2_5_omni_3b,smoke", ["mesh.fsdp=8", "trainable='language_model.*'"])
    mesh, bucket = make_mesh(config.mesh), bucket_for(2.0, config.data, config.model)
    assert "encode" in plan_stage(config, "grpo", mesh, bucket).programs
    whole = load("configs/grpo.py:qwen2_5_omni_3b,smoke", ["mesh.fsdp=8", "trainable='.*'"])
    assert "encode" not in plan_stage(whole, "grpo", mesh, bucket).programs


def test_a_reward_without_divergence_keeps_no_reference_and_adapters_keep_little(planned):
    config, mesh, bucket, whole, _ = planned
    free = load(RECIPE, ["mesh.fsdp=8", "grpo.loss.beta=0.0"])
    assert "reference" not in plan(free, "grpo", mesh, bucket, None, print, counted_only=True)["kept_gb"]
    half = load(RECIPE, ["mesh.fsdp=8", "model.dtype=bfloat16"])
    kept = plan(half, "grpo", mesh, bucket, None, print, counted_only=True)["kept_gb"]
    assert 0.5 < kept["reference"] / kept["gradient"] < 0.55  # matrices as they are used
    adapters = load("configs/grpo.py:features_qwen2_5_0_5b,smoke", ["mesh.fsdp=8", "trainable=()", LORA])
    counted = plan(adapters, "grpo", mesh, bucket, None, print, counted_only=True)
    assert counted["trainable_parameters"] < 0.5 * counted["parameters"] and "fits" not in counted
    assert counted["kept_gb"]["optimiser"] < whole["kept_gb"]["optimiser"] and not counted["programs"]


LORA = "model.lora={'rank': 2, 'alpha': 4, 'targets': ('language_model.*_proj',)}"


def test_supervised_steps_are_planned_too(planned):
    config, mesh, bucket, _, _ = planned
    staged = plan_stage(config, "sft", mesh, bucket)
    assert list(staged.programs) == ["gradient", "update"]
    cost = cost_of(staged.programs["gradient"], mesh.size)
    assert cost.tflops > 0 and cost.needed_gb is None
    with pytest.raises(ValueError, match="the recipe has no 'sft'"):
        plan_stage(load(RECIPE, ["sft=None"]), "sft", mesh, bucket)


@pytest.mark.parametrize(
    "said, needed, temporaries",
    [
        (
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.31G of 15.75G hbm.",
            20.31,
            None,
        ),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (16.94G) exceeds available HBM "
            "(15.75G).",
            16.94,
            16.94,
        ),
    ],
)
def test_a_program_that_is_too_large_says_how_much_it_needs(said, needed, temporaries):

    class TooLarge:
        jaxpr = jax.jit(lambda x: x @ x).trace(np.ones((4, 4))).jaxpr

        def lower(self):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

    cost = cost_of(Program([TooLarge], 1), 1)
    giga = 2**30 / 1e9
    assert np.isclose(cost.needed_gb, needed * giga)
    assert cost.temporaries_gb is None if temporaries is None else np.isclose(cost.temporaries_gb, temporaries * giga)


@pytest.mark.parametrize("topology", ["v5e", "v5e:0x2", "v5e:2", "h100:2x2", "v5e:2x2x2x2", "v5e:../x"])
def test_a_topology_that_there_is_not_names_those_that_there_are(topology):
    with pytest.raises(ValueError, match="there is no '.*v6e:2x2"):
        chip_of(topology)


def test_slices_double():
    for chip in CHIPS.values():
        sizes = [np.prod(list(map(int, shape.split("x")))) for shape in chip.slices]
        assert sizes == [4, 8, 16, 32, 64, 128, 256] and all(chip_of(f"{chip.name}:{s}") is chip for s in chip.slices)


def run(*flags, python=sys.executable):
    command = [python, "scripts/plan.py", *flags]
    return subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "one of --topology, --chip and --devices"),
        (("--chip=v9",), "--chip: there is no 'v9'; there are v5e, v5p, v6e"),
        (("--devices=8", "--config.mesh.fsdp=3"), "does not fit 8 devices"),
        (("--devices=1", "--config.grpo.group=3"), "group"),
    ],
)
def test_what_cannot_be_planned_is_one_line(flags, message):
    found = run(f"--config={RECIPE}", *flags)
    assert found.returncode and message in found.stderr + found.stdout and "Traceback" not in found.stderr


def test_what_is_kept_is_counted_without_compiling(tmp_path):
    output = tmp_path / "plan.json"
    found = run(f"--config={RECIPE}", "--devices=4", "--kept", f"--output={output}")
    assert found.returncode == 0 and "kept on a device (GB)" in found.stdout, found.stderr
    (result,) = json.loads(output.read_text())["plans"]
    assert result["mesh"]["fsdp"] == 4 and result["programs"] == {} and result["topology"] == "4 CPU devices"


@pytest.mark.skipif(
    "MECAP_LIBTPU" not in os.environ, reason="MECAP_LIBTPU names a Python that has libtpu (make test-plan)"
)
def test_plans_for_tpus(tmp_path):
    output, python = tmp_path / "plan.json", os.environ["MECAP_LIBTPU"]
    found = run(f"--config={RECIPE}", "--topology=v5e:2x2", f"--output={output}", python=python)
    assert found.returncode == 0 and ": fits" in found.stdout, found.stderr
    (result,) = json.loads(output.read_text())["plans"]
    assert result["device"] == "TPU v5 lite" and result["programs"]["gradient"]["collective_gb"]
    found = run(f"--config={RECIPE}", "--topology=v5e:3x5", python=python)
    assert found.returncode == 1 and "v5e:3x5" in found.stderr and "Traceback" not in found.stderr
