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
NO_PATHS = set(
    "beam_option budgets change chip config feature fold host instruction layer name profile rows runner section seeds "
    "topology".split()
)


def calls(path, name):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_flag_that_is_a_path_is_checked(path):
    defined = {
        call.args[0].value
        for kind in ("string", "list", "multi_string")
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
    assert (done.returncode, done.stderr) == (2, f"error: --{name} must be a finite number, got {value}\n")
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


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--config.seed"], "--config.seed needs a value: --config.seed=VALUE"),
        (["--config.seed", "--workdir=w"], "--config.seed needs a value: --config.seed=VALUE"),
        (["--conifg.seed=1"], "unknown flag --conifg.seed=1; did you mean --config.seed=1?"),
        (["--sft.steps=1"], "unknown flag --sft.steps=1; did you mean --config.sft.steps=1?"),
    ],
)
def test_what_is_no_key_of_the_configuration_is_a_wrong_command_line(wrong, said, capsys):
    with pytest.raises(SystemExit) as end:
        split_overrides(wrong)
    assert (end.value.code, capsys.readouterr().err) == (2, f"error: {said}\n")


@pytest.mark.parametrize(
    "flags_given, status, said",
    [
        ("--help", 0, ""),
        ("--size=0 --help", 2, "error: flag --size=0: 0 is not a positive integer; --help lists the flags\n"),
        ("--size=1", 0, ""),
        ("--sze=1", 2, "error: unknown flag --sze; did you mean --size?\n"),
        ("--size=1 CLIP", 2, "error: no CLIP is needed; --help lists the flags\n"),
        ("--size=2", 1, "error: it failed\n"),
    ],
)
def test_the_status_tells_help_a_wrong_command_line_and_a_failure_apart(flags_given, status, said):
    code = """if True:
        import sys
        from absl import app, flags
        from mecap_jax.command_line import run
        size = flags.DEFINE_integer("size", 1, "", lower_bound=1)
        def main(argv):
            if argv[1:]:
                raise app.UsageError("no CLIP is needed")
            if size.value > 1:
                sys.exit("error: it failed")
        run(main)"""
    done = subprocess.run([sys.executable, "-c", code, *flags_given.split()], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, said)


def test_an_import_that_is_interrupted_has_the_status_of_that(tmp_path):
    code = """if True:
        import runpy, sys
        from mecap_jax.data import importers
        def prepare(*_, **__):
            raise KeyboardInterrupt
        importers.prepare = prepare
        runpy.run_path(sys.argv[0], run_name="__main__")"""
    script = SCRIPTS[0].with_name("prepare_data.py")
    code = code.replace("sys.argv[0]", repr(str(script)))
    command = [sys.executable, "-c", code, "--source=synthetic", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "error: interrupted, nothing was written\n")


@pytest.mark.parametrize(
    "program, arguments, status, words",
    [
        ("mecap_jax/__main__.py", [], 0, "  export              Exports a checkpoint"),
        ("mecap_jax/__main__.py", ["--version"], 0, "."),
        ("mecap_jax/__main__.py", ["trian"], 2, "error: there is no command 'trian'; did you mean 'train'?\n"),
        (
            "mecap_jax/__main__.py",
            ["train", "--workdri=x"],
            2,
            "error: unknown flag --workdri; did you mean --workdir?\n",
        ),
        ("/bin/mecap-prepare-data", ["--source=synthetc"], 2, "--source=synthetc"),
        ("/bin/mecap-train", ["--config=grpo", "--config.group_size=4"], 2, "did you mean 'grpo.group_size'?\n"),
        ("/bin/mecap-train", ["--config=grppo"], 2, "no such file: grppo; did you mean 'grpo'?\n"),
        ("/bin/mecap-train", ["--config=other"], 2, "recipes that come along: emo_r3, erv, grpo"),
    ],
)
def test_commands_are_listed_and_found_by_name(program, arguments, status, words):
    code = f"import sys; sys.argv = {[program, *arguments]}; from mecap_jax.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status and words in done.stdout + done.stderr, done.stderr


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
