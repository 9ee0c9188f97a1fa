"""Random miniatures of the published families, as `transformers` makes and saves them."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import json
from pathlib import Path

import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerForConditionalGeneration

transformers.logging.set_verbosity_error()

_TEXT = dict(
    vocab_size=640,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-6,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=2,
)
_MROPE = dict(rope_type="default", rope_theta=1e6, mrope_section=[1, 1, 2])
_VISION = dict(
    depth=2,
    hidden_size=16,
    intermediate_size=24,
    num_heads=2,
    window_size=56,
    fullatt_block_indexes=[1],
    out_hidden_size=32,
)
_AUDIO = dict(
    num_mel_bins=128,
    d_model=16,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=24,
    n_window=100,
    output_dim=32,
)
DECODERS = ("qwen2_5_omni", "qwen2_5_vl", "qwen2", "qwen3", "gpt2")
FAMILIES = (*DECODERS, "bart")


def make(family: str, tied: bool = False, seed: int = 0, special_ids: dict[str, int] | None = None):
    """A random `transformers` model of a family, in float32, weights of unit-scale logits."""
    ids = special_ids or {}
    if family == "qwen2_5_omni":
        config = Qwen2_5OmniThinkerConfig(
            text_config=_TEXT | dict(rope_parameters=_MROPE),
            audio_config=_AUDIO,
            vision_config=_VISION,
            tie_word_embeddings=tied,
            **ids,
        )
        cls = Qwen2_5OmniThinkerForConditionalGeneration
    elif family == "qwen2_5_vl":
        config = transformers.Qwen2_5_VLConfig(
            text_config=_TEXT | dict(rope_parameters=_MROPE),
            vision_config=_VISION | dict(tokens_per_second=2),
            tie_word_embeddings=tied,
            **ids,
        )
        cls = transformers.Qwen2_5_VLForConditionalGeneration
    elif family == "gpt2":
        sizes = dict(vocab_size=640, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=512)
        config = transformers.GPT2Config(
            **sizes, bos_token_id=None, eos_token_id=2, pad_token_id=0, tie_word_embeddings=tied
        )
        cls = transformers.GPT2LMHeadModel
    elif family == "bart":
        config = transformers.BartConfig(
            vocab_size=640, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=40, max_position_embeddings=512,
            bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_bos_token_id=0,
            forced_eos_token_id=None,
        )  # fmt: skip
        cls = transformers.BartForConditionalGeneration
    else:
        rope = dict(rope_type="default", rope_theta=1e6)
        if family == "qwen3":
            config = transformers.Qwen3Config(**_TEXT, head_dim=12, rope_parameters=rope, tie_word_embeddings=tied)
            cls = transformers.Qwen3ForCausalLM
        else:
            config = transformers.Qwen2Config(**_TEXT, rope_parameters=rope, tie_word_embeddings=tied)
            cls = transformers.Qwen2ForCausalLM
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():  # the published initialisation is so small that errors would hide
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                inputs = parameter.shape[0] if "c_" in name else parameter[0].numel()  # GPT-2 has them first
                parameter.normal_(0, 0.1 if parameter.ndim == 1 else inputs**-0.5)
        if family == "bart":
            model.final_logits_bias.normal_(0, 0.1)
            model.generation_config.update(decoder_start_token_id=2, forced_bos_token_id=0)
    model.generation_config.eos_token_id = None
    return model


def save_as_published(model, directory: Path, shard: str = "5GB") -> None:
    """Saves a thinker as the hub has it: inside a whole Qwen2.5-Omni, keys with `thinker.`, a talker beside it."""
    model.save_pretrained(directory, max_shard_size=shard)
    (directory / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((directory / "config.json").read_text())
    whole = {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "enable_audio_output": True,
        "thinker_config": config,
        "talker_config": {"model_type": "qwen2_5_omni_talker"},
        "token2wav_config": {"model_type": "qwen2_5_omni_token2wav"},
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(whole))
    files = sorted(directory.glob("*.safetensors"))
    weight_map = {}
    for n, path in enumerate(files):
        tensors = {f"thinker.{key}": value for key, value in load_file(path).items()}
        if n == 0:
            tensors["talker.model.norm.weight"] = torch.ones(3).numpy()
        save_file(tensors, path, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, path.name)
    index = directory / "model.safetensors.index.json"
    if index.exists():
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
