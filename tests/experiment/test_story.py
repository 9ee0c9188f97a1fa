"""The whole story in small: synthetic media files, SFT, Emo-GRPO, comparison rows, report; stopped and resumed."""

import dataclasses
import functools
import gc
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mecap_jax.config import ConfigError, RowConfig, load
from mecap_jax.config.overrides import override as override_config
from mecap_jax.evaluation.decoding import Caption
from mecap_jax.evaluation.reproduction import seeds_tables
from mecap_jax.evaluation.stage import EvaluatedClip, StageResult
from mecap_jax.experiment import scoring, stages, story, weights
from mecap_jax.experiment.export import export_stage
from mecap_jax.experiment.scoring import evaluate_checkpoint, score_captions
from mecap_jax.experiment.setup import reopen
from mecap_jax.interruption import Interrupted
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.rewards.anchors import Anchors
from mecap_jax.sharding import make_mesh
from mecap_jax.tasks.captioning import Captioning
from mecap_jax.training.checkpointing import latest_step
from mecap_jax.training.logging import RunLogger, read_jsonl
from tests import documented

SMALL = (
    "data.synthetic.clips=90",
    "data.cache_mb=64",
    "data.sft_share=0.5",
    "model.decoder.vocab_size=512",
    "model.decoder.hidden_size=32",
    "model.decoder.intermediate_size=32",
    "model.decoder.num_hidden_layers=1",
    "model.decoder.head_dim=8",
    "model.decoder.mrope_section=(1,1,2)",
    "model.audio.d_model=16",
    "model.audio.encoder_layers=1",
    "model.audio.encoder_attention_heads=2",
    "model.audio.encoder_ffn_dim=16",
    "model.vision.hidden_size=16",
    "model.vision.intermediate_size=16",
    "model.vision.num_heads=2",
    "sft.steps=3",
    "sft.batch_clips=8",
    "sft.max_target_tokens=24",
    "sft.validate_every=2",
    "grpo.steps=2",
    "grpo.prompts=16",
    "grpo.micro_prompts=1",
    "grpo.group_size=2",
    "grpo.max_new_tokens=8",
    "grpo.optimizer.name=adamw",  # SFT has Muon, whose update takes three times as long to compile
    "grpo.validate_every=0",
    "evaluation.batch_clips=2",
    "evaluation.bootstrap=20",
    "evaluation.samples=4",
    "evaluation.rows=text_only,sft_control,grpo_semantic",
)
ROWS = "evaluation.rows=text_only,sft_control,grpo_semantic,bart_sft"
METRICS = (
    "bleu_1 bleu_2 bleu_3 bleu_4 rouge_l meteor cider_d sbert_similarity emotion_reward emotion_uar emotion_war "
    "emotion_word_uar retrieval vocabulary_size distinct_1 distinct_2 distinct_captions repetition mean_length"
).split()


def small(*overrides):
    return load("configs/grpo.py", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared):
    """A run that was stopped in the middle of each main stage; the README's with rows of comparison, in small."""
    config = load("configs/grpo.py", [*documented.overrides("runs/seed-1"), *SMALL, ROWS, *shared])
    workdir = tmp_path_factory.mktemp("story") / "run"
    with pytest.raises(Interrupted, match="sft: stopped after step 2 of 3"):
        story.run(config, workdir, lambda step: step == 2)
    with pytest.raises(Interrupted, match="grpo: stopped after step 1 of 2"):
        story.run(config, workdir, lambda step: step == 1)
    return config, workdir, story.run(config, workdir)


@pytest.mark.slow
def test_who_may_read_new_files_may_read_all_of_a_run(finished, tmp_path):
    _, workdir, _ = finished
    (tmp_path / "new").touch()
    usual = (tmp_path / "new").stat().st_mode
    files = [path for path in workdir.rglob("*") if path.is_file() and path.name != "run.lock"]
    assert workdir / "anchors.safetensors" in files
    assert {str(path): oct(path.stat().st_mode) for path in files if path.stat().st_mode != usual} == {}


