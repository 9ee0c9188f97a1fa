"""Session-wide set-up: eight simulated devices, and shape annotations checked at run time."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile far more than they compute: with less optimisation the suite takes a third of the time.
_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook  # noqa: E402 - the flags above must be set before anything imports jax

_CHECKED = ("mecap_jax.models", "mecap_jax.generation", "mecap_jax.rl", "mecap_jax.training")
_HOOK = install_import_hook(_CHECKED, "beartype.beartype")
