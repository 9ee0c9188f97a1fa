"""Importers: one module a corpus, each turning raw files into utterances.

An importer has `clips(input, settings) -> list[Pending]`, functions that read one clip each, in whatever process;
or `rows(input, settings)`, which turns the layout of a corpus into the rows of a folder's manifest (`corpus`);
and `files_beside(input, settings)` where it reads files outside its input directory. What it cannot read becomes a
`BadClip`, what it took already a `Duplicate`, so that nothing is lost silently and one bad input never ends an import;
`prepare` checks the media of the rest, writes the shards and records what was left out in the manifest. Clips are read
in threads, in processes where the importer says `IN_PROCESSES`, or on Apache Beam (`beam_runner`): the shards are the
same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mecap_jax.config import SyntheticConfig
from mecap_jax.data import media, shards
from mecap_jax.data.building import remove_unfinished
from mecap_jax.data.importers import beam_runner, prosody_captions, tables, template_captions
from mecap_jax.data.importers.files import MAX_CLIP_BYTES, ImporterError, walk
from mecap_jax.data.inspection import Inspect, Inspected, Item, Pending, in_processes, in_threads, read
from mecap_jax.data.shards import BadClip, Duplicate
from mecap_jax.data.utterance import Utterance
from mecap_jax.emotions import LABELS, NO_LABEL, canonical_label
from mecap_jax.json_files import read_json_object
from mecap_jax.locking import locked
from mecap_jax.text_files import printable

__all__ = [
    "CAPTIONS",
    "FOLD",
    "IMPORTERS",
    "MAX_CLIP_BYTES",
    "BadClip",
    "Duplicate",
    "ImporterError",
    "ImportSettings",
    "check_counts",
    "Pending",
    "open_source",
    "prepare",
]

IMPORTERS = {
    name: f"mecap_jax.data.importers.{name}"
    for name in "synthetic folder ravdess crema_d dfew emer emotiontalk images mafw meld merr secap".split()
}
# Where captions come from -> the language of those that are made.
CAPTIONS = {"own": None, "templates": "en", "templates_zh": "zh", "prosody": "en", "plain_prosody": "en"}

FOLD = 5  # of MAFW and DFEW: the one that ERV is tested on
_USUAL = {"allow_outside": False, "label_map": {}, "captions": "own", "fold": FOLD}
_LONGEST_LABEL = 300  # characters: several words may be one label, a caption in the wrong column is none
_PIECE = 1 << 14  # bytes of a medium by which it is told from another one of its size


@dataclasses.dataclass(frozen=True)
class ImportSettings:
    """How raw files are read.

    Attributes:
      synthetic: the synthetic corpus, which nothing else applies to.
      allow_outside: absolute paths and links out of the input directory are followed.
      fold: which of the official folds a corpus that has folds is divided by.
      label_map: canonical label by raw label, before anything else is done to labels; "" drops the label.
      placeholders: how often labels were met that stand for none, by label.
    """

    synthetic: SyntheticConfig = SyntheticConfig()
    allow_outside: bool = False
    fold: int = FOLD
    label_map: Mapping[str, str] = dataclasses.field(default_factory=dict)
    placeholders: Counter[str] = dataclasses.field(default_factory=Counter)

    def label(self, raw: str) -> str | None:
        """Returns the label that stands for a corpus' own one, None where there is none.

        Raises:
          ValueError: the label is empty, or too long to be one.
        """
        canonical = canonical_label(raw)
        mapped = self.label_map.get(raw.strip(), self.label_map.get(canonical))
        if mapped is None and canonical in NO_LABEL:
            self.placeholders[canonical] += 1
            return None
        mapped = canonical if mapped is None else mapped
        if len(mapped) > _LONGEST_LABEL:
            raise ValueError(f"{mapped!r:.40} is no label: it has {len(mapped)} characters (at most {_LONGEST_LABEL})")
        return canonical_label(mapped) if mapped else None


def prepare(
    source: str,
    input: str | os.PathLike | None,
    output: str | os.PathLike,
    synthetic: SyntheticConfig | None = None,
    command: str = "",
    progress: bool = True,
    max_seconds: float = media.MAX_SECONDS,
    max_bad_fraction: float = 0.02,
    allow_outside: bool = False,
    label_map: str | os.PathLike | None = None,
    captions: str = "own",
    fold: int = FOLD,
    runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> dict[str, Any]:
    """Turns raw files into a directory of shards and returns its manifest.

    A finished directory made from the same source and the same input files is reused. Every clip is decoded once; the
    bad ones are quarantined. Progress and a summary go to stderr.

    Args:
      source: name of an importer, a key of `IMPORTERS`.
      input: the raw files; None for the synthetic corpus.
      output: directory of shards.
      synthetic: settings of the synthetic corpus, by default `SyntheticConfig()`; the other importers have none.
      command: what was run, for the manifest.
      max_seconds: longer clips are bad.
      max_bad_fraction: more than this share of bad clips is an error, and nothing is left at `output`.
      allow_outside: as in `ImportSettings`.
      label_map: file of raw and canonical labels, a JSON object or two columns of CSV.
      fold: as in `ImportSettings`.
      captions: a key of `CAPTIONS`; clips without captions get some from templates in English or in Chinese, "prosody"
        that also say how the voice sounds, "plain_prosody" in as few different words as that takes.
      runner: of Apache Beam ("DirectRunner", …), on which clips are read; None reads them here. It is not part of what
        the shards are made from: they are the same.
      beam_options: its options ("direct_num_workers=4").

    Raises:
      ImporterError: no such importer, no such input, or input that is not of its format; no Beam, or it failed.
      ShardError: `output` holds something else, an id occurs twice, or too many clips are bad.
    """
    if source not in IMPORTERS:
        raise ImporterError(f"unknown source {source!r}; known: {', '.join(IMPORTERS)}")
    importer = importlib.import_module(IMPORTERS[source])
    output = Path(output)
    described: dict[str, Any] = {"importer": source, "max_seconds": max_seconds}
    settings = ImportSettings(synthetic or SyntheticConfig(), allow_outside, fold, _read_label_map(label_map))
    if source == "synthetic":
        if input:
            raise ImporterError(f"source 'synthetic' reads no input directory, got {str(input)!r}")
        input = None
        described["synthetic"] = dataclasses.asdict(settings.synthetic)
    else:
        if not input or not Path(input).is_dir():
            raise ImporterError(f"source {source!r} needs an input directory, got {str(input or '')!r}")
        input = Path(input)
        described["input"] = printable(str(input.resolve()))
        beside = importer.files_beside(input, settings) if hasattr(importer, "files_beside") else ()
        described["fingerprint"] = _fingerprint(input, output, settings.allow_outside, beside)
        asked = {"allow_outside": allow_outside, "label_map": settings.label_map, "captions": captions, "fold": fold}
        described |= {name: value for name, value in asked.items() if value != _USUAL[name]}
    remove_unfinished(output.parent)
    finished = shards.find_finished(output, described)
    if finished is None:
        with locked(output.parent / f".{output.name}.lock", str(output), wait=_say):
            finished = shards.find_finished(output, described)  # another process may just have made it
            if finished is None:
                clips = _open(importer, source, input, settings)
                if captions.endswith("prosody"):
                    _say(f"measuring the voices of {len(clips)} clips")
                    clips = prosody_captions.captioned(clips, max_seconds, plain=captions.startswith("plain"))
                elif (language := CAPTIONS[captions]) is not None:
                    clips = [functools.partial(_captioned, clip, language) for clip in clips]
                inspect = in_processes if hasattr(importer, "IN_PROCESSES") else in_threads
                if runner is not None:
                    inspect = functools.partial(beam_runner.inspect, beside=output, runner=runner, options=beam_options)
                if progress:
                    inspect = functools.partial(_show_progress, inspect, f"importing {source}")
                manifest = shards.write(
                    clips,
                    output,
                    command,
                    described,
                    max_seconds=max_seconds,
                    max_bad_fraction=max_bad_fraction,
                    inspect=inspect,
                )
                _say(_summary(output, manifest, settings.placeholders))
                return manifest
    _say(f"{output} is finished already and made from the same source: reused")
    return finished


def check_counts(source: str, manifest: Mapping[str, Any]) -> list[str]:
    """Compares the clips that were imported with those of a complete copy of the corpus; returns what differs.

    Raises:
      ImporterError: the official counts are not known.
    """
    official = getattr(importlib.import_module(IMPORTERS[source]), "OFFICIAL", None)
    if not official:
        raise ImporterError(f"source {source!r} has no official counts to compare with")
    splits = manifest["splits"]
    found = {split: {"clips": counts["records"]} | counts["labels"] for split, counts in splits.items()}
    found["all"] = {"clips": manifest["records"]}
    return [
        f"{split}: {found.get(split, {}).get(name, 0)} {name}, official {count}"
        for split, counts in official.items()
        for name, count in counts.items()
        if found.get(split, {}).get(name, 0) != count
    ]


def open_source(source: str, input: Path, allow_outside: bool = False) -> list[Pending]:
    """The clips of raw files, as `prepare` reads them.

    Raises:
      ImporterError: no such input, or input that is not of its format.
    """
    if not input.is_dir():
        raise ImporterError(f"source {source!r} needs an input directory, got {str(input)!r}")
    return _open(importlib.import_module(IMPORTERS[source]), source, input, ImportSettings(allow_outside=allow_outside))


def _open(importer: Any, source: str, input: Path | None, settings: ImportSettings) -> list[Pending]:
    if hasattr(importer, "clips"):
        return importer.clips(input, settings)
    rows = importer.rows(input, settings)
    return importlib.import_module(IMPORTERS["folder"]).clips_of(input, rows, settings, source)


def _captioned(clip: Pending, language: str) -> Item:
    item = read(clip)
    return template_captions.fill(item, language) if isinstance(item, Utterance) else item


def _read_label_map(path: str | os.PathLike | None) -> dict[str, str]:
    """Returns canonical label by raw label."""
    if path is None:
        return {}
    path = Path(path)
    try:
        pairs = read_json_object(path).items() if path.suffix.lower() == ".json" else tables.read_pairs(path)
    except (OSError, ValueError) as error:
        raise ImporterError(f"label map: {error}") from error
    wrong = [raw for raw, label in pairs if not isinstance(label, str | None)]
    if wrong:
        raise ImporterError(f"label map: {path}: the label of {printable(wrong[0])!r} is no string")
    return {raw.strip(): label or "" for raw, label in pairs}


def _fingerprint(directory: Path, without: Path, allow_outside: bool, beside: Iterable[Path]) -> str:
    """Hashes names, sizes, times and samples of all files, and all of tables and features: changed input is noticed.

    Of media three pieces are read: a clip that is recorded or cut anew often keeps its size, an archive its times.
    """
    directory, without = directory.resolve(), without.resolve()
    digest = hashlib.sha256()
    ours = (f"{without}{os.sep}", str(without.with_name(f".{without.name}.")))  # its lock and what is being built, too
    for name in (*walk(directory, allow_outside), *map(str, beside)):
        path = directory / name
        if not str(path).startswith(ours):
            size, changed = (stat := path.stat()).st_size, stat.st_mtime_ns
            whole = path.suffix.lower() in (*tables.SUFFIXES, ".npy")
            digest.update(f"{name}\0{size}\0{'' if whole else changed}\0".encode("utf-8", "surrogateescape"))
            with contextlib.suppress(OSError), path.open("rb") as file:  # the importer says why it cannot be read
                for place in (0,) if whole else (0, size // 2, max(size - _PIECE, 0)):
                    file.seek(place)
                    digest.update(file.read(-1 if whole else _PIECE))
    return digest.hexdigest()


def _summary(output: Path, manifest: dict[str, Any], placeholders: Mapping[str, int]) -> str:
    lines = [f"{output}: {manifest['records']} clips"]
    for split, counts in manifest["splits"].items():
        labels = ", ".join(f"{label} {count}" for label, count in counts["labels"].items())
        lines.append(
            f"  {split}: {counts['records']} clips, {counts['speakers']} speakers, {counts['seconds'] / 60:.1f} min"
            + (f" ({labels})" if labels else "")
        )
    total = manifest["records"]
    if (bare := total - manifest["captioned"].get("overall", 0)) and not manifest["synthetic"]:
        hint = "--captions=templates makes them from labels, --captions=prosody from labels and voices"
        lines.append(f"no captions of kind overall in {bare} of {total} clips: {hint}")
    labels = {label for counts in manifest["splits"].values() for label in counts["labels"]}
    if unknown := sorted(labels.difference(LABELS)):
        names = ", ".join(map(repr, unknown))
        lines.append(f"labels that the lexicon does not know are kept as they are: {names} (--label_map=FILE renames)")
    if placeholders:
        names = ", ".join(f"{name!r} ({count} times)" for name, count in placeholders.items())
        lines.append(f"labels that stand for none: {names} (--label_map=FILE makes labels of them)")
    if copies := [Duplicate(**clip) for clip in manifest["duplicates"]]:
        examples = ", ".join(f"{copy.id} (of {copy.of})" for copy in copies[:3]) + (", ..." if len(copies) > 3 else "")
        lines.append(f"left out {len(copies)} copies of clips that were taken: {examples}")
    if manifest["quarantined"]:
        bad = [BadClip(**clip) for clip in manifest["quarantined"]]
        lines += [f"quarantined {len(bad)} bad clips:", shards.summarise_bad(bad)]
    return "\n".join(lines)


def _show_progress(
    inspect: Inspect, description: str, clips: Sequence[Pending], max_seconds: float, every_s: float = 10.0
) -> Iterator[Inspected]:
    """Inspects clips, with a bar on a terminal and a line now and then elsewhere."""
    total, items = len(clips), inspect(clips, max_seconds)
    if sys.stderr.isatty():
        yield from track(items, description, total=total, console=Console(stderr=True))
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            _say(f"{description}: {done} of {total} clips after {last - start:.0f} s")


def _say(text: str) -> None:
    print(printable(text, keep="\n"), file=sys.stderr, flush=True)
