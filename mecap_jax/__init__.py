"""Emotion captioning from speech and faces. `from mecap_jax import Captioner` is the way in."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Captioner":  # on demand: whoever reads a configuration or a shard must not load JAX
        from mecap_jax.captioner import Captioner

        return Captioner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
