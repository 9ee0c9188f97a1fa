"""Session-wide set-up: eight simulated devices, and shape annotations checked at run time."""

import os

from tests.xla_flags import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=8)}"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

_CHECKED = ("mecap_jax.models", "mecap_jax.generation", "mecap_jax.rl", "mecap_jax.training")
_HOOK = install_import_hook(_CHECKED, "beartype.beartype")
