"""The two Java programs that `pycocoevalcap` ships: the Penn Treebank tokenizer and METEOR 1.5.

They are started here, not through the package's wrappers, which write a temporary file beside their code, print to the
console and leave pipes open. Everything stays offline. What cannot run raises `JavaError` with the reason, so that the
caller can report the metric as unavailable.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocoevalcap.meteor import meteor
from pycocoevalcap.tokenizer import ptbtokenizer

_PTB_JAR = str(Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR))
_METEOR_JAR = str(Path(meteor.__file__).with_name(meteor.METEOR_JAR))
_METEOR_FIELDS = 23
# METEOR 1.5's defaults, English tuned on ranking (Denkowski and Lavie 2014): weights of the exact, stem, synonym and
# paraphrase matchers, then alpha, beta, gamma and the content word weight delta.
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


class JavaError(RuntimeError):
    """Java or one of the two programs cannot run; the message is the reason."""


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Returns each text lowercased, Treebank-tokenised, without punctuation, its tokens joined by single blanks.

    The same jar, options and punctuation list as `pycocoevalcap.tokenizer.PTBTokenizer`.

    Raises:
      JavaError: there is no Java, or the tokenizer failed.
    """
    lines = [" ".join(text.split()) for text in texts]
    command = [_java(), "-cp", _PTB_JAR]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run(command, input="".join(f"{line}\n" for line in lines).encode(), capture_output=True)
    if done.returncode:
        raise JavaError(f"the PTB tokenizer failed: {_last_line(done.stderr)}")
    tokenised = done.stdout.decode().split("\n")[:-1]
    if len(tokenised) != len(lines):
        raise JavaError(f"the PTB tokenizer returned {len(tokenised)} lines for {len(lines)} texts")
    return [" ".join(token for token in line.split() if token not in ptbtokenizer.PUNCTUATIONS) for line in tokenised]


class Meteor:
    """METEOR 1.5 for English, a context manager.

    The process starts with the block, which it serves to its end, and reads its paraphrase table (about 7 s) in the
    background; without `ahead` it starts at first use. What keeps it from starting is raised at first use.
    """

    def __init__(self, ahead: bool = True):
        self._ahead = ahead
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Meteor:
        if self._ahead:
            with contextlib.suppress(JavaError):
                self._start()
        return self

    def __exit__(self, *_):
        self._process = None
        with contextlib.suppress(BrokenPipeError):  # what a dead process never read
            self._stack.close()

    def statistics(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Returns the alignment statistics of each candidate against its best reference, float `[N, 23]`.

        Takes tokenised text. Rows simply sum, and `meteor_score` turns a sum into the score: a pair whose words all
        align in one piece has 0 chunks, which is what METEOR itself adds up for it.

        Raises:
          JavaError: there is no Java, or METEOR failed.
        """
        rows = [self._score(*pair) for pair in zip(candidates, references)]
        statistics = np.array(rows, dtype=np.float64).reshape(-1, _METEOR_FIELDS)
        matches = statistics[:, 4:20].reshape(-1, 4, 2, 2).sum(axis=(1, 2))  # [N, (candidate, reference)]
        whole = (matches == statistics[:, :2]).all(axis=1) & (statistics[:, 20] == 1)
        statistics[whole, 20] = 0
        return statistics

    def _score(self, candidate: str, references: Sequence[str]) -> list[float]:
        if self._process is None:
            self._start()
        fields = [" ".join(text.replace("|||", " ").split()) for text in (*references, candidate)]
        answer = b""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"SCORE ||| {' ||| '.join(fields)}\n".encode())
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        try:
            row = [float(field) for field in answer.split()]
        except ValueError:
            row = []
        if len(row) != _METEOR_FIELDS:
            self._errors.seek(0)
            raise JavaError(f"METEOR failed: {_last_line(self._errors.read() or answer)}")
        return row

    def _start(self):
        command = [_java(), "-Xmx2G", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-jar", _METEOR_JAR]
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        self._errors = self._stack.enter_context(tempfile.TemporaryFile())
        self._process = self._stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        )
        self._stack.callback(self._process.kill)


def meteor_score(sums: np.ndarray) -> np.ndarray:
    """Returns METEOR 1.5 `[...]` from sums `[..., 23]` of `Meteor.statistics` (Denkowski and Lavie 2014).

    Equal to what the jar's `EVAL` command prints for the same segments.
    """
    content = sums[..., :2] - sums[..., 2:4]
    function = sums[..., 2:4]
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # matcher, (content, function), (candidate, reference)
    weighted = np.einsum("m,...mkt,k->...t", _MATCHERS, matches, np.array([_DELTA, 1 - _DELTA]))
    shares = _divide(weighted, _DELTA * content + (1 - _DELTA) * function)
    precision, recall = shares[..., 0], shares[..., 1]
    f_mean = _divide(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragmentation = _divide(sums[..., 20], (sums[..., 21] + sums[..., 22]) / 2)
    return f_mean * (1 - _GAMMA * fragmentation**_BETA)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns a / b, and 0 where b is 0 (nothing to match, nothing matched)."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=np.asarray(b) != 0)


def _java() -> str:
    path = shutil.which("java")
    if path is None:
        raise JavaError("there is no `java` on the PATH")
    return path


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
