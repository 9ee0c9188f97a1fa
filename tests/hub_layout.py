"""Small directories in the layout in which the families are published: tokenizer, chat template, processor settings.

The vocabulary is trained on a few sentences; everything else (splitting rules, where special tokens stand, the
templates' structure with its default system prompt, flat `preprocessor_config.json`) is as in the published ones.
"""

import functools
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

_SYSTEM = "You are a helpful assistant."
TEXTS = ["A woman sounds sad and tired.", "他听起来很高兴。", _SYSTEM, "Describe the emotion in 3 words!"]
# Of Qwen2's tokenizer.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MEDIA = {
    "qwen2_5_omni": {
        "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
        "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
        "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
    },
    "qwen2_5_vl": {
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
        "video": "<|vision_start|><|video_pad|><|vision_end|>",
    },
}
_NAMED = {  # tokenizer attributes that Qwen2_5OmniProcessor asks for
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
# What has no chat template.
_PLAIN = {
    "gpt2": {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"},
    "bart": {
        "tokenizer_class": "BartTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    },
}
PICTURES = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_processor_type": "Qwen2VLImageProcessor",
}
SOUND = {
    "chunk_length": 300,
    "dither": 0.0,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 4_800_000,
    "nb_max_frames": 30_000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16_000,
    "feature_extractor_type": "WhisperFeatureExtractor",
}


def write_processor(
    directory: Path, family: str, *, num_mel_bins: int = 128, min_pixels: int = 3136, max_pixels: int = 12_845_056
) -> None:
    """Writes what `AutoProcessor` (text families: `AutoTokenizer`) loads.

    Args:
      min_pixels, max_pixels: of pictures, and in Qwen2.5-VL of frames, too; Qwen2.5-Omni has limits of its own for
        frames in its processor's class.
    """
    directory.mkdir(parents=True, exist_ok=True)
    backend = tokenizers.Tokenizer.from_str(_tokenizer(family))
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32_768,
    }
    if family in _PLAIN:
        config = _PLAIN[family] | {"model_max_length": 1024}
        _write(directory / "tokenizer_config.json", config)
        return
    template = chat_template(family)
    if family == "qwen2_5_omni":
        config |= {"extra_special_tokens": _NAMED, "processor_class": "Qwen2_5OmniProcessor"}
    if family in _MEDIA:
        _write(directory / "chat_template.json", {"chat_template": template})
    else:
        config["chat_template"] = template
    _write(directory / "tokenizer_config.json", config)
    if family in _MEDIA:
        settings = PICTURES | {"min_pixels": min_pixels, "max_pixels": max_pixels}
        settings["processor_class"] = "Qwen2_5_VLProcessor"
        if family == "qwen2_5_omni":
            settings |= SOUND | {"feature_size": num_mel_bins, "processor_class": "Qwen2_5OmniProcessor"}
        _write(directory / "preprocessor_config.json", settings)


def special_ids(directory: Path, family: str) -> dict[str, int]:
    """Ids of the media tokens in a written directory, by the names that the family's configuration has for them."""
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    return {field: backend.token_to_id(token) for field, token in _ID_FIELDS.get(family, {}).items()}


_ID_FIELDS = {
    "qwen2_5_omni": {
        "audio_token_index": "<|AUDIO|>",
        "image_token_index": "<|IMAGE|>",
        "video_token_index": "<|VIDEO|>",
        "audio_start_token_id": "<|audio_bos|>",
        "audio_end_token_id": "<|audio_eos|>",
    },
    "qwen2_5_vl": {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
}


def chat_template(family: str) -> str:
    """A template of the published one's structure: a system prompt where there is none, media by key or type."""
    system = (
        "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n" + _SYSTEM + "<|im_end|>\n{% endif %}"
    )
    if family not in _MEDIA:
        return (
            "{%- for message in messages %}" + system.replace("\n", "{{ '\\n' }}") + "{{- '<|im_start|>' + "
            "message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
        )
    branches = "{% if false %}" + "".join(
        "{% elif content['type'] == '" + kind + "' or '" + kind + "' in content %}" + text
        for kind, text in _MEDIA[family].items()
    )
    return (
        "{% for message in messages %}" + system + "<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
        "{% for content in message['content'] %}" + branches + "{% elif 'text' in content %}{{ content['text'] }}"
        "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


@functools.cache
def _tokenizer(family: str) -> str:
    backend = tokenizers.Tokenizer(models.BPE())
    if family in _PLAIN:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = ["<s>", "<pad>", "</s>", "<unk>"] if family == "bart" else []
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=first, show_progress=False)
    backend.train_from_iterator([*TEXTS, "system user assistant"] * 2, trainer)
    # Behind the words, as published.
    omni, vision = family == "qwen2_5_omni", ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    media = list(_NAMED.values()) if omni else vision
    if family == "bart":
        backend.add_special_tokens(["<mask>"])
        ends = [(token, backend.token_to_id(token)) for token in ("</s>", "<s>")]
        backend.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
        return backend.to_str()
    turns = [] if family == "gpt2" else ["<|im_start|>", "<|im_end|>", *media]
    backend.add_special_tokens(["<|endoftext|>", *turns])
    return backend.to_str()


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
