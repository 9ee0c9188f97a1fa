"""What the caption grammars of all languages share: choosing templates, features and words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mecap_jax.data.synthetic.facts import Facts, Features

REFERENCES = 5  # overall captions a clip, as in EmotionTalk

_MOST_DRAWS = 200

# Feature -> wordings of its usual and of its strong form.
Words = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]


class Templates(NamedTuple):
    """Templates of overall captions; where modalities disagree, the deciding emotion must come first in them."""

    both_agree: tuple[str, ...]
    audio_only: tuple[str, ...]
    face_departs: tuple[str, ...]
    voice_departs: tuple[str, ...]


def overall(
    templates: Templates,
    facts: Facts,
    fill: Callable[[str, Facts, np.random.Generator], str],
    fits: Callable[[str], bool],
    rng: np.random.Generator,
) -> tuple[str, ...]:
    """Returns `REFERENCES` captions from different templates, each drawn again until it `fits`.

    Raises:
      ValueError: a template never fits these facts.
    """
    if facts.conflict == "video":
        options = templates.face_departs
    elif facts.conflict == "audio":
        options = templates.voice_departs
    else:
        options = templates.both_agree if facts.has_face else templates.audio_only
    return tuple(_fitting(options[i], facts, fill, fits, rng) for i in rng.permutation(len(options))[:REFERENCES])


def parts(
    options: tuple[tuple[str, ...], ...],
    facts: Facts,
    fill: Callable[[str, Facts, np.random.Generator], str],
    space: str,
    rng: np.random.Generator,
) -> dict[str, str]:
    """Returns the parts of structured answers by the names of their blocks in the tag protocols.

    `aud_desc` and `vis_desc` tell what is heard and seen and name no emotion (no face, no `vis_desc`); `step1` is both,
    `step2` what a person like this feels, `step3` whether that is positive or negative, and how aroused. Of a picture
    nothing is heard.

    Args:
      options: templates of what is heard, seen, felt (of a person who is heard, who is seen only) and judged.
      fill: fills a template.
      space: between two sentences.
    """
    heard, seen, *felt, judged = options
    options = heard, seen, felt[not facts.has_voice], judged
    heard, seen, felt, judged = (fill(pick(templates, rng), facts, rng) for templates in options)
    if not facts.has_voice:
        return {"vis_desc": seen, "step1": seen, "step2": felt, "step3": judged}
    described = {"aud_desc": heard, "step1": heard, "step2": felt, "step3": judged}
    return described | ({"vis_desc": seen, "step1": f"{heard}{space}{seen}"} if facts.has_face else {})


def choose(features: Features, words: Words, fewest: int, most: int, rng: np.random.Generator) -> list[str]:
    """Returns wordings of `fewest` to `most` features (of all, where there are fewer), in their order."""
    chosen = rng.permutation(len(features))[: int(rng.integers(fewest, most + 1))]
    return [pick(words[features[i][0]][features[i][1]], rng) for i in sorted(chosen)]


def pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    """Returns one of the options."""
    return options[rng.integers(len(options))]


def _fitting(template: str, facts: Facts, fill, fits, rng: np.random.Generator) -> str:
    for _ in range(_MOST_DRAWS):
        caption = fill(template, facts, rng)
        if fits(caption):
            return caption
    raise ValueError(f"caption template {template!r} never fits {facts}; last draw: {caption!r}")
