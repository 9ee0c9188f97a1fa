"""BERT in Flax (Devlin et al., arXiv 1810.04805): the post-norm transformer behind Sentence-BERT encoders.

RoBERTa and XLM-R differ in the position of their first token only. Rows hold several packed sentences, each of which
attends to itself alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mecap_jax.models.checkpoints.table import CheckpointError, Row, linear, load_tensors
from mecap_jax.models.layers import gelu


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Shape of the encoder; field names as in the Hugging Face `config.json`.

    Attributes:
      position_offset: position of the first token (0; RoBERTa counts from pad_token_id + 1).
      pooling: how a sentence's tokens become one vector, "mean" or "cls".
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    position_offset: int = 0
    pooling: str = "mean"


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
    """Token ids to sentence vectors."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.pooling = config.pooling
        self.words = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.positions = nnx.Embed(config.max_position_embeddings, config.hidden_size, rngs=rngs)
        self.token_types = nnx.Embed(config.type_vocab_size, config.hidden_size, rngs=rngs)
        self.norm = _layer_norm(config, rngs)
        self.layers = nnx.List(BertLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers))

    def __call__(
        self,
        tokens: Int[Array, "R L"],
        positions: Int[Array, "R L"],
        segments: Int[Array, "R L"],
        sentences: int,
    ) -> Float[Array, "R {sentences} D"]:
        """Returns a unit vector for each sentence packed into each row.

        Args:
          tokens: token ids.
          positions: place of each token in the position table.
          segments: 1, 2, ... for a row's first, second, ... sentence, 0 for padding.
          sentences: most sentences in a row; the vectors beyond a row's last sentence are zero.
        """
        x = self.norm(self.words(tokens) + self.token_types(jnp.zeros_like(tokens)) + self.positions(positions))
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
        for layer in self.layers:
            x = layer(x, mask)
        member = segments[:, None, :] == jnp.arange(1, sentences + 1)[:, None]
        if self.pooling == "cls":
            member &= jnp.diff(segments, axis=1, prepend=0)[:, None, :] != 0
        # The length of a vector is normalised away, so the sum over the tokens serves as their mean.
        pooled = jnp.einsum("rsl,rld->rsd", member.astype(x.dtype), x)
        return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


def _layer_norm(config: BertConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs)


# --- weights ------------------------------------------------------------------------------------------------------

_NORMS = {
    "embeddings.LayerNorm": "norm",
    "encoder.layer.{i}.attention.output.LayerNorm": "layers.{i}.attention_norm",
    "encoder.layer.{i}.output.LayerNorm": "layers.{i}.output_norm",
}
_LAYER = ("encoder.layer.{i}.", "layers.{i}.")
_TABLE = (
    Row("embeddings.word_embeddings.weight", "words.embedding"),
    Row("embeddings.position_embeddings.weight", "positions.embedding"),
    Row("embeddings.token_type_embeddings.weight", "token_types.embedding"),
    *(Row(f"{key}.weight", f"{path}.scale") for key, path in _NORMS.items()),
    *(Row(f"{key}.bias", f"{path}.bias") for key, path in _NORMS.items()),
    *linear((_LAYER[0] + "attention.self.", _LAYER[1]), "qkv", bias=True),
    Row("encoder.layer.{i}.attention.output.dense.weight", "layers.{i}.attention_output.kernel", "transpose"),
    Row("encoder.layer.{i}.attention.output.dense.bias", "layers.{i}.attention_output.bias"),
    Row("encoder.layer.{i}.intermediate.dense.weight", "layers.{i}.intermediate.kernel", "transpose"),
    Row("encoder.layer.{i}.intermediate.dense.bias", "layers.{i}.intermediate.bias"),
    Row("encoder.layer.{i}.output.dense.weight", "layers.{i}.output.kernel", "transpose"),
    Row("encoder.layer.{i}.output.dense.bias", "layers.{i}.output.bias"),
)
# The pooler serves next-sentence prediction and the position ids count from 0: embeddings of sentences need neither.
_IGNORED = (r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)")


def load_bert(path: Path, config: BertConfig) -> Bert:
    """Reads `model.safetensors` of a Hugging Face BERT, RoBERTa or XLM-R; parameters are float32 numpy arrays.

    Raises:
      CheckpointError: no safetensors file, or keys and shapes that do not fit (all are listed); names the file.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error
    for i in range(config.num_hidden_layers):
        for kind in ("weight", "bias"):
            keys = [f"encoder.layer.{i}.attention.self.{name}.{kind}" for name in ("query", "key", "value")]
            if all(key in tensors for key in keys):
                fused = np.concatenate([tensors.pop(key) for key in keys])
                tensors[f"encoder.layer.{i}.attention.self.qkv.{kind}"] = fused
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0))))
    try:
        params = load_tensors(tensors, _TABLE, _IGNORED, nnx.to_pure_dict(state))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)
