import dataclasses
import functools
import json
import math

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from mecap_jax.evaluation import plots, report_html
from mecap_jax.evaluation.plots import confusion_counts
from mecap_jax.evaluation.report import ReportError, write_report
from mecap_jax.evaluation.tables import COUNTS
from tests.data.clips import audio_file, video_file
from tests.evaluation.conftest import make_stage

CHANCE = ("uar", "emotion_uar", "emotion_word_uar")
HOSTILE = 'a | b\n\n# x <script>alert(1)</script> <img src="x"> `c` **d** [e](http://f.g)'
TERMS = [{"name": name, "weight": 1.0, "schedule": []} for name in ("emotion", "rouge_l")]
CONFIG = {"name": "tiny | <b>run</b>", "seed": 3, "grpo": {"steps": 2, "reward": {"combine": "sum", "terms": TERMS}}}
DATA = {
    "source": "synthetic",
    "synthetic": True,
    "clips": {"train": 1200, "test": 60},
    "labels": {"train": {"happy": 600, "sad": 600}, "test": {"happy": 60}},
    "quarantined": [{"id": "clip-7", "reason": "no <audio> | frames"}],
}
LOG = [{"step": i, "stage": "sft", "loss": 9.0, "token_nll": 3.0 / (1 + i)} for i in range(40)] + [
    {"step": i, "stage": "grpo", "loss": 0.1, "reward": 0.5 + i / 100, "reward_std": 0.1, "kl": i / 50,
     "rewards/emotion/mean": 0.4, "rewards/rouge_l/mean": 0.2, "entropy": math.nan if i == 3 else 1.0}
    for i in range(20)
]  # fmt: skip
GROUPS = [
    {"stage": "grpo", "step": step, "utterance_id": f"clip-{step}", "label": "sad", "completions": [
        {"text": f"dull {step}", "reward": 0.5, "advantage": -1.0, "degenerate": None},
        {"text": HOSTILE, "reward": 0.5 + step / 10, "advantage": 1.0, "degenerate": None},
        {"text": "", "reward": 0.0, "advantage": None, "degenerate": "empty"},
    ]}
    for step in range(1, 11)
]  # fmt: skip


@pytest.fixture(scope="module")
def stages(corpus, meteor):
    clips, captions = corpus
    hostile = [HOSTILE, "", "平静的声音", *captions[3:]]
    return {
        "grpo": make_stage(clips, hostile, 0.95, meteor),
        "sft": make_stage(clips, captions, 0.7, meteor),
        "audio": make_stage(clips, captions, 0.4, meteor),
    }


def _write(directory, stages, **changes):
    arguments = {
        "seed": 3,
        "config": CONFIG,
        "data": DATA,
        "results": {"sft": stages["sft"], "grpo": stages["grpo"]},
        "metrics_log": LOG,
        "timing": {"total_s": 12.5, "compile_s": 3.0, "steps": {"sft": 40}},
        "resamples": 50,
    }
    return write_report(directory, **(arguments | changes))


@pytest.fixture(scope="module")
def written(tmp_path_factory, stages):
    directory = tmp_path_factory.mktemp("run")
    clips = {"clip-0": [audio_file()], "clip-1": [video_file(), b"no media"], "clip-2": [bytes(2_000_001)]}
    media = {"groups": GROUPS, "media": lambda clip: clips.get(clip, [])}
    report = _write(directory, stages, ablation={"sft": {"audio": stages["audio"]}}, samples=60, **media)
    return directory, report


def test_json_follows_the_contract(written, stages):
    directory, report = written
    assert json.loads((directory / "report.json").read_text()) == report
    assert {"seed", "config", "data", "eval", "confidence", "timing"} <= set(report)
    assert report["seed"] == 3 and report["config"] == CONFIG and report["data"] == DATA
    assert report["eval"]["grpo"] == stages["grpo"].metrics
    assert {stage: set(row) for stage, row in report["confidence"].items()} == {
        stage: set(row) for stage, row in report["eval"].items()
    }
    low, high = report["confidence"]["sft"]["bleu_4"]
    assert low < report["eval"]["sft"]["bleu_4"] < high
    gain = report["differences"]["grpo - sft"]["emotion_uar"]
    assert gain["value"] == pytest.approx(report["eval"]["grpo"]["emotion_uar"] - report["eval"]["sft"]["emotion_uar"])
    assert list(report["ablation"]["sft"]) == ["audio", "all"]
    assert report["test"]["clips"] == 60 and report["test"]["speakers"] == 5
    assert np.sum(report["confusion"]["grpo"]["counts"]) == 59  # one caption is empty


