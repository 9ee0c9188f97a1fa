"""A language model behind an OpenAI-compatible address as the judge of explanations, as ERV's authors have it.

Off unless an address is named. What is sent is the explanation and the names of the classes, nothing of the clip. A
judge that is down, slow or talks nonsense says nothing: the verdict is None, and how often that was is counted.
"""

from __future__ import annotations

import http.client
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mecap_jax.json_files import parse_json, to_json

_log = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
_AT_ONCE, _MOST_BYTES, _REPLY_TOKENS = 8, 2**20, 16
_QUESTION = {
    "en": "Someone explained an emotion like this:\n{text}\nWhich emotion does the explanation speak for? Reply with "
    "one word out of: {labels}.",
    "zh": "有人这样解释一种情感：\n{text}\n这段解释支持哪种情感？请从以下词语中选一个回答：{labels}。",
}


def is_endpoint(judge: str) -> bool:
    """Whether the name of a judge is an address."""
    return judge.startswith(("http://", "https://"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address that sends us elsewhere is refused: the key is for the one that was named."""

    def redirect_request(self, *_):
        return None


class EndpointJudge:
    """Asks POST ADDRESS/chat/completions for the class that each explanation speaks for.

    Attributes:
      failures: how many explanations got no verdict, by reason.
    """

    def __init__(
        self,
        address: str,
        model: str,
        labels: Sequence[str],
        normalise: Callable[[str], str | None],
        language: str = "en",
        timeout_s: float = 30.0,
    ):
        """Sends nothing yet. The key is that of the variable `OPENAI_API_KEY`, where there is one.

        Args:
          address: http(s)://HOST[:PORT]/v1, say.
          model: as the endpoint calls it.
          labels: names of the classes to choose from.
          normalise: the class that a reply names.
          timeout_s: of one question.

        Raises:
          ValueError: no such address, or no model.
        """
        if not is_endpoint(address) or not urllib.parse.urlsplit(address).hostname:
            raise ValueError(f"{address!r} is no address of a judge: expected http(s)://HOST/v1")
        if not model:
            raise ValueError("a judge behind an address needs the name of its model")
        self._url, self._model = f"{address.rstrip('/')}/chat/completions", model
        self._labels, self._normalise, self._language = labels, normalise, language
        self._timeout_s, self._opener = timeout_s, urllib.request.build_opener(_NoRedirect)
        self.failures: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """Returns a class, or None, for each text."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            replies = list(pool.map(self._ask, texts))
        for _, reason in replies:
            if reason:
                if reason not in self.failures:
                    _log.warning("the judge %s gave no verdict (logged once a reason, counted): %s", self._url, reason)
                self.failures[reason] = self.failures.get(reason, 0) + 1
        return [verdict for verdict, _ in replies]

    def _ask(self, text: str) -> tuple[str | None, str]:
        """A verdict, or None and the reason."""
        comma = "、" if self._language == "zh" else ", "
        question = _QUESTION[self._language].format(text=text, labels=comma.join(self._labels))
        messages = [{"role": "user", "content": question}]
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": _REPLY_TOKENS}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, to_json(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                said = parse_json(response.read(_MOST_BYTES))["choices"][0]["message"]["content"]
            verdict = self._normalise(said)
        except urllib.error.HTTPError as error:
            return None, f"status {error.code}"
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out
            return None, f"{type(getattr(error, 'reason', None) or error).__name__}"
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return None, "a reply that is none of a chat"
        return verdict, "" if verdict else "a reply that names no class"
