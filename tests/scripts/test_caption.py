"""The script, run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.data.clips import audio_file, video_file
from tests.published_family import open_family

ROOT = Path(__file__).parents[2]


def test_captions_go_out_and_errors_do_not_stop_them(tmp_path):
    open_family("qwen2_5_omni", tmp_path / "model")
    (tmp_path / "a.wav").write_bytes(audio_file())
    (tmp_path / "b.mp4").write_bytes(b"no film")
    (tmp_path / "c.mp4").write_bytes(video_file())
    command = [sys.executable, ROOT / "scripts" / "caption.py", f"--checkpoint={tmp_path / 'model'}", "--list=-"]
    options = ["--json", "--max_new_tokens=3", "--dtype=bfloat16", "--instruction=Say it."]
    done = subprocess.run(
        [*command, *options, "a.wav", "b.mp4"],
        input="\ufeffc.mp4\twhat she\u2028says\r\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1, done.stderr
    first, bad, last = map(json.loads, done.stdout.splitlines())
    assert [row["file"] for row in (first, bad, last)] == ["a.wav", "b.mp4", "c.mp4"]
    assert set(first) == set(last) == {"file", "caption", "logprob", "finished", "seconds"}
    assert first["logprob"] < 0 and first["seconds"] == 1.0
    assert set(bad) == {"file", "error"} and bad["error"].startswith("not a media file")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: b.mp4: {bad['error']}"] and "Traceback" not in done.stderr
