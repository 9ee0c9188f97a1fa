"""Whose a workdir is: what may change in a run that goes on, what may not, and what a path means."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mecap_jax.config import ConfigError, load
from mecap_jax.config.overrides import override
from mecap_jax.data.training_facts import gather_facts
from mecap_jax.experiment import workdir as workdir_module
from mecap_jax.experiment.story import report_again
from mecap_jax.experiment.weights import check_start, read_report, read_run
from mecap_jax.experiment.workdir import (
    LOCK,
    cache_of,
    check_finished,
    check_output,
    check_place,
    check_same,
    claim_data,
    data_of,
    is_claimed,
)
from mecap_jax.locking import LockedError, locked
from mecap_jax.training.logging import RunLogger


def config(*overrides):
    return load("configs/grpo.py", overrides)


def claim(workdir, asked):
    """Goes on with the run in a workdir, or begins one."""
    if is_claimed(workdir):
        check_same(workdir, asked)
    workdir_module.claim(workdir, asked, gather_facts([], asked.data))


def test_an_output_is_tried_before_it_is_needed(tmp_path):
    check_output(tmp_path / "new" / "scores.json")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--output: .*new cannot be written: Is a directory"):
        check_output(tmp_path / "new")
    with pytest.raises(ConfigError, match="--output: .*scores.json cannot be written: (Not a directory|File exists)"):
        check_output(tmp_path / "file" / "scores.json")


@pytest.fixture
def run(tmp_path):
    """A run whose SFT is finished."""
    claim(tmp_path, config("sft.steps=100"))
    _take(tmp_path, "sft", 100)
    return tmp_path


def _take(workdir, stage, step):
    (workdir / "checkpoints" / stage / str(step)).mkdir(parents=True)


@pytest.mark.parametrize(
    "changes",
    [
        ["name=other", "sft.steps=150", "grpo.steps=7"],
        ["data.workers=2", "data.cache_mb=1", "data.path=elsewhere", "compilation_cache=there"],
        ["mesh.fsdp=2", "sft.micro_clips=1", "grpo.micro_prompts=1", "checkpoint.every=3", "evaluation.samples=1"],
        ["task.judge=elsewhere", "task.places=plutchik", "evaluation.rows=text_only", "task.wheels=wheels.json"],
    ],
)
def test_what_does_not_change_what_is_learnt_may_change(run, changes):
    claim(run, config("sft.steps=100", *changes))
    claim(run, config("sft.steps=100"))


@pytest.mark.parametrize(
    "change, words",
    [
        ("seed=3", "seed: 0 there, 3 asked"),
        ("sft.steps=99", "sft.steps: 100 are taken, 99 asked"),
        ("sft.batch_clips=2", "sft.batch_clips: 24 there, 2 asked"),
        ("backbone=/somewhere", "backbone: '' there, '/somewhere' asked"),
        ("task.name=recognition", "task.name: 'captioning' there, 'recognition' asked"),
        ("grpo.draws=2", "grpo.draws: 1 there, 2 asked"),
    ],
)
def test_what_changes_it_is_refused_with_both_values(run, change, words):
    before = (run / "config.json").read_text()
    with pytest.raises(ConfigError, match="init_from") as error:
        claim(run, config("sft.steps=100", change))
    assert words in str(error.value)
    assert (run / "config.json").read_text() == before


def test_a_row_that_has_taken_steps_stays_what_it_is(run):
    def row(**changes):
        return f"rows=({ {'name': 'again', 'stage': 'sft', 'after': '', **changes} },)"

    claim(run, config("sft.steps=100", row()))
    claim(run, config("sft.steps=100", row(after="sft")))  # nothing was trained as it
    _take(run, "again", 2)
    with pytest.raises(ConfigError, match="rows: 'again' has taken 2 steps with after: 'sft' there, '' asked"):
        claim(run, config("sft.steps=100", row()))
    with pytest.raises(ConfigError, match="'again' has taken 2 steps with data.target: 'overall' there, 'style' asked"):
        claim(run, config("sft.steps=100", row(after="sft", changes=("data.target=style",))))
    claim(run, config("sft.steps=100", row(after="sft")))


def test_a_row_is_what_it_comes_to_however_it_is_spelt(run, monkeypatch):
    """Also where an earlier version kept it in its own words, relative paths among them."""

    def row(*changes):
        return f"rows=({ {'name': 'again', 'stage': 'grpo', 'changes': changes} },)"

    same = row("grpo.reward.terms=emotion=2,my.py:f=0.5", "task.labels=./mine.toml", "data.modalities=()")
    asked = config("sft.steps=100", same)
    monkeypatch.chdir(run)
    claim(run, asked)
    _take(run, "again", 2)
    settings = json.loads((run / "config.json").read_text())
    settings["rows"][0]["changes"] = [
        "grpo.reward.terms=my.py:f=0.5,emotion=2",
        "grpo.reward.terms=emotion=2,my.py:f=0.5",
        "task.labels=./mine.toml",
        "data.modalities=()",
        "data.tower_cache=False",
    ]
    (run / "config.json").write_text(json.dumps(settings))
    claim(run, asked)


def test_a_row_that_was_left_out_once_is_still_known(run):
    def row(after):
        return f"rows=({ {'name': 'again', 'stage': 'sft', 'after': after} },)"

    claim(run, config("sft.steps=100", row("sft")))
    _take(run, "again", 2)
    claim(run, config("sft.steps=100"))
    with pytest.raises(ConfigError, match="rows: 'again' has taken 2 steps"):
        claim(run, config("sft.steps=100", row("")))
    claim(run, config("sft.steps=100", row("sft")))


@pytest.fixture
def whole(tmp_path):
    """A run of two rows on other clips."""
    claim(tmp_path / "run", config("evaluation.rows=text_only,reward_off", "evaluation.others=other", "sft.steps=9"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["mesh.fsdp=2", "data.workers=3", "compilation_cache=there", "sft.micro_clips=1", "evaluation.batch_clips=4"],
        ["evaluation.rows=reward_off,text_only"],
        ["evaluation.others=./other"],
    ],
)
def test_a_finished_run_is_what_was_asked_for(whole, changes):
    usual = ("evaluation.rows=text_only,reward_off", "evaluation.others=other", "sft.steps=9")
    check_finished(whole, config(*usual, *changes))


@pytest.mark.parametrize(
    "change, words",
    [
        ("seed=1", "seed: 0 there, 1 asked"),
        ("name=mine", "name: 'grpo' there, 'mine' asked"),
        ("sft.steps=10", "sft.steps: 9 there, 10 asked"),
        ("grpo.loss.beta=0.5", "grpo.loss.beta: .* there, 0.5 asked"),
        ("data.synthetic.contradicting_share=0.4", "data.synthetic.contradicting_share: 0.0 there, 0.4 asked"),
        ("evaluation.rows=text_only", r"evaluation.rows: \['reward_off', 'text_only'\] there, \['text_only'\] asked$"),
        ("evaluation.others=", r"evaluation.others: \['.*other'\] there, \[\] asked"),
        ("evaluation.others=another", r"evaluation.others: \['.*/other'\] there, \['.*/another'\] asked"),
        ("evaluation.bootstrap=7", "evaluation.bootstrap: 1000 there, 7 asked"),
        ("task.places=plutchik", "task.places: '' there, 'plutchik' asked"),
    ],
)
def test_a_finished_run_of_something_else_is_refused_with_both_values(whole, change, words):
    usual = ("evaluation.rows=text_only,reward_off", "evaluation.others=other", "sft.steps=9")
    with pytest.raises(ConfigError, match=f"run holds a finished run of something else:\n.*{words}"):
        check_finished(whole, config(*usual, change))


def test_a_row_that_has_changed_since_is_refused(whole):
    text = json.loads((whole / "config.json").read_text())
    (row,) = (row for row in text["rows"] if row["name"] == "reward_off")
    row["changes"] = ["grpo.advantage=mean"]
    (whole / "config.json").write_text(json.dumps(text))
    usual = ("evaluation.rows=text_only,reward_off", "evaluation.others=other", "sft.steps=9")
    with pytest.raises(ConfigError, match=r"rows.reward_off.changes: \['grpo.advantage=mean'\] there, \['grpo.advan"):
        check_finished(whole, config(*usual))


def test_paths_mean_the_same_from_anywhere(tmp_path, monkeypatch):
    """Also those of rows, of a task and of a term's options."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    changes = (
        "grpo.reward.terms=emotion=2,my.py:f=0.5",
        "grpo.reward.terms.my.py:f.gate=my.py:f",
        "grpo.reward.terms.my.py:f.options={'verifier': './model', 'variant': 'chain', 'similarity': 'a.csv'}",
        "task.labels=mine.toml",
        "task.judge=judge",
        "task.places=plutchik",
    )
    asked = config(
        f"rows=({ {'name': 'again', 'stage': 'grpo', 'changes': changes} },)",
        "grpo.reward.terms=emotion,my.py:f=0.25",
        "grpo.reward.terms.my.py:f.gate=emotion",
        "grpo.reward.terms.my.py:f.options={'verifier': './model', 'variant': 'chain'}",
        "task.places=places.tsv",
        "data.path=~/shards",
    )
    monkeypatch.chdir(tmp_path / "here")
    claim(tmp_path / "run", asked)
    monkeypatch.chdir(tmp_path / "there")
    found = read_run(tmp_path / "run")
    here, (row,) = str(tmp_path / "here"), found.rows
    term = found.grpo.reward.terms[1]
    assert (term.name, term.gate) == (f"{here}/my.py:f", "emotion")
    assert term.options == {"verifier": f"{here}/model", "variant": "chain"}
    assert found.task.places == f"{here}/places.tsv" and found.task.labels == "emotiontalk"
    assert found.data.path == str(Path.home() / "shards")
    assert row.changes[1].startswith(f"grpo.reward.terms.{here}/my.py:f.gate={here}/my.py:f")
    changed = override(found, [change for change in row.changes if ".gate" not in change])
    term = changed.grpo.reward.terms[1]
    assert (term.name, term.weight) == (f"{here}/my.py:f", 0.5)
    assert term.options == {"verifier": f"{here}/model", "variant": "chain", "similarity": f"{here}/a.csv"}
    assert (changed.task.labels, changed.task.judge) == (f"{here}/mine.toml", f"{here}/judge")
    assert changed.task.places == "plutchik"
    monkeypatch.chdir(tmp_path / "here")
    check_same(tmp_path / "run", asked)


