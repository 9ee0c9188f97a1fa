"""Importer for CREMA-D, 12 sentences by 91 actors in six emotions (Cao et al. 2014, IEEE TAC 5(4)).

Reads `AudioWAV/1001_DFA_ANG_XX.wav` or the same names in any folder, as wav or mp3: actor, sentence, emotion and
intensity (LO, MD, HI; XX is unspecified). `VideoDemographics.csv` at the top, where it is there, adds gender and age.
The videos are Flash, which is not decoded: convert them to mp4 under the same names and they are taken as well. There
are no official splits: actors are divided by a hash, 80 / 10 / 10. The label is the acted emotion.
"""

from __future__ import annotations

from pathlib import Path

from mecap_jax.data.importers import ImporterError, ImportSettings, tables
from mecap_jax.data.importers.corpus import Entry, entry, find_by_stem

OFFICIAL = {"all": {"clips": 7442}}
_EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
_INTENSITIES = {"LO": "low", "MD": "medium", "HI": "high", "XX": "", "X": ""}  # one file has "X"
_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}


def rows(input: Path, settings: ImportSettings) -> list[Entry]:
    """Returns one row a recording.

    Raises:
      ImporterError: no recordings, or one is there twice.
    """
    sound = find_by_stem(input, (".wav", ".mp3"), settings.allow_outside)
    pictures = find_by_stem(input, (".mp4",), settings.allow_outside)
    if not sound and not pictures:
        raise ImporterError(f"{input} holds no CREMA-D recordings (such as AudioWAV/1001_DFA_ANG_XX.wav)")
    actors = {}
    if (path := input / "VideoDemographics.csv").is_file():
        lines = [line for _, line in tables.read_table(path) if isinstance(line, dict)]
        actors = {line.get("ActorID"): {"gender": line.get("Sex"), "age": line.get("Age")} for line in lines}

    def row(stem: str) -> dict:
        actor, sentence, emotion, intensity = (stem.split("_") + [""] * 4)[:4]
        if sentence not in _SENTENCES or emotion not in _EMOTIONS or intensity not in _INTENSITIES:
            raise ValueError(f"{stem!r} is not named as CREMA-D names its files")
        return {
            "id": f"crema_d_{stem}",
            "dataset": "crema_d",
            "speaker": f"crema_d_{actor}",
            "transcript": _SENTENCES[sentence],
            "label": _EMOTIONS[emotion],
            "attributes": actors.get(actor, {}) | {"intensity": _INTENSITIES[intensity]},
            "licence": "ODbL-1.0",
            **{field: str(found[stem]) for field, found in (("audio", sound), ("video", pictures)) if stem in found},
        }

    return [entry(repr(stem), lambda stem=stem: row(stem)) for stem in sorted({*sound, *pictures})]
