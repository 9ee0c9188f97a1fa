"""Importers: one module a corpus, each turning raw files into utterances.

An importer is a function `read(input, synthetic) -> Iterator[Utterance | BadClip]`. It yields a `BadClip` for
whatever it cannot read, so that nothing is lost silently; `prepare` checks the media of the rest, writes the shards
and records every bad clip in the manifest.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class BadClip:
    """A clip that was left out: its id and the reason, for the manifest and the report."""

    id: str
    reason: str
