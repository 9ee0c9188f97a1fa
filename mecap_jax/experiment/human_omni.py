"""Opens a directory of HumanOmni-0.5B or of what was trained from it (R1-Omni-0.5B), and answers questions about clips.

model = HumanOmniModel.from_pretrained("checkpoints/R1-Omni-0.5B")
model.answer([Clip("Which emotion is the most obvious?", frames, waveform)])
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from flax import nnx

from mecap_jax.batch import PromptBatch
from mecap_jax.data.features import HOP, log_mel
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.experiment.encoder_settings import PictureSettings, WhisperSettings
from mecap_jax.generation.sampler import generate
from mecap_jax.models.checkpoints.hub_config import read_json
from mecap_jax.models.checkpoints.human_omni import TEXT_DIRECTORY, HumanOmniConfig, read_human_omni
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.models.human_omni import load_human_omni
from mecap_jax.models.human_omni_projector import AUDIO_POOL
from mecap_jax.models.text_directory import load_tokenizer

# The delimiters are no tokens of the vocabulary, but text like any other.
_WRAPPED = {"<video>": "<vi_start><video><vi_end>", "<audio>": "<au_start><audio><au_end>"}
_PLACEHOLDER = re.compile("(<video>|<audio>)")
_PROMPT_STEP, _INSTRUCTION_STEP = 64, 32  # lengths are multiples of these, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Clip:
    """What is asked about what is seen and heard.

    Attributes:
      instruction: the question. It also decides how the branches of the vision projector are weighted.
      frames: uint8 [F, H, W, 3], all frames of a video, of which a few are looked at; None without pictures.
      waveform: float [S], one channel at 16 kHz, of which the first 30 s are heard; None without sound.
    """

    instruction: str
    frames: np.ndarray | None = None
    waveform: np.ndarray | None = None

    def __post_init__(self):
        if found := re.search("<(video|audio|image)>", self.instruction):
            raise ValueError(f"an instruction holds {found.group()}, which stands for media")
        frames, waveform = self.frames, self.waveform
        if frames is not None and (frames.dtype != np.uint8 or frames.shape[3:] != (3,) or not frames.size):
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}, not uint8 [frames, height, width, 3]")
        if waveform is not None and not (
            waveform.ndim == 1 and waveform.size and waveform.dtype.kind == "f" and np.isfinite(waveform).all()
        ):
            raise ValueError(f"a waveform is {waveform.dtype} {list(waveform.shape)}, not one channel of finite floats")


class HumanOmniProcessor:
    """Turns clips into batches as R1-Omni's code for inference does: squeezed frames, 30 s of sound, its prompt.

    (Its code for training pads frames to squares instead.)

    Attributes:
      config: of the network.
      tokenizer: the decoder's.
    """

    def __init__(
        self,
        config: HumanOmniConfig,
        tokenizer: Tokenizer,
        text_tokenizer: tokenizers.Tokenizer,
        pictures: PictureSettings,
    ):
        self.config, self.tokenizer = config, tokenizer
        self._text_tokenizer, self._pictures = text_tokenizer, pictures

    @classmethod
    def from_directory(cls, directory: Path, config: HumanOmniConfig) -> HumanOmniProcessor:
        """Reads the decoder's tokenizer and chat template, and what the towers' directories within say.

        Raises:
          CheckpointError: a file is missing, or asks for what is not implemented.
        """
        _read(directory / config.audio_directory, lambda found: WhisperSettings.read(found, config.audio.bands))
        pictures = _read(
            directory / config.vision_directory, lambda found: PictureSettings.read(found, config.vision.image)
        )
        try:
            tokenizer = Tokenizer.from_directory(directory, "qwen2")
            text_tokenizer = load_tokenizer(directory / TEXT_DIRECTORY, config.text)
        except (OSError, ValueError) as error:
            raise CheckpointError(str(error)) from None
        if tokenizer.vocab_size > (size := config.decoder.vocab_size):
            raise CheckpointError(f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, the decoder {size}")
        return cls(config, tokenizer, text_tokenizer, pictures)

    def __call__(self, clips: Sequence[Clip]) -> PromptBatch:
        """Makes the batch of prompts that ask for answers.

        Raises:
          ValueError: there are no clips, or a text is not valid Unicode.
        """
        if not clips:
            raise ValueError("there are no clips")
        heard, seen = (any(getattr(clip, name) is not None for clip in clips) for name in ("waveform", "frames"))
        vision, audio, size = self.config.vision, self.config.audio, len(clips)
        side, length = vision.image // vision.patch, 2 * audio.positions
        sound = audio.positions // AUDIO_POOL
        counts = {"<audio>": (0, sound), "<video>": (sound * heard, self.config.frames * (side // 2) ** 2)}
        rows = [self._prompt(clip, counts) for clip in clips]
        asked = [self._text_tokenizer.encode(clip.instruction).ids for clip in clips]
        patches = (size, self.config.frames * seen, side**2)
        batch = PromptBatch(
            tokens=_padded([tokens for tokens, _ in rows], self.tokenizer.pad_id, _PROMPT_STEP),
            length=np.array([len(tokens) for tokens, _ in rows], np.int32),
            media_index=_padded([index for _, index in rows], -1, _PROMPT_STEP),
            positions=np.zeros((), np.int32),
            next_position=np.array([len(tokens) for tokens, _ in rows], np.int32),
            audio=np.zeros((size, int(heard), length, audio.bands), np.float32),
            audio_frames=np.full((size, int(heard)), length, np.int32),
            patches=np.zeros((*patches, 1, vision.channels * vision.patch**2), np.float32),
            cell_positions=np.zeros((*patches, 2), np.int32),
            windows=np.zeros((size, self.config.frames * seen, 0, 0), np.int32),
            media_tokens=np.zeros((size, 0, self.config.decoder.hidden_size), np.float32),
            features=np.zeros((size, 0, 1), np.float32),
            instruction=_padded(asked, self.config.text.pad_token_id, _INSTRUCTION_STEP),
            instruction_length=np.array([len(ids) for ids in asked], np.int32),
        )
        for b, clip in enumerate(clips):
            if clip.waveform is not None:
                batch.audio[b, 0] = self._mel(clip.waveform, length * HOP)
            if clip.frames is not None:
                batch.patches[b, :, :, 0] = self._patches(clip.frames)
        line = np.arange(batch.tokens.shape[1], dtype=np.int32)
        return batch._replace(positions=np.broadcast_to(line, (size, 3, len(line))))

    def _prompt(self, clip: Clip, counts: dict[str, tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Tokens, and where each stands in the table of media; `counts` are the first entry and the number of them."""
        media = [("<video>", clip.frames), ("<audio>", clip.waveform)]
        lines = [_WRAPPED[name] for name, medium in media if medium is not None] + [clip.instruction]
        text = self.tokenizer.render_conversation([{"role": "user", "content": "\n".join(lines)}])
        tokens, index = [], []
        for piece in _PLACEHOLDER.split(text):
            if piece in counts:
                first, count = counts[piece]
                tokens += [self.tokenizer.pad_id] * count
                index += range(first, first + count)
            else:
                ids = self.tokenizer.encode_rendered(piece)
                tokens += ids
                index += [-1] * len(ids)
        return tokens, index

    def _mel(self, waveform: np.ndarray, samples: int) -> np.ndarray:
        heard = waveform[:samples].astype(np.float32)
        return log_mel(np.pad(heard, (0, samples - len(heard))), self.config.audio.bands, samples)

    def _patches(self, frames: np.ndarray) -> np.ndarray:
        """float32 [frames, patches, values]: values of a patch by channel, row and column, patches in raster order."""
        chosen = [self._pictures.fit(frames[i]) for i in sampled(len(frames), self.config.frames)]
        pixels = np.stack([self._pictures.normalise(frame) for frame in chosen])
        size, side = self.config.vision.patch, self.config.vision.image // self.config.vision.patch
        pixels = pixels[:, : side * size, : side * size].reshape(len(pixels), side, size, side, size, -1)
        return pixels.transpose(0, 1, 3, 5, 2, 4).reshape(len(pixels), side**2, -1)


