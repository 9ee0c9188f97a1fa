"""What a Hugging Face family of models is: one record each, from which every other part reads what it needs.

A family is added here, and in `models/checkpoints/families.py`, which says how its files are read and written: the
reader of its `config.json` and its table of tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class MediaTokens:
    """Placeholder and delimiter tokens of a family; None where it does not read that kind of media."""

    audio: str | None = None
    audio_start: str | None = None
    audio_end: str | None = None
    image: str | None = None
    video: str | None = None
    vision_start: str | None = None
    vision_end: str | None = None

    @property
    def any(self) -> bool:
        """Whether the family reads media at all."""
        return self.image is not None or self.audio is not None


END_OF_TEXT = "<|endoftext|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"  # of a turn in ChatML
# How Qwen2 to 3 split text into words, single digits, punctuation and white space.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class Family:
    """Chat format, inputs and names of a family.

    Attributes:
      architecture: class of `transformers` that loads what is exported.
      model_type: what `config.json` calls the network then.
      versions: of `transformers`, those in which it computes what was trained.
      media: placeholders in the chat format.
      media_ids: fields of `config.json` that hold ids of `media`, by its fields.
      special: special tokens of text that a tokenizer must have; one that is trained here has them in this order.
      ends: those that end an answer; the first is what training puts there.
      pad: the one that fills up rows.
      plain: what stands before a prompt of plain text, and behind each of its messages; None: ChatML.
      words: how tokenizers that are trained here split text; None takes the rule of byte-level BPE, GPT-2's.
      processor: class of the processor; None where a tokenizer is all there is.
      frame_rate: frames a second of a video that comes without a rate.
      limits_in_call: its processor passes limits of its own over those in the file of frames, which `videos_kwargs`
        set (in `processor_config.json`, or in a call).
      wants_metadata: its processor reads a video's rate from `VideoMetadata`.
      positions: "tmrope" puts sound and picture on one time line (arXiv 2503.20215, section 2.2); with "mrope"
        (arXiv 2502.13923, section 2.1.2) text goes on behind a picture's longer side, however long the video lasts.
    """

    architecture: str
    model_type: str
    versions: str = "4.57 or 5"
    media: MediaTokens = MediaTokens()
    media_ids: Mapping[str, str] = dataclasses.field(default_factory=dict)
    special: tuple[str, ...] = (END_OF_TEXT, IM_START, IM_END)
    ends: tuple[str, ...] = (IM_END, END_OF_TEXT)
    pad: str = END_OF_TEXT
    plain: tuple[str, str] | None = None
    words: str | None = QWEN2_WORDS
    processor: str | None = None
    frame_rate: float | None = None
    limits_in_call: bool = False
    wants_metadata: bool = False
    positions: Literal["tmrope", "mrope"] = "tmrope"


FAMILIES: dict[str, Family] = {
    "qwen2_5_omni": Family(
        architecture="Qwen2_5OmniThinkerForConditionalGeneration",
        model_type="qwen2_5_omni_thinker",
        media=MediaTokens(
            audio="<|AUDIO|>",
            audio_start="<|audio_bos|>",
            audio_end="<|audio_eos|>",
            image="<|IMAGE|>",
            video="<|VIDEO|>",
            vision_start="<|vision_bos|>",
            vision_end="<|vision_eos|>",
        ),
        media_ids={
            "audio_token_index": "audio",
            "audio_start_token_id": "audio_start",
            "audio_end_token_id": "audio_end",
            "image_token_index": "image",
            "video_token_index": "video",
            "vision_start_token_id": "vision_start",
            "vision_end_token_id": "vision_end",
        },
        words=None,  # results with this rule are published
        processor="Qwen2_5OmniProcessor",
        frame_rate=2.0,
        limits_in_call=True,
    ),
    "qwen2_5_vl": Family(
        architecture="Qwen2_5_VLForConditionalGeneration",
        model_type="qwen2_5_vl",
        versions="5.3 or later",  # until then, frames and the text behind long videos stood at other positions
        media=MediaTokens(
            image="<|image_pad|>",
            video="<|video_pad|>",
            vision_start="<|vision_start|>",
            vision_end="<|vision_end|>",
        ),
        media_ids={
            "image_token_id": "image",
            "video_token_id": "video",
            "vision_start_token_id": "vision_start",
            "vision_end_token_id": "vision_end",
        },
        processor="Qwen2_5_VLProcessor",
        frame_rate=24.0,
        wants_metadata=True,
        positions="mrope",
    ),
    "qwen2": Family(architecture="Qwen2ForCausalLM", model_type="qwen2"),
    "qwen3": Family(architecture="Qwen3ForCausalLM", model_type="qwen3"),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        model_type="gpt2",
        special=(END_OF_TEXT,),
        ends=(END_OF_TEXT,),
        plain=(END_OF_TEXT, "\n"),  # what separates documents in its training comes first
        words=None,
    ),
    "bart": Family(
        architecture="BartForConditionalGeneration",
        model_type="bart",
        special=("<s>", "<pad>", "</s>"),
        ends=("</s>",),
        pad="<pad>",
        plain=("<s>", "</s>"),
        words=None,
    ),
}
