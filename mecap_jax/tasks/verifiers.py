"""Who judges explanations: a text classifier as a verifier of sentences, and a verifier as a judge of whole texts."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from mecap_jax.config import ConfigError
from mecap_jax.models.text_classifier import TextClassifier, load_text_classifier
from mecap_jax.models.text_directory import TextModelError
from mecap_jax.rewards.explanation import Verifier, verifier_labels
from mecap_jax.tasks.labels import LabelSet, label_set

# The class that each of these explanations speaks for; "" where it speaks for none, None where there is no verdict.
Judge = Callable[[Sequence[str]], Sequence[str | None]]


@functools.lru_cache(maxsize=2)
def verifier_of(directory: str) -> Verifier:
    """Returns the verifier that a directory holds; all stages of a run ask the same one.

    Raises:
      ConfigError: it cannot be loaded, or its classes have no names.
    """
    try:
        return classifier_verifier(load_text_classifier(directory))
    except TextModelError as error:
        raise ConfigError(str(error)) from error


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
