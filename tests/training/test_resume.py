"""A run that is stopped and resumed ends with bitwise the same state, and the same logs, as an unbroken one."""

import ctypes
import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from mecap_jax.config import CheckpointConfig
from mecap_jax.interruption import Interrupted
from mecap_jax.models.checkpoints.table import CheckpointError, flatten
from mecap_jax.models.parameters import split_params
from mecap_jax.train_state import TrainState, abstract_model
from mecap_jax.training.checkpointing import StageCheckpoints, load_params
from mecap_jax.training.checksums import find_damage
from mecap_jax.training.logging import RunLogger, read_jsonl
from mecap_jax.training.loop import NonFiniteError, run_stage
from tests import miniature
from tests.training import harness

STEPS = harness.STEPS
DESCRIPTION = {"model": {"width": 32}}
MAKERS = {
    "sft": harness.sft_step,
    "grpo": harness.grpo_step,
    "sft with adapters": functools.partial(harness.sft_step, parts=harness.ADAPTERS),
    "grpo with adapters": functools.partial(harness.grpo_step, parts=harness.ADAPTERS),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_writes_that_outlive_a_failed_one_print_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    with StageCheckpoints(tmp_path, CheckpointConfig(), {}):
        pass

    def report(error):
        """Raises it where C calls Python, as tensorstore's threads do."""

        def fail():
            raise error

        ctypes.CFUNCTYPE(None)(fail)()

    report(RuntimeError("Event loop is closed"))
    assert capsys.readouterr().err == ""
    report(RuntimeError("a disk is on fire"))
    assert "a disk is on fire" in capsys.readouterr().err


def train(directory, kind, stop_after=None, every=0, max_nonfinite=2, step=None):
    _, state, made = MAKERS[kind](harness.mesh())
    with (
        RunLogger(directory) as logger,
        StageCheckpoints(
            directory / "checkpoints", CheckpointConfig(every=every, keep=2), DESCRIPTION, logger.say
        ) as checkpoints,
    ):
        return run_stage(
            kind,
            harness.shapes(state),
            lambda: state,
            step or made,
            harness.batches(),
            steps=STEPS,
            checkpoints=checkpoints,
            logger=logger,
            max_nonfinite=max_nonfinite,
            should_stop=lambda done: done == stop_after,
        )


def _log(directory, name):
    rows = read_jsonl(directory / name)
    return [{k: v for k, v in row.items() if not k.startswith(("time", "timing_s", "perf"))} for row in rows]


@pytest.fixture(scope="module", params=["sft", "grpo"])
def unbroken(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    return request.param, directory, jax.device_get(train(directory, request.param))


@pytest.mark.parametrize("stop_after", range(1, STEPS))
def test_stopped_after_any_step(unbroken, tmp_path, stop_after):
    kind, directory, expected = unbroken
    with pytest.raises(Interrupted, match=f"after step {stop_after} of {STEPS}"):
        train(tmp_path, kind, stop_after)
    actual = jax.device_get(train(tmp_path, kind))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    for name in ("metrics.jsonl", "completions.jsonl") if kind == "grpo" else ("metrics.jsonl",):
        assert _log(tmp_path, name) == _log(directory, name)


@pytest.mark.parametrize("kind", ["sft with adapters", "grpo with adapters"])
def test_a_run_with_adapters_is_resumed_from_them_alone(kind, tmp_path):
    expected = jax.device_get(train(tmp_path / "unbroken", kind))
    with pytest.raises(Interrupted):
        train(tmp_path / "broken", kind, stop_after=2)
    actual = jax.device_get(train(tmp_path / "broken", kind))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert _log(tmp_path / "broken", "metrics.jsonl") == _log(tmp_path / "unbroken", "metrics.jsonl")
    directory = tmp_path / "broken" / "checkpoints"
    abstract, _ = split_params(abstract_model(harness.ADAPTERS.model, harness.mesh())[1], ())
    loaded = load_params(directory, abstract, DESCRIPTION)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected.params)
    stored = ocp.checkpointables_metadata(directory / str(STEPS)).metadata["params"]
    assert set(flatten(stored)) == set(flatten(abstract))


def test_killed_between_checkpoints(unbroken, tmp_path):
    """A crash two steps behind the last checkpoint: the steps are done again, the logs do not double."""
    kind, directory, expected = unbroken
    _, _, step = MAKERS[kind](harness.mesh())
    calls = []

    def crashing(state, batch, draw):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(state, batch, draw)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, kind, every=2, step=crashing)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "st')  # the crash cut a line short
    actual = jax.device_get(train(tmp_path, kind, every=2))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert _log(tmp_path, "metrics.jsonl") == _log(directory, "metrics.jsonl")


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_saves(unbroken, tmp_path):
    """Nothing of it runs any more, unlike where an error ends it; `tests/stress/kills.py` kills whole runs anywhere."""
    kind, directory, expected = unbroken
    place = {"sft": "before the rename", "grpo": "before the checksums"}[kind]
    command = [sys.executable, "-m", "tests.training.killed_worker", kind, place, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.name.partition("-")[0] for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"1", "2.orbax"}
    actual = jax.device_get(train(tmp_path, kind, every=1))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    for name in ("metrics.jsonl", "completions.jsonl") if kind == "grpo" else ("metrics.jsonl",):
        assert _log(tmp_path, name) == _log(directory, name)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_a_finished_stage_is_not_done_again(unbroken, tmp_path):
    kind, directory, expected = unbroken

    def forbidden(state, batch, draw):
        raise AssertionError("a step was taken")

    again = jax.device_get(train(directory, kind, step=forbidden))
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_parameters_alone_can_be_loaded(unbroken):
    _, directory, expected = unbroken
    _, abstract = abstract_model(miniature.CONFIG, harness.mesh())
    loaded = load_params(directory / "checkpoints", abstract, DESCRIPTION)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected.params)
    with pytest.raises(CheckpointError, match="no checkpoint in .*nowhere"):
        load_params(directory / "nowhere", abstract, DESCRIPTION)
    with pytest.raises(CheckpointError, match="model.width: 32 there, 64 here"):
        load_params(directory / "checkpoints", abstract, {"model": {"width": 64}})
    # Settings that a version of the project adds do not make a stranger of what another one saved, at their default.
    load_params(directory / "checkpoints", abstract, {"model": Wider(32)})
    with pytest.raises(CheckpointError, match="model.more: 5 there, 7 here"):
        load_params(directory / "checkpoints", abstract, {"model": Wider(32, more=7)})
    with pytest.raises(CheckpointError, match="model.width: 32 there, None here"):
        load_params(directory / "checkpoints", abstract, {"model": {}})


