"""Shapes of the model: one frozen dataclass per part, and named presets.

Field names follow the Hugging Face configuration of the family (Qwen2.5-Omni's thinker), so that a published
`config.json` reads off directly. With both towers the model is that thinker; without the audio tower, Qwen2.5-VL;
with only the feature projector, a decoder (Qwen2.5, GPT-2) or BART behind precomputed features (EmotionTalk's recipe).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from mecap_jax.field_types import Regex, ShareBelowOne


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """An encoder that reads the prompt, of the decoder's width and with as many learned positions.

    Attributes:
      num_hidden_layers, num_attention_heads, intermediate_size: of its layers.
      start_ids: tokens that the decoder begins with; behind them stands the answer.
    """

    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    start_ids: tuple[NonNegativeInt, NonNegativeInt] = (2, 0)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Qwen2.5 or Qwen3 decoder: grouped-query attention, RMSNorm, SwiGLU; or GPT-2's or BART's, with learned positions.

    Attributes:
      rms_norm_eps: of RMSNorm, or of the LayerNorm in its place.
      attention_bias: biases on q, k and v (Qwen2 and 2.5).
      qk_norm: RMSNorm over each head of q and k (Qwen3).
      mrope_section: how many rotary frequency pairs follow the temporal, height and width position (they sum to
        head_dim / 2); None gives plain one-dimensional rotary positions.
      max_position_embeddings: so many positions are learned, in place of rotary ones, which makes it GPT-2 (Radford et
        al., 2019): LayerNorm for RMSNorm, one hidden layer with GELU for SwiGLU, and biases everywhere.
      encoder: what reads the prompt in the decoder's place, which makes it BART (arXiv 1910.13461): the decoder attends
        to what the encoder says, and norms stand behind their residuals.
    """

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    rope_theta: PositiveFloat = 1e6
    mrope_section: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = True
    qk_norm: bool = False
    max_position_embeddings: PositiveInt | None = None
    encoder: TextEncoderConfig | None = None

    @property
    def has_learned_positions(self) -> bool:
        """Whether it is GPT-2's or BART's."""
        return self.max_position_embeddings is not None

    def prompt_room(self, answer: int = 0) -> int | None:
        """Most tokens of a prompt, padding included, where an answer of up to `answer` tokens goes with it.

        None: any number, for nothing is looked up by position. Below 1: not even the answer has room by itself.
        """
        learned = self.max_position_embeddings
        if learned is None or self.encoder is None:
            return None if learned is None else learned - answer
        # Prompts and answers have tables of their own there.
        return learned if len(self.encoder.start_ids) + answer <= learned else 0

    def lacks_room(self, prompt: int, answer: int = 0) -> str:
        """What is wrong with a prompt of `prompt` tokens beside such an answer, in words, or ""."""
        room = self.prompt_room(answer)
        if room is None or prompt <= room:
            return ""
        return (
            f"a prompt of {prompt} tokens, and beside an answer of up to {answer} there is room for {max(room, 0)}: "
            f"model.decoder.max_position_embeddings is {self.max_position_embeddings}"
        )


@dataclasses.dataclass(frozen=True)
class AudioTowerConfig:
    """Whisper-like encoder over chunks of `2 * n_window` mel frames (10 ms each); 25 tokens a second."""

    num_mel_bins: PositiveInt
    d_model: PositiveInt
    encoder_layers: PositiveInt
    encoder_attention_heads: PositiveInt
    encoder_ffn_dim: PositiveInt
    n_window: PositiveInt = 100
    max_source_positions: PositiveInt = 1500

    @property
    def chunk_frames(self) -> int:
        """Mel frames in one chunk."""
        return 2 * self.n_window

    @property
    def chunk_tokens(self) -> int:
        """Decoder tokens that a full chunk gives."""
        return self.n_window // 2


