"""Label sets: which answers there are, and which of them a text names. `OPEN` is none: answers are words of one's own.

Sets of known corpora stand in `labels.toml`; a user's own set is a file of one such table. Inside the project a label
is always `canonical_label` of its name, as clips carry it ("angry"); what a corpus calls it ("anger", "愤怒") is for
prompts, targets and answers.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mecap_jax.config import ConfigError
from mecap_jax.emotions import LABELS, LEXICON, canonical_label, word_forms
from mecap_jax.rewards.accuracy import fold_name, split_words

OPEN = "open"
_LONGEST_NAME = 64  # characters


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """The labels of a corpus.

    Attributes:
      name: of the set.
      labels: the classes, in the corpus's order; none of an open vocabulary.
      names: what the corpus calls each class, by language ("en", "zh").
      spellings: class by spelling, folded as `normalise` folds.
    """

    name: str
    labels: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    spellings: Mapping[str, str]

    @property
    def is_open(self) -> bool:
        """Whether an answer is any words, as in MER2024's open-vocabulary track."""
        return not self.labels

    def normalise(self, text: str) -> str | None:
        """Returns the class that `text` names, or None where it does not name exactly one.

        Case, inflection, synonyms of one class only, and marks around the name do not matter ("**Happiness.**"); every
        other word does ("not happy", "happy or sad" and "somewhat happy" name none). The name of a known emotion that
        the set lacks ("anxious" beside "fear") is no synonym of one that it has. In an open vocabulary it is the words
        between commas, in the order of the alphabet.
        """
        if self.is_open:
            return ", ".join(sorted(set(split_words(text)))) or None
        if len(text) > _LONGEST_NAME:
            return None
        plain = fold_name(text)
        if plain in self.spellings or not plain:
            return self.spellings.get(plain)
        label = canonical_label(plain)
        if label in LABELS or label in self.labels:
            return label if label in self.labels else None
        forms = {self.spellings[form] for form in word_forms(plain) if form in self.spellings}
        classes = forms or self._synonyms.get(plain, set())
        return next(iter(classes)) if len(classes) == 1 else None

    def spelt(self, name: str) -> str | None:
        """Returns the class that the set itself spells so; unlike `normalise` it knows no synonyms."""
        return self.spellings.get(fold_name(name))

    def display(self, label: str, language: str = "en") -> str:
        """Returns what the corpus calls a class in `language`."""
        if self.is_open:
            return label
        return self.names[language][self.labels.index(label)]

    @functools.cached_property
    def _synonyms(self) -> dict[str, set[str]]:
        classes: dict[str, set[str]] = {}
        for words in LEXICON.values():
            for label in self.labels:
                for word in words.get(label, ()):
                    classes.setdefault(fold_name(word), set()).add(label)
        return classes


def label_set(name: str) -> LabelSet:
    """Returns the set of a known corpus, `OPEN`, or the one in a user's file where `name` ends with ".toml".

    A file holds `labels`, a list of lists of spellings as in `labels.toml`; one spelling is enough.

    Raises:
      ConfigError: no such set or file, or a file that does not hold two or more different labels.
    """
    if name.endswith(".toml"):
        try:
            table = tomllib.loads(Path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"label set {name!r} cannot be read: {error}") from error
        return _from_table(Path(name).stem, name, table.get("labels"))
    if name == OPEN:
        return LabelSet(OPEN, (), {"en": (), "zh": ()}, {})
    if name not in _known():
        known = sorted([*_known(), OPEN])
        raise ConfigError(f"there is no label set {name!r}: expected a file (.toml) or one of {known}")
    return _from_table(name, name, _known()[name]["labels"])


@functools.cache
def _known() -> Mapping[str, Mapping[str, Any]]:
    return tomllib.loads(resources.files("mecap_jax.tasks").joinpath("labels.toml").read_text(encoding="utf-8"))


def _from_table(name: str, source: str, rows: Any) -> LabelSet:
    def is_names(row: Any) -> bool:
        return isinstance(row, list) and bool(row) and all(isinstance(n, str) and fold_name(n) for n in row)

    if not isinstance(rows, list) or len(rows) < 2 or not all(map(is_names, rows)):
        raise ConfigError(f"label set {source!r}: 'labels' must be two or more lists of names, strings with a word")
    labels = tuple(canonical_label(row[0]) for row in rows)
    spellings: dict[str, str] = {}
    for label, row in zip(labels, rows):
        for spelling in map(fold_name, (label, *row)):
            if spellings.setdefault(spelling, label) != label or labels.count(label) > 1:
                raise ConfigError(f"label set {source!r}: {spelling!r} stands for two labels")
    names = {"en": tuple(row[0] for row in rows), "zh": tuple(row[min(1, len(row) - 1)] for row in rows)}
    return LabelSet(name, labels, names, spellings)
