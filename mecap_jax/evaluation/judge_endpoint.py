"""A language model behind an OpenAI-compatible address as the judge of explanations, as ERV's authors have it.

Off unless it is asked for. Where it is and its key come from the environment, never from a configuration: that of a
stranger's run decides neither where texts and key go. What is sent is the explanation and the names of the classes,
nothing of the clip. A judge that is down, slow or talks nonsense says nothing: the verdict is None, and how often that
was is counted. One that replies and names no class has judged: the explanation speaks for none of them, the verdict is
"", and that is counted, too.
"""

from __future__ import annotations

import http.client
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from mecap_jax.json_files import parse_json, to_json
from mecap_jax.rewards.combine import run_in_daemon
from mecap_jax.sharding import all_items
from mecap_jax.text_files import printable

_log = logging.getLogger(__name__)

ENDPOINT = "endpoint"  # the name of such a judge
ADDRESS_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
_AT_ONCE, _MOST_BYTES, _REPLY_TOKENS, _PIECE = 8, 2**20, 16, 2**14
_QUESTION = {
    "en": "Someone explained an emotion like this:\n{text}\nWhich emotion does the explanation speak for? Reply with "
    "one word out of: {labels}.",
    "zh": "有人这样解释一种情感：\n{text}\n这段解释支持哪种情感？请从以下词语中选一个回答：{labels}。",
}


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """A reply, in pieces: the time-out of a connection is that of each piece, not of all."""
    said = b""
    while len(said) < _MOST_BYTES and (piece := response.read1(_PIECE)):
        said += piece
        if time.monotonic() > deadline:
            raise TimeoutError
    return said


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address that sends us elsewhere is refused: the key is for the one that was named."""

    def redirect_request(self, *_):
        return None


class EndpointJudge:
    """Asks POST ADDRESS/chat/completions for the class that each explanation speaks for.

    Attributes:
      failures: how many explanations got no verdict, or one that names no class, by reason.
    """

    def __init__(
        self,
        model: str,
        labels: Sequence[str],
        normalise: Callable[[str], str | None],
        language: str = "en",
        timeout_s: float = 30.0,
    ):
        """Sends nothing yet. `OPENAI_BASE_URL` (http(s)://HOST[:PORT]/v1, say) is asked, with the key of
        `OPENAI_API_KEY`, where there is one.

        Args:
          model: as the endpoint calls it.
          labels: names of the classes to choose from.
          normalise: the class that a reply names.
          timeout_s: of one question, from its first byte to the last one of the reply.

        Raises:
          ValueError: no such address, or no model.
        """
        address = os.environ.get(ADDRESS_VARIABLE, "")
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"the judge {ENDPOINT!r} is at the address that the variable {ADDRESS_VARIABLE} holds, "
                f"http(s)://HOST/v1, say: {address!r} is none"
            )
        if not model:
            raise ValueError("a judge behind an address needs the name of its model (config key 'task.judge_model')")
        self._url, self._model = f"{address.rstrip('/')}/chat/completions", model
        self._labels, self._normalise, self._language = labels, normalise, language
        self._timeout_s, self._opener = timeout_s, urllib.request.build_opener(_NoRedirect)
        self.failures: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """Returns a class, "" or None for each text; of a run on several machines only the first one asks."""
        return all_items(self._ask_all(texts) if jax.process_index() == 0 else [])

    def _ask_all(self, texts: Sequence[str]) -> list[str | None]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            replies = list(pool.map(self._ask_in_time, texts))
        for _, reason in replies:
            if reason:
                if reason not in self.failures:
                    _log.warning(
                        "the judge %s named no class (logged once a reason, counted): %s", self._url, printable(reason)
                    )
                self.failures[reason] = self.failures.get(reason, 0) + 1
        return [verdict for verdict, _ in replies]

    def _ask_in_time(self, text: str) -> tuple[str | None, str]:
        """The same, whatever takes its time: a name that is looked up and headers have no time-out of their own."""
        try:
            return run_in_daemon(lambda: self._ask(text), "judge").result(timeout=self._timeout_s)
        except TimeoutError:
            return None, "TimeoutError"

    def _ask(self, text: str) -> tuple[str | None, str]:
        """A verdict, or what there is in place of one and the reason."""
        comma = "、" if self._language == "zh" else ", "
        question = _QUESTION[self._language].format(text=text, labels=comma.join(self._labels))
        messages = [{"role": "user", "content": question}]
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": _REPLY_TOKENS}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, to_json(body).encode(), headers)
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                said = parse_json(_read(response, deadline))["choices"][0]["message"]["content"]
            verdict = self._normalise(said)
        except urllib.error.HTTPError as error:
            return None, f"status {error.code}"
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out
            return None, f"{type(getattr(error, 'reason', None) or error).__name__}"
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return None, "a reply that is none of a chat"
        return (verdict, "") if verdict else ("", "a reply that names no class")
