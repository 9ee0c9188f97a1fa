"""Precomputed features of any extractor: `.npy` files, in EmotionTalk's layout where they are looked for by clip.

`features/<model>-UTT/<id>.npy` holds one vector for the utterance, `features/<model>-FRA/<id>.npy` one a frame.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from mecap_jax.data.importers.files import read_clip

DIRECTORY = "features"
_KINDS = ("-UTT", "-FRA")


def find_features(directory: Path, clip: str, allow_outside: bool = False) -> dict[str, np.ndarray]:
    """Returns what `directory/features/` holds of a clip, by the name of the extractor's directory (may be nothing).

    Raises:
      ValueError: as in `read_features`.
    """
    if Path(clip).name != clip or not os.path.isdir(directory / DIRECTORY):
        return {}
    folders = sorted(path.name for path in (directory / DIRECTORY).iterdir() if path.name.endswith(_KINDS))
    paths = {name: f"{DIRECTORY}/{name}/{clip}.npy" for name in folders}
    found = {name: path for name, path in paths.items() if os.path.isfile(directory / path)}
    return {name: read_features(directory, path, allow_outside) for name, path in found.items()}


def read_features(directory: Path, path: str, allow_outside: bool = False) -> np.ndarray:
    """Returns the features in a `.npy` file, float32 `[frames, dim]`.

    Raises:
      ValueError: no such file, a path out of the directory, no floats, another rank, or values that are not finite.
    """
    try:
        array = np.lib.format.read_array(io.BytesIO(read_clip(directory, path, allow_outside)), allow_pickle=False)
    except Exception as error:  # a hostile header asks for any amount of memory, or trips numpy's parser
        raise ValueError(f"features {path!r}: {error}") from error
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"features {path!r} must be floats [frames, dim] or [dim], got {array.dtype} {array.shape}")
    with np.errstate(over="ignore"):
        array = np.atleast_2d(array).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"features {path!r} hold values that are not finite")
    return array