def test_a_stage_that_another_has_started_from_gets_no_more_steps(run):
    _take(run, "grpo", 1)
    with pytest.raises(ConfigError, match="sft.steps: 100 there, 120 asked; grpo has started from step 100"):
        claim(run, config("sft.steps=120"))
    claim(run, config("sft.steps=100", "grpo.steps=1000"))


def test_a_run_that_kept_no_step_has_claimed_nothing(tmp_path):
    claim(tmp_path, config())
    claim(tmp_path, config("seed=3"))
    assert read_run(tmp_path).seed == 3


def test_data_are_what_their_checksums_say_wherever_they_are(run, tmp_path):
    def reader(directory, checksum):
        return SimpleNamespace(checksum=checksum, directory=tmp_path / directory)

    claim_data(run, reader("one", "a"))
    claim_data(run, reader("moved", "a"))
    assert data_of(run) == tmp_path / "moved"
    with pytest.raises(ConfigError, match=r"data.path.* other data: sha256 .*moved\) there, .*other\) asked"):
        claim_data(run, reader("other", "b"))


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"sha256": 1, "directory": "here"}', "NaN"])
def test_a_damaged_file_of_a_run_is_named(run, tmp_path, damage):
    (run / "shards.json").write_text(damage)
    reader = SimpleNamespace(checksum="a", directory=tmp_path)
    for use in (lambda: data_of(run), lambda: cache_of(run), lambda: claim_data(run, reader)):
        with pytest.raises(ConfigError, match=r"shards\.json (is|must|has) "):
            use()
    (run / "start.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"start\.json (is|must|has) "):
        check_start(run, config("init_from=another/checkpoints/sft"))
    (run / "report.json").write_text("[1")
    with pytest.raises(ConfigError, match=r"report\.json is not JSON"):
        read_report(run)


def test_nobody_writes_a_report_beside_a_run_that_goes_on(run):
    with RunLogger(None, enabled=False) as logger, locked(run / LOCK, str(run)):
        with pytest.raises(LockedError, match=f"in use by process {os.getpid()} on "):
            report_again(run, logger)


def test_a_run_that_goes_on_elsewhere_keeps_its_cache(run, tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name / "cache").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (fresh := tmp_path / "fresh").mkdir()
    assert cache_of(run) == cache_of(fresh) == tmp_path / "here/cache"
    claim_data(run, SimpleNamespace(checksum="1", directory=tmp_path))
    monkeypatch.chdir(tmp_path / "there")
    for _ in range(2):
        assert cache_of(run) == tmp_path / "here/cache" and cache_of(fresh) == tmp_path / "there/cache"
        claim_data(run, SimpleNamespace(checksum="1", directory=tmp_path))
    (tmp_path / "here/cache").rmdir()
    assert cache_of(run) == tmp_path / "there/cache"


def test_a_relative_path_means_the_same_from_anywhere(tmp_path, monkeypatch):
    here, paths = tmp_path / "here", ["data.path=shards", "backbone=models/b", "encoder.path=~/e", "init_from=r/c/sft"]
    asked = config(
        *paths, "grpo.reward.terms=emotion=1,my.py:reward=0.5", "grpo.reward.terms.emotion.gate=my.py:reward"
    )
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", "/home/me")
    claim(tmp_path / "run", asked)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["data"]["path"] == f"{here}/shards" and stored["backbone"] == f"{here}/models/b"
    assert stored["encoder"] == {"path": "/home/me/e", "anchors": ""} and stored["init_from"] == f"{here}/r/c/sft"
    emotion, mine = stored["grpo"]["reward"]["terms"]
    assert mine["name"] == emotion["gate"] == f"{here}/my.py:reward" and (emotion["name"], mine["gate"]) == (
        "emotion",
        "",
    )
    _take(tmp_path / "run", "sft", 1)
    claim(tmp_path / "run", asked)  # the same command from the same place
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"backbone: '{here}/models/b' there, '{tmp_path}/models/b' asked"):
        claim(tmp_path / "run", asked)


@pytest.mark.parametrize("name", ["gs://bucket/run", "s3://bucket/run"])
def test_an_address_is_no_workdir(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"--workdir: {name.replace('//', '/')} is an address"):
        check_place(tmp_path.__class__(name))


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file"):
        check_place(tmp_path / "file")


def test_a_setting_that_did_not_exist_then_had_its_default(run):
    settings = json.loads((run / "config.json").read_text())
    del settings["grpo"]["minibatches"], settings["evaluation"]["others"]
    (run / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="grpo.minibatches: 1 there, 2 asked"):
        claim(run, config("sft.steps=100", "grpo.minibatches=2"))
    claim(run, config("sft.steps=100"))
