"""The parts of `config.json` files, read strictly: `hub_config` says what that means.

Each reader takes the fields that are still to be read, and the whole configuration that they are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecap_jax.model_config import AudioTowerConfig, DecoderConfig, ModelConfig, VisionTowerConfig
from mecap_jax.models.checkpoints.table import MOST_LAYERS

_DTYPES = ("float32", "bfloat16", "float16")

# Fields that say how a model is initialised, trained, sampled from or named, and leave the network as it is.
_HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attn_implementation
    audio_end_token_id audio_start_token_id audio_token_id audio_token_index begin_suppress_tokens bos_token_id dtype
    eos_token_id finetuning_task forced_bos_token_id forced_eos_token_id id2label ignore_index image_token_id
    image_token_index init_std initializer_range label2id max_position_embeddings max_window_layers model_type
    pad_token_id prefix problem_type sep_token_id sliding_window suppress_tokens task_specific_params tokenizer_class
    torch_dtype transformers_version use_bfloat16 use_cache user_token_id video_token_id video_token_index
    vision_end_token_id vision_start_token_id vision_token_id decoder_start_token_id encoder_no_repeat_ngram_size
    bad_words_ids chunk_size_feed_forward diversity_penalty do_sample early_stopping exponential_decay_length_penalty
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate temperature tf_legacy_loss top_k top_p typical_p torchscript gradient_checkpointing
    """.split()
)
# Switches of the base class that would change the network if they were on.
_OFF = ("add_cross_attention", "is_decoder", "is_encoder_decoder", "pruned_heads", "tie_encoder_decoder",
        "cross_attention_hidden_size", "use_sliding_window")  # fmt: skip


# No field of a real configuration is as large; a hostile one must not become a shape.
_LARGEST = 1e9


class Fields:
    """Takes fields of one JSON object and notes what is wrong or left over."""

    def __init__(self, fields: Any, name: str, problems: list[str]):
        self._prefix, self.problems = f"{name}." if name else "", problems
        if not isinstance(fields, Mapping):
            problems.append(f"{name}: expected an object, got {fields!r:.60}")
            fields = {}
        self._left = dict(fields)

    def inner(self, name: str) -> Fields:
        """The fields of an object inside."""
        return Fields(self.part(name), f"{self._prefix}{name}", self.problems)

    def number(self, name: str, default: int | float | None = None, kind: type = int) -> Any:
        """A positive, finite number of a size that a network can have."""
        value = self._left.pop(name, None)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.problem(name, f": expected a number, got {value!r:.60}")
        elif not 0 < value < _LARGEST or (kind is int and value != int(value)):
            self.problem(name, f" = {value!r:.60} is out of range")
        else:
            return kind(value)
        return kind(1)

    def numbers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers, none negative."""
        value = self._left.pop(name, None)
        if isinstance(value, list | tuple) and all(type(n) is int and 0 <= n < _LARGEST for n in value):
            return tuple(value)
        self.problem(name, f": expected a list of numbers, got {value!r:.60}")
        return ()

    def require(self, ok: bool, name: str, text: str) -> None:
        if not ok:
            self.problem(name, text)

    def flag(self, name: str, default: bool) -> bool:
        value = self._left.pop(name, default)
        if not isinstance(value, bool):
            self.problem(name, f": expected true or false, got {value!r:.60}")
        return bool(value)

    def part(self, name: str) -> Any:
        return self._left.pop(name, None)

    def expect(self, name: str, *allowed: Any) -> None:
        """The field may be missing, or have one of these values."""
        value = self._left.pop(name, allowed[0])
        if not any(value == other and type(value) in (type(other), int, float) for other in allowed):
            self.problem(name, f" = {value!r:.60} is not implemented, only {allowed[0]!r}")

    def problem(self, name: str, text: str) -> None:
        self.problems.append(f"{self._prefix}{name}{text}")

    def allow(self, *names: str) -> None:
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuses whatever is left."""
        for name in _OFF:
            if self._left.pop(name, None):
                self.problem(name, " is not implemented")
        self.allow(*_HARMLESS)
        if self._left.pop("quantization_config", None):
            self.problem("quantization_config", ": quantised weights are not supported; use the bfloat16 release")
        for name, value in sorted(self._left.items()):
            self.problem(name, f" = {value!r:.60} is not implemented")


