import pytest
from markdown_it import MarkdownIt

from mecap_jax.evaluation.tables import (
    escape,
    format_value,
    markdown_table,
    pairs,
    reward_verdict,
    stage_title,
    verdict,
    verdict_cells,
)

HOSTILE = [
    "a | b",
    "line\nbreak\r\n\n# heading",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "**bold** _it_ ~~gone~~ `code` [link](javascript:alert(1)) ![p](http://x.y/z.png)",
    "\\| \\",
    "| --- | --- |",
    "&lt; &amp; $x$",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is_and_does_nothing(text):
    table = markdown_table(["a", "b"], [[escape(text), "end"]])
    html = MarkdownIt("gfm-like", {"linkify": False}).render(table)
    body = html.split("<tbody>")[1]
    assert body.count("<td") == 2 and body.count("<tr>") == 1
    for tag in ("<script", "<img", "<a ", "<strong", "<em>", "<code", "<s>", "<h1"):
        assert tag not in body
    shown = body.split(">", 2)[2].split("</td>")[0].replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
    assert shown.replace("&amp;", "&") == " ".join(text.split())


def test_invisible_characters_are_spelled_out_and_long_text_is_cut():
    assert escape("a\u202eb\x00c") == r"a\\u202eb\\u0000c"  # Markdown shows one backslash
    assert escape("x" * 500) == "x" * 400 + "…"


def test_bare_addresses_are_no_links():
    text = escape("see https://evil.example, www.evil.example or me@evil.example")
    assert "://" not in text and "www." not in text and "@" not in text


def test_values():
    assert format_value("bleu_4", 0.31449, (0.3, 0.333)) == "0.314 [0.300, 0.333]"
    assert format_value("vocabulary_size", 1234.0, (1200.4, 1267.6)) == "1,234 [1,200, 1,268]"
    assert format_value("rouge_l", -0.0001, (-0.01, 0.0), signed=True) == "0.000 [-0.010, 0.000]"
    assert format_value("meteor", None) == "unavailable"


def test_stages_have_the_names_that_people_know():
    names = ("sft", "grpo_semantic", "gpt2_sft", "bart_sft", "qwen2_sft", "reward_off")
    titles = ["SFT", "GRPO, semantic", "GPT-2, SFT", "BART, SFT", "Qwen2, SFT", "Reward off"]
    assert list(map(stage_title, names)) == titles


def test_stages_are_compared_once():
    assert pairs(["sft", "text_only", "sft_control"]) == [("sft", "text_only"), ("sft", "sft_control")]
    assert pairs(["text_only", "grpo", "sft"]) == [("grpo", "sft"), ("grpo", "text_only"), ("text_only", "sft")]
    assert pairs(["grpo", "other"]) == [("grpo", "other")] and pairs(["sft"]) == []


@pytest.mark.parametrize(
    "low, high, word",
    [(0.1, 0.2, "above"), (-0.2, -0.1, "below"), (-0.1, 0.2, "not told apart"), (None, None, "not told apart"),
     (0.0, 0.2, "not told apart"), (-0.2, 0.0, "not told apart")],
)  # fmt: skip
def test_an_interval_says_one_of_three_things(low, high, word):
    assert verdict(low, high) == word


def test_metrics_stand_under_what_was_told_of_them():
    cells = verdict_cells({"meteor": "above", "war": "above", "affect_error": "below", "uar": "not told apart"})
    assert cells == ["WAR ↑, METEOR ↑", "Distance to the right emotion ↓", "UAR ↑"]


def test_what_the_twin_without_reward_does_is_not_the_rewards():
    gains = {"war": "above", "uar": "above", "eea": "not told apart"}
    assert reward_verdict({"sft": gains}) == ""
    text = reward_verdict({"sft": gains, "reward_off": gains | {"uar": "not told apart"}})
    assert "GRPO is above in WAR ↑." in text
    assert "Told apart from SFT but not from “Reward off”, so not shown to be the reward's: UAR ↑." in text
    text = reward_verdict({"sft": gains, "reward_off": dict.fromkeys(gains, "not told apart")})
    assert "GRPO is not told apart from it in any of these metrics." in text and "the reward's: WAR ↑, UAR ↑." in text
    assert "below in WAR ↑" in reward_verdict({"reward_off": {"war": "below"}})  # a model without SFT
