"""Every command that README and docs show: its flags exist, its recipe loads, and it runs on the devices it names."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from mecap_jax.config import ConfigError, SyntheticConfig, load, validate_devices
from tests import documented
from tests.documented import ROOT

COMMANDS = [
    pytest.param(words, comment, id=f"{page.name}: {line[7:70]}")
    for page, line, words, comment in documented.commands()
]
REPRODUCING = [command for command in COMMANDS if command.values[0][0] == "scripts/reproduce.py"]
TRAINING = [command for command in COMMANDS if command.values[0][0] == "scripts/train.py"]


# Which tests run what the README trains in this workdir: the same words, made small by settings behind them.
RUN_IN = {
    "runs/grpo": "test_train_together.py",
    "runs/large": "test_train_together.py",
    "runs/two": "test_train_together.py",
    "runs/branch": "test_train_together.py",
    "runs/seed-1": "test_story.py",
    "runs/decoder": "test_tower_cache.py",
    "runs/adapters": "test_adapters.py",
    "runs/r1_omni": "test_recognition_run.py",
    "runs/erv": "test_recognition_run.py",
    "runs/emo_r3": "test_reflection_run.py",
    "runs/smoke": "test_recipes.py",
    "runs/voices": "test_real_voices.py",
    "runs/brief": "test_train_together.py",
    "runs/dapo": "test_train_together.py",
}


def defined_flags(path: Path) -> set[str]:
    """Names of the flags that a file defines."""
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    names = (call.args[0] for call in calls if getattr(call.func, "attr", "").startswith("DEFINE_"))
    return {name.value for name in names if isinstance(name, ast.Constant)}


def test_the_pages_have_commands():
    assert {words[0] for words, _ in (command.values for command in COMMANDS)} >= {
        f"scripts/{name}.py" for name in ("train", "prepare_data", "evaluate", "caption", "export_hf")
    }


@pytest.mark.parametrize("words, comment", COMMANDS)
def test_flags_exist(words, comment):
    script = ROOT / words[0]
    known = defined_flags(script)
    if "joined()" in script.read_text(encoding="utf-8"):
        known |= defined_flags(ROOT / "mecap_jax" / "distributed.py")
    if script.name == "prepare_data.py":
        known |= {f"synthetic.{field.name}" for field in dataclasses.fields(SyntheticConfig)}
    used = {word[2:].partition("=")[0] for word in words if word.startswith("--") and not word.startswith("--config.")}
    assert used <= known


@pytest.mark.parametrize("words, comment", TRAINING)
def test_recipes_run_on_the_devices_they_name(words, comment):
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    overrides = [f"{key[7:]}={value}" for key, value in options.items() if key.startswith("config.")]
    config = load(str(ROOT / options["config"]), overrides)
    needed = config.mesh.fsdp * config.mesh.tensor
    if needed > 1:
        assert f"on {needed} devices" in comment, "the page has to say on how many devices this runs"
    for count in (1, 8, 64, 256):
        if count % needed:
            with pytest.raises(ConfigError, match=f"does not fit {count} devices"):
                validate_devices(config, count)
        else:
            validate_devices(config, count)


@pytest.mark.parametrize("words, comment", TRAINING)
def test_a_training_command_is_run_where_it_needs_nothing_published(words, comment):
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    if load(str(ROOT / options["config"])).backbone:
        return  # the same families and options run as random miniatures in test_recipes.py
    if options["workdir"] == "runs/mine":
        # The first command, on shards that it names: all whole runs of the tests do.
        assert words == [*documented.training("runs/grpo")[:2], "--workdir=runs/mine", "--config.data.path=SHARDS"]
        return
    tests = (ROOT / "tests" / "experiment" / RUN_IN[options["workdir"]]).read_text(encoding="utf-8")
    assert re.search(rf'(training|overrides|made_tiny)\("{options["workdir"]}"', tests)


@pytest.mark.parametrize("words, comment", REPRODUCING)
def test_recipes_are_reproduced_with_changes_and_rows_that_they_have(words, comment):
    options = [word[2:].split("=", 1) for word in words[1:]]
    changes = [value for key, value in options if key == "change"]
    single = dict(option for option in options if option[0] != "change")
    recipe, rows = single.get("config", "configs/grpo.py"), single.get("rows", "")
    load(str(ROOT / recipe), [*changes, *([f"evaluation.rows={rows}"] if rows else [])])
    section = single.get("section", Path(recipe).stem if recipe != "configs/grpo.py" else "results")
    assert f"<!-- {section}: begin -->" in (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
