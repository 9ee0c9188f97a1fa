"""BERT in Flax (Devlin et al., arXiv 1810.04805): the post-norm transformer behind sentence encoders and classifiers.

RoBERTa and XLM-R differ in how positions are counted and in the names of their tensors only. Rows hold several packed
sentences, each of which attends to itself alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mecap_jax.models.checkpoints.safetensors_files import TensorFiles
from mecap_jax.models.checkpoints.table import MOST_LAYERS, CheckpointError, TensorRule, load_tensors
from mecap_jax.models.layers import gelu

# What each model type calls the encoder within a larger network: the prefix of its published tensors.
_KEY_PREFIXES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Shape of the encoder; field names as in the Hugging Face `config.json`."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> BertConfig:
        """Reads the content of a `config.json`.

        Raises:
          ValueError: fields are missing or ill-formed, or ask for what is not implemented; all are named.
        """
        problems = unimplemented(config)
        sizes = [
            field.name for field in dataclasses.fields(cls) if field.type == "int" and field.name != "pad_token_id"
        ]
        problems += [
            f"{name} must be a positive integer, got {config.get(name)!r:.40}"
            for name in sizes
            if type(config.get(name)) is not int or config[name] < 1
        ]
        layers = config.get("num_hidden_layers")
        if type(layers) is int and layers > MOST_LAYERS:
            problems.append(f"num_hidden_layers {layers} is out of range")
        eps = config.get("layer_norm_eps")
        if type(eps) not in (int, float) or not 0 <= eps < 1:
            problems.append(f"layer_norm_eps must be a number from 0 to 1, got {eps!r:.40}")
        # Configurations leave out what is the default of their class.
        padding = config.get("pad_token_id", 0 if config.get("model_type") == "bert" else 1)
        if type(padding) is not int or padding < 0:
            problems.append(f"pad_token_id must be a token, got {padding!r:.40}")
        if not problems and config["hidden_size"] % config["num_attention_heads"]:
            problems.append(
                f"hidden_size {config['hidden_size']} is no multiple of "
                f"num_attention_heads {config['num_attention_heads']}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return cls(
            model_type=config["model_type"],
            layer_norm_eps=eps,
            pad_token_id=padding,
            **{name: config[name] for name in sizes},
        )

    @property
    def key_prefix(self) -> str:
        """Prefix of the encoder's published tensors where it is part of a larger network."""
        return _KEY_PREFIXES[self.model_type]

    @property
    def max_tokens(self) -> int:
        """How many tokens have a position."""
        return self.max_position_embeddings - (0 if self.model_type == "bert" else self.pad_token_id + 1)

    def positions(self, tokens: Int[np.ndarray, " L"]) -> Int[np.ndarray, " L"]:
        """Returns the place of each of a sentence's tokens in the position table.

        RoBERTa counts from the padding token's id + 1 and passes over padding tokens, which a text may spell out.
        """
        if self.model_type == "bert":
            return np.arange(len(tokens))
        real = tokens != self.pad_token_id
        return np.cumsum(real) * real + self.pad_token_id


def unimplemented(config: Mapping[str, Any]) -> list[str]:
    """Returns what a `config.json` asks for beyond this network: the fields and their values, none where it fits."""
    implemented = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
    }
    problems = [
        f"{name} {config[name]!r:.40} is not implemented, only {value!r} is"
        for name, value in implemented.items()
        if config.get(name, value) != value
    ]
    problems += [f"{name} is not implemented" for name in ("pruned_heads", "quantization_config") if config.get(name)]
    if config.get("model_type") not in _KEY_PREFIXES:
        problems.append(f"model_type {config.get('model_type')!r:.40} is none of {', '.join(_KEY_PREFIXES)}")
    return problems


