"""The speakers of the synthetic corpus: `SPEAKERS`, each a voice of eSpeak NG, a face and a split of its own.

Voices are eSpeak variants. Robots, whispers and near-duplicates are left out, and between splits the long-term
spectra of any two voices lie at least 1.9 dB apart (root mean square over 40 mel bands, level removed). Women beyond
the native female variants are a man's variant with a shorter vocal tract and a higher pitch; such a pair shares a
variant and therefore a split, so that no variant is heard in two splits.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_VARIANTS = {
    # split: (female variants, male variants, male variants that also serve a woman)
    "train": (
        ("f1", "f3", "f4", "f5", "Alicia", "aunty", "grandma"),
        ("Andy", "victor", "boris", "david", "edward", "ian", "marcelo", "norbert", "quincy", "sandro"),
        ("m1", "Denis", "Diogo", "Jacky", "Gene", "ed", "max", "rob"),
    ),
    "validation": (("linda", "belinda"), ("Mike", "pablo"), ("Michael", "m8")),
    "test": (("f2", "Annie", "steph", "shelby"), ("m7", "Storm", "paul", "m4"), ("Mario", "Reed")),
}
_ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-us", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
_IDENTITY_SEED = 7  # the cast is one and the same for every seed of the corpus


@dataclasses.dataclass(frozen=True)
class Speaker:
    """Who speaks.

    Attributes:
      id: unique name.
      split: the only split that the speaker appears in.
      gender: "woman" or "man".
      variant: eSpeak NG variant.
      accent: eSpeak NG voice for English.
      bilingual: whether the speaker also speaks Mandarin where English is spoken too.
      vocal_tract: playback factor; above 1 moves formants and pitch up (a shorter vocal tract).
      pitch: habitual pitch relative to the variant's own, in semitones.
      rate: habitual rate in words a minute.
      face_seed: seed of the face.
    """

    id: str
    split: str
    gender: str
    variant: str
    accent: str
    bilingual: bool
    vocal_tract: float
    pitch: float
    rate: float
    face_seed: int


def _cast() -> tuple[Speaker, ...]:
    rng = np.random.default_rng(_IDENTITY_SEED)
    speakers = []
    for split, (female, male, both) in _VARIANTS.items():
        roles = [(v, "woman", 1.0, 0.0) for v in female] + [(v, "man", 1.0, 0.0) for v in male + both]
        roles += [(v, "woman", 1.2, 6.0) for v in both]
        for i, (variant, gender, vocal_tract, pitch) in enumerate(roles):
            speakers.append(
                Speaker(
                    id=f"{split}-{i:02d}-{variant}-{gender}",
                    split=split,
                    gender=gender,
                    variant=variant,
                    accent=_ACCENTS[i % len(_ACCENTS)],
                    bilingual=i % 2 == 1,
                    vocal_tract=vocal_tract * float(rng.uniform(0.98, 1.02)),
                    pitch=pitch + float(rng.uniform(-0.7, 0.7)),
                    rate=float(rng.uniform(192.0, 207.0)),
                    face_seed=int(rng.integers(2**31)),
                )
            )
    return tuple(speakers)


SPEAKERS = _cast()
# The same people in another domain: women with a longer vocal tract, men with a shorter one, and another accent each.
_OTHER_TRACT = {"woman": 0.88, "man": 1.14}


def cast(domain: str) -> tuple[Speaker, ...]:
    """Returns the speakers of a domain, see `SyntheticConfig.domain`."""
    if domain == "usual":
        return SPEAKERS
    return tuple(
        dataclasses.replace(
            speaker,
            id=f"{speaker.id}-other",
            accent=_ACCENTS[(_ACCENTS.index(speaker.accent) + 2) % len(_ACCENTS)],
            vocal_tract=speaker.vocal_tract * _OTHER_TRACT[speaker.gender],
        )
        for speaker in SPEAKERS
    )
