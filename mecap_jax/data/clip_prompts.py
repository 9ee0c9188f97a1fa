"""A clip as a prompt: its media, what is said in it, and what is asked; the same in training and in use."""

from __future__ import annotations

from mecap_jax.data.clips import DecodedClip
from mecap_jax.data.collate import LaidOutPrompt, video_grid
from mecap_jax.data.features import audio_tokens
from mecap_jax.data.prompts import AudioSpan, FeatureSpan, Media, lay_out, user_turn
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.model_config import ModelConfig


def request_text(instruction: str, transcript: str = "") -> str:
    """The text part of a clip's prompt; what is said stands before the instruction, where it is known."""
    return f'"{transcript}" {instruction}' if transcript else instruction


def lay_out_clip(clip: DecodedClip, text: str, tokenizer: Tokenizer, model: ModelConfig) -> LaidOutPrompt:
    """The prompt that asks for a clip's caption: its media, then `text`.

    A modality with no tokens leaves no trace: the prompt is that of a clip without it.
    """
    media: dict[str, Media] = {}
    mels, frames = (), ()
    if clip.mel is not None and (count := audio_tokens(len(clip.mel), model.audio.n_window)):
        media["audio"], mels = AudioSpan(count), (clip.mel,)
    if clip.audio_tokens is not None and len(clip.audio_tokens):
        media["audio"] = AudioSpan(len(clip.audio_tokens))
    if clip.grid is not None:
        media["video"] = clip.grid
    if clip.frames is not None:
        media["video"] = video_grid(clip.frames, clip.seconds_per_frame, model)
        frames = (clip.frames,)
    if clip.features is not None:
        media["features"] = FeatureSpan(len(clip.features))
    layout = lay_out(tokenizer, model, user_turn(media, text), tuple(media.values()))
    return LaidOutPrompt(layout, mels, frames, clip.features, clip.audio_tokens, clip.video_tokens)
