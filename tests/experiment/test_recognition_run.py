"""R1-Omni's recipe in small, from shards to a report: cold start on rationales, reinforcement learning on labels."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mecap_jax.captioner import Captioner
from mecap_jax.captioning import Request, caption_clips
from mecap_jax.config import load
from mecap_jax.data.shards import write
from mecap_jax.data.utterance import Utterance
from mecap_jax.evaluation.java_tools import Meteor
from mecap_jax.experiment import story
from mecap_jax.experiment.export import export_stage
from mecap_jax.experiment.scoring import evaluate_checkpoint
from mecap_jax.experiment.trained_task import TrainedTask, read_trained_task
from mecap_jax.experiment.weights import read_run
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.tasks.labels import label_set
from mecap_jax.training.logging import RunLogger, read_jsonl
from tests import documented
from tests.data.clips import audio_file
from tests.experiment.test_story import SMALL

SETTINGS = (
    "sft.max_target_tokens=56",
    "grpo.steps=1",
    "grpo.prompts=4",
    "grpo.micro_prompts=0",
    "grpo.group_size=2",
    "grpo.max_new_tokens=16",
    "grpo.validate_every=1",
    "evaluation.ablation=False",
)
TERMS = ("grpo.reward.terms=accuracy,format,overlong", "grpo.reward.terms.overlong.options={'buffer': 4}")
TINY = [item for item in SMALL if not item.startswith("evaluation.rows")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared):
    workdir = tmp_path_factory.mktemp("recognition") / "run"
    asked = documented.overrides("runs/r1_omni")
    config = load("configs/r1_omni.py", [*asked, *TINY, *SETTINGS, *TERMS, "evaluation.rows=sft_labels", *shared])
    return workdir, story.run(config, workdir)


@pytest.mark.slow
def test_erv_is_compared_with_itself_without_its_third_reward(tmp_path, shared, monkeypatch):
    monkeypatch.setattr(Meteor, "_start", lambda meteor: pytest.fail("METEOR scores captions, and there are none"))
    report = story.run(
        load("configs/erv.py", [*documented.overrides("runs/erv"), *TINY, *SETTINGS, *shared]), tmp_path / "run"
    )
    assert report["eval"].keys() == report["confidence"].keys() == {"sft", "grpo", "grpo_r1_omni"}
    rows = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if row["stage"] != "sft"]
    terms = {"rewards/accuracy/mean", "rewards/format/mean", "rewards/explanation/mean"}
    assert [row["stage"] for row in rows] == ["grpo", "grpo_r1_omni"]
    assert terms <= rows[0].keys() and terms - rows[1].keys() == {"rewards/explanation/mean"}


@pytest.mark.slow
def test_the_report_is_on_recognition(finished):
    workdir, report = finished
    for stage in ("sft", "grpo", "sft_labels"):
        assert {"war", "uar", "format", "recall/happy"} <= report["eval"][stage].keys()
        assert "bleu_4" not in report["eval"][stage]
        assert len(report["confusion"][stage]["classes"]) == 7
    assert {"eea", "fcr", "epc"} <= report["eval"]["grpo"].keys() - report["eval"]["sft_labels"].keys()
    assert {"claims_true", "claims_true/pitch"} <= report["eval"]["grpo"].keys()
    # Nobody said a word of the mouth, so nothing of that was true or false.
    undefined = {"value": None, "low": None, "high": None}
    assert report["eval"]["grpo"]["claims_true/mouth"] is None
    assert report["differences"]["grpo - sft"]["claims_true/mouth"] == undefined
    text = (workdir / "report.md").read_text()
    assert "| WAR ↑ |" in text and "nearest anchor" not in text and "Tokens come from" not in text
    assert (workdir / "plots" / "metrics.png").exists() and (workdir / "plots" / "confusion.png").exists()


@pytest.mark.slow
def test_tables_over_seeds_go_into_the_section_that_was_named(finished, shared, tmp_path):
    workdir, report = finished
    for name in ("scripts/reproduce.py", "docs/reproduction.md", "configs/r1_omni.py", "configs/grpo.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(name, tmp_path / name)
    document = tmp_path / "docs" / "reproduction.md"
    document.write_text(document.read_text() + "<!-- small: begin -->\n<!-- small: end -->\n")
    for seed in (0, 1):  # the same run as two seeds
        directory = tmp_path / "runs" / f"seed-{seed}"
        directory.mkdir(parents=True)
        for path in workdir.iterdir():
            if path.name not in ("report.json", "config.json"):
                (directory / path.name).symlink_to(path)
        config = {**report["config"], "seed": seed}
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "report.json").write_text(json.dumps({**report, "seed": seed, "config": config}))
    (tmp_path / "runs" / "seed-2").symlink_to(tmp_path / "runs" / "seed-1")
    changes = [f"--change={item}" for item in [*TINY, *SETTINGS, *TERMS, *shared]]

    def reproduce(*arguments):
        command = [sys.executable, "scripts/reproduce.py", "--config=configs/r1_omni.py", "--root=runs", "--seeds=0,1"]
        command += [*changes, "--rows=sft_labels", "--section=small"]
        return subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    before = document.read_text()
    other = ["--seeds=2", "--change=grpo.loss.beta=0.5", "--rows=", "--others=docs"]
    for arguments, words in (
        (["--section=absent"], ["'<!-- absent: begin -->'"]),
        (["--section=r1_omni"], ["are not the results of the section 'r1_omni'"]),
        (["--section=budget", "--budgets=2"], ["need a section of their own (--section=r1_omni_budget)"]),
        (
            other,
            [
                "runs/seed-2 holds a finished run of something else:",
                "seed: 1 there, 2 asked",
                "grpo.loss.beta: 0.04 there, 0.5 asked",
                "evaluation.rows: ['sft_labels'] there, [] asked",
                f"evaluation.others: [] there, ['{tmp_path}/docs'] asked",
            ],
        ),
        # With further rows it would go on, were it the same.
        (
            ["--change=grpo.loss.beta=0.5", "--rows=sft_labels,reward_off"],
            ["runs/seed-0 holds a run with another configuration;", "grpo.loss.beta: 0.04 there, 0.5 asked"],
        ),
    ):
        refused = reproduce(*arguments)
        assert refused.returncode == 1 and all(word in refused.stderr for word in words), refused.stderr
        assert "Traceback" not in refused.stderr and refused.stdout == ""
    assert document.read_text() == before

    done = reproduce(f"--budgets={report['config']['sft']['steps']}")
    assert done.returncode == 0 and (tmp_path / "docs" / "pictures" / "small.png").is_file(), done.stderr
    assert f"| {report['config']['sft']['steps']} | GRPO − SFT, labels |" in document.read_text()
    done = reproduce()
    assert done.returncode == 0, done.stderr
    assert "steps of SFT" not in document.read_text().partition("<!-- small: begin -->")[2]
    (tmp_path / "runs" / "seed-1" / "report.json").write_text("{")
    refused = reproduce("--seeds=2")
    assert refused.returncode == 1 and refused.stderr.startswith("error: runs/seed-2/report.json is not JSON")
    assert refused.stderr.count("\n") == 1
    section = document.read_text().partition("<!-- small: begin -->")[2].partition("<!-- small: end -->")[0]
    assert document.read_text().partition("<!-- small: begin -->")[0] == before.partition("<!-- small: begin -->")[0]
    assert "mean of 2 seeds (0, 1);" in section and "and seeds (" in section and "| GRPO against SFT |" in section
    war = report["eval"]["grpo"]["war"]
    (line,) = (line for line in section.splitlines() if line.startswith("| WAR"))
    assert line.split(" | ")[2] == f"{war:.3f}"
    difference = war - report["eval"]["sft"]["war"]
    (line,) = (line for line in section.splitlines() if line.startswith("| GRPO − SFT |"))
    assert line.split(" | ")[1].startswith(f"{round(difference, 3) + 0.0:+.3f} [".replace("+0.000", "0.000"))


@pytest.mark.slow
def test_samples_are_asked_and_judged_as_the_task_says(finished):
    workdir, _ = finished
    groups = read_jsonl(workdir / "completions.jsonl")
    assert len(groups) == 4
    for group in groups:
        assert "<think>" in group["prompt"] and group["references"][0].startswith("<think>")
        for completion in group["completions"]:
            assert completion["rewards"].keys() == {"accuracy", "format", "overlong"}
            assert completion["degenerate"] is None
    (line,) = (row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == "grpo")
    assert {"rewards/accuracy/mean", "validation/rewards/format"} <= line.keys()
    assert line["validation/rewards/overlong"] < 0  # validation knows how long an answer is, too
    rows = [json.loads(row) for row in (workdir / "evaluations" / "sft.predictions.jsonl").read_text().splitlines()]
    assert rows and all(row["reading"].keys() == {"answer"} and row["rewards"].keys() == {"accuracy"} for row in rows)


@pytest.mark.slow
def test_a_file_is_asked_in_the_words_of_training(finished, tmp_path):
    workdir, _ = finished
    (tmp_path / "a.wav").write_bytes(audio_file(seconds=1.0))
    captioner = Captioner.from_pretrained(workdir / "checkpoints" / "grpo")
    assert captioner.data.instruction in read_jsonl(workdir / "completions.jsonl")[0]["prompt"]
    (answer,) = caption_clips(captioner, [Request(str(tmp_path / "a.wav"))], max_new_tokens=4)
    assert not answer.error


@pytest.mark.slow
def test_an_export_is_asked_and_judged_as_its_row_was(finished, tmp_path):
    workdir, report = finished
    export_stage(workdir / "checkpoints" / "sft_labels", tmp_path / "export")
    shards = read_run(workdir).data.path
    with RunLogger(None, enabled=False) as logger:
        own, _ = evaluate_checkpoint(workdir / "checkpoints" / "sft_labels", None, "test", logger)
        theirs, rows = evaluate_checkpoint(tmp_path / "export", Path(shards), "test", logger)
    assert own["captions"] == theirs["captions"] and own["eval"] == theirs["eval"] == report["eval"]["sft_labels"]
    assert not own["unseen_labels"] and rows[0]["reading"].keys() == {"answer"}
    captioner = Captioner.from_pretrained(tmp_path / "export")
    assert captioner.max_new_tokens == 16 and "<think>" not in captioner.data.instruction
    assert captioner.data.instruction == Captioner.from_pretrained(workdir / "checkpoints/sft_labels").data.instruction
    card = (tmp_path / "export" / "README.md").read_text()
    assert "A model that names the emotion in a clip, from" in card and "one of these classes" in card
    assert "nearest anchor" not in card and repr(captioner.data.instruction) in card
    assert 'tags: ["emotion-captioning", "emotion-recognition", "sft"' in card


@pytest.mark.slow
def test_other_clips_with_labels_that_the_set_lacks_are_left_out(finished, tmp_path, capsys):
    workdir, _ = finished
    items = [
        Utterance(f"clip-{i}", "mine", "test", f"s{i}", audio=audio_file(seconds=0.5), labels={"multimodal": label})
        for i, label in enumerate(("happy", "anxious", "sad", "anxious"))
    ]
    write(items, tmp_path / "shards", "a test", {"importer": "test"})
    with RunLogger(None) as logger:
        found, _ = evaluate_checkpoint(workdir / "checkpoints" / "grpo", tmp_path / "shards", "test", logger)
    assert found["clips"] == 2 and [clip["id"] for clip in found["quarantined"]] == ["clip-1", "clip-3"]
    assert (
        "2 clips are left out:\n  2 x has the label 'anxious', which is not in the label set" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": "../labels.toml"}, "names a set of labels elsewhere: '../labels.toml'"),
        ({"judge": "judge"}, "names files elsewhere: 'judge'"),
        ({"places": "a.csv"}, "names files elsewhere: 'a.csv'"),
        ({"name": "chat"}, "task.json cannot be read: "),
    ],
)
def test_a_strangers_export_names_no_file_elsewhere(tmp_path, change, words):
    trained = TrainedTask.of(load("configs/r1_omni.py", ["data.max_seconds=7"]))
    trained.save(tmp_path)
    assert read_trained_task(tmp_path) == trained and read_trained_task(tmp_path / "absent") is None
    text = json.loads((tmp_path / "task.json").read_text())
    (tmp_path / "task.json").write_text(json.dumps(text | {"task": text["task"] | change}))
    with pytest.raises(CheckpointError, match=words):
        read_trained_task(tmp_path)


def test_a_set_of_labels_travels_with_the_export(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('labels = [["happy", "excited"], ["sad"]]')
    trained = TrainedTask.of(
        load("configs/r1_omni.py", [f"task.labels={mine}", "task.judge=judge", "data.max_seconds=7"])
    )
    (tmp_path / "export").mkdir()
    trained.save(tmp_path / "export")
    mine.unlink()
    task = read_trained_task(tmp_path / "export").task
    assert (task.labels, task.judge) == (str(tmp_path / "export" / "labels.toml"), "")
    assert label_set(task.labels).labels == ("happy", "sad")