class BertLayer(nnx.Module):
    """Self-attention and feed-forward network, each with a residual and a LayerNorm behind it."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.attention_output = nnx.Linear(width, width, rngs=rngs)
        self.attention_norm = _layer_norm(config, rngs)
        self.intermediate = nnx.Linear(width, config.intermediate_size, rngs=rngs)
        self.output = nnx.Linear(config.intermediate_size, width, rngs=rngs)
        self.output_norm = _layer_norm(config, rngs)

    def __call__(self, x: Float[Array, "R L D"], mask: Bool[Array, "R 1 L L"]) -> Float[Array, "R L D"]:
        """Maps hidden states to hidden states; `mask` is true where a query may see a key."""
        rows, length, width = x.shape
        qkv = self.qkv(x).reshape(rows, length, 3, self.num_heads, width // self.num_heads)
        attention = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=mask)
        x = self.attention_norm(x + self.attention_output(attention.reshape(rows, length, width)))
        return self.output_norm(x + self.output(gelu(self.intermediate(x))))


class Bert(nnx.Module):
    """Token ids to hidden states."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.words = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.positions = nnx.Embed(config.max_position_embeddings, config.hidden_size, rngs=rngs)
        self.token_types = nnx.Embed(config.type_vocab_size, config.hidden_size, rngs=rngs)
        self.norm = _layer_norm(config, rngs)
        self.layers = nnx.List(BertLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers))

    def __call__(
        self, tokens: Int[Array, "R L"], positions: Int[Array, "R L"], segments: Int[Array, "R L"]
    ) -> Float[Array, "R L D"]:
        """Returns the hidden state of each token.

        Args:
          tokens: token ids.
          positions: place of each token in the position table.
          segments: 1, 2, ... for a row's first, second, ... sentence, 0 for padding.
        """
        x = self.norm(self.words(tokens) + self.token_types(jnp.zeros_like(tokens)) + self.positions(positions))
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
        for layer in self.layers:
            x = layer(x, mask)
        return x


def first_tokens(
    hidden: Float[Array, "R L D"], segments: Int[Array, "R L"], sentences: int
) -> Float[Array, "R {sentences} D"]:
    """Returns the first hidden state of each sentence packed into each row, zero beyond a row's last sentence."""
    starts = jnp.diff(segments, axis=1, prepend=0)[:, None, :] != 0
    return _select(_members(segments, sentences) & starts, hidden)


def token_sums(
    hidden: Float[Array, "R L D"], segments: Int[Array, "R L"], sentences: int
) -> Float[Array, "R {sentences} D"]:
    """Returns the sum of the hidden states of each sentence packed into each row, zero beyond the last sentence."""
    return _select(_members(segments, sentences), hidden)


def _members(segments: Int[Array, "R L"], sentences: int) -> Bool[Array, "R {sentences} L"]:
    return segments[:, None, :] == jnp.arange(1, sentences + 1)[:, None]


def _select(members: Bool[Array, "R S L"], hidden: Float[Array, "R L D"]) -> Float[Array, "R S D"]:
    return jnp.einsum("rsl,rld->rsd", members.astype(hidden.dtype), hidden)


def _layer_norm(config: BertConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs)


# --- weights ------------------------------------------------------------------------------------------------------

# Published encoders keep these apart; one product serves all three.
_QKV = ("query", "key", "value")
_NORMS = {
    "embeddings.LayerNorm": "norm",
    "encoder.layer.{i}.attention.output.LayerNorm": "layers.{i}.attention_norm",
    "encoder.layer.{i}.output.LayerNorm": "layers.{i}.output_norm",
}
_LINEARS = {
    **{f"encoder.layer.{{i}}.attention.self.{name}": f"layers.{{i}}.{name}" for name in _QKV},
    "encoder.layer.{i}.attention.output.dense": "layers.{i}.attention_output",
    "encoder.layer.{i}.intermediate.dense": "layers.{i}.intermediate",
    "encoder.layer.{i}.output.dense": "layers.{i}.output",
}
_EMBEDDINGS = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "token_types",
}

Network = TypeVar("Network", bound=nnx.Module)


