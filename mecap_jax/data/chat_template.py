"""Chat templates: from a list of messages to the text that the tokenizer reads.

A published directory brings its own Jinja template; a tokenizer that was trained here gets `default_template`. Both
run in a process of their own (`template_sandbox`) and see plain strings only. What people wrote is data: special tokens
in it are broken up before the template puts its own around it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mecap_jax.data.template_sandbox import run_template
from mecap_jax.families import FAMILIES, MediaTokens
from mecap_jax.json_files import is_named, read_file, read_json_object

FEATURES = "<|FEATURES|>"  # precomputed features; no published vocabulary has a token for them
ROLES = ("system", "user", "assistant")


def default_template(family: str) -> str:
    """The family's chat format: plain text, or ChatML with its placeholders and without a system prompt of its own."""
    tokens = FAMILIES[family].media
    if plain := FAMILIES[family].plain:
        before, behind = map(repr, plain)
        return "{{ " + before + " }}{% for message in messages %}{{ message.content + " + behind + " }}{% endfor %}"
    blocks = [("audio", tokens.audio_start, tokens.audio, tokens.audio_end)]
    blocks += [(name, tokens.vision_start, getattr(tokens, name), tokens.vision_end) for name in ("image", "video")]
    media = "".join(
        "{% elif item.type == '" + name + "' %}" + start + placeholder + end
        for name, start, placeholder, end in blocks
        if placeholder is not None
    )
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for item in message.content %}{% if item.type == 'text' %}{{ item.text }}" + media + "{% endif %}"
        "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def read_template(directory: Path) -> tuple[str, Path] | None:
    """The chat template of a directory in the Hugging Face layout and its file, in the order in which processors look.

    Raises:
      ValueError: a file cannot be read, holds something else than templates, or several and none is called "default".
    """
    if is_named(path := directory / "chat_template.jinja"):
        try:
            return read_file(path).decode(), path
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not is_named(path := directory / name):
            continue
        template = read_json_object(path).get("chat_template")
        if isinstance(template, list):
            if not all(isinstance(entry, dict) and {"name", "template"} <= entry.keys() for entry in template):
                raise ValueError(f"{path}: 'chat_template' is a list of something else than named templates")
            template = {str(entry["name"]): entry["template"] for entry in template}
        if isinstance(template, dict):
            if "default" not in template:
                raise ValueError(f"{path}: 'chat_template' has {sorted(map(str, template))} but no 'default'")
            template = template["default"]
        if template is not None and not isinstance(template, str):
            raise ValueError(f"{path}: 'chat_template' is a {type(template).__name__}, not a string")
        if template is not None:
            return template, path
    return None


def render(template: str, messages: Sequence[Mapping[str, Any]], family: str, name: str = "the chat template") -> str:
    """Renders messages, ready for the assistant's turn.

    Args:
      messages: each has a "role" and a "content": a string, or items {"type": "text", "text": ...}, {"type": "audio"},
        {"type": "image"}, {"type": "video"} and {"type": "features"}. Other keys are not shown to the template, which
        in some families takes any item with a key "audio" for audio.
      name: what errors call the template.

    Raises:
      ValueError: an unknown role or item, media that the family does not read, or a template that fails.
    """
    plain = [_plain_message(message, FAMILIES[family].media, family) for message in messages]
    try:
        return run_template(template, messages=plain, add_generation_prompt=True, tools=None, documents=None)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def defuse(text: str, family: str) -> str:
    """Breaks up the delimiters of special tokens, so that a transcript cannot speak for the chat template."""
    if any(token[1].isalpha() for token in FAMILIES[family].special):  # "<s>", and "<mask>" beside it
        text = re.sub(r"<(?=/?[a-z]+>)", "< ", text)
    return text.replace("<|", "< |").replace("|>", "| >")


def _plain_message(message: Mapping[str, Any], tokens: MediaTokens, family: str) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}; roles are {', '.join(ROLES)}")
    if isinstance(content, str):
        return {"role": role, "content": defuse(content, family)}
    if not isinstance(content, list | tuple):
        raise ValueError(f"the content of a {role!r} message is a {type(content).__name__}, not a string or a list")
    items: list[dict[str, str]] = []
    texts: list[str] = []  # neighbours are joined before they are defused: "<" and "|im_end|>" make a token together

    def flush() -> None:
        if texts:
            items.append({"type": "text", "text": defuse("".join(texts), family)})
            texts.clear()

    for item in content:
        if not isinstance(item, Mapping):
            raise ValueError(f"a content item is a {type(item).__name__}, not a mapping with 'type'")
        kind = item.get("type")
        if kind == "text":
            if not isinstance(item.get("text"), str):
                raise ValueError(f"a text item holds {item.get('text')!r}, not a string")
            texts.append(item["text"])
            continue
        flush()
        if kind == "features":
            items.append({"type": "text", "text": FEATURES})
        elif kind in ("audio", "image", "video"):
            if getattr(tokens, kind) is None:
                raise ValueError(f"models of the family {family!r} read no {kind}")
            items.append({"type": kind})
        else:
            raise ValueError(f"unknown content item {kind!r}; items are text, audio, image, video and features")
    flush()
    if not tokens.any:  # templates of text models add `content` to a string
        return {"role": role, "content": "".join(item["text"] for item in items)}
    return {"role": role, "content": items}