def test_floors_are_drawn_and_told(tmp_path, stages, monkeypatch):
    """Text that has learnt nothing earns most of a reward: what it earns stands beside what was learnt."""
    drawn = {}

    def keep(name, draw, *arguments):
        drawn[name] = arguments
        draw(*arguments)

    for name in ("plot_metrics", "plot_ablation"):
        monkeypatch.setattr(plots, name, functools.partial(keep, name, getattr(plots, name)))
    untrained = stages["audio"]
    results = {"sft": stages["sft"], "grpo": stages["grpo"], "text_only": stages["audio"]}
    ablation = {"sft": {"audio": stages["audio"]}}
    told = {"untrained": untrained, "untrained_is": HOSTILE}
    report = _write(tmp_path, stages, results=results, ablation=ablation, **told)
    expected = {key: value for key, value in untrained.metrics.items() if key not in COUNTS}
    assert report["untrained"]["eval"] == expected and report["untrained"]["clips"] == 60
    assert drawn["plot_metrics"][2] == {"chance": dict.fromkeys(CHANCE, 1 / 7), "untrained": expected}
    assert drawn["plot_ablation"][3].keys() == {"chance", "untrained", "text only"}
    text = (tmp_path / "report.md").read_text()
    assert f"chance 0.143, Text only {expected['emotion_word_uar']:.3f}, untrained" in text.split("## ")[0]
    assert "<script" not in text
    header, _, *table = (row.split(" | ") for row in text.split("## Results")[1].split("\n\n")[1].splitlines())
    assert header[-1] == "Untrained |" and {row[0]: row[-1] for row in table}["| Different words ↑"] == " |"


def test_markdown_tells_what_happened_and_disarms_hostile_text(written):
    directory, report = written
    text = (directory / "report.md").read_text()
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    for tag in ("<script", '<img src="x"', "<b>", 'href="http'):
        assert tag not in html
    assert html.count("<h1>") == 1
    assert "synthetic" in text.split("## Results")[0]
    assert "60 test clips of 5 speakers" in text and "95% interval from 50" in text
    assert f"{report['eval']['grpo']['emotion_uar']:.3f} [" in text
    assert "1 clip was quarantined" in text and "no &lt;audio&gt; \\| frames" in text
    assert "(empty)" in text and "平静的声音" in text
    rows = html.split("<h2>Answers</h2>")[1].split("</table>")[0].split("<tbody>")[1]
    assert rows.count("<tr>") == 60 and rows.count("<td") == 60 * 5


def test_real_clips_are_not_called_synthetic_and_keep_corpus_language_and_licence(tmp_path, stages):
    data = {
        "source": {"importer": "folder"},
        "synthetic": False,
        "datasets": {"RAVDESS": 300},
        "caption_languages": {"en": 300},
        "licences": {"CC BY-NC-SA 4.0": 300},
        "quarantined": [],
    }
    _write(tmp_path, stages, data=data)
    text = (tmp_path / "report.md").read_text()
    assert "synthetic" not in text.split("## Results")[0]
    assert "RAVDESS 300" in text and "en 300" in text and "CC BY-NC-SA 4.0 300" in text


def test_pictures_are_pictures(written):
    directory, _ = written
    text = (directory / "report.md").read_text()
    for name in "metrics differences recalls sft grpo groups confusion ablation".split():
        assert f"(plots/{name}.png)" in text
        with Image.open(directory / "plots" / f"{name}.png") as picture:
            assert picture.width == 1245 and len(np.unique(np.asarray(picture))) > 20
    assert not list(directory.glob(".*"))


