"""What importers of published corpora share: their files are found, their labels checked, their problems collected.

Such an importer is a module with `rows(input, settings)`, which returns where each row stands and the row with the keys
of a folder's manifest (see `folder`), or what is wrong with it; and with `OFFICIAL`, how many clips a complete copy has
by split, and by label where that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from mecap_jax.data.importers import ImporterError, ImportSettings
from mecap_jax.data.importers.files import walk
from mecap_jax.emotions import NO_LABEL, canonical_label

Row = dict[str, Any]
Entry = tuple[str, Row | ValueError]


def entry(place: str, make: Callable[[], Row]) -> Entry:
    """The row that `make` returns, or why it cannot."""
    try:
        return place, make()
    except (OSError, ValueError, RecursionError) as error:
        return place, ValueError(str(error))


def require(directory: Path, *names: str) -> list[Path]:
    """Returns the paths of files or directories that must be there.

    Raises:
      ImporterError: names all that are missing.
    """
    if missing := [name for name in names if not (directory / name).exists()]:
        raise ImporterError(f"{directory} lacks {', '.join(missing)}")
    return [directory / name for name in names]


def find_by_stem(directory: Path, endings: Collection[str], allow_outside: bool) -> dict[str, Path]:
    """Returns the files with one of some endings by their names without it, relative to the directory.

    Raises:
      ImporterError: two files share a name; says which.
    """
    found: dict[str, Path] = {}
    twice = []
    for path in walk(directory, allow_outside):
        if path.suffix.lower() in endings and found.setdefault(path.stem, path) is not path:
            twice.append(f"{found[path.stem]} and {path}")
    if twice:
        more = f" (and {len(twice) - 5} more)" if len(twice) > 5 else ""
        raise ImporterError(f"{directory} holds clips twice: {'; '.join(twice[:5])}{more}")
    return found


def checked_label(raw: Any, known: Collection[str], settings: ImportSettings) -> str:
    """Returns a label of the corpus, or one that the user's map or the list of placeholders deals with.

    Raises:
      ValueError: it is none of those.
    """
    if isinstance(raw, str) and raw.strip():
        label = canonical_label(raw)
        if label in {*map(canonical_label, known), *NO_LABEL, *settings.label_map} or raw.strip() in settings.label_map:
            return raw
    raise ValueError(f"label {raw!r:.80} is none of {', '.join(known)} (--label_map=FILE renames)")
