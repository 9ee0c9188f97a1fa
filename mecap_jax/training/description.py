"""What a checkpoint says about itself, and whether that is what is asked for, whichever version of this wrote it.

Versions add settings, whose default is what those before always did, and drop some. So a setting that the checkpoint
does not know had its default there, and one that is not known here must be off: else it is another model's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mecap_jax.config import differences
from mecap_jax.json_files import as_json

# How gradients are computed, not what is in a checkpoint; earlier versions wrote it down, too.
_UNSAID = frozenset(("remat", "remat_keeps", "unroll"))


def written(description: Any) -> Any:
    """A description, of JSON values and dataclasses of them, as the JSON tree that a checkpoint holds."""
    if dataclasses.is_dataclass(description):
        description = {field.name: getattr(description, field.name) for field in dataclasses.fields(description)}
    if isinstance(description, Mapping):
        return {name: written(value) for name, value in description.items() if name not in _UNSAID}
    return as_json(description)


def disagreements(theirs: Any, mine: Any) -> list[str]:
    """In what a checkpoint is not what is asked for: a line for each setting, with both values.

    Args:
      theirs: the JSON tree of the checkpoint.
      mine: the description; its dataclasses say what the defaults are.
    """
    found = differences(_completed(theirs, mine), written(mine))
    return [f"{key}: {old!r} there, {new!r} here" for key, old, new in found]


def _completed(theirs: Any, mine: Any) -> Any:
    """What a checkpoint says, with defaults for what it knows nothing of, without what is off and not known here."""
    if not isinstance(theirs, dict) or not (isinstance(mine, Mapping) or dataclasses.is_dataclass(mine)):
        return theirs
    known, whole = mine, {}
    if dataclasses.is_dataclass(mine):
        known = {field.name: getattr(mine, field.name) for field in dataclasses.fields(mine)}
        defaults = {field.name: field.default for field in dataclasses.fields(mine)}
        whole = {name: written(value) for name, value in defaults.items() if value is not dataclasses.MISSING}
    said = {
        name: _completed(value, known[name]) if name in known else value
        for name, value in theirs.items()
        if name in known or value
    }
    return {name: value for name, value in (whole | said).items() if name not in _UNSAID}
