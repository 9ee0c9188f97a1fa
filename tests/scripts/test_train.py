"""The command line of `train.py`: mistakes cost seconds, and name what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments, cwd):
    command = [sys.executable, ROOT / "scripts" / "train.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config={root}/configs/grpo.py", "--config.grpo.group_size=1"], "config key 'grpo.group_size'"),
        (["--config={root}/configs/grpo.py", "--config.grpo.groupsize=4"], "did you mean 'group_size'"),
        (["--config={root}/configs/absent.py"], "no such file"),
        (["--config={root}/configs/grpo.py", "--profile=3:2"], "--profile: expected FIRST:LAST"),
        (["--config={root}/configs/grpo.py", "extra"], "unexpected arguments: ['extra']"),
        (["--config={root}/configs/grpo.py", "--wrkdir=x"], "unknown flag --wrkdir; did you mean --workdir?"),
        ([], "--config"),
    ],
)
def test_mistakes_are_named_before_any_work(arguments, message, tmp_path):
    done = run(*(argument.format(root=ROOT) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_devices_and_batches_are_compared_before_data_is_touched(tmp_path):
    done = run(f"--config={ROOT}/configs/grpo.py", "--config.mesh.fsdp=7", cwd=tmp_path)
    assert done.returncode == 1 and "config key 'mesh'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "cache").exists()