def test_the_page_needs_no_other_file_and_plays_its_samples(written):
    page = (written[0] / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 8 and "plots/" not in page
    assert page.count('<audio controls preload="metadata" src="data:audio/wav;base64,') == 1
    assert page.count('<video controls preload="metadata" src="data:video/mp4;base64,') == 1
    assert "not a media file: no browser plays it" in page and "2.0 MB: too large for this page" in page
    assert "default-src 'none'" in page and "<script" not in page and 'href="http' not in page
    assert "<video" not in (written[0] / "report.md").read_text()


def test_players_stop_where_a_page_grows_too_large(monkeypatch):
    clip = audio_file()
    monkeypatch.setattr(report_html, "_MOST_BYTES_OF_ALL", len(clip) + 1)
    first, second = report_html.players(["a", "b"], lambda name: [clip]).values()
    assert first.startswith("<audio") and second.endswith("too large for this page</em>")


def test_three_lines_on_top_say_what_was_found(written, stages, tmp_path):
    directory, report = written
    recall = report["eval"]["grpo"]["emotion_word_uar"]
    verdict = (directory / "report.md").read_text().split("## ")[0].strip().splitlines()[-3:]
    assert verdict[0].startswith(f"1. **GRPO** reaches {recall:.3f} [") and verdict[0].endswith("(chance 0.143).")
    assert verdict[1].startswith("2. **Against SFT** it is better in Emotion UAR, nearest anchor, Emotion reward; ")
    assert verdict[2].startswith("3. **Not shown**: what the reward did")
    rows = {"sft": stages["sft"], "grpo": stages["grpo"], "text_only": stages["audio"], "reward_off": stages["sft"]}
    _write(tmp_path, stages, results=rows)
    text = (tmp_path / "report.md").read_text()
    assert (
        ", Text only 0." in text and "3. **By the reward**, against “Reward off”, it is better in Emotion UAR" in text
    )
    _write(tmp_path, stages, results={"sft": stages["sft"]})
    assert "2. **Not compared**: there was no reinforcement learning." in (tmp_path / "report.md").read_text()


def test_recalls_stand_below_with_intervals(written):
    directory, report = written
    recalls = report["recalls"]["sft"]
    assert np.mean([entry["value"] for entry in recalls.values()]) == pytest.approx(
        report["eval"]["sft"]["emotion_uar"]
    )
    happy = recalls["happy"]
    assert happy["low"] <= happy["value"] <= happy["high"]
    assert f"| happy | {happy['value']:.3f} [{happy['low']:.3f}, " in (directory / "report.md").read_text()


def test_a_confusion_has_a_column_for_no_emotion():
    counts = confusion_counts(
        ["sad", None, "proud", "happy", "sad"], ["sad", "sad", "sad", "happy", None], ["happy", "sad"]
    )
    assert counts.tolist() == [[1, 0, 0], [0, 1, 2]]


def test_the_groups_with_most_to_learn_from_are_shown(written):
    text = (written[0] / "report.md").read_text().split("most to learn from")[1]
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows[:5]] == ["| 10", "| 9", "| 8", "| 7", "| 6"]
    assert "1.50: “a \\| b" in rows[0] and "0.50: “dull 10”" in rows[0]


def test_a_bare_report(tmp_path, stages):
    one = dataclasses.replace(
        stages["sft"], clips=tuple(dataclasses.replace(clip, cluster="same") for clip in stages["sft"].clips)
    )
    report = _write(tmp_path, stages, results={"sft": one}, metrics_log=[], data=DATA | {"quarantined": []})
    text = (tmp_path / "report.md").read_text()
    assert set(report["confidence"]["sft"].values()) == {None}
    assert "There are no intervals" in text and "No clip was quarantined" in text
    assert "What changed" not in text and "## Training" not in text
    assert "Unavailable" not in text


def test_unavailable_metrics_say_why(tmp_path, stages, no_java, corpus):
    _write(tmp_path, stages, results={"sft": make_stage(*corpus, 0.5)})
    text = (tmp_path / "report.md").read_text()
    assert "| METEOR ↑ | unavailable |" in text
    assert "Unavailable: `meteor`" in text and "no \\`java\\` on the PATH" in text
    assert "there is no Java" in text


def test_a_report_credits_the_reward_with_what_its_twin_lacks(tmp_path, stages, written):
    """Whatever Emo-GRPO gains over SFT: where the twin without reward is the same, nothing is the reward's."""
    results = {"sft": stages["sft"], "grpo": stages["grpo"], "reward_off": stages["grpo"]}
    report = _write(tmp_path, stages, results=results, others={"there": results})
    gain = report["differences"]["grpo - sft"]["emotion_uar"]
    assert gain["low"] > 0
    text = (tmp_path / "report.md").read_text()
    assert text.count("GRPO is not told apart from it in any of these metrics.") == 2  # on the other clips, too
    (line,) = {line for line in text.splitlines() if "not shown to be the reward's" in line}
    assert "Emotion UAR, nearest anchor ↑" in line.partition("the reward's: ")[2]
    assert "What the reward did" not in (written[0] / "report.md").read_text()


def test_bad_input_is_named(tmp_path, stages):
    short = dataclasses.replace(stages["grpo"], clips=stages["grpo"].clips[1:])
    for changes, message in (
        ({"results": {}}, "at least one stage"),
        ({"data": {"synthetic": False}}, "must say 'quarantined'"),
        ({"results": {"sft": stages["sft"], "grpo": short}}, "'sft' and 'grpo' captioned different clips"),
        ({"ablation": {"other": {}}}, r"ablation of \['other'\]"),
        ({"metrics_log": [{"step": 0}, {"reward": 1.0}]}, "row 1 of the metrics log has no 'step'"),
        ({"timing": {"total_s": math.nan}}, "report key 'timing' cannot be written"),
        ({"config": {"name": {1, 2}}}, "report key 'config' cannot be written"),
    ):
        with pytest.raises(ReportError, match=message):
            _write(tmp_path, stages, **changes)
    assert not (tmp_path / "report.json").exists()
