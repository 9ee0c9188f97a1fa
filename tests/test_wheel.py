"""A wheel brings commands and recipes along, and they run outside of the checkout."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.documented import ROOT

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(the wheel, the directory that it is installed in)."""
    directory = tmp_path_factory.mktemp("wheel")
    for command in (
        ("wheel", "--no-deps", "--no-build-isolation", "-w", directory, ROOT),
        ("install", "--no-deps", "--no-index", "-f", directory, "--target", directory / "site", "mecap_jax"),
    ):
        done = subprocess.run([*_PIP, *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (wheel,) = directory.glob("*.whl")
    return wheel, directory / "site"


@pytest.fixture
def run(installed, tmp_path):
    """Runs a command of the installed wheel in an empty directory, where the environment has the dependencies only."""
    site = installed[1]

    def run(command, *arguments):
        environment = os.environ | {"PYTHONPATH": str(site)}
        command = [sys.executable, site / "bin" / command, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_a_wheel_holds_the_package_its_scripts_and_its_recipes(installed):
    names = set(zipfile.ZipFile(installed[0]).namelist())
    assert {name.partition("/")[0] for name in names} == {"mecap_jax", "mecap_jax-0.1.0.dist-info"}
    packed = {
        f"{within}{path.relative_to(ROOT)}"
        for folder, within in (("mecap_jax", ""), ("configs", "mecap_jax/"), ("scripts", "mecap_jax/"))
        for path in (ROOT / folder).rglob("*.*")
        if path.is_file() and path.suffix != ".pyc"
    }
    absent = {"mecap_jax/scripts/bench_throughput.py", "mecap_jax/scripts/reproduce.py"}
    assert {name for name in names if not name.startswith("mecap_jax-")} == packed - absent


def test_every_script_of_a_wheel_is_a_command(installed):
    scripts = {path.stem for path in (installed[1] / "mecap_jax" / "scripts").glob("*.py")}
    commands = {path.name for path in (installed[1] / "bin").iterdir()}
    assert commands == {f"mecap-{name.removesuffix('_hf').replace('_', '-')}" for name in scripts}


def test_data_are_made_and_recipes_load_outside_of_the_checkout(run, tmp_path):
    made = run("mecap-prepare-data", "--source=synthetic", "--output=SHARDS", "--synthetic.clips=6")
    assert made.returncode == 0 and (tmp_path / "SHARDS" / "manifest.json").is_file(), made.stderr
    help = run("mecap-train", "--config=erv", "--help")  # which loads another recipe
    assert help.returncode == 0 and "--config.name=erv" in help.stdout, help.stderr
    refused = run("mecap-train", "--config=configs/grpo.py")
    said = "error: --config: no such file: configs/grpo.py; did you mean 'grpo'?\n"
    assert (refused.returncode, refused.stderr) == (2, said)