# OpenAI CLIP's image statistics (arXiv 2103.00020), by which the pixels of the Qwen2-VL family are normalised.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class VisionTowerConfig:
    """Windowed vision transformer over patches of 2 frames x 14 x 14 pixels, merged 2 x 2 into decoder tokens."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    fullatt_block_indexes: tuple[NonNegativeInt, ...]
    patch_size: PositiveInt = 14
    temporal_patch_size: PositiveInt = 2
    spatial_merge_size: PositiveInt = 2
    window_size: PositiveInt = 112
    in_channels: PositiveInt = 3

    @property
    def patch_dim(self) -> int:
        """Values in one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def cell_patches(self) -> int:
        """Patches in one merge cell, of which a decoder token is made."""
        return self.spatial_merge_size**2

    @property
    def window_cells(self) -> int:
        """Merge cells in a full attention window."""
        return (self.window_size // (self.patch_size * self.spatial_merge_size)) ** 2


@dataclasses.dataclass(frozen=True)
class FeatureProjectorConfig:
    """Projects precomputed features into decoder tokens, one token a feature frame.

    Attributes:
      names: the features that are read, in this order.
      dims: width of each.
      hidden_size: width of the two-layer projection.
      layers: how many layers of an encoder stand side by side in each, of which the projector learns a mix; () where
        all are of one.
    """

    names: tuple[str, ...]
    dims: tuple[PositiveInt, ...]
    hidden_size: PositiveInt
    layers: tuple[PositiveInt, ...] = ()

    def misfit(self) -> str:
        """Why names, dims and layers do not fit together, or ""."""
        if len(self.names) != len(self.dims):
            return f"{len(self.names)} names and {len(self.dims)} dims"
        if self.layers and len(self.layers) != len(self.dims):
            return f"{len(self.dims)} dims and {len(self.layers)} layers"
        uneven = [pair for pair in zip(self.dims, self.layers) if pair[0] % pair[1]]
        return f"a width of {uneven[0][0]} does not divide into {uneven[0][1]} layers" if uneven else ""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): a projection W becomes W + alpha / rank * A B.

    Adapters train beside whatever else does: a run that trains nothing else has `Config.trainable = ()`.

    Attributes:
      rank: of the product A B.
      alpha: the product counts alpha / rank times.
      targets: regular expressions; a projection is adapted where one of them matches its whole dotted path, such as
        "language_model.layers.0.self_attn.q_proj". The default is of decoders; `of_text` knows BART's encoder, too.
      dropout: share of an adapter's inputs that is zeroed in training.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    targets: tuple[Regex, ...] = (r"language_model\.layers\.\d+\.(self_attn|mlp)\..*_proj",)
    dropout: ShareBelowOne = 0.0

    @classmethod
    def of_text(cls, decoder: DecoderConfig) -> LoraConfig:
        """Adapters of all layers of text; where there is an encoder, also in it and in the attention to it.

        Another decoder has the default targets, by which checkpoints say that they are of the same model.
        """
        if decoder.encoder is None:
            return cls()
        return cls(targets=(r"language_model\.(encoder\.)?layers\.\d+\.(self_attn|encoder_attn|mlp)\..*_proj",))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The whole network.

    Attributes:
      name: the preset's name.
      decoder, audio, vision, features: the network's parts; None: without one.
      lora: adapters; None: without.
      family: whose chat format, placeholder tokens, positions and checkpoint layout it has (`families.FAMILIES`).
      position_id_per_seconds: temporal positions per second of video (`position_id_per_seconds` of Qwen2.5-Omni,
        `tokens_per_second` of Qwen2.5-VL).
      seconds_per_chunk: audio and video of one clip interleave in chunks of this length.
      param_dtype: dtype that parameters are stored in ("float32", "bfloat16").
      dtype: dtype of matrix products; softmax, norms, log-probabilities and losses are float32 always.
      remat: keep only what passes between layers for the backward pass and compute the rest again: a third more work
        for a fraction of the memory. For the decoder, and for towers that train.
      remat_keeps: what is kept beside it, by name: "attention" (what comes out of attention by blocks), "projections"
        (queries, keys, values), "mlp" (the hidden layers). Attention is then computed once, for as much memory as what
        passes between layers takes.
      unroll: compile all layers one by one in gradients, too. Otherwise those of a deep stack run in a loop, which
        compiles in a fraction of the time and holds a second copy of their weights, in `dtype` and divided as they are.
    """

    name: str
    decoder: DecoderConfig
    family: str = "qwen2_5_omni"
    audio: AudioTowerConfig | None = None
    vision: VisionTowerConfig | None = None
    features: FeatureProjectorConfig | None = None
    lora: LoraConfig | None = None
    position_id_per_seconds: PositiveInt = 25
    seconds_per_chunk: PositiveFloat = 2.0
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    remat_keeps: tuple[Literal["attention", "projections", "mlp"], ...] = ()
    unroll: bool = False

    def miniature(self) -> ModelConfig:
        """The same architecture so small that a step takes seconds on a CPU: for trying a recipe, not for training."""
        replace = dataclasses.replace
        decoder = replace(
            self.decoder,
            vocab_size=1024,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4 if self.decoder.has_learned_positions else 2,
            head_dim=16,
            mrope_section=self.decoder.mrope_section and (2, 3, 3),
            encoder=self.decoder.encoder and TextEncoderConfig(2, 4, 128),
        )
        audio = self.audio and replace(
            self.audio, d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64
        )
        vision = self.vision and replace(
            self.vision, hidden_size=32, intermediate_size=64, depth=2, num_heads=2, fullatt_block_indexes=(1,)
        )
        features = self.features and replace(self.features, hidden_size=64)
        lora = self.lora and replace(self.lora, rank=4)
        parts = dict(decoder=decoder, audio=audio, vision=vision, features=features, lora=lora)
        return replace(self, name=f"{self.name} miniature", param_dtype="float32", dtype="float32", **parts)

    @classmethod
    def qwen2_5_omni_3b(cls) -> ModelConfig:
        """The thinker of Qwen/Qwen2.5-Omni-3B (arXiv 2503.20215)."""
        return cls._omni("qwen2_5_omni_3b", _QWEN2_5_3B)

    @classmethod
    def qwen2_5_omni_7b(cls) -> ModelConfig:
        """The thinker of Qwen/Qwen2.5-Omni-7B (arXiv 2503.20215)."""
        return cls._omni("qwen2_5_omni_7b", _QWEN2_5_7B)

    @classmethod
    def qwen2_5_vl_3b(cls) -> ModelConfig:
        """Qwen/Qwen2.5-VL-3B-Instruct (arXiv 2502.13923)."""
        return cls._vl("qwen2_5_vl_3b", dataclasses.replace(_QWEN2_5_3B, tie_word_embeddings=True))

    @classmethod
    def qwen2_5_vl_7b(cls) -> ModelConfig:
        """Qwen/Qwen2.5-VL-7B-Instruct (arXiv 2502.13923)."""
        return cls._vl("qwen2_5_vl_7b", _QWEN2_5_7B)

    @classmethod
    def features_qwen2_5_0_5b(cls, features: FeatureProjectorConfig) -> ModelConfig:
        """Qwen/Qwen2.5-0.5B-Instruct (arXiv 2412.15115) behind precomputed features."""
        decoder = DecoderConfig(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            head_dim=64,
            tie_word_embeddings=True,
        )
        return cls(name="features_qwen2_5_0_5b", family="qwen2", decoder=decoder, features=features, **_BFLOAT16)

    @classmethod
    def features_qwen2_5_7b(cls, features: FeatureProjectorConfig) -> ModelConfig:
        """Qwen/Qwen2.5-7B-Instruct (arXiv 2412.15115) behind precomputed features."""
        decoder = dataclasses.replace(_QWEN2_5_7B, mrope_section=None)
        return cls(name="features_qwen2_5_7b", family="qwen2", decoder=decoder, features=features, **_BFLOAT16)

    @classmethod
    def _omni(cls, name: str, decoder: DecoderConfig) -> ModelConfig:
        audio = AudioTowerConfig(
            num_mel_bins=128, d_model=1280, encoder_layers=32, encoder_attention_heads=20, encoder_ffn_dim=5120
        )
        return cls(name=name, decoder=decoder, audio=audio, vision=_QWEN2_5_VISION, **_BFLOAT16)

    @classmethod
    def _vl(cls, name: str, decoder: DecoderConfig) -> ModelConfig:
        return cls(
            name=name,
            family="qwen2_5_vl",
            decoder=decoder,
            vision=_QWEN2_5_VISION,
            position_id_per_seconds=2,
            **_BFLOAT16,
        )

    @classmethod
    def features_gpt2(cls, features: FeatureProjectorConfig) -> ModelConfig:
        """openai-community/gpt2, the smallest GPT-2 (Radford et al., 2019), behind precomputed features."""
        decoder = DecoderConfig(
            vocab_size=50257,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=12,
            head_dim=64,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
        )
        return cls(name="features_gpt2", family="gpt2", decoder=decoder, features=features)

    @classmethod
    def features_bart_base(cls, features: FeatureProjectorConfig) -> ModelConfig:
        """facebook/bart-base (arXiv 1910.13461) behind precomputed features."""
        decoder = DecoderConfig(
            vocab_size=50265,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=6,
            num_attention_heads=12,
            num_key_value_heads=12,
            head_dim=64,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            encoder=TextEncoderConfig(num_hidden_layers=6, num_attention_heads=12, intermediate_size=3072),
        )
        return cls(name="features_bart_base", family="bart", decoder=decoder, features=features)

    @classmethod
    def tiny(cls) -> ModelConfig:
        """Trains from scratch on two CPU cores in minutes; same architecture as the thinker of Qwen2.5-Omni."""
        return cls(
            name="tiny",
            decoder=DecoderConfig(
                vocab_size=2048,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                mrope_section=(4, 6, 6),
                tie_word_embeddings=True,
            ),
            audio=AudioTowerConfig(
                num_mel_bins=64,
                d_model=128,
                encoder_layers=2,
                encoder_attention_heads=4,
                encoder_ffn_dim=256,
                n_window=60,
            ),
            vision=VisionTowerConfig(
                hidden_size=128,
                intermediate_size=256,
                depth=2,
                num_heads=4,
                fullatt_block_indexes=(1,),
                window_size=56,
            ),
        )


_BFLOAT16 = {"param_dtype": "bfloat16", "dtype": "bfloat16"}
_QWEN2_5_3B = DecoderConfig(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=128,
    mrope_section=(16, 24, 24),
)
_QWEN2_5_7B = DecoderConfig(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    head_dim=128,
    mrope_section=(16, 24, 24),
)
_QWEN2_5_VISION = VisionTowerConfig(
    hidden_size=1280,
    intermediate_size=3420,
    depth=32,
    num_heads=16,
    fullatt_block_indexes=(7, 15, 23, 31),
)
