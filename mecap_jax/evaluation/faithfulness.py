"""Do explanations speak for the right emotion, and for the emotion that is answered? ERV's metrics (arXiv 2510.23506).

A judge (a classifier, anchors, another model) reads the explanation alone and names an emotion. Per clip, the answer is
right or not, the judged emotion is right or not, and the two agree or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mecap_jax.evaluation.intervals import Statistic, mean

QUADRANTS = (
    "answer_right_explanation_right",
    "answer_right_explanation_wrong",
    "answer_wrong_explanation_right",
    "answer_wrong_explanation_wrong",
)


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """ERV's metrics.

    Attributes:
      eea: Explanation Emotion Accuracy, the share of explanations that are judged to be of the gold emotion.
      fcr: Faithful Consistency Rate, the share of clips where answer and judged emotion both are the gold emotion.
      epc: Explanation-Prediction Consistency, the share of clips where answer and judged emotion are the same one.
      quadrants: the share of clips by `QUADRANTS`.
    """

    eea: Statistic
    fcr: Statistic
    epc: Statistic
    quadrants: Mapping[str, Statistic]


def faithfulness(
    answers: Sequence[str | None],
    judged: Sequence[str | None],
    gold: Sequence[str | None],
    unjudged: Sequence[bool],
) -> Faithfulness:
    """Compares answers, judged emotions and gold labels; clips without a gold label are left out.

    Args:
      answers: the class that is answered; None for an answer that cannot be parsed or is no class, which is wrong.
      judged: the class that the judge reads; None where there is no explanation or it names no class, which is wrong.
      gold: the gold class.
      unjudged: clips of which the judge gave no verdict (it was not there); they are left out.

    Raises:
      ValueError: lengths differ.
    """
    if not len(answers) == len(judged) == len(gold) == len(unjudged):
        raise ValueError(f"{len(answers)} answers, {len(judged)} judged emotions, {len(gold)} gold labels")
    included = np.array([label is not None for label in gold], bool) & ~np.array(unjudged, bool)
    right = np.array([answer == truth for answer, truth in zip(answers, gold)], bool)
    spoken = np.array([emotion == truth for emotion, truth in zip(judged, gold)], bool)
    same = [answer is not None and answer == emotion for answer, emotion in zip(answers, judged)]
    parts = (right & spoken, right & ~spoken, ~right & spoken, ~right & ~spoken)
    quadrants = {name: mean(part, included) for name, part in zip(QUADRANTS, parts)}
    return Faithfulness(mean(spoken, included), quadrants[QUADRANTS[0]], mean(same, included), quadrants)