def read_decoder(fields: Fields, *, tied: bool, multimodal: bool, qwen3: bool = False) -> DecoderConfig:
    """The decoder that the remaining fields describe; there must be no others."""
    hidden, heads = fields.number("hidden_size"), fields.number("num_attention_heads")
    layers = fields.number("num_hidden_layers")
    theta, section = _rope(fields, multimodal)
    fields.expect("hidden_act", "silu")
    fields.expect("attention_dropout", 0, 0.0)
    kinds = fields.part("layer_types")
    full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
    fields.require(kinds is None or full, "layer_types", f" = {kinds!r:.80}: only 'full_attention' is implemented")
    fields.allow("tie_word_embeddings")
    fields.expect("attention_bias", not qwen3)
    decoder = DecoderConfig(
        vocab_size=fields.number("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.number("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=fields.number("num_key_value_heads", heads),
        head_dim=fields.number("head_dim", 128 if qwen3 else hidden // heads),
        rope_theta=theta,
        mrope_section=section,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6, float),
        tie_word_embeddings=tied,
        attention_bias=not qwen3,
        qk_norm=qwen3,
    )
    half, kv_heads = decoder.head_dim // 2, decoder.num_key_value_heads
    fields.require(decoder.head_dim % 2 == 0, "head_dim", f" = {decoder.head_dim} is odd")
    fields.require(heads % kv_heads == 0, "num_key_value_heads", f" = {kv_heads} does not divide the {heads} heads")
    if section is not None:
        text = f" = {section} does not sum to head_dim / 2 = {half}"
        fields.require(sum(section) == half, "rope_scaling.mrope_section", text)
    fields.require(layers <= MOST_LAYERS, "num_hidden_layers", f" = {layers} is out of range")
    fields.finish()
    return decoder


def _rope(fields: Fields, multimodal: bool) -> tuple[float, tuple[int, int, int] | None]:
    """The base of the rotary frequencies and how they are divided between time, height and width."""
    rope = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = fields.part(name)
        if isinstance(value, Mapping):
            rope |= value
        elif value is not None:
            fields.problem(name, f": expected an object, got {value!r:.60}")
    outer = fields.part("rope_theta")
    inner = Fields({"rope_theta": outer} | rope, "rope_scaling", fields.problems)
    theta = inner.number("rope_theta", 1e6 if multimodal else 1e4, float)
    for name in ("type", "rope_type"):
        inner.expect(name, "default", "mrope")
    section = None
    if multimodal:
        section = inner.numbers("mrope_section")
        inner.require(len(section) == 3, "mrope_section", f" = {section} is not three numbers")
    inner.finish()
    return theta, section if section is None or len(section) == 3 else None


def _vision(fields: Fields, output_dim: int) -> VisionTowerConfig:
    # Names of earlier versions, which repeat the values under both; and a default that towers have no use for.
    fields.allow("embed_dim", "in_chans", "spatial_patch_size", "num_hidden_layers", "tie_word_embeddings")
    fields.expect("hidden_act", "silu")
    if (width := fields.number("out_hidden_size", output_dim)) != output_dim:
        fields.problem("out_hidden_size", f" = {width} differs from the decoder's hidden_size = {output_dim}")
    rope = fields.part("rope_parameters")
    plain = isinstance(rope, Mapping) and rope.get("rope_theta", 1e4) == 1e4 and rope.get("rope_type") in _TOWER_ROPES
    fields.require(rope is None or plain, "rope_parameters", f" = {rope!r:.80} is not implemented")
    indexes = fields.numbers("fullatt_block_indexes")
    config = VisionTowerConfig(
        hidden_size=fields.number("hidden_size"),
        intermediate_size=fields.number("intermediate_size"),
        depth=fields.number("depth"),
        num_heads=fields.number("num_heads"),
        fullatt_block_indexes=indexes,
        patch_size=fields.number("patch_size", 14),
        temporal_patch_size=fields.number("temporal_patch_size", 2),
        spatial_merge_size=fields.number("spatial_merge_size", 2),
        window_size=fields.number("window_size", 112),
        in_channels=fields.number("in_channels", 3),
    )
    heads, cell = config.num_heads, config.patch_size * config.spatial_merge_size
    fields.require(config.hidden_size % (4 * heads) == 0, "num_heads", f" = {heads}: heads do not divide in four")
    fields.require(config.window_size % cell == 0, "window_size", f" = {config.window_size} is no multiple of {cell}")
    fields.require(config.depth <= MOST_LAYERS, "depth", f" = {config.depth} is out of range")
    in_range = all(index < config.depth for index in indexes)
    fields.require(in_range, "fullatt_block_indexes", f" = {indexes} names a block behind the last")
    fields.finish()
    return config


_TOWER_ROPES = (None, "axial", "default")


def _audio(fields: Fields, output_dim: int) -> AudioTowerConfig:
    fields.expect("activation_function", "gelu")
    fields.expect("scale_embedding", False)
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        fields.expect(name, 0, 0.0)
    fields.allow("num_hidden_layers", "encoder_layerdrop", "tie_word_embeddings")
    if (width := fields.number("output_dim", output_dim)) != output_dim:
        fields.problem("output_dim", f" = {width} differs from the decoder's hidden_size = {output_dim}")
    config = AudioTowerConfig(
        num_mel_bins=fields.number("num_mel_bins", 128),
        d_model=fields.number("d_model"),
        encoder_layers=fields.number("encoder_layers"),
        encoder_attention_heads=fields.number("encoder_attention_heads"),
        encoder_ffn_dim=fields.number("encoder_ffn_dim"),
        n_window=fields.number("n_window", 100),
        max_source_positions=fields.number("max_source_positions", 1500),
    )
    heads = config.encoder_attention_heads
    even = config.d_model % heads == 0 and config.d_model % 2 == 0
    fields.require(even, "encoder_attention_heads", f" = {heads} does not divide d_model = {config.d_model}")
    fields.require(config.n_window % 2 == 0, "n_window", f" = {config.n_window} is odd")
    fields.require(
        config.encoder_layers <= MOST_LAYERS, "encoder_layers", f" = {config.encoder_layers} is out of range"
    )
    fields.finish()
    return config


def omni_thinker(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The thinker's part of a whole Qwen2.5-Omni's configuration; any other configuration as it is."""
    inner = config.get("thinker_config") if config.get("model_type") == "qwen2_5_omni" else config
    return inner if isinstance(inner, Mapping) else {}


def read_omni(fields: Fields, config: Mapping[str, Any]) -> ModelConfig:
    tied = fields.flag("tie_word_embeddings", False)
    decoder = read_decoder(fields.inner("text_config"), tied=tied, multimodal=True)
    vision = fields.inner("vision_config")
    vision.allow("tokens_per_second")  # Omni's positions follow `position_id_per_seconds`
    parsed = ModelConfig(
        name="qwen2_5_omni",
        family="qwen2_5_omni",
        decoder=decoder,
        audio=_audio(fields.inner("audio_config"), decoder.hidden_size),
        vision=_vision(vision, decoder.hidden_size),
        position_id_per_seconds=fields.number("position_id_per_seconds", 25),
        seconds_per_chunk=fields.number("seconds_per_chunk", 2.0, float),
        param_dtype=read_dtype(fields, omni_thinker(config), config),
    )
    fields.finish()
    return parsed


def read_whole_omni(fields: Fields, config: Mapping[str, Any]) -> ModelConfig:
    """The thinker within a whole Qwen2.5-Omni."""
    thinker = fields.inner("thinker_config")
    fields.allow("talker_config", "token2wav_config", "enable_audio_output", "enable_talker", "tie_word_embeddings")
    width = fields.part("hidden_size")  # some fine-tunes repeat it outside
    fields.finish()
    parsed = read_omni(thinker, config)
    if width not in (None, parsed.decoder.hidden_size):
        fields.problem("hidden_size", f" = {width!r:.60} differs from the thinker's {parsed.decoder.hidden_size}")
    return parsed


def read_vl(fields: Fields, config: Mapping[str, Any]) -> ModelConfig:
    tied = fields.flag("tie_word_embeddings", False)
    vision, dtype = fields.inner("vision_config"), read_dtype(fields, config)
    text = config.get("text_config")
    if isinstance(text, Mapping) and text.get("tie_word_embeddings") is True:
        tied = True  # where versions before 5 put it
    if text is None:  # the published files hold the decoder's fields beside the tower
        decoder = read_decoder(fields, tied=tied, multimodal=True)
    else:
        decoder = read_decoder(fields.inner("text_config"), tied=tied, multimodal=True)
        if isinstance(text, Mapping):
            fields.allow(*text)  # versions 4.5x repeat the decoder's fields outside, and read the inner ones
        fields.finish()
    per_second = vision.number("tokens_per_second", 4)
    return ModelConfig(
        name="qwen2_5_vl",
        family="qwen2_5_vl",
        decoder=decoder,
        vision=_vision(vision, decoder.hidden_size),
        position_id_per_seconds=per_second,
        param_dtype=dtype,
    )


def read_text(fields: Fields, config: Mapping[str, Any]) -> ModelConfig:
    tied = fields.flag("tie_word_embeddings", False)
    family, dtype = config["model_type"], read_dtype(fields, config)
    decoder = read_decoder(fields, tied=tied, multimodal=False, qwen3=family == "qwen3")
    return ModelConfig(name=family, family=family, decoder=decoder, param_dtype=dtype)


def read_dtype(fields: Fields, *configs: Mapping[str, Any]) -> str:
    """The dtype that a configuration names, or its enclosing one."""
    for config in configs:
        dtype = config.get("dtype")
        dtype = config.get("torch_dtype") if dtype is None else dtype
        if dtype is not None:
            if dtype not in _DTYPES:
                fields.problem("dtype", f" = {dtype!r:.60} is not implemented")
                return "float32"
            return dtype
    return "float32"
