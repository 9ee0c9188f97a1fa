"""What both torch sides do before they import `transformers`."""

from __future__ import annotations

import os
import sys

import torch

from benchmarks.throughput.worker import cores

_LIBRARY = []


def synchronize() -> None:
    """Waits for what an accelerator was given to do: the clock is read behind it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_bytes() -> int | None:
    """The most memory that an accelerator has held for this process at a time."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def prepare_torch() -> None:
    """All cores, and the names that a torchvision without its compiled operators asks for.

    Ends the process where there shall be a GPU, and torch sees none.
    """
    if os.environ.get("JAX_PLATFORMS") == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU")
    torch.set_num_threads(cores())
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARY.append(library)