def _read(directory: Path, read: Callable[[Mapping[str, Any]], Any]) -> Any:
    """What `read` makes of a tower's `preprocessor_config.json`; raises CheckpointError that names the file."""
    path = directory / "preprocessor_config.json"
    settings = read_json(path)
    try:
        return read(settings)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def sampled(count: int, wanted: int) -> np.ndarray:
    """Which of `count` frames are looked at: the middles of as many stretches of one length as are `wanted`."""
    return np.round((np.arange(wanted) + 0.5) * (count - 1) / wanted + 1e-6).astype(int)


def _padded(rows: Sequence[Sequence[int]], filling: int, step: int) -> np.ndarray:
    length = -(-max(map(len, rows)) // step) * step
    return np.array([[*row, *[filling] * (length - len(row))] for row in rows], np.int32)


class HumanOmniModel:
    """The network with its processor.

    Attributes:
      graphdef, params: the network, see `HumanOmni`.
      processor: makes its prompts.
    """

    def __init__(self, graphdef: nnx.GraphDef, params: Any, processor: HumanOmniProcessor):
        self.graphdef, self.params, self.processor = graphdef, params, processor

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, dtype: str | None = None) -> HumanOmniModel:
        """Loads local files: the published ones, and within, in directories of their names, those of SigLIP, Whisper
        and BERT (`siglip-base-patch16-224`, `whisper-large-v3`, `bert-base-uncased`).

        Args:
          dtype: "float32" or "bfloat16", outside of these three; None: as stored.

        Raises:
          CheckpointError: files that are missing or do not fit; all that is wrong with one is named.
        """
        directory = Path(path)
        config = read_human_omni(directory)
        # The range of float16 is too small for what passes between layers of Qwen2.
        dtype = dtype or ("float32" if config.dtype == "float16" else config.dtype)
        config = dataclasses.replace(config, dtype=dtype)
        processor = HumanOmniProcessor.from_directory(directory, config)
        return cls(*load_human_omni(directory, config), processor)

    def answer(
        self,
        clips: Sequence[Clip],
        *,
        max_new_tokens: int = 512,
        group_size: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[str]]:
        """Returns `group_size` answers to each clip; a temperature of 0 takes the most likely token each time."""
        tokenizer = self.processor.tokenizer
        generation = generate(
            self.graphdef,
            self.params,
            self.processor(clips),
            np.array([seed, 0], np.uint32),
            np.arange(len(clips), dtype=np.int32),
            group_size=group_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            end_ids=tokenizer.end_ids,
        )
        tokens, lengths = np.asarray(generation.tokens), np.asarray(generation.length)
        return [[tokenizer.decode(ids[:n]) for ids, n in zip(*group)] for group in zip(tokens, lengths)]
