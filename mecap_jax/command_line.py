"""What the scripts share: flags that are paths, and an end in one line where somebody interrupts them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from mecap_jax.text_files import is_address


def local_paths(*names: str, values: flags.FlagValues = flags.FLAGS) -> None:
    """Refuses addresses as values of flags that are paths, or lists of paths."""
    message = "is an address; a local path is needed, or a bucket that is mounted as one"
    for name in names:
        flags.register_validator(name, _is_local, message, flag_values=values)


def _is_local(value: str | Sequence[str] | None) -> bool:
    values = [value] if isinstance(value, str) else value or ()
    return not any(map(is_address, values))


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs a script; its exit status is what `main` returns, 130 where it was interrupted."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in place of what answered while it was loading

    def guarded(argv: list[str]) -> Any:
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 130

    app.run(guarded)