def load_bert(path: Path, config: BertConfig) -> Bert:
    """Reads the encoder in `model.safetensors`, whether published alone or within the network it was trained in.

    Raises:
      CheckpointError: no safetensors file, or what is in it does not fit (see `load_tensors`); names the file.
    """
    tensors = TensorFiles(path.parent, _current_name, single=path.name)
    prefix = config.key_prefix if any(key.startswith(config.key_prefix) for key in tensors) else ""
    # The heads of pre-training (masked words, next sentences) say nothing about a sentence.
    heads = [r"cls\.(predictions|seq_relationship)\..*", r"lm_head\..*"] if prefix else []
    ignored = [*ignored_tensors(prefix), *heads]
    return fill_network(lambda: Bert(config, rngs=nnx.Rngs(0)), tensors, encoder_rules(prefix, ""), ignored, path)


def _current_name(key: str) -> str:
    """Files made before 2019, such as those of bert-base-uncased, call a norm's weight and bias gamma and beta."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda old: f"LayerNorm.{_OLD_NAMES[old.group(1)]}", key)


_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


def encoder_rules(key_prefix: str, path_prefix: str) -> list[TensorRule]:
    """The table of an encoder whose published keys and parameter paths begin with these prefixes."""
    return [
        *(
            TensorRule(f"{key_prefix}{key}.weight", f"{path_prefix}{path}.embedding")
            for key, path in _EMBEDDINGS.items()
        ),
        *(TensorRule(f"{key_prefix}{key}.weight", f"{path_prefix}{path}.scale") for key, path in _NORMS.items()),
        *(TensorRule(f"{key_prefix}{key}.bias", f"{path_prefix}{path}.bias") for key, path in _NORMS.items()),
        *(row for key, path in _LINEARS.items() for row in linear_rules(key_prefix + key, path_prefix + path)),
    ]


def linear_rules(key: str, path: str) -> list[TensorRule]:
    """The table of one linear layer with a bias."""
    return [TensorRule(f"{key}.weight", f"{path}.kernel", "transpose"), TensorRule(f"{key}.bias", f"{path}.bias")]


def ignored_tensors(key_prefix: str) -> list[str]:
    """Patterns of published tensors that are no part of the encoder.

    Older files hold the numbers of the positions. The pooler serves BERT's next-sentence prediction and its classifier;
    RoBERTa is often published with one that nothing reads.
    """
    prefix = re.escape(key_prefix)
    return [rf"{prefix}embeddings\.position_ids", rf"{prefix}pooler\.dense\.(weight|bias)"]


def fill_network(
    make: Callable[[], Network],
    tensors: TensorFiles,
    rules: Sequence[TensorRule],
    ignored: Sequence[str],
    path: Path,
    patch: tuple[int, ...] = (),
) -> Network:
    """Builds the network that `make` describes out of published tensors; its parameters are float32 numpy arrays.

    `patch` is the shape of a patch where pictures are cut into such.

    Raises:
      CheckpointError: as `load_tensors`; names the file at `path`.
    """
    graphdef, state = nnx.split(nnx.eval_shape(make))
    try:
        known = dict(problems=tensors.problems, is_complete=tensors.is_complete, patch=patch)
        params = load_tensors(tensors, rules, ignored, _split_qkv(nnx.to_pure_dict(state)), **known)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    nnx.replace_by_pure_dict(state, _fuse_qkv(params))
    return nnx.merge(graphdef, state)


def _split_qkv(params: Any) -> Any:
    """Replaces the shapes of each fused projection by those of its three parts, as they are published."""
    if not isinstance(params, Mapping):
        return params
    split = {key: _split_qkv(value) for key, value in params.items() if key != "qkv"}
    if "qkv" in params:
        part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] // 3), x.dtype), params["qkv"])
        split |= dict.fromkeys(_QKV, part)
    return split


def _fuse_qkv(params: Any) -> Any:
    if not isinstance(params, Mapping):
        return params
    fused = {key: _fuse_qkv(value) for key, value in params.items() if key not in _QKV}
    if "query" in params:
        parts = [params[name] for name in _QKV]
        fused["qkv"] = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=-1), *parts)
    return fused
