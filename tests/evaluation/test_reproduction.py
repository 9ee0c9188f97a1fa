"""The documentation's tables say what the reports say, and claims are computed from intervals, not written."""

import copy
import dataclasses

import numpy as np
import pytest

from mecap_jax.evaluation.intervals import difference_over_seeds, mean
from mecap_jax.evaluation.reproduction import (
    ReproductionError,
    claims_table,
    replace_section,
    section_of,
    seed_tables,
    seeds_tables,
    summary_table,
)
from mecap_jax.evaluation.stage import EvaluatedClip, StageResult

KEYS = "emotion_reward emotion_uar emotion_word_uar bleu_4 rouge_l meteor cider_d vocabulary_size distinct_captions"
CLIPS = tuple(EvaluatedClip(f"clip-{i}", f"speaker-{i % 12}", ("a",), "sad") for i in range(48))


def stage(value, **changes):
    metrics = dict.fromkeys(KEYS.split(), value) | changes
    return metrics, {key: [value - 0.05, value + 0.05] for key, value in metrics.items()}


def report(seed, **changes):
    values = {"text_only": 0.2, "sft": 0.5, "sft_control": 0.55, "grpo_semantic": 0.56, "grpo": 0.6}
    stages = {name: stage(value) for name, value in values.items()}
    alone = {name: {"eval": stage(0.4)[0], "confidence": {}} for name in ("audio", "video")}
    made = {
        "seed": seed,
        "eval": {name: metrics for name, (metrics, _) in stages.items()},
        "confidence": {name: bounds for name, (_, bounds) in stages.items()},
        "ablation": {"sft": {**alone, "all": {"eval": stage(0.5)[0], "confidence": {}}}},
        "test": {"clips": 40, "speakers": 12},
        "intervals": {"level": 0.95, "clusters": "speakers", "resamples": 10},
        "data": {"synthetic": True},
        "made": {"date": "2026-01-02T03:04:05", "machine": "a machine", "packages": {"jax": "0.10.2"}},
    }
    return copy.deepcopy(made) | changes


def result(seed, noise=0.1, **values):
    """A stage whose metrics have these values, give or take what clips and seed add."""
    rng = np.random.default_rng(seed)
    statistics = {key: mean(value + noise * rng.normal(size=len(CLIPS))) for key, value in values.items()}
    return StageResult(CLIPS, ("a",) * len(CLIPS), (None,) * len(CLIPS), statistics, {}, "", (), None)


def stages_of(seed, **changes):
    """One seed's results; the stages draw noise of their own."""
    values = {"text_only": 0.2, "sft": 0.5, "grpo": 0.8, "reward_off": 0.5} | changes
    return {
        name: result(10 * seed + i, war=value, eea=value, meteor=0.5) for i, (name, value) in enumerate(values.items())
    }


