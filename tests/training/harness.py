"""A miniature training set-up: random prompts, a toy reward, the real learners."""

import dataclasses
import functools
from typing import NamedTuple

import grain
import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from mecap_jax.batch import Completions
from mecap_jax.config import GrpoConfig, LossConfig, OptimizerConfig, SftConfig
from mecap_jax.data.questions import Asked
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.generation.weights import sampling_params
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.parameters import split_params
from mecap_jax.rewards.base import Question
from mecap_jax.rewards.combine import RewardFunction
from mecap_jax.rewards.validity import is_degenerate
from mecap_jax.rl.learner import GrpoLearner
from mecap_jax.rl.rollout import MicroBatch, RolloutEngine
from mecap_jax.sharding import divide, local_shards, put_batch
from mecap_jax.train_state import TrainState, abstract_model, init_state, make_optimizer
from mecap_jax.training.sft import SftBatch, SftLearner
from tests import miniature
from tests.data.clips import record

BATCH, LENGTH, STEPS = 7, 6, 4  # seven rows divide over no mesh: one place is filled up
# Batch numbers with all modalities in every row, and with no sound in any; the others mix.
COMPLETE, SILENT = 100, 101
# Plain gradient descent shows a gradient as it is; Adam divides it by its own size and blows up rounding.
DESCENT = optax.sgd(0.1)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=1, weight_decay=0.1)
SFT = SftConfig(
    steps=STEPS,
    batch_clips=BATCH,
    references=2,
    max_target_tokens=LENGTH,
    optimizer=dataclasses.replace(OPTIMIZER, name="muon"),  # GRPO below has AdamW
)
GRPO = GrpoConfig(
    steps=STEPS,
    prompts=BATCH,
    group_size=4,
    max_new_tokens=LENGTH,
    optimizer=OPTIMIZER,
    loss=LossConfig(beta=0.1, reference_likelihood=0.2, references=1),
)


class Letters(Tokenizer):
    """A tokenizer without a file: ids are letters."""

    def __init__(self):
        self.pad_id, self.end_ids = miniature.END, (miniature.END, 3)

    def encode_conversation(self, messages) -> list[int]:
        text = "".join(item.get("text", "") for message in messages for item in message["content"])
        return [5, *(4 + ord(letter) % 50 for letter in text)]

    def media_kind(self, token: int) -> str:
        return ""  # whatever stands in these prompts

    def decode(self, ids) -> str:
        return " ".join(chr(ord("a") + int(i) % 26) for i in ids if int(i) not in self.end_ids)


class Alphabetical:
    """Rewards completions for early letters; deterministic, host side."""

    name = "alphabetical"

    def __call__(self, samples):
        return [-np.mean([ord(c) for c in s.completion.replace(" ", "")] or [120]) / 10 for s in samples]


class Curious:
    """Asks the policy about what it wrote, of some completions with their media, of some the text alone."""

    name, needs_policy, asks, reply_tokens = "curious", True, (True, False), 4

    def questions(self, sample):
        return [Question(sample.completion[k:]) if len(sample.completion) % (2 + k) else None for k in (0, 1)]

    def __call__(self, samples):
        replies = ["".join(reply or "z" for reply in sample.replies["curious"]) for sample in samples]
        return [-np.mean([ord(c) for c in text.replace(" ", "")] or [120]) / 10 for text in replies]


def mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first devices."""
    devices = np.array(jax.devices()[: data * fsdp * tensor]).reshape(data, fsdp, tensor)
    return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


class Parts(NamedTuple):
    """A model, and which of its parameters train."""

    model: ModelConfig
    trainable: tuple[str, ...]


EVERYTHING = Parts(miniature.CONFIG, (".*",))
# With dropout: its draws must be the same on any mesh and after a restart, too.
ADAPTERS = Parts(dataclasses.replace(miniature.LORA, lora=dataclasses.replace(miniature.LORA.lora, dropout=0.1)), ())


@functools.cache
def frozen_params(on: Mesh, parts: Parts):
    """What does not train of the miniature's weights, on a mesh."""
    return split_params(_params(on, parts.model), parts.trainable)[1]


def _params(on: Mesh, model: ModelConfig):
    _, abstract = abstract_model(model, on)
    params = miniature.model(config=model)[1]
    return jax.tree.map(lambda x, a: jax.device_put(np.asarray(x), a.sharding), params, abstract)


def initial_state(
    on: Mesh, optimizer: optax.GradientTransformation, parts: Parts = EVERYTHING
) -> tuple[object, TrainState]:
    """The miniature's weights on a mesh, the part that trains."""
    graphdef, _ = abstract_model(parts.model, on)
    trainable, _ = split_params(_params(on, parts.model), parts.trainable)
    return graphdef, init_state(trainable, optimizer, on)


def _targets(step: int, count: int) -> Completions:
    rng = np.random.default_rng((7, step, count))
    lengths = rng.integers(0, LENGTH + 1, (BATCH, count))  # 0: a reference that does not count
    tokens = rng.integers(4, miniature.CONFIG.decoder.vocab_size, (BATCH, count, LENGTH))
    return Completions(tokens.astype(np.int32), np.arange(LENGTH) < lengths[..., None])


