"""R1-Omni's recipe in small, from shards to a report: cold start on rationales, reinforcement learning on labels."""

import json

import pytest

from mecap_jax.captioner import Captioner
from mecap_jax.captioning import Request, caption_clips
from mecap_jax.config import load
from mecap_jax.experiment import story
from mecap_jax.training.logging import read_jsonl
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
    "evaluation.rows=sft_labels",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared):
    workdir = tmp_path_factory.mktemp("recognition") / "run"
    small = [item for item in SMALL if not item.startswith("evaluation.rows")]
    config = load("configs/r1_omni.py", [*small, *SETTINGS, *shared])
    return workdir, story.run(config, workdir)


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
def test_samples_are_asked_and_judged_as_the_task_says(finished):
    workdir, _ = finished
    groups = read_jsonl(workdir / "completions.jsonl")
    assert len(groups) == 4
    for group in groups:
        assert "<think>" in group["prompt"] and group["references"][0].startswith("<think>")
        for completion in group["completions"]:
            assert completion["rewards"].keys() == {"accuracy", "format"} and completion["degenerate"] is None
    (line,) = (row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == "grpo")
    assert {"rewards/accuracy/mean", "validation/rewards/format"} <= line.keys()
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
