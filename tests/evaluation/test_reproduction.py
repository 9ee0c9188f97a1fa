"""The documentation's tables say what the reports say, and claims are computed, not written."""

import copy

import pytest

from mecap_jax.evaluation.reproduction import claims_table, replace_section, seed_tables, summary_table

KEYS = "emotion_reward emotion_uar emotion_word_uar bleu_4 rouge_l meteor cider_d vocabulary_size distinct_captions"


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


def test_summary_has_means_envelopes_and_provenance():
    second = report(1)
    second["eval"]["grpo"]["bleu_4"], second["confidence"]["grpo"]["bleu_4"] = 0.8, [0.7, 0.9]
    text = summary_table([report(0), second])
    assert "| BLEU-4 ↑ | 0.500 [0.450, 0.550] | 0.700 [0.550, 0.900] |" in text
    for words in ("Synthetic corpus, 40 test clips of 12 held-out speakers", "seeds 0, 1", "a machine", "2026-01-02"):
        assert words in text


def test_a_metric_that_a_seed_lacks_is_unavailable():
    second = report(1)
    second["eval"]["grpo"]["meteor"], second["confidence"]["grpo"]["meteor"] = None, None
    line = next(line for line in summary_table([report(0), second]).splitlines() if "METEOR" in line)
    assert line.split(" | ")[2] == "unavailable" and line.count("unavailable") == 1


def test_claims_that_hold_and_that_do_not():
    good = claims_table([report(0), report(1)])
    assert "| 2 of 2 |" in good and "1 of 2" not in good
    assert "yes: 0.600 against 0.550" in good

    bad = report(1)
    bad["eval"]["grpo"] |= {"emotion_uar": 0.4, "bleu_4": 0.4, "vocabulary_size": 0.1, "emotion_word_uar": 0.3}
    bad["ablation"]["sft"]["audio"]["eval"]["emotion_uar"] = 0.5  # as good as both
    text = claims_table([report(0), bad])
    for words in ("above SFT in Emotion UAR, nearest anchor", "lower bound of SFT in BLEU-4", "either modality"):
        line = next(line for line in text.splitlines() if words in line)
        assert "1 of 2 (seeds 0)" in line, line
    assert "Emo-GRPO above SFT in Emotion reward ↑ | 2 of 2 |" in text
    assert "no: 0.450 against 0.550" in text and "Mean vocabulary: Emo-GRPO above SFT | no" in text


def test_tables_by_seed():
    text = seed_tables([report(0), report(1)])
    assert "### Seed 0" in text and "### Seed 1" in text
    assert "| SFT, audio only | 0.400 | 0.400 |" in text
    assert "0.600 [0.550, 0.650]" in text


def test_a_section_of_a_document_is_replaced():
    text = "a\n<!-- results: begin -->\nold\n<!-- results: end -->\nb\n"
    new = replace_section(text, "results", "new\n")
    assert new == "a\n<!-- results: begin -->\n\nnew\n\n<!-- results: end -->\nb\n"
    assert replace_section(new, "results", "new") == new
    with pytest.raises(ValueError, match="figures: begin"):
        replace_section(text, "figures", "")