def cells(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


REPORTS, SEEDS = [report(seed) for seed in range(3)], range(3)


def test_summary_has_means_envelopes_and_provenance():
    second = report(1)
    second["eval"]["grpo"]["bleu_4"], second["confidence"]["grpo"]["bleu_4"] = 0.8, [0.7, 0.9]
    text = summary_table([report(0), second])
    assert "| BLEU-4 ↑ | 0.500 [0.450, 0.550] | 0.700 [0.550, 0.900] |" in text
    for words in (
        "Synthetic corpus, 40 test clips of 12 held-out speakers",
        "2 seeds (0, 1)",
        "a machine",
        "2026-01-02",
    ):
        assert words in text


def test_a_table_says_how_little_few_seeds_tell():
    few = "With fewer than 5 seeds intervals mostly speak for the speakers, and hold the truth less often than in 95%"
    blind = "They know nothing of what other seeds would give, and of few speakers they are too narrow."
    assert few in summary_table(REPORTS) and blind in summary_table(REPORTS)
    many = summary_table([report(seed) for seed in range(5)])
    assert few not in many and blind in many and "mean of 5 seeds (0, 1, 2, 3, 4)" in many
    pooled = seeds_tables(REPORTS, [{"": stages_of(seed)} for seed in SEEDS])
    assert few in pooled and blind not in pooled and "95% intervals over speakers and seeds" in pooled


def test_a_metric_that_a_seed_lacks_is_unavailable():
    second = report(1)
    second["eval"]["grpo"]["meteor"], second["confidence"]["grpo"]["meteor"] = None, None
    line = next(line for line in summary_table([report(0), second]).splitlines() if "METEOR" in line)
    assert line.split(" | ")[2] == "unavailable" and line.count("unavailable") == 1


def test_claims_follow_from_paired_intervals():
    text = claims_table(REPORTS, [stages_of(seed) for seed in SEEDS])
    above = "WAR ↑, Explanations of the right emotion (EEA) ↑"
    assert cells(text, "GRPO against SFT") == [above, "", "METEOR ↑"]
    assert cells(text, "Text only against SFT") == ["", above, "METEOR ↑"]
    assert cells(text, "Reward off against SFT") == ["", "", f"{above}, METEOR ↑"]
    assert f"GRPO is above in {above}." in text and "not shown to be the reward's" not in text


def test_a_mean_that_one_seed_makes_is_no_claim():
    """The mean is above in every metric, and so would a verdict by means be: the seeds do not agree."""
    seeds = [stages_of(0, grpo=0.5), stages_of(1, grpo=0.5), stages_of(2, grpo=0.9)]
    gain = np.mean([found["grpo"].metrics["war"] - found["sft"].metrics["war"] for found in seeds])
    assert gain > 0.1
    assert cells(claims_table(REPORTS, seeds), "GRPO against SFT")[0] == ""


def test_what_the_twin_without_reward_gains_too_is_not_the_rewards():
    text = claims_table(REPORTS, [stages_of(seed, reward_off=0.8) for seed in SEEDS])
    assert cells(text, "GRPO against SFT")[0].startswith("WAR ↑")
    assert "GRPO is not told apart from it in any of these metrics." in text
    assert "so not shown to be the reward's: WAR ↑, Explanations of the right emotion (EEA) ↑." in text
    without = [{name: s for name, s in stages_of(seed).items() if name != "reward_off"} for seed in SEEDS]
    assert "What the reward did" not in claims_table(REPORTS, without)


def test_both_modalities_are_compared_with_either_alone():
    ablation = [{"sft": {"audio": result(seed, war=0.2), "video": result(seed, war=0.5)}} for seed in SEEDS]
    text = claims_table(REPORTS, [stages_of(seed) for seed in SEEDS], ablation)
    assert cells(text, "SFT: everything against audio only") == ["WAR ↑", "", ""]
    assert cells(text, "SFT: everything against video only") == ["", "", "WAR ↑"]


def test_differences_over_seeds_for_the_runs_clips_and_for_others():
    results = [{"": stages_of(seed), "there": stages_of(seed, grpo=0.5)} for seed in SEEDS]
    own, there = seeds_tables(REPORTS, results).split("The same stages on other clips, there:")
    (expected,) = difference_over_seeds(
        *([{"war": found[""][name].statistics["war"]} for found in results] for name in ("grpo", "sft")),
        [clip.cluster for clip in CLIPS],
    ).values()
    low, high = expected.interval
    assert cells(own, "GRPO − SFT")[0] == f"{expected.value:+.3f} [{low:+.3f}, {high:+.3f}]"
    assert cells(own, "GRPO against SFT")[0] and not cells(there, "GRPO against SFT")[0]


def test_systems_on_other_clips_or_speakers_do_not_compare():
    """By whatever name: a speaker who is missing in one arm, in one seed, or who is another there."""
    whole = [stages_of(seed) for seed in SEEDS]

    def changed(clips):
        kept = slice(0, len(clips))
        statistics = {key: mean(s.values[kept, 0]) for key, s in whole[1]["grpo"].statistics.items()}
        less = dataclasses.replace(whole[1]["grpo"], clips=clips, statistics=statistics)
        return [whole[0], whole[1] | {"grpo": less}, whole[2]]

    renamed = (dataclasses.replace(CLIPS[0], cluster="nobody"), *CLIPS[1:])
    for clips, words in (
        (CLIPS[:-1], "47 and 48 clips; different: 'clip-47' of 'speaker-11'"),
        (renamed, "48 and 48 clips; different: 'clip-0' of 'nobody', 'clip-0' of 'speaker-0'"),
        (CLIPS[::-1], "48 and 48 clips; different: "),
    ):
        for table in (claims_table, lambda reports, found: seeds_tables(reports, [{"": seed} for seed in found])):
            with pytest.raises(ReproductionError, match=f"seed 1, grpo: .* than seed 0, text_only .{words}"):
                table(REPORTS, changed(clips))
    with pytest.raises(ReproductionError, match=r"seed 0 has the stages .* seed 2 \['sft'\]"):
        claims_table(REPORTS, [*whole[:2], {"sft": whole[2]["sft"]}])
    with pytest.raises(ReproductionError, match="different sets of clips"):
        seeds_tables(REPORTS, [{"": whole[0]}, {"": whole[1]}, {"": whole[2], "there": whole[2]}])


def test_tables_by_seed():
    text = seed_tables([report(0), report(1)])
    assert "### Seed 0" in text and "### Seed 1" in text
    assert "| SFT, audio only | 0.400 | 0.400 |" in text
    assert "0.600 [0.550, 0.650]" in text


@pytest.mark.parametrize(
    "own, changes, named, section",
    [
        ("results", [], None, "results"),
        ("erv", [], None, "erv"),
        ("erv", ["a=1"], "erv_changed", "erv_changed"),
        ("results", ["a=1"], "grpo_changed", "grpo_changed"),
        ("results", [], "again", "again"),
    ],
)
def test_tables_go_into_a_section_of_their_own(own, changes, named, section):
    assert section_of(own, changes, named) == section


@pytest.mark.parametrize(
    "own, changes, named",
    [("results", ["a=1"], None), ("results", ["a=1"], "results"), ("erv", ["a=1"], None), ("erv", [], "results")],
)
def test_another_experiment_takes_the_place_of_no_results(own, changes, named):
    with pytest.raises(ReproductionError, match=r"not the results of the section .*\(--section=NAME\)") as refused:
        section_of(own, changes, named)
    assert all(change in str(refused.value) for change in changes)


def test_a_section_of_a_document_is_replaced():
    text = "a\n<!-- results: begin -->\nold\n<!-- results: end -->\nb\n"
    new = replace_section(text, "results", "new\n")
    assert new == "a\n<!-- results: begin -->\n\nnew\n\n<!-- results: end -->\nb\n"
    assert replace_section(new, "results", "new") == new
    with pytest.raises(ValueError, match="figures: begin"):
        replace_section(text, "figures", "")
