"""XLA's flags for tests, to be set before anything imports jax."""

import importlib.metadata

_VERSION = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))


def xla_flags(devices: int, exact: bool = False) -> str:
    """Flags for simulated devices and quick compilation: the tests compile far more than they compute.

    Args:
      exact: a product of matrices gives a row the same bits whatever stands in the others, as without flags. A run that
        goes on after a kill embeds texts in other company than one that never stopped, which kept some of them.
    """
    flags = [f"--xla_force_host_platform_device_count={devices}", "--xla_backend_optimization_level=0"]
    if _VERSION < (0, 11):  # later ones have no such flag, and XLA ends the process over a flag that it does not know
        flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
        if not exact:
            # YNNPACK prepares every product anew, on every device.
            flags += ["--xla_cpu_experimental_ynn_fusion_type="]
    return " ".join(flags)


def thorough() -> dict[str, bool | int]:
    """Options of `jax.jit` for what computes longer than it compiles: those that XLA has without the flags above."""
    return {"xla_backend_optimization_level": 3} | ({"xla_cpu_use_fusion_emitters": True} if _VERSION < (0, 11) else {})
