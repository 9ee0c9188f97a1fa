"""Emotion recognition with a rationale: what R1-Omni (arXiv 2503.05379) and ERV (arXiv 2510.23506) ask, teach, measure.

Training and evaluation ask in the same words, and the same strict parser reads what comes back: an answer that does not
follow the protocol, or names no class of the label set, is wrong everywhere.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mecap_jax.config import ConfigError
from mecap_jax.data.manifest import IndexRow
from mecap_jax.evaluation.affect import affect_error, label_divergence
from mecap_jax.evaluation.faithfulness import faithfulness
from mecap_jax.evaluation.intervals import Statistic, mean
from mecap_jax.evaluation.recognition import Recognition as Agreement
from mecap_jax.evaluation.recognition import recognition
from mecap_jax.models.text_classifier import TextClassifier
from mecap_jax.rewards.explanation import Verifier, verifier_labels
from mecap_jax.tasks.coordinates import Coordinates
from mecap_jax.tasks.labels import LabelSet, label_set
from mecap_jax.tasks.protocols import Protocol

RATIONALE = "think"  # the block that explains

# The class that each of these explanations speaks for; None where it names none.
Judge = Callable[[Sequence[str]], Sequence[str | None]]

_QUESTION = {
    "en": "Which emotion does the speaker show most clearly, in voice, face and words?",
    "zh": "从声音、表情和话语来看，说话人最明显地表现出哪一种情感？",
}


@dataclasses.dataclass(frozen=True)
class Recognition:
    """The task of naming a clip's emotion.

    Attributes:
      protocol: the form of an answer; one of its blocks is the answer.
      labels: which answers there are.
      language: of request and targets, "en" or "zh".
      places: where the classes lie among each other, for `affect_error`; None leaves it out.
    """

    protocol: Protocol
    labels: LabelSet
    language: str = "en"
    places: Coordinates | None = None

    def usable(self, row: IndexRow) -> str | None:
        """Returns why a clip cannot be used, None if it can."""
        if row.label is None:
            return "has no emotion label"
        if self.labels.normalise(row.label) is None:
            return f"has the label {row.label!r}, which is not in the label set {self.labels.name!r}"
        return None

    def request(self, row: IndexRow) -> str:
        """Returns what is asked of the model, the same for every clip."""
        names = self.labels.names[self.language]
        return f"{_QUESTION[self.language]}\n{self.protocol.instruction(self.language, names)}"

    def targets(self, row: IndexRow) -> tuple[str, ...]:
        """Returns the answers that a clip teaches: none where it lacks a part that the protocol wants.

        The explanation is the clip's rationale; other parts are attributes of their names ("step1", "aud_desc").
        """
        label = self.labels.normalise(row.label or "")
        answer = label and self.labels.display(label, self.language)
        known = {**row.attributes, RATIONALE: row.rationale, self.protocol.answer: answer}
        fields = {block.name: known.get(block.name) for block in self.protocol.blocks}
        try:
            return () if None in fields.values() else (self.protocol.render(fields),)
        except ValueError:  # a rationale that holds a mark of the protocol, or no word
            return ()

    def read(self, text: str) -> tuple[Mapping[str, str], str | None]:
        """Returns the fields of an answer, empty for a malformed one, and the class that it names, if any."""
        fields = self.protocol.parse(text).fields
        return fields, self.labels.normalise(fields[self.protocol.answer]) if fields else None

    def score(self, texts: Sequence[str], gold: Sequence[str], judge: Judge | None = None) -> Scores:
        """Scores one answer a clip.

        Statistics by key, all shares of clips unless said otherwise: `format` (the answer follows the protocol); `war`
        and `uar` (weighted and unweighted average recall) and `recall/LABEL`; `label_kl` and `label_js` (divergence of
        the answers' distribution from that of the gold labels, in nats); with `places` `affect_error` (mean distance
        of answer and gold label); with a judge and a protocol that explains also `eea`, `fcr`, `epc` and the four
        quadrants of ERV. A malformed answer is wrong in all of them.

        Raises:
          ValueError: lengths differ, or a gold label that is not in the label set.
        """
        if len(texts) != len(gold):
            raise ValueError(f"{len(texts)} answers for {len(gold)} clips")
        read = [self.read(text) for text in texts]
        answers = [answer for _, answer in read]
        truth = [self.labels.normalise(label) for label in gold]
        if None in truth:
            raise ValueError(f"the gold label {gold[truth.index(None)]!r} is not in the label set {self.labels.name!r}")
        found = recognition(answers, truth, self.labels.labels)
        divergence = label_divergence(answers, truth, self.labels.labels)
        statistics = {
            "format": mean([bool(fields) for fields, _ in read]),
            "war": found.war,
            "uar": found.uar,
            **{f"recall/{label}": recall for label, recall in found.recalls.items()},
            "label_kl": divergence.kl,
            "label_js": divergence.js,
        }
        if self.places is not None:
            statistics["affect_error"] = affect_error(answers, truth, self.places)
        if judge is not None and any(block.name == RATIONALE for block in self.protocol.blocks):
            explained = [i for i, (fields, _) in enumerate(read) if fields]
            judged: list[str | None] = [None] * len(read)
            for i, emotion in zip(explained, judge([read[i][0][RATIONALE] for i in explained]) if explained else ()):
                judged[i] = emotion
            told = faithfulness(answers, judged, truth)
            statistics |= {"eea": told.eea, "fcr": told.fcr, "epc": told.epc, **told.quadrants}
        return Scores(tuple(answers), statistics, found)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a stage answers and how right that is.

    Attributes:
      answers: the class that each answer names; None where it names none.
      statistics: metrics by key, see `Recognition.score`.
      agreement: recalls and confusion by class.
    """

    answers: tuple[str | None, ...]
    statistics: Mapping[str, Statistic]
    agreement: Agreement


def classifier_verifier(classifier: TextClassifier) -> Verifier:
    """Returns a verifier from a classifier of GoEmotions' or any other emotions.

    28 classes without names (LABEL_0, ...) are taken for GoEmotions' in their published order: ERV's released verifier
    is used by that order.

    Raises:
      ConfigError: other classes without names.
    """
    names = classifier.labels
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        names = label_set("goemotions").names["en"]
        if len(names) != len(classifier.labels):
            raise ConfigError(f"classifier {classifier.name!r}: its {len(classifier.labels)} classes have no names")
    return Verifier(classifier.predict, verifier_labels(names))


def verifier_judge(verifier: Verifier, labels: LabelSet) -> Judge:
    """Returns a judge that names the likeliest class of the label set; classes that it lacks are not asked about."""
    columns = [k for k, label in enumerate(verifier.labels) if label in labels.labels]

    def judge(texts: Sequence[str]) -> list[str | None]:
        if not columns or not texts:
            return [None] * len(texts)
        likeliest = np.asarray(verifier.probabilities(texts))[:, columns].argmax(axis=1)
        return [verifier.labels[columns[k]] for k in likeliest]

    return judge