@pytest.mark.slow
def test_the_report_holds_every_stage_and_metric(finished):
    _, workdir, _ = finished
    report = json.loads((workdir / "report.json").read_text())
    stages = {"sft", "grpo", "text_only", "sft_control", "grpo_semantic", "bart_sft"}
    assert set(report) >= {"seed", "config", "data", "eval", "confidence", "timing"}
    assert set(report["eval"]) == set(report["confidence"]) == stages
    for stage in stages:
        assert set(METRICS) <= set(report["eval"][stage])
        low, high = report["confidence"][stage]["emotion_reward"]
        assert low <= report["eval"][stage]["emotion_reward"] <= high
    assert sum(report["data"]["speech_languages"].values()) == sum(report["data"]["caption_languages"].values())
    assert set(report["data"]["speech_languages"]) == {"en", "zh"}
    assert r"| speech\_languages | " in (workdir / "report.md").read_text()
    assert report["data"]["synthetic"] is True and report["data"]["quarantined"] == []
    assert report["data"]["used"]["train"] == report["data"]["sft_clips"] + report["data"]["held_out_from_sft"]
    assert report["timing"]["total_s"] > 0 and set(report["timing"]["steps"]) == stages


@pytest.mark.slow
def test_a_row_with_another_decoder_is_opened_with_its_own_network(finished, tmp_path):
    config, workdir, _ = finished
    paths = {name: workdir / "checkpoints" / name for name in ("sft", "bart_sft")}
    models = {name: weights.open_stage(path, make_mesh(config.mesh)) for name, path in paths.items()}
    assert models["bart_sft"].config.model.decoder.encoder and not models["sft"].config.model.decoder.encoder
    assert "encoder" in models["bart_sft"].params["language_model"]
    with pytest.raises(ConfigError, match="bart_sft is a row of comparison with another 'model.decoder'"):
        export_stage(paths["bart_sft"], tmp_path / "out")
    branch = dataclasses.replace(config, init_from=str(paths["bart_sft"]))
    with pytest.raises(ConfigError, match=r"of another model:\n.*model.decoder.encoder: .* there, None asked"):
        weights.check_init_from(branch)
    weights.check_init_from(dataclasses.replace(branch, model=models["bart_sft"].config.model))


@pytest.mark.slow
def test_what_a_workdir_holds(finished):
    _, workdir, _ = finished
    for name in ("config.json", "report.md", "processor", "anchors.safetensors", "tensorboard"):
        assert (workdir / name).exists(), name
    assert len(list((workdir / "plots").glob("*.png"))) >= 8
    assert (workdir / "report.html").read_text().count("<video controls") == 4  # its samples
    text = (workdir / "report.md").read_text()
    assert "synthetic" in text and "audio only" in text.lower()
    for stage, steps in (("sft", 3), ("grpo", 2), ("text_only", 3), ("grpo_semantic", 2), ("bart_sft", 3)):
        assert latest_step(workdir / "checkpoints" / stage) == steps


@pytest.mark.slow
def test_a_floor_is_what_random_text_earns(finished):
    _, workdir, report = finished
    rows = read_jsonl(workdir / "evaluations" / "untrained.predictions.jsonl")
    floor = report["untrained"]
    assert floor["clips"] == len(rows) == min(100, report["test"]["clips"]) and {row["step"] for row in rows} == {None}
    assert np.mean([row["rewards"]["emotion"] for row in rows]) == pytest.approx(floor["eval"]["emotion_reward"])
    assert floor["eval"]["rouge_l"] < 0.2 and not {"vocabulary_size", "distinct_2"} & set(floor["eval"])
    text = (workdir / "report.md").read_text()
    assert f"untrained {floor['eval']['emotion_word_uar']:.3f}" in text.split("## ")[0]
    assert f"“Untrained” is {scoring.RANDOM_TEXT}, on {floor['clips']} of the clips, drawn at random" in text


@pytest.mark.slow
def test_steps_in_the_time_of_another_stage_are_measured_once(finished, tmp_path):
    _, workdir, report = finished
    shutil.copy(workdir / "metrics.jsonl", tmp_path)
    with RunLogger(None) as logger:
        bench = dataclasses.replace(reopen(workdir, None, logger), workdir=tmp_path)
    row, seconds = RowConfig("again", "sft", time_of="grpo"), report["timing"]["steps"]
    steps = story._steps_in_time_of(bench, row)
    assert steps == max(1, round(2 * seconds["grpo"] / seconds["sft"]))
    (tmp_path / "metrics.jsonl").unlink()
    assert story._steps_in_time_of(bench, row) == steps


