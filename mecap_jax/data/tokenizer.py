"""The text side of the model: a `tokenizers` file with the family's special tokens, and how one is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mecap_jax.data.chat_template import FEATURES, default_template, defuse, read_template, render
from mecap_jax.families import FAMILIES
from mecap_jax.json_files import write_json
from mecap_jax.tokenizer_files import LONGEST_TEXT, read_tokenizer

# What a published directory keeps of its tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)

# Under which names transformers' processors ask a tokenizer for `MediaTokens`.
_ATTRIBUTES = {
    "audio": "audio_token",
    "audio_start": "audio_bos_token",
    "audio_end": "audio_eos_token",
    "image": "image_token",
    "video": "video_token",
    "vision_start": "vision_bos_token",
    "vision_end": "vision_eos_token",
}


def special_tokens(family: str) -> tuple[str, ...]:
    """The special tokens that a tokenizer of the family must have."""
    tokens = FAMILIES[family].media
    audio = (tokens.audio, tokens.audio_start, tokens.audio_end)
    vision = (tokens.image, tokens.video, tokens.vision_start, tokens.vision_end)
    return (*FAMILIES[family].special, *(token for token in (*audio, *vision) if token is not None))


class Tokenizer:
    """Encodes and decodes text and conversations; knows the ids of the special tokens.

    Attributes:
      family: whose special tokens and placeholders it has (`families.FAMILIES`).
      media: the family's placeholder tokens.
      template: the chat template's Jinja source.
      vocab_size: the largest id in the file, plus one.
      pad_id, end_ids: the id that fills up rows, and those that end an answer.
      features_id: marks a place of precomputed features in an encoded conversation.
      features_input_id: what the model gets there: `features_id` where the file has that token, `pad_id` otherwise.
      placeholders: the kind of media that each placeholder id stands for.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        family: str = "qwen2_5_omni",
        template: str | None = None,
        source: Path | None = None,
        template_file: Path | None = None,
    ):
        """Wraps `backend`.

        Args:
          template: the chat template; None takes `default_template`.
          source, template_file: the directory and the file that they were read from.

        Raises:
          ValueError: the backend lacks special tokens of the family.
        """
        missing = [token for token in special_tokens(family) if backend.token_to_id(token) is None]
        if missing:
            raise ValueError(f"tokenizer lacks the special tokens {missing} of the family {family!r}")
        # Files that were saved after training often hold these; transformers ignores them, too.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._source = source
        self.family = family
        self.media = FAMILIES[family].media
        self.template = default_template(family) if template is None else template
        self._template_name = f"the chat template of {template_file}" if template_file else "the chat template"
        self.vocab_size = max(backend.get_vocab().values()) + 1  # ids may have gaps
        self.pad_id = backend.token_to_id(FAMILIES[family].pad)
        self.end_ids = tuple(map(backend.token_to_id, FAMILIES[family].ends))
        in_file = backend.token_to_id(FEATURES) is not None
        if not in_file:
            backend.add_special_tokens([FEATURES])
        self.features_id = backend.token_to_id(FEATURES)
        self.features_input_id = self.features_id if in_file else self.pad_id
        kinds = {"audio": self.media.audio, "image": self.media.image, "video": self.media.video, "features": FEATURES}
        self.placeholders = {self.special(token): kind for kind, token in kinds.items() if token is not None}

    @classmethod
    def from_file(cls, path: str | Path, family: str = "qwen2_5_omni") -> Tokenizer:
        """Loads a `tokenizer.json` with the default chat template."""
        return cls(read_tokenizer(Path(path)), family)

    @classmethod
    def from_directory(cls, path: str | Path, family: str) -> Tokenizer:
        """Loads `tokenizer.json` and the chat template of a directory in the Hugging Face layout.

        Raises:
          FileNotFoundError: there is no `tokenizer.json`.
          ValueError: special tokens of the family are missing, or a file does not hold what it should.
        """
        directory = Path(path)
        backend = read_tokenizer(directory / "tokenizer.json")
        try:
            template, file = read_template(directory) or (None, None)
            return cls(backend, family, template, directory, file)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json`."""
        if self.features_input_id == self.features_id:
            self._backend.save(str(path))
            return
        content = json.loads(self._backend.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != FEATURES]
        write_json(Path(path), content)

    def save_directory(self, directory: Path) -> None:
        """Writes what transformers needs to load the tokenizer; files that were read are copied as they are."""
        if self._source is not None:
            for name in TOKENIZER_FILES:
                target = directory / name
                if (self._source / name).is_file() and not (target.exists() and target.samefile(self._source / name)):
                    shutil.copyfile(self._source / name, target)
        if self._source is None or read_template(directory) is None:
            (directory / "chat_template.jinja").write_text(self.template, encoding="utf-8")
        if self._source is not None:
            return
        self.save(directory / "tokenizer.json")
        tokens = vars(self.media)
        media = {name: tokens[field] for field, name in _ATTRIBUTES.items() if tokens[field] is not None}
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is, splitting rules included
            "eos_token": FAMILIES[self.family].ends[0],
            "pad_token": FAMILIES[self.family].pad,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 32768,
            "extra_special_tokens": media,
        }
        write_json(directory / "tokenizer_config.json", config)

    def special(self, token: str) -> int:
        """The id of a special token."""
        return self._backend.token_to_id(token)

    def media_kind(self, token: int) -> str:
        """The kind of media that a token of the model's input stands for; "" where it is text."""
        return "features" if token == self.features_input_id else self.placeholders.get(token, "")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Special tokens written out in `text` are data, not control: they are split like words."""
        return self.encode_rendered(defuse(text, self.family))

    def encode_conversation(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of messages as `chat_template.render` takes them: one placeholder id an item of media.

        Raises:
          ValueError: as `chat_template.render` does.
        """
        return self.encode_rendered(self.render_conversation(messages))

    def render_conversation(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of messages. Raises ValueError as `chat_template.render` does."""
        return render(self.template, messages, self.family, self._template_name)

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a piece of what `render_conversation` gave, special tokens in it included."""
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"a text of {len(text)} characters is longer than any prompt ({LONGEST_TEXT})")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a pair of surrogates
            raise ValueError(f"a text is not valid Unicode: {error}") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens dropped."""
        return self._backend.decode(list(map(int, ids)), skip_special_tokens=True).strip()


def _splitting(family: str) -> pre_tokenizers.PreTokenizer:
    words = FAMILIES[family].words
    if words is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    # transformers gives models of type "qwen2" their rule whatever their tokenizer.json says.
    split = pre_tokenizers.Split(tokenizers.Regex(words), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_tokenizer(texts: Iterable[str], vocab_size: int, family: str = "qwen2_5_omni") -> Tokenizer:
    """Trains a byte-level BPE tokenizer (the kind Qwen2.5 has) on texts; any text can be encoded with it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _splitting(family)
    backend.decoder = decoders.ByteLevel()
    # A text model's vocabulary knows nothing of features, whoever trained it.
    features = [FEATURES] if FAMILIES[family].media.any else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special_tokens(family), *features],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((defuse(text, family) for text in texts), trainer)
    return Tokenizer(backend, family)
