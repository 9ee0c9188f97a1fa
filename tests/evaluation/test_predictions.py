"""What is kept of a stage's captions comes back, or is refused by file and line."""

import pytest

from mecap_jax.evaluation.decoding import Caption
from mecap_jax.evaluation.predictions import (
    PredictionsError,
    bare_prediction,
    predictions,
    read_captions,
    write_predictions,
)
from tests.evaluation.conftest import make_stage

GOOD = '{"id": "a", "step": 3, "caption": "a sad\\u2028voice", "finished": true}\n'


def test_captions_come_back_with_how_they_were_read(corpus, no_java, tmp_path):
    clips, captions = corpus
    result = make_stage(clips, ["", "a\u2028sad \U0001f622 voice", *captions[2:]], accuracy=0.7)
    finished = [i % 3 > 0 for i in range(len(clips))]
    rows = predictions(result, finished, step=7)
    assert [row["id"] for row in rows] == [clip.id for clip in clips]
    assert [row["reading"]["anchor"] for row in rows] == list(result.predicted) and rows[0]["reading"]["anchor"] is None
    hits = [row["reading"]["anchor"] == row["label"] for row in rows]
    assert sum(hits) / len(hits) == pytest.approx(result.metrics["emotion_war"])
    path = tmp_path / "evaluations" / "grpo.predictions.jsonl"
    write_predictions(path, [*rows, bare_prediction("damaged", 7, None)])
    kept = read_captions(path, 7)
    assert kept.pop("damaged", "") is None
    assert kept == {clip.id: Caption(*pair) for clip, *pair in zip(clips, result.captions, finished)}
    assert read_captions(path, None).items() > kept.items() and read_captions(path, 8) == {}
    assert read_captions(tmp_path / "absent.jsonl", 7) == {}
    write_predictions(path, [bare_prediction("a", None, Caption("not scored yet", False))])
    assert read_captions(path, None) == {"a": Caption("not scored yet", False)}


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"id": "b"}', '{"id": 1, "step": 3, "caption": "x", "finished": true}', "NaN", "\xff"]
)
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "sft.predictions.jsonl"
    path.write_bytes(GOOD.encode() + damage.encode("latin-1") + b"\n")
    with pytest.raises(PredictionsError, match=r"sft\.predictions\.jsonl, line 2, is no prediction"):
        read_captions(path, 3)
    path.write_text(GOOD)
    assert read_captions(path, 3) == {"a": Caption("a sad\u2028voice", True)}