@pytest.mark.slow
def test_logs_name_metrics_as_trl_does(finished):
    _, workdir, _ = finished
    rows = [row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == "grpo"]
    assert [row["step"] for row in rows] == [1, 2]
    names = "reward reward_std frac_reward_zero_std kl entropy policy_loss completions/mean_length rewards/emotion/mean"
    assert set(names.split()) <= set(rows[0])
    parts = [f"timing_s/{name}" for name in ("data", "transfer", "rollout", "reward_wait", "update")]
    assert {"timing_s/reference", *parts} <= set(rows[0])
    assert all(row["timing_s/step"] >= sum(row[part] for part in parts) for row in rows)
    assert all(row["perf/mfu/update"] > 0 and row["flops/update"] < row["flops"] for row in rows)
    assert [row["rewards/emotion/failures"] for row in rows] == [0, 0]
    for stage in ("sft", "grpo"):
        rows = [row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == stage]
        assert all(row["learning_rate"] > 0 for row in rows)
        rates = [f"perf/{name}" for name in ("clips_per_s", "prompt_tokens_per_s", "completion_tokens_per_s", "mfu")]
        assert all(row[name] > 0 for row in rows for name in rates)
        assert [row["num_clips"] for row in rows] == [{"sft": 8, "grpo": 16}[stage]] * len(rows)
        assert [row["epoch"] / row["step"] for row in rows] == pytest.approx([rows[0]["epoch"]] * len(rows))
    groups = [row for row in read_jsonl(workdir / "completions.jsonl") if row["stage"] == "grpo"]
    assert len(groups) == 2 * 16 and len(groups[0]["completions"]) == 2
    sample = groups[0]["completions"][0]
    assert {"text", "reward", "rewards", "advantage", "degenerate", "finished"} <= set(sample)
    assert groups[0]["prompt"] and "transcript" in groups[0]
    assert {"emotion", "fluency"} <= set(sample["rewards"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_meteor")
def test_a_finished_run_is_only_reported_again(finished, monkeypatch):
    config, workdir, first = finished
    monkeypatch.setattr(story, "caption_stage", lambda *_: pytest.fail("clips are captioned again"))
    again = story.run(config, workdir, lambda step: pytest.fail("a step was taken"))
    assert again["eval"] == first["eval"]


@pytest.mark.slow
def test_a_run_keeps_what_every_stage_said(finished):
    _, workdir, report = finished
    conditions = ("", ".audio", ".video")
    names = {f"{stage}{condition}" for stage in ("sft", "grpo") for condition in conditions}
    names |= {"text_only", "sft_control", "grpo_semantic", "bart_sft", "untrained"}
    assert {path.name for path in (workdir / "evaluations").iterdir()} == {f"{n}.predictions.jsonl" for n in names}
    rows = read_jsonl(workdir / "evaluations" / "grpo.predictions.jsonl")
    assert len(rows) == report["test"]["clips"] and {row["step"] for row in rows} == {2}
    assert np.mean([row["rewards"]["emotion"] for row in rows]) == pytest.approx(
        report["eval"]["grpo"]["emotion_reward"]
    )
    right = [row["reading"]["anchor"] == row["label"] for row in rows]
    assert np.mean(right) == pytest.approx(report["eval"]["grpo"]["emotion_war"])
    assert all(row["references"] and row["finished"] in (True, False) for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("one_meteor")
def test_the_report_is_written_again_without_captioning(finished, monkeypatch):
    _, workdir, report = finished
    before = (workdir / "report.md").read_text()
    (workdir / "report.md").unlink()
    monkeypatch.setattr(story, "stage_trainable", lambda *_: pytest.fail("weights are read"))
    evaluated, scored = story.evaluated_again, []
    monkeypatch.setattr(story, "evaluated_again", lambda *asked: scored.append(evaluated(*asked)) or scored[-1])
    with RunLogger(None) as logger:
        again = story.report_again(workdir, logger)
    same = report.keys() - {"made", "timing"}
    assert {key: again[key] for key in same} == {key: report[key] for key in same}
    assert (workdir / "report.md").read_text().splitlines()[:1] == before.splitlines()[:1]
    ((_, found),) = scored
    tables = seeds_tables([again], [{"": found.results}], [found.ablation])
    for compared in ("GRPO against SFT, control", "Text only against SFT", "GRPO: everything against video only"):
        assert f"| {compared} |" in tables


@pytest.mark.slow
@pytest.mark.usefixtures("one_meteor")
def test_captions_of_another_step_are_not_taken(finished, tmp_path):
    _, workdir, _ = finished
    for name in ("config.json", "processor", "anchors.safetensors", "checkpoints", "metrics.jsonl"):
        (tmp_path / name).symlink_to(workdir / name)
    shutil.copytree(workdir / "evaluations", tmp_path / "evaluations")
    path = tmp_path / "evaluations" / "sft.audio.predictions.jsonl"
    path.write_text(path.read_text().replace('"step": 3', '"step": 2'))
    with RunLogger(None) as logger, pytest.raises(ConfigError, match="no captions of sft from audio only"):
        story.report_again(tmp_path, logger)


@pytest.mark.slow
def test_captions_outlive_a_failure_in_their_scores(finished, tmp_path, monkeypatch):
    _, workdir, _ = finished
    with RunLogger(None) as logger:
        bench = dataclasses.replace(reopen(workdir, None, logger), workdir=tmp_path)
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    path, decoded, damaged = tmp_path / "evaluations" / "sft.predictions.jsonl", *bench.dataset.clips("test")[:2]
    said = {decoded: Caption("a low voice", True)}

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(scoring, "score_captions", fail)
        scoring.evaluate_stage(bench, "sft", [decoded, damaged], None, lambda: said)
    assert [row["caption"] for row in read_jsonl(path)] == ["a low voice", None]
    clip = EvaluatedClip(bench.dataset.index[decoded].id, "", ("a",), None)
    result = StageResult((clip,), ("a low voice",), (None,), {}, {}, "", (), None)
    monkeypatch.setattr(scoring, "score_captions", lambda *_: result)
    scoring.evaluate_stage(bench, "sft", [decoded, damaged], None, lambda: pytest.fail("captioned again"))
    assert [row.get("reading") is None for row in read_jsonl(path)] == [False, True]


@pytest.mark.slow
@pytest.mark.usefixtures("one_meteor")
def test_a_checkpoint_can_be_evaluated_by_itself(finished):
    config, workdir, report = finished
    with RunLogger(None) as logger:
        found, rows = evaluate_checkpoint(workdir / "checkpoints" / "grpo", Path(config.data.path), "test", logger)
        assert rows == read_jsonl(workdir / "evaluations" / "grpo.predictions.jsonl")
        assert found["eval"] == report["eval"]["grpo"] and found["split"] == "test"
        assert found["confidence"] == json.loads(json.dumps(report["confidence"]["grpo"]), object_hook=_tuples)
        assert len(found["captions"]) == found["clips"]
        with pytest.raises(CheckpointError, match="is a run; name one of its stages, RUN/checkpoints/STAGE"):
            evaluate_checkpoint(workdir, None, "test", logger)
        with pytest.raises(ConfigError, match="RUN/checkpoints/STAGE"):
            evaluate_checkpoint(workdir / "none", None, "test", logger)
        with pytest.raises(ConfigError, match="holds no run"):
            evaluate_checkpoint(workdir / "checkpoints" / "checkpoints" / "grpo", None, "test", logger)


class _Asked(Exception):
    """What was to be captioned."""


@pytest.mark.slow
def test_clips_without_references_are_not_evaluated(finished, monkeypatch):
    """As are training clips of which a run knows a label alone."""
    config, workdir, _ = finished
    targets, logger, lines = Captioning.targets, RunLogger(None), []

    def caption_stage(bench, stage, graphdef, params, numbers, longest):
        raise _Asked(*([bench.dataset.index[n].id for n in some] for some in (numbers, bench.dataset.clips("train"))))

    monkeypatch.setattr(Captioning, "usable", lambda self, record: None)
    monkeypatch.setattr(Captioning, "targets", lambda self, clip: () if "1" in clip.id else targets(self, clip))
    monkeypatch.setattr(logger, "say", lines.append)
    monkeypatch.setattr(scoring, "caption_stage", caption_stage)
    with pytest.raises(_Asked) as asked:
        evaluate_checkpoint(workdir / "checkpoints" / "grpo", Path(config.data.path), "train", logger)
    captioned, known = asked.value.args
    assert captioned == [id for id in known if "1" not in id] != known
    assert lines[-1].startswith(f"{len(known) - len(captioned)} clips are left out: nothing is known")


def _tuples(mapping):
    return {key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("one_meteor")
def test_what_earns_nothing_in_training_earns_nothing_in_evaluation(finished):
    _, workdir, _ = finished
    with RunLogger(None) as logger:
        bench = reopen(workdir, None, logger)
    rows = bench.dataset.clips("test")[:4]
    good = [bench.dataset.targets(row)[0] for row in rows]
    said = [Caption(good[0], True), Caption(good[1], False), Caption("", True), Caption(f"{good[3]} {good[3]}", True)]
    with scoring.Meteor() as meteor:
        metrics = score_captions(bench, dict(zip(rows, said)), meteor).metrics
    assert metrics["emotion_reward"] == pytest.approx(1 / 4, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "override, beside, moves",
    [
        ("grpo.loss.beta=0", 0, False),
        ("grpo.loss.beta=0.04", 1, False),
        ("model.dtype=bfloat16", 0.5, False),  # as it is used, not as what trains is stored
        ("grpo.reference_sync_steps=2", 0, True),
    ],
)
def test_a_reference_policy_is_held_only_where_it_is_asked_for(
    finished, tmp_path, monkeypatch, override, beside, moves
):
    """`beside` counts copies of what trains that are no part of the state."""
    _, workdir, _ = finished
    with RunLogger(None) as logger:
        bench = dataclasses.replace(reopen(workdir, None, logger), workdir=tmp_path)
    model = weights.open_model(bench.config, bench.mesh)
    start = functools.partial(weights.stage_trainable, bench.config, workdir, bench.mesh, "sft")
    copy = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model.trainable))
    found = []

    def held():
        gc.collect()
        return sum(x.nbytes for x in jax.live_arrays())

    def begin(name, abstract, initial, *_, **__):
        found.append(round((held() - before) / copy, 1))
        state = initial()
        found.append(round((held() - before - sum(x.nbytes for x in jax.tree.leaves(state))) / copy, 1))
        found.append(state.reference is not None)

    monkeypatch.setattr(stages, "run_stage", begin)
    before, config = held(), override_config(bench.config, [override])
    bench = dataclasses.replace(bench, config=config)
    stages.train_grpo(bench, "again", config.grpo, model, start, lambda step: False)
    assert found == [beside, beside, moves]


@pytest.mark.slow
def test_a_finished_stage_goes_on_with_more_steps_until_another_has_started_from_it(finished, tmp_path):
    config, workdir, _ = finished
    more = dataclasses.replace(config, sft=dataclasses.replace(config.sft, steps=4))
    with pytest.raises(ConfigError, match="sft.steps: 3 there, 4 asked; grpo has started from step 3"):
        story.run(more, workdir)
    kept = {path: path.stat().st_mtime_ns for path in (workdir / "checkpoints" / "sft").rglob("*")}
    assert kept and (workdir / "report.json").is_file()
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("grpo*", "text_only", "sft_control"))
    with pytest.raises(Interrupted, match="sft: stopped after step 4 of 4"):
        story.run(more, tmp_path / "run", lambda step: True)
    rows = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if row["stage"] == "sft"]
    before = [row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == "sft"]
    assert rows[:3] == before and [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.slow
def test_another_configuration_is_refused(finished):
    config, workdir, _ = finished
    other = dataclasses.replace(config, seed=2)
    with pytest.raises(ConfigError, match="seed: 1 there, 2 asked"):
        story.run(other, workdir)


@pytest.mark.slow
def test_anchors_of_another_encoder_are_refused(finished, tmp_path):
    config, workdir, _ = finished
    anchors = Anchors.load(workdir / "anchors.safetensors")
    path = tmp_path / "anchors.safetensors"
    dataclasses.replace(anchors, encoder="another", encoder_sha256="0" * 64).save(path)
    other = small(f"data.path={config.data.path}", f"encoder.anchors={path}")
    with pytest.raises(ConfigError, match="'encoder.anchors'.*another"):
        story.run(other, tmp_path / "run")


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(finished, tmp_path):
    config, workdir, _ = finished
    shutil.copytree(workdir / "checkpoints" / "sft", tmp_path / "run" / "checkpoints" / "sft")
    other = small(f"data.path={config.data.path}", "model.name=larger", "model.decoder.intermediate_size=48")
    with pytest.raises(ValueError, match="(?s)larger.*tiny|tiny.*larger"):
        story.run(other, tmp_path / "run")
