"""The vision towers of CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343): a vector for each picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mecap_jax.models.bert import fill_network
from mecap_jax.models.checkpoints.safetensors_files import TensorFiles
from mecap_jax.models.checkpoints.table import TensorRule
from mecap_jax.models.encoders.blocks import (
    ACTIVATIONS,
    Block,
    BlockConfig,
    block_rules,
    every_state,
    layer_norm,
    linear_rules,
    norm_rules,
    read_block,
    read_fields,
)
from mecap_jax.models.layers import attend_within, split_heads

IGNORED = (r"text_model\..*", r"text_projection\.weight", r"logit_(scale|bias)", r".*\.position_ids")
# What configurations leave out is the default of their class.
_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "num_channels": 3,
}  # fmt: skip
_KINDS = {
    "clip": {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """Shape of a tower.

    Attributes:
      kind: "clip" (a token for the class, a projection) or "siglip" (a probe that attends to all patches).
      image, patch, channels: of pictures.
      layers, block: the transformer.
      projection: width of CLIP's common space; 0 where the tower is published without it.
    """

    kind: str
    image: int
    patch: int
    channels: int
    layers: int
    block: BlockConfig
    projection: int = 0

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> PictureConfig:
        """Reads the content of a `config.json`, of the tower alone or of the whole model.

        Raises:
          ValueError: names what is missing, ill-formed or not implemented.
        """
        model = config.get("model_type")
        kind = str(model).partition("_")[0]
        if kind not in _KINDS or model not in (kind, f"{kind}_vision_model"):
            raise ValueError(f"model_type {model!r:.40} is no vision tower of CLIP or SigLIP")
        tower = config if model != kind else config.get("vision_config", {})
        if not isinstance(tower, Mapping):
            raise ValueError(f"vision_config must be an object, got {tower!r:.40}")
        tower = {**_KINDS[kind], **tower}
        sizes = {**_DEFAULTS, "patch_size": None}
        found = read_fields(tower, sizes, {"num_channels": 3, "vision_use_head": True})
        width, hidden, layers, heads, image, channels, patch = found.values()
        if image < patch:
            raise ValueError(f"image_size {image} is smaller than patch_size {patch}")
        block = read_block(tower, width, heads, hidden, tower["hidden_act"], tower["layer_norm_eps"])
        projected = kind == "clip" and (model == "clip" or "Projection" in str(config.get("architectures")))
        size = read_fields(config, {"projection_dim": 512}, {})["projection_dim"] if projected else 0
        return cls(kind, image, patch, channels, layers, block, size)

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """Shape of a patch as it is published: channels, rows, columns."""
        return (self.channels, self.patch, self.patch)


class PictureEncoder(nnx.Module):
    """Pictures in, hidden states of their patches and a vector a picture out."""

    def __init__(self, config: PictureConfig, *, rngs: nnx.Rngs):
        width, self.patch, is_clip = config.block.width, config.patch, config.kind == "clip"
        self.patches = nnx.Linear(config.channels * config.patch**2, width, use_bias=not is_clip, rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((width,))) if is_clip else None
        count = (config.image // config.patch) ** 2 + is_clip
        self.positions = nnx.Param(jnp.zeros((count, width)))
        self.first_norm = layer_norm(width, config.block.epsilon, rngs) if is_clip else None
        self.blocks = nnx.List(Block(config.block, rngs=rngs) for _ in range(config.layers))
        self.norm = layer_norm(width, config.block.epsilon, rngs)
        self.probe = None if is_clip else Probe(config.block, rngs=rngs)
        self.projection = nnx.Linear(width, config.projection, use_bias=False, rngs=rngs) if config.projection else None

    def __call__(self, pictures: Float[Array, "B H W C"]) -> tuple[list[Float[Array, "B T D"]], Float[Array, "B E"]]:
        """Returns the patches' input of each layer and output of the last one, and the vector of each picture.

        CLIP's class token is no patch. The vector is what text is compared with: the projected class token (where the
        projection is there), or what SigLIP's probe attends to. SigLIP's last state is normalised, CLIP's is not, as
        published.
        """
        batch, height, width, channels = pictures.shape
        size = self.patch
        # As in a convolution, what is left at the right and at the bottom is not looked at (384 pixels, patches of 14).
        pictures = pictures[:, : height // size * size, : width // size * size]
        cells = pictures.reshape(batch, height // size, size, width // size, size, channels)
        cells = cells.transpose(0, 1, 3, 5, 2, 4)  # channels, rows and columns of a patch last
        return self.encode(cells.reshape(batch, -1, channels * size**2))

    def encode(self, patches: Float[Array, "B P V"]) -> tuple[list[Float[Array, "B T D"]], Float[Array, "B E"]]:
        """As a call, of the values of each patch: by channel, row and column; patches in raster order."""
        x = self.patches(patches)
        if self.cls is not None:
            x = jnp.concatenate([jnp.broadcast_to(self.cls[...], (len(x), 1, x.shape[-1])), x], axis=1)
        x = x + self.positions[...]
        x = x if self.first_norm is None else self.first_norm(x)
        mask = jnp.ones(x.shape[:2], bool)
        if self.probe is not None:
            states = every_state(self.blocks, x, mask, self.norm)
            return states, self.probe(states[-1])
        states = every_state(self.blocks, x, mask, lambda last: last)
        pooled = self.norm(states[-1][:, 0])
        return [state[:, 1:] for state in states], pooled if self.projection is None else self.projection(pooled)


class Probe(nnx.Module):
    """SigLIP's pooling: one learnt query attends to all patches, and an MLP follows."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        width, self.heads, self.activation = config.width, config.heads, config.activation
        self.token = nnx.Param(jnp.zeros((1, 1, width)))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.norm = layer_norm(width, config.epsilon, rngs)
        self.up = nnx.Linear(width, config.hidden, rngs=rngs)
        self.down = nnx.Linear(config.hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        token = jnp.broadcast_to(self.token[...], (len(x), 1, x.shape[-1]))
        projected = ((self.q_proj, token), (self.k_proj, x), (self.v_proj, x))
        q, k, v = (split_heads(project(y), self.heads) for project, y in projected)
        y = self.out_proj(attend_within(q, k, v, jnp.ones(x.shape[:2], bool)).reshape(token.shape))
        return (y + self.down(ACTIVATIONS[self.activation](self.up(self.norm(y)))))[:, 0]


def load(directory: Path, tensors: TensorFiles, config: PictureConfig) -> PictureEncoder:
    """Fills a tower with the tensors of a directory. Raises `CheckpointError` where they do not fit."""
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in tensors) else ""
    table = rules(config, prefix)
    return fill_network(
        lambda: PictureEncoder(config, rngs=nnx.Rngs(0)), tensors, table, IGNORED, directory, config.patch_shape
    )


