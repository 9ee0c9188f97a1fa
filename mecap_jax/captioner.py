"""The public face: a model that captions, from a published directory, an export, or a stage of a run.

model = Captioner.from_pretrained("DIR")
prompts = model.processor([[{"role": "user", "content": [{"type": "audio", "audio": waveform}, ...]}]])
model.next_token_logits(prompts)
model.generate(prompts, group_size=8).text
model.caption("clip.wav")
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mecap_jax.batch import PromptBatch
from mecap_jax.captioning import Request, as_differences, caption_clips
from mecap_jax.config import DEFAULT_ANSWER_TOKENS, ConfigError, DataConfig, stage_config
from mecap_jax.data.processor import Processor
from mecap_jax.data.training_facts import FACTS_FILE, TrainingFacts, read_facts
from mecap_jax.experiment.published import is_stage, open_published, published_settings, with_dtype
from mecap_jax.experiment.trained_task import read_trained_task
from mecap_jax.experiment.weights import open_stage
from mecap_jax.generation.sampler import generate
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.checkpoints.peft import load_peft, read_peft_config
from mecap_jax.models.lora import merge_lora
from mecap_jax.models.parameters import merge_params
from mecap_jax.sharding import put_batch, shard_count, single_device
from mecap_jax.tasks.registry import make_task
from mecap_jax.text_files import printable
from mecap_jax.train_state import abstract_model

DTYPES = ("float32", "bfloat16")

_log = logging.getLogger(__name__)


class CompletionGroups(NamedTuple):
    """G completions for each of B prompts, in NumPy.

    Attributes:
      text: B lists of G texts, special tokens dropped.
      logprobs: float32 [B, G, T], log-probability of each token at the sampling temperature (at 1 for greedy ones);
        0 behind the end.
      tokens: int32 [B, G, T], the end token included.
      lengths: int32 [B, G], tokens up to and including the end token.
      finished: bool [B, G], False where a completion was cut off at T.
    """

    text: list[list[str]]
    logprobs: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray


class Captioner:
    """A model with its processor, ready to answer.

    Attributes:
      model: shapes of the network.
      processor: turns conversations into the batches that the methods take.
      data: how files become prompts: a run's own settings, or those of a published processor.
      training: what the clips of a run's training were like; None for a published model, of which nobody tells.
      max_new_tokens: longest answer: what the model was trained for, where that is known.
      mesh: the devices that the model is on.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: Any,
        processor: Processor,
        data: DataConfig,
        mesh: Mesh,
        training: TrainingFacts | None = None,
        max_new_tokens: int = DEFAULT_ANSWER_TOKENS,
    ):
        self.model, self.processor, self.data, self.mesh = processor.model, processor, data, mesh
        self.training, self.max_new_tokens = training, max_new_tokens
        self._graphdef, self._params = graphdef, params

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        dtype: str | None = None,
        adapter: str | os.PathLike | None = None,
        mesh: Mesh | None = None,
    ) -> Captioner:
        """Loads a model from local files; nothing is downloaded, and no code in the files is run.

        Args:
          path: a directory in the Hugging Face layout (published, or an export of ours), or RUN/checkpoints/STAGE.
          dtype: "float32" or "bfloat16", of weights and of matrix products; None: as stored.
          adapter: a directory in PEFT's layout whose adapter is merged into the weights.
          mesh: devices to divide the model over (`sharding.make_mesh`); None takes one device.

        Raises:
          CheckpointError: no model there, or files that do not fit; says what was looked for.
          ConfigError: the run's configuration is not valid.
          ValueError: another dtype.
        """
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES} or None, got {dtype!r}")
        path, mesh = Path(path), mesh or single_device()
        if is_stage(path):
            stage = open_stage(path, mesh)
            model = with_dtype(stage.config.model, dtype)
            training = read_facts(stage.workdir)
            if training is None:
                raise ConfigError(f"{stage.workdir} has no {FACTS_FILE}, which says what training gave")
            config = stage_config(stage.config, stage.name)
            longest = config.longest_answer
            data = dataclasses.replace(
                config.data,
                instruction=make_task(config).request(None),
                modalities=tuple(name for name in training.modalities if name in config.data.modalities),
                max_seconds=min(training.max_seconds, training.longest_seconds),
            )
            _, abstract = abstract_model(model, mesh)
            params = jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), stage.params, abstract)
            processor = Processor(stage.processor.tokenizer, model, stage.processor.settings)
        else:
            published = open_published(path, mesh, dtype)
            model, params, processor = published.model, published.params, published.processor
            trained = (adapter is not None and read_trained_task(Path(adapter))) or published.trained
            data, training = published_settings(processor, trained), None
            longest = trained.max_new_tokens if trained else DEFAULT_ANSWER_TOKENS
        if adapter is not None:
            params = _merge_adapter(Path(adapter), params, model, mesh)
        return cls(abstract_model(model, mesh)[0], params, processor, data, mesh, training, longest)

    def next_token_logits(self, prompts: PromptBatch) -> np.ndarray:
        """Logits of the token that follows each prompt: float32 [B, V].

        Raises:
          ValueError: a prompt is longer than what the model has learned positions for.
        """
        logits = _next_token_logits(self._graphdef, self._params, self._placed(self._roomy(prompts)))
        return np.asarray(logits)[: len(prompts.tokens)]

    def generate(
        self,
        prompts: PromptBatch,
        *,
        group_size: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        max_new_tokens: int = 64,
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ) -> CompletionGroups:
        """Samples `group_size` completions of each of B prompts; the media of a prompt are encoded once.

        Args:
          prompts: what `processor` makes.
          temperature: 0 takes the most likely token each time.
          top_k: draw from the k most likely tokens; 0: from all.
          top_p: draw from the smallest set of tokens with this much probability (arXiv 1904.09751).
          min_p: draw from tokens at least this many times as likely as the likeliest (arXiv 2407.01082).
          seed: with it, a prompt's completions depend on its number only, not on the other prompts of the batch.
          rows: number of each prompt; None counts from 0.

        Raises:
          ValueError: a setting is out of range, or a prompt leaves no room for an answer of `max_new_tokens` among the
            positions that the model has learned.
        """
        count = len(prompts.tokens)
        numbers = np.arange(count) if rows is None else np.asarray(rows)
        for name, value, holds, range_ in (
            ("group_size", group_size, group_size >= 1, "at least 1"),
            ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
            ("temperature", temperature, 0 <= temperature < np.inf, "a number of at least 0"),
            ("top_k", top_k, top_k >= 0, "at least 0"),
            ("top_p", top_p, 0 < top_p <= 1, "in (0, 1]"),
            ("min_p", min_p, 0 <= min_p < 1, "in [0, 1)"),
            ("rows", rows, numbers.shape == (count,), f"one number for each of {count} prompts"),
        ):
            if not holds:
                raise ValueError(f"{name} must be {range_}, got {value!r}")
        generation = generate(
            self._graphdef,
            self._params,
            self._placed(self._roomy(prompts, max_new_tokens)),
            np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32),
            self._placed(numbers.astype(np.int32)),
            group_size=group_size,
            max_new_tokens=max_new_tokens,
            temperature=float(temperature),
            top_k=int(top_k),
            top_p=float(top_p),
            min_p=float(min_p),
            end_ids=self.processor.tokenizer.end_ids,
        )
        tokens, lengths, finished, logprobs = (np.asarray(x)[:count] for x in generation)
        decode = self.processor.tokenizer.decode
        text = [[decode(ids[:n]) for ids, n in zip(*group)] for group in zip(tokens, lengths)]
        return CompletionGroups(text, logprobs, tokens, lengths, finished)

    def caption(
        self,
        clips: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        transcript: str | Sequence[str] = "",
        instruction: str = "",
        features: str | os.PathLike | None = None,
        group_size: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> str | list[str] | list[list[str]]:
        """Captions media files; of a clip that is longer than those of training, the loudest stretch, and says so.

        Args:
          clips: one file, or several; ids of precomputed features for a model that reads nothing else.
          transcript: what is said in the clip, or in each of several.
          instruction: the request in the prompt; "" takes the one that was trained.
          features: directory of precomputed features, for a model that reads them.
          group_size, temperature, max_new_tokens, seed: as in `generate`; the temperature of 0 takes the likeliest, and
            None is the model's own `max_new_tokens`.

        Returns:
          The caption of one file, a list for several; where `group_size` is above 1, a list of captions in its place.

        Raises:
          ValueError: a clip cannot be captioned; names it. `captioning.caption_clips` goes on with the others.
          ConfigError: the model reads nothing that clips have, or it reads features and there are none.
        """
        single = isinstance(clips, str | os.PathLike)
        paths = [os.fspath(clip) for clip in ([clips] if single else clips)]
        said = [transcript] * len(paths) if isinstance(transcript, str) else list(transcript)
        if len(said) != len(paths):
            raise ValueError(f"{len(said)} transcripts for {len(paths)} clips")
        answers, differs = [], Counter()
        for answer in caption_clips(
            self,
            [Request(*pair) for pair in zip(paths, said, strict=True)],
            instruction=instruction,
            features=None if features is None else Path(features),
            samples=group_size,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
        ):
            if answer.error:
                raise ValueError(f"{answer.clip}: {answer.error}")
            if answer.note:
                _log.warning("%s: %s", printable(answer.clip), answer.note)
            differs.update(answer.differs)
            texts = [caption.text for caption in answer.captions]
            answers.append(texts if group_size > 1 else texts[0])
        for line in as_differences(differs, len(paths)):
            _log.warning("%s", line.removeprefix("note: "))
        return answers[0] if single else answers

    def _roomy(self, prompts: PromptBatch, answer: int = 0) -> PromptBatch:
        """The prompts without such padding as would take the room of an answer of so many tokens."""
        decoder = self.model.decoder
        room = decoder.prompt_room(answer)
        if room is None or prompts.tokens.shape[1] <= room:
            return prompts
        if problem := decoder.lacks_room(int(np.max(prompts.length)), answer):
            raise ValueError(problem)
        return prompts.cut(room)

    def _placed(self, batch: Any) -> Any:
        """A batch on the devices; its last row is repeated until the rows divide evenly."""
        share = shard_count(self.mesh)

        def fill(x):
            return np.concatenate([x, np.repeat(x[-1:], -len(x) % share, axis=0)])

        return put_batch(jax.tree.map(fill, batch), self.mesh)


@functools.partial(jax.jit, static_argnames="graphdef")
def _next_token_logits(graphdef, params, prompts: PromptBatch):
    model = nnx.merge(graphdef, params).forward_only()
    last, _ = model.prefill(prompts)
    return model.language_model.logits(last)


def _merge_adapter(directory: Path, params: Any, model: ModelConfig, mesh: Mesh) -> Any:
    lora = read_peft_config(directory, params, model)
    adapted = dataclasses.replace(model, lora=lora)
    adapters = load_peft(directory, abstract_model(adapted, mesh)[1], adapted)
    return merge_lora(merge_params(adapters, params), lora)
