"""The command line of `export_hf.py`: mistakes are named, and leave nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--checkpoint=runs/none/checkpoints/sft", "--output=out"], "holds no run"),
        (["--checkpoint=runs/none/checkpoints/sft", "--output=out", "--dtype=int8"], "--dtype"),
    ],
)
def test_mistakes_are_named_before_any_work(arguments, message, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "export_hf.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode != 0 and message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
