"""What whoever stops a program gets to hear, also while it is still loading: imports nothing that takes time."""

from __future__ import annotations

import os
import signal


class Interrupted(BaseException):
    """The run was asked to stop, and what it has saved is whole; the same command resumes it.

    Scripts then exit with `STATUS`, EX_TEMPFAIL of sysexits.h: not done, and worth another try. Nothing that handles
    errors of its own may swallow it.
    """

    STATUS = 75


def answer_signals(answers: dict[int, int]) -> None:
    """From now on these signals end the process at once, with one line on stderr: signal -> exit status.

    For a script's first lines: what it imports after them takes seconds, in which there is nothing to save.
    """

    def end(number, frame):
        os.write(2, f"{signal.Signals(number).name}: stopped\n".encode())
        os._exit(answers[number])

    for number in answers:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background job ignores SIGINT
            signal.signal(number, end)
