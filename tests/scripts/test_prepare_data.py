"""The command line of `prepare_data.py`."""

import json
import subprocess
import sys
from pathlib import Path

from mecap_jax.data.shards import ShardReader
from tests.data.clips import audio_file

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_data.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=120)


def test_raw_files_become_shards(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.wav").write_bytes(audio_file(seconds=0.2))
    rows = [{"audio": "a.wav", "split": "train"}, {"audio": "b.wav", "split": "train"}]
    (raw / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("--source=folder", f"--input={raw}", f"--output={tmp_path / 'out'}")

    strict = run(*arguments)
    assert strict.returncode == 1 and strict.stdout == ""
    assert strict.stderr.strip().splitlines()[-2] == "error: 1 of 2 clips are bad (allowed: 2.0%)"
    assert "no such file: 'b.wav': b" in strict.stderr and "Traceback" not in strict.stderr
    assert not (tmp_path / "out").exists()

    lenient = run(*arguments, "--max_bad_fraction=0.5")
    assert lenient.returncode == 0, lenient.stderr
    reader = ShardReader(tmp_path / "out")
    assert [u.id for u in reader] == ["a"]
    assert reader.manifest["command"].endswith("--max_bad_fraction=0.5")


def test_a_copy_that_is_not_the_whole_corpus_fails_the_comparison(tmp_path):
    (tmp_path / "1001_DFA_ANG_HI.wav").write_bytes(audio_file(seconds=0.2))
    done = run("--source=crema_d", f"--input={tmp_path}", f"--output={tmp_path / 'out'}", "--verify")
    assert done.returncode == 1 and done.stderr.endswith("is not the whole corpus:\nall: 1 clips, official 7442\n")
    assert len(ShardReader(tmp_path / "out")) == 1


def test_an_output_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "a.wav").write_bytes(audio_file(seconds=0.1))
    (tmp_path / "manifest.csv").write_text("file,label\na.wav,\x1b[2Jodd\n")
    arguments = ("--source=folder", f"--input={tmp_path}", f"--output={tmp_path / 'a.wav' / 'out'}")
    done = run(*arguments)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: [Errno"), done.stderr
    assert "Traceback" not in done.stderr
    done = run(*arguments[:2], f"--output={tmp_path / 'out'}")
    assert done.returncode == 0 and "'\\x1b[2jodd'" in done.stderr and "\x1b" not in done.stderr


def test_settings_of_the_synthetic_corpus_are_flags(tmp_path):
    out = tmp_path / "out"
    done = run("--source=synthetic", f"--output={out}", "--synthetic.clips=12", "--synthetic.speech_languages=en")
    assert done.returncode == 0, done.stderr
    manifest = ShardReader(out).manifest
    assert manifest["records"] == 12
    assert manifest["source"]["synthetic"]["speech_languages"] == ["en"]

    for wrong, message in (
        (("--source=folder", f"--output={out}"), "needs an input directory"),
        (("--source=floder", f"--output={out}"), "should be one of"),
        (("--source=synthetic", f"--output={out}", "--synthetic.clips=many"), "--synthetic.clips"),
        (
            ("--source=synthetic", f"--output={out}", "--synthetic.clip=3"),
            "--synthetic.clip; did you mean --synthetic.clips?",
        ),
    ):
        failed = run(*wrong)
        assert failed.returncode != 0 and message in failed.stderr and "Traceback" not in failed.stderr