def rules(config: PictureConfig, tower: str) -> list[TensorRule]:
    """The table of a tower whose published names begin with `tower`."""
    table = [
        TensorRule(f"{tower}embeddings.patch_embedding.weight", "patches.kernel", "patch_convolution"),
        TensorRule(f"{tower}embeddings.position_embedding.weight", "positions"),
        *block_rules(f"{tower}encoder.", "self_attn", ("layer_norm1", "layer_norm2"), ("mlp.fc1", "mlp.fc2"), True),
        *norm_rules(f"{tower}post_layernorm", "norm"),
    ]
    if config.kind == "clip":
        projection = linear_rules("visual_projection", "projection", bias=False) if config.projection else []
        first = norm_rules(f"{tower}pre_layrnorm", "first_norm")  # spelt like this in every published file
        return [*table, TensorRule(f"{tower}embeddings.class_embedding", "cls"), *first, *projection]
    head = f"{tower}head."
    apart = ("q_proj", "k_proj", "v_proj")
    return [
        *table,
        TensorRule(f"{tower}embeddings.patch_embedding.bias", "patches.bias"),
        TensorRule(f"{head}probe", "probe.token"),
        TensorRule(f"{head}attention.in_proj_weight", tuple(f"probe.{name}.kernel" for name in apart), "transpose"),
        TensorRule(f"{head}attention.in_proj_bias", tuple(f"probe.{name}.bias" for name in apart)),
        *linear_rules(f"{head}attention.out_proj", "probe.out_proj"),
        *norm_rules(f"{head}layernorm", "probe.norm"),
        *linear_rules(f"{head}mlp.fc1", "probe.up"),
        *linear_rules(f"{head}mlp.fc2", "probe.down"),
    ]