@dataclasses.dataclass(frozen=True)
class Wider:
    width: int
    more: int = 5


def test_non_finite_gradients_are_skipped_counted_and_stop_the_run(tmp_path):
    """One bad step changes nothing; two in a row end the run with an error that names the step."""
    _, _, step = harness.sft_step(harness.mesh())
    seen = []

    def poisoned(state, number, draw):
        before = jax.device_get(state.params)
        if int(number) >= 1:
            bad = jax.tree.map(lambda x: x * np.nan, state.params)
            state, metrics, _ = step(state._replace(params=bad), number)
            state = state._replace(params=jax.device_put(before))
        else:
            state, metrics, _ = step(state, number)
        seen.append(int(state.skipped))
        return state, metrics, ()

    with pytest.raises(NonFiniteError, match="2 steps in a row, the last one step 3"):
        train(tmp_path, "sft", step=poisoned)
    assert seen == [0, 1, 2]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["skipped_steps_in_a_row"] == 2


@pytest.mark.parametrize("skipped, steps", [(3, 1), (4, 2)])
def test_a_step_of_several_updates_is_skipped_when_all_of_them_are(tmp_path, skipped, steps):
    state = TrainState({}, {}, jnp.int32(2), jnp.int32(skipped))
    with (
        RunLogger(tmp_path) as logger,
        StageCheckpoints(tmp_path / "checkpoints", CheckpointConfig(), DESCRIPTION, logger.say) as checkpoints,
        pytest.raises(NonFiniteError, match=f"in {steps} steps in a row"),
    ):
        run_stage(
            "grpo",
            state,
            lambda: state,
            lambda state, batch, draw: (state, {}, ()),
            grain.MapDataset.range(1).to_iter_dataset(),
            steps=1,
            checkpoints=checkpoints,
            logger=logger,
            max_nonfinite=steps,
            updates_per_step=2,
        )


def _flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two_steps_kept(tmp_path_factory):
    """A run that was stopped after its third step, with checkpoints of the second and the third."""
    directory = tmp_path_factory.mktemp("kept")
    with pytest.raises(Interrupted):
        train(directory, "grpo", stop_after=3, every=1)
    return directory


def test_no_byte_of_a_checkpoint_changes_unseen(two_steps_kept, tmp_path):
    step = shutil.copytree(two_steps_kept / "checkpoints" / "3", tmp_path / "3")
    assert find_damage(step) is None
    orbax = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # times, and that Orbax is done
    names = [path.relative_to(step) for path in step.rglob("*") if path.is_file()]
    for name in (name for name in names if str(name) not in orbax):
        _flip(step / name)
        assert find_damage(step) is not None, name
        shutil.copy(two_steps_kept / "checkpoints" / "3" / name, step / name)
        (step / name).rename(tmp_path / "elsewhere")
        assert find_damage(step) is not None, name
        (tmp_path / "elsewhere").rename(step / name)
    assert find_damage(step) is None and {"params", "progress", "iterator.json"} <= {name.parts[0] for name in names}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(two_steps_kept, tmp_path, capsys):
    unbroken, run = tmp_path / "unbroken", shutil.copytree(two_steps_kept, tmp_path / "run")
    expected = jax.device_get(train(unbroken, "grpo"))
    _flip(max((run / "checkpoints" / "3" / "params" / "d").iterdir(), key=lambda path: path.stat().st_size))
    with pytest.raises(CheckpointError, match="checkpoints/3 is damaged .params/d/"):
        load_params(run / "checkpoints", None, DESCRIPTION)
    actual = jax.device_get(train(run, "grpo", every=1))
    said = capsys.readouterr().err
    assert "step 3 is damaged (params/d/" in said and "going on from step 2" in said
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    for name in ("metrics.jsonl", "completions.jsonl"):
        assert _log(run, name) == _log(unbroken, name)  # cut back to step 2, and written again
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "3.damaged", "4"]


def test_where_every_checkpoint_is_damaged_nothing_is_changed(two_steps_kept, tmp_path):
    run = shutil.copytree(two_steps_kept, tmp_path / "run")
    for step in ("2", "3"):
        (run / "checkpoints" / step / "sha256.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged .step 3: .*sha256.json; step 2: "):
        train(run, "grpo")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]
