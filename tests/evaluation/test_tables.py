import pytest
from markdown_it import MarkdownIt

from mecap_jax.evaluation.tables import escape, format_value, markdown_table, pairs, results_table

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


def _report(seed, grpo, low, **changes):
    stages = {"sft": {"emotion_uar": 0.5, "meteor": None}, "grpo": {"emotion_uar": grpo, "meteor": None}}
    difference = {"value": grpo - 0.5, "low": low, "high": grpo}
    report = {"seed": seed, "eval": stages, "differences": {"grpo - sft": {"emotion_uar": difference}}}
    return report | {"tokenisation": "ptb", "test": {"clips": 3}} | changes


def test_table_over_seeds_by_hand():
    text = results_table([_report(0, 0.7, 0.1), _report(1, 0.9, -0.1), _report(2, 0.8, 0.2)])
    assert "seeds (0, 1, 2)" in text
    assert "| Emotion UAR, nearest anchor ↑ | 0.500 [0.500, 0.500] | 0.800 [0.700, 0.900] |" in text
    assert "| METEOR ↑ | unavailable | unavailable |" in text
    assert "| Emotion UAR, nearest anchor ↑ | +0.300 [+0.200, +0.400] (2) |" in text


def test_stages_are_compared_once():
    assert pairs(["sft", "text_only", "sft_control"]) == [("sft", "text_only"), ("sft", "sft_control")]
    assert pairs(["text_only", "grpo", "sft"]) == [("grpo", "sft"), ("grpo", "text_only"), ("text_only", "sft")]
    assert pairs(["grpo", "other"]) == [("grpo", "other")] and pairs(["sft"]) == []


def test_a_stage_that_one_seed_lacks_is_marked():
    short = _report(1, 0.9, 0.1, eval={"sft": {"emotion_uar": 0.6}}, differences={})
    text = results_table([_report(0, 0.7, 0.1), short])
    assert "0.550 [0.500, 0.600] | 0.700 (1 of 2 seeds) |" in text
    assert "+0.200 (1 of 2 seeds) (1) |" in text


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([], "at least one report"),
        ([_report(0, 0.7, 0.1)] * 2, r"seeds \[0, 0\] must differ"),
        ([_report(0, 0.7, 0.1), _report(1, 0.7, 0.1, tokenisation="words")], "'tokenisation' differs"),
        ([_report(0, 0.7, 0.1), _report(1, 0.7, 0.1, test={"clips": 4})], "'test' differs"),
    ],
)
def test_reports_that_do_not_combine(reports, message):
    with pytest.raises(ValueError, match=message):
        results_table(reports)
