"""Answer, judged explanation and gold label: who agrees with whom."""

import pytest

from mecap_jax.evaluation.faithfulness import QUADRANTS, faithfulness
from mecap_jax.evaluation.intervals import bootstrap

# Answer, judged emotion, gold label; right answer?, right explanation?, the same?
CLIPS = [
    ("sad", "sad", "sad"),  # right, right, same
    ("sad", "angry", "sad"),  # right, wrong
    ("angry", "sad", "sad"),  # wrong, right
    ("angry", "angry", "sad"),  # wrong, wrong, same
    ("angry", "happy", "sad"),  # wrong, wrong
    (None, "sad", "sad"),  # an answer that cannot be parsed
    ("sad", None, "sad"),  # no explanation
    (None, None, "sad"),  # neither: two absences are no agreement
    ("sad", "sad", None),  # no gold label
]


def test_by_hand():
    found = faithfulness(*zip(*CLIPS), [False] * len(CLIPS))
    assert found.eea.value == pytest.approx(3 / 8)
    assert found.fcr.value == pytest.approx(1 / 8)
    assert found.epc.value == pytest.approx(2 / 8)
    assert [found.quadrants[name].value for name in QUADRANTS] == pytest.approx([1 / 8, 2 / 8, 2 / 8, 3 / 8])
    assert set(bootstrap({"eea": found.eea, **found.quadrants}, list("aabbccdde"))) == {"eea", *QUADRANTS}


def test_clips_that_the_judge_never_saw_are_left_out():
    answers, judged, gold = zip(*CLIPS[:5])
    found = faithfulness(answers, judged, gold, unjudged=[False, False, True, True, False])
    assert found.eea.value == pytest.approx(1 / 3)
    assert found.epc.value == pytest.approx(1 / 3)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="1 answers, 0 judged emotions, 1 gold labels"):
        faithfulness(["sad"], [], ["sad"], [False])