def rows(step: int):
    """The batch at a step: prompts with mixed lengths and missing modalities, and targets."""
    prompt = jax.tree.map(np.asarray, miniature.prompts(BATCH, seed=step, missing=step != COMPLETE))
    if step == SILENT:
        prompt = prompt._replace(audio_frames=np.zeros_like(prompt.audio_frames))
    return prompt, _targets(step, 2), _targets(step, 1)


def _micro_batches(step: int, on: Mesh, at_once: int):
    """(prompt, targets, references, numbers, valid) of each micro-batch, this process's rows."""
    for places in divide(BATCH, on, at_once).places(local_shards(on)):
        # A place that is filled up holds some other row: what is in it must not matter.
        prompt, targets, references = jax.tree.map(lambda x, p=places: x[p % BATCH], rows(step))
        valid = places < BATCH
        targets = targets._replace(mask=targets.mask & valid[:, None, None])
        references = references._replace(mask=references.mask & valid[:, None, None])
        yield prompt, targets, references, places.astype(np.int32), valid


# Learners hold no state: tests share them, and their compiled programs.
_SFT_OPTIMIZER, GRPO_OPTIMIZER = make_optimizer(SFT.optimizer, STEPS), make_optimizer(GRPO.optimizer, STEPS)


@functools.cache
def _sft_learner(on: Mesh, optimizer: optax.GradientTransformation, parts: Parts) -> SftLearner:
    return SftLearner(*initial_state(on, optimizer, parts), frozen_params(on, parts), optimizer, SFT, seed=5)


@functools.cache
def grpo_learner(
    on: Mesh, optimizer: optax.GradientTransformation, config: GrpoConfig, parts: Parts, curious: bool = False
) -> GrpoLearner:
    graphdef, state = initial_state(on, optimizer, parts)
    frozen = frozen_params(on, parts)
    reference = initial_state(on, optimizer, parts)[1].params
    sampling = functools.partial(sampling_params, dtype=parts.model.dtype, gather=True)
    terms = [(Alphabetical(), 1.0), *([(Curious(), 1.0)] if curious else [])]
    reward = RewardFunction(terms, 60, is_degenerate)
    engine = RolloutEngine(graphdef, reference, frozen, config, Letters(), lambda text: {}, reward, on, 5, sampling)
    return GrpoLearner(graphdef, state, frozen, engine, optimizer, config, on, seed=5)


def sft_step(on: Mesh, micro: int = 0, optimizer=None, parts: Parts = EVERYTHING):
    """(graphdef, state, step function over batch numbers) of supervised training."""
    optimizer = optimizer or _SFT_OPTIMIZER
    graphdef, state = initial_state(on, optimizer, parts)
    learner = _sft_learner(on, optimizer, parts)

    def step(state, number, draw=None):
        batches = [
            SftBatch(*put_batch((prompt, targets, numbers), on))
            for prompt, targets, _, numbers, _ in _micro_batches(int(number), on, micro)
        ]
        state, metrics = learner.step(state, batches)
        return state, metrics, ()

    return graphdef, state, step


def grpo_step(
    on: Mesh, micro: int = 0, optimizer=None, config: GrpoConfig = GRPO, parts: Parts = EVERYTHING, curious=False
):
    """(graphdef, state, step function over batch numbers) of reinforcement learning; `curious` asks the policy."""
    optimizer = optimizer or GRPO_OPTIMIZER
    graphdef, state = initial_state(on, optimizer, parts)
    learner = grpo_learner(on, optimizer, config, parts, *([True] if curious else []))  # cached as it is called

    def step(state, number, draw=None):
        def more(drawn):
            return grpo_batch(draw(), on, micro, drawn)

        state, result = learner.step(state, grpo_batch(number, on, micro), more)
        return state, result.metrics, result.groups

    return graphdef, state, step


def grpo_batch(number, on: Mesh, micro: int = 0, drawn: int = 0, only=None) -> list[MicroBatch]:
    """The micro-batches of a batch number, of which one clip could not be decoded; `only` leaves no other prompts."""
    made = []
    for prompt, _, references, numbers, valid in _micro_batches(int(number), on, micro):
        valid = valid & (numbers != 3)
        if only is not None:
            valid &= np.isin(numbers + (drawn << 20), only)
            references = references._replace(mask=references.mask & valid[:, None, None])
        made.append(
            MicroBatch(
                prompt=put_batch(prompt, on),
                rows=put_batch(numbers + (drawn << 20), on),
                valid=put_batch(valid, on),
                asked=[Asked(record(f"clip-{i}"), "describe", "so they say", ("a b c",)) for i in numbers],
                references=put_batch(references, on),
            )
        )
    return made


def batches(steps: int = STEPS) -> grain.IterDataset:
    """Batch numbers; the real pipeline's iterator is as stateful as this one."""
    return grain.MapDataset.range(steps).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def flat(params, metrics) -> dict[str, np.ndarray]:
    """Parameters and the metrics of several steps under one name each."""
    leaves = jax.tree_util.tree_leaves_with_path({"params": params, "metrics": metrics})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def shapes(state):
    """The state without its numbers, as a checkpoint is restored into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
