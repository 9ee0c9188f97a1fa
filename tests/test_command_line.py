"""Flags that are paths refuse addresses, all of them; an interrupted script ends in one line."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from mecap_jax.command_line import local_paths, split_overrides, storage_problem
from mecap_jax.config import ConfigError, load, lookup
from mecap_jax.config.reference import attribute_texts, help_of_keys, keys
from mecap_jax.text_files import is_address

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))
NO_PATHS = set("chip config fold instruction layer name profile rows runner section seeds topology".split())


def calls(path, name):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_flag_that_is_a_path_is_checked(path):
    defined = {
        call.args[0].value
        for kind in ("string", "list")
        for call in calls(path, f"flags.DEFINE_{kind}")
        if isinstance(call.args[0], ast.Constant)
    }
    (checked,) = calls(path, "local_paths")
    assert {argument.value for argument in checked.args} == defined - NO_PATHS


def test_every_script_ends_in_one_line_where_it_cannot_write():
    assert [path.name for path in SCRIPTS if not calls(path, "run")] == ["train.py"]  # which says more


def test_addresses_are_told_from_paths():
    assert all(map(is_address, ("gs://bucket/x", "s3://b", "https://x.org/y", "gs:/bucket/x")))
    assert not any(map(is_address, ("", "runs/x", "/data/gs", "C:/data", "./a:b/c", "x.py:reward")))


@pytest.mark.parametrize("value, is_fine", [("gs://bucket/x", False), ("runs/x", True), (None, True)])
def test_flags_refuse_addresses(value, is_fine):
    values = flags.FlagValues()
    flags.DEFINE_string("place", None, "", flag_values=values)
    local_paths("place", values=values)
    arguments = ["script", *([f"--place={value}"] if value else [])]
    if is_fine:
        values(arguments)
    else:
        with pytest.raises(flags.IllegalFlagValueError, match="--place=gs://bucket/x: is an address"):
            values(arguments)


@pytest.mark.parametrize(
    "key", "backbone init_from compilation_cache data.path encoder.path encoder.anchors task.labels task.wheels".split()
)
def test_settings_refuse_addresses(key):
    with pytest.raises(ConfigError, match=f"'{key}': is an address.*gs://bucket/x"):
        load("configs/r1_omni.py", [f"{key}=gs://bucket/x"])
    with pytest.raises(ConfigError, match="'evaluation.others': is an address"):
        load("configs/grpo.py", ["evaluation.others=gs://bucket/x"])


def test_an_interrupted_script_says_so_in_one_line():
    code = "import signal, time\nfrom mecap_jax.command_line import run\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what runs in the background ignores it
    code += "def main(argv):\n    print('ready', flush=True)\n    time.sleep(60)\nrun(main)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as script:
        assert script.stdout.readline() == "ready\n"
        script.send_signal(signal.SIGINT)
        _, error = script.communicate(timeout=30)
    assert (script.returncode, error) == (130, "error: interrupted\n")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_that_is_stopped_while_it_loads_says_so_in_one_line(path, tmp_path):
    for library in ("absl", "jax"):  # the first of them that a script imports never ends
        (tmp_path / f"{library}.py").write_text(
            "import time\nprint('loading', flush=True)\nwhile True:\n    time.sleep(0.01)\n"
        )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{path.parents[1]}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # as above
    started += "runpy.run_path(sys.argv[1], run_name='__main__')"
    stops = {signal.SIGINT: 130} if path.name != "train.py" else {signal.SIGINT: 75, signal.SIGTERM: 75}
    for number, status in stops.items():
        with subprocess.Popen([sys.executable, "-c", started, path], text=True, env=environment, **pipes) as script:
            assert script.stdout.readline() == "loading\n"
            script.send_signal(number)
            _, error = script.communicate(timeout=30)
        assert (script.returncode, error) == (status, f"{number.name}: stopped\n")


@pytest.mark.parametrize("flag", ["max_bad_fraction=nan", "max_seconds=nan", "max_seconds=inf"])
def test_numbers_that_are_not_finite_are_refused_by_flag(flag, tmp_path):
    command = [SCRIPTS[0].with_name("prepare_data.py"), "--source=synthetic", f"--output={tmp_path / 'out'}"]
    done = subprocess.run([sys.executable, *command, f"--{flag}"], capture_output=True, text=True)
    name, _, value = flag.partition("=")
    assert (done.returncode, done.stderr) == (1, f"error: --{name} must be a finite number, got {value}\n")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(28, "No space left on device", "run/metrics.jsonl"), "run/metrics.jsonl: No space left on device"),
        (OSError(30, "Read-only file system", "run"), "run: Read-only file system"),
        (OSError(116, "Stale file handle", "run"), "run: Stale file handle"),
        (
            ValueError("INTERNAL: write of 3 bytes failed: No space left on device [tensorstore]"),
            "No space left on device",
        ),
        (ValueError("shapes differ"), None),
    ],
)
def test_what_a_disk_has_against_a_program_is_one_line(error, words):
    assert storage_problem(error) == words


@pytest.mark.parametrize(
    "body, status, said",
    [
        ("open('/dev/full', 'w').write('x' * 10_000)", 1, "error: No space left on device\n"),
        ("os.mkdir('/dev/null/x')", 1, "error: /dev/null/x: Not a directory\n"),
        ("raise ValueError('I/O error: File too large (os error 27)')", 1, "error: File too large\n"),
        ("print('x' * 100_000)", 1, ""),
        ("print('x')", 1, ""),
        ("return 3", 3, ""),
    ],
    ids=["full", "no directory", "a library's", "nobody reads", "nobody reads the end", "its own"],
)
def test_a_script_that_cannot_write_says_so_in_one_line(body, status, said):
    code = f"import os, sys\nfrom mecap_jax.command_line import run\ndef main(argv):\n    {body}\nrun(main)"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = subprocess.run([sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (status, said)


def test_keys_of_the_configuration_come_with_or_without_an_equals_sign():
    argv = ["train.py", "--config=r.py", "--config.seed=1", "--config.grpo.group_size", "4", "--workdir=w"]
    assert split_overrides(argv) == (["train.py", "--config=r.py", "--workdir=w"], ["seed=1", "grpo.group_size=4"])
    assert split_overrides(["--config.name=a=b"]) == ([], ["name=a=b"])
    for wrong in (["--config.seed"], ["--config.seed", "--workdir=w"]):
        with pytest.raises(SystemExit, match="--config.seed needs a value"):
            split_overrides(wrong)


def test_help_lists_every_key_with_its_value_and_what_it_means():
    assert help_of_keys(["train.py", "--config=configs/grpo.py"]) == ""
    path = str(SCRIPTS[0].parents[1] / "configs" / "grpo.py")
    recipe = f"--config={path}"
    text = help_of_keys(["train.py", recipe, "--help"])
    assert "--config.grpo.temperature=0.7\n      of sampling" in text and "--config.sft.steps=450" in text
    assert "has them" in text and "with their defaults" in help_of_keys(["train.py", "--help"])
    config = load(path)
    for key in keys(config):
        inside = key.path.startswith(("model.decoder.", "model.audio.", "model.vision."))  # named as in config.json
        assert key.text or inside, f"{key.path}: its class says nothing of it"
        if (set_to := lookup(config, key.path)) is not None:
            assert set_to == key.value


def test_what_a_docstring_says_of_attributes():
    class Example:
        """Of an example.

        Attributes:
          one, two: both
            of them.
          three: alone: with a colon.

        Raises:
          four: is none.
        """

    assert attribute_texts(Example) == {"one": "both of them.", "two": "both of them.", "three": "alone: with a colon."}
