"""What the scripts share: flags that are paths, settings among the flags, and an end in one line where somebody or the
disk interrupts them.

Exit statuses: 0, done (help included); 1, it failed, in part or as a whole, and stderr says why; 2, the command line is
wrong; 75, training was stopped, and the same command goes on; 130, interrupted.
"""

from __future__ import annotations

import difflib
import errno
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags

from mecap_jax.text_files import error_message, is_address, printable

_WRONG_USAGE, _MORE = 2, "--help lists the flags"


def local_paths(*names: str, values: flags.FlagValues = flags.FLAGS) -> None:
    """Refuses addresses as values of flags that are paths, or lists of paths."""
    message = "is an address; a local path is needed, or a bucket that is mounted as one"
    for name in names:
        flags.register_validator(name, _is_local, message, flag_values=values)


def _is_local(value: str | Sequence[str] | None) -> bool:
    values = [value] if isinstance(value, str) else value or ()
    return not any(map(is_address, values))


def run(main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> None:
    """Runs a script; its exit status is what `main` returns, 130 where it was interrupted, 1 where it cannot write.

    Args:
      argv: what absl parses, in place of the command line.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in place of what answered while it was loading

    def guarded(argv: list[str]) -> Any:
        for name, value in flags.FLAGS.flag_values_dict().items():
            if isinstance(value, float) and not math.isfinite(value):  # no bound of a flag refuses NaN
                refuse(f"--{name} must be a finite number, got {value}")
        try:
            status = main(argv)
            sys.stdout.flush()
            return status
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # who reads the output, such as `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter says so at its end
            return 1
        except Exception as error:
            if (problem := storage_problem(error)) is None:
                raise
            print(f"error: {printable(problem)}", file=sys.stderr)
            return 1

    start(guarded, argv)


def start(main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> None:
    """absl's `app.run` with statuses to trust: help is no failure, and a wrong command line is 2."""

    def guarded(argv: list[str]) -> Any:
        try:
            return main(argv)
        except app.UsageError as error:
            refuse(f"{error}; {_MORE}")

    app.run(guarded, argv=argv, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # help was asked for, and is shown
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, flags.FLAGS, n=1)
        refuse(f"unknown flag --{error.flagname}; " + (f"did you mean --{close[0]}?" if close else _MORE))
    except flags.Error as error:
        refuse(f"{error}; {_MORE}")


def refuse(message: str) -> NoReturn:
    """Ends a script whose command line is wrong, with a line that says why."""
    print(error_message(ValueError(message)), file=sys.stderr)
    sys.exit(_WRONG_USAGE)


def storage_problem(error: BaseException) -> str | None:
    """What the disk has against a program, in the system's words, where an error is about that; else None."""
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return next((text for text in map(os.strerror, _STORAGE) if text in str(error)), None)


# The last two are of disks and mounts that have gone.
_STORAGE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EIO, errno.ESTALE,
)  # fmt: skip


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.key.path=value`, or `--config.key.path value`, from the flags that absl knows."""
    prefix = "--config."
    others, overrides, arguments = [], [], iter(argv)
    for argument in arguments:
        if not argument.startswith(prefix):
            if argument.startswith("--") and "." in argument.partition("=")[0]:
                first, _, rest = argument[2:].partition(".")
                key = rest if difflib.get_close_matches(first, ["config"]) else argument[2:]
                refuse(f"unknown flag {argument}; did you mean {prefix}{key}?")
            others.append(argument)
        elif "=" in argument:
            overrides.append(argument[len(prefix) :])
        elif (value := next(arguments, "--")).startswith("--"):
            refuse(f"{argument} needs a value: {argument}=VALUE")
        else:
            overrides.append(f"{argument[len(prefix) :]}={value}")
    return others, overrides
