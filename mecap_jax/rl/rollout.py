"""From prompts to judged completions: sampling on the device, rewards on the host beside it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mecap_jax.batch import Array, Completions, PromptBatch
from mecap_jax.config import GrpoConfig
from mecap_jax.data.questions import Asked
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.generation.sampler import Generation, generate
from mecap_jax.generation.scoring import completion_logprobs
from mecap_jax.models.multimodal_lm import TOWERS
from mecap_jax.models.parameters import merge_params
from mecap_jax.rewards.base import Sample, checked_questions, described
from mecap_jax.rewards.combine import RewardBatch, RewardFunction
from mecap_jax.rl.policy_judge import PolicyJudge
from mecap_jax.sharding import batch_sharding, local_rows
from mecap_jax.throughput import Counts, count


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Prompts whose groups are sampled, judged and learnt from together.

    Attributes:
      prompt: B prompts on the mesh.
      rows: int32 [B] on the mesh, the prompts' numbers within the step.
      valid: bool [B] on the mesh, False for a row that fills the batch up and for a clip that could not be decoded.
      asked: what each of this process's rows is made from.
      references: tokenised captions whose likelihood is part of the objective, or None.
    """

    prompt: PromptBatch
    rows: Array
    valid: Array
    asked: list[Asked]
    references: Completions | None = None


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A sampled micro-batch.

    Attributes:
      micro: its prompts.
      generation: tokens and log-probabilities, on the mesh.
      completions: the same with the mask that the loss uses.
      reference_logprobs: of the reference policy, on the mesh, or None.
      texts: this process's completions as text, B_local lists of G.
      finished, lengths: this process's part, bool and int [B_local, G].
      valid: this process's part, bool [B_local].
      rewards: this process's rewards, in the order of the flattened texts of valid rows.
      encoded: sound and video that frozen towers were run on beforehand, once for rollout, reference and gradient; None
        where each of them runs the towers.
      replies: what the policy said to the questions of reward terms, by term, B_local lists of G; rows not valid
        have none, and texts have {} where no term asks.
    """

    micro: MicroBatch
    generation: Generation
    completions: Completions
    reference_logprobs: Array | None
    texts: list[list[str]]
    finished: np.ndarray
    lengths: np.ndarray
    valid: np.ndarray
    rewards: Future[RewardBatch]
    encoded: Counts | None
    replies: list[list[Mapping[str, tuple[str | None, ...]]]]


@jax.jit
def _mask(generation: Generation, valid: Array, keep_truncated: Array) -> Completions:
    kept = valid[:, None] & (generation.finished | keep_truncated)
    return Completions(generation.tokens, generation.mask() & kept[..., None])


def make_encode(graphdef: nnx.GraphDef, mesh: Mesh) -> Callable[[Any, PromptBatch], PromptBatch]:
    """Returns the compiled (params, prompts) -> the same prompts with media tokens in place of their media."""
    return jax.jit(
        lambda params, prompt: nnx.merge(graphdef, params).forward_only().with_encoded_media(prompt),
        out_shardings=batch_sharding(mesh),
    )


def encodes_once(trainable: Any) -> bool:
    """Whether no tower is among the parameters that train: rollout, reference and gradient are then given the same
    media tokens."""
    return not trainable.keys() & set(TOWERS.values())


class RolloutEngine:
    """Samples groups, has them judged, and scores them under the reference policy."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        reference: Any,
        frozen: Any,
        config: GrpoConfig,
        tokenizer: Tokenizer,
        read: Callable[[str], Mapping[str, str]],
        reward: RewardFunction,
        mesh: Mesh,
        seed: int,
        sampling: Callable[[Any], Any],
    ):
        """`reference` is the part of the reference policy that trains, beside `frozen`; None where the KL weight is 0,
        or where it moves (see `run`).

        `read` gives the parts of a completion by name, which rewards see beside its text. `sampling` makes of
        parameters what is sampled and scored with, see `generation.weights`.
        """
        self._graphdef, self._reference, self._frozen, self._config = graphdef, reference, frozen, config
        self._sampling = sampling
        self._tokenizer, self._read, self._reward, self._mesh, self._seed = tokenizer, read, reward, mesh, seed
        self._judge = PolicyJudge(graphdef, tokenizer, mesh)
        self._encode = make_encode(graphdef, mesh)

    @property
    def reward(self) -> RewardFunction:
        """What judges."""
        return self._reward

    def run(
        self, params: Any, micro_batches: list[MicroBatch], step: int, reference: Any = None
    ) -> tuple[list[Rollout], dict[str, float]]:
        """Samples all micro-batches; returns with their rewards under way, and how long what took.

        The device is given the next micro-batch before the host looks at the last one: while the host decodes text
        and computes rewards, the device samples, and then scores under the reference policy.

        Args:
          params: the part of the policy that trains.
          reference: the same of the reference policy, in place of the engine's own, where it moves.
        """
        started = time.perf_counter()
        frozen = self._sampling(self._frozen)
        policy = merge_params(self._sampling(params), frozen)
        once, begun = encodes_once(params), []
        for micro in micro_batches:
            micro, media = self._with_media(policy, micro) if once else (micro, None)
            begun.append((micro, self.generate(policy, micro, step), media))
        generations = [generation for _, generation, _ in begun]
        if self._reward.asking:
            # What the policy is asked waits for its turn on the device anyway, and its time is told by itself.
            jax.block_until_ready(generations)
        else:
            policy = None  # its copies are let go of as soon as the last program that was given them has run
        reference = self._reference if reference is None else reference
        if reference is not None:
            reference = merge_params(self._sampling(reference), frozen)
        asking, rollouts = 0.0, []
        for micro, generation, media in begun:
            rollout, seconds = self._submit(policy, reference, micro, generation, step)
            rollouts.append(dataclasses.replace(rollout, encoded=media))
            asking += seconds
        jax.block_until_ready(generations)
        sampled = time.perf_counter()
        jax.block_until_ready([rollout.reference_logprobs for rollout in rollouts])
        scored = time.perf_counter()
        timing = {"rollout": sampled - started - asking, "reference": scored - sampled}
        return rollouts, timing | ({"policy_judge": asking} if self._reward.asking else {})

    def _with_media(self, params: Any, micro: MicroBatch) -> tuple[MicroBatch, Counts | None]:
        prompt = micro.prompt
        if not prompt.has_raw_media:
            return micro, None
        return dataclasses.replace(micro, prompt=self._encode(params, prompt)), count(prompt, micro.valid, ())

    def generate(self, params: Any, micro: MicroBatch, step: int) -> Generation:
        """Samples a micro-batch with all parameters of a policy, as `generation.weights` gives them."""
        return generate(
            self._graphdef,
            params,
            micro.prompt,
            np.array([self._seed, step], np.uint32),
            micro.rows,
            valid=micro.valid,
            group_size=self._config.group_size,
            max_new_tokens=self._config.max_new_tokens,
            temperature=self._config.temperature,
            top_k=self._config.top_k,
            top_p=self._config.top_p,
            min_p=self._config.min_p,
            end_ids=self._tokenizer.end_ids,
        )

    def _submit(
        self, params: Any, reference_params: Any, micro: MicroBatch, generation: Generation, step: int
    ) -> tuple[Rollout, float]:
        """A rollout whose rewards are under way, and the seconds that the policy was asked for."""
        arrays = (generation.tokens, generation.length, generation.finished, micro.valid)
        tokens, lengths, finished, valid = map(local_rows, arrays)
        texts = [
            [self._tokenizer.decode(ids[:n]) for ids, n in zip(group, group_lengths)]
            for group, group_lengths in zip(tokens, lengths)
        ]
        samples = [
            Sample.of(asked, text, bool(done), group, self._read(text), int(length))
            for group, asked in enumerate(micro.asked)
            if valid[group]
            for text, done, length in zip(texts[group], finished[group], lengths[group])
        ]
        began = time.perf_counter()
        samples, unasked = self._with_replies(params, micro, valid, samples)
        asking = time.perf_counter() - began
        rewards = self._reward.submit(samples, step // self._config.updates_per_step, unasked)
        completions = _mask(generation, micro.valid, np.bool_(not self._config.mask_truncated))
        reference = None
        if reference_params is not None:
            reference = completion_logprobs(
                self._graphdef,
                reference_params,
                micro.prompt,
                completions,
                temperature=self._config.temperature,
            )
        replies: list[list[Mapping[str, tuple[str | None, ...]]]] = [[] for _ in texts]
        for sample in samples:
            replies[sample.group].append(sample.replies)
        judged = (texts, finished, lengths, valid, rewards)
        return Rollout(micro, generation, completions, reference, *judged, None, replies), asking

    def _with_replies(
        self, params: Any, micro: MicroBatch, valid: np.ndarray, samples: list[Sample]
    ) -> tuple[list[Sample], dict[str, str]]:
        """The samples with what the policy replies to the questions of reward terms; and the terms that had none to
        ask, for a reason. Nothing is asked for them, but at the same time on every process: none waits for another."""
        size, unasked = self._config.group_size, {}
        for term in self._reward.asking:
            questions = np.full((len(valid), size, len(term.asks)), None)
            try:
                asked = [checked_questions(term, sample) for sample in samples]
                questions[valid] = np.array(asked, object).reshape(-1, size, len(term.asks))
            except Exception as error:  # a term may be a user's own: whatever it raises is its failure, not the run's
                unasked[term.name] = f"its questions: {described(error)}"
            replies = [
                self._judge.ask(params, micro.prompt, micro.valid, questions[..., k].tolist(), media, term.reply_tokens)
                for k, media in enumerate(term.asks)
            ]
            flat = [tuple(reply[b][g] for reply in replies) for b in np.flatnonzero(valid) for g in range(size)]
            samples = [
                dataclasses.replace(sample, replies=MappingProxyType({**sample.replies, term.name: answers}))
                for sample, answers in zip(samples, flat, strict=True)
            ]
        return samples, unasked


@dataclasses.dataclass(frozen=True)
class JudgedGroups:
    """This process's rewards of one micro-batch.

    Attributes:
      total: float32 [B_local, G], NaN where a completion has no reward, as in every row that is not valid.
      terms: float32 [B_local, G] by name, unweighted.
      failed: bool [B_local, G] by name, where a term failed.
      degenerate: object [B_local, G], why a completion earns nothing, None for proper text.
      seconds: how long each term took.
    """

    total: np.ndarray
    terms: dict[str, np.ndarray]
    failed: dict[str, np.ndarray]
    degenerate: np.ndarray
    seconds: dict[str, float]


def collect_rewards(rollout: Rollout) -> JudgedGroups:
    """Waits for the rewards of a rollout."""
    batch = rollout.rewards.result()

    def grouped(values, missing):
        groups = np.full(rollout.lengths.shape, missing)
        groups[rollout.valid] = np.asarray(values, groups.dtype).reshape(-1, groups.shape[1])
        return groups

    nothing = np.float32(np.nan)
    return JudgedGroups(
        total=grouped(batch.total, nothing),
        terms={name: grouped(values, nothing) for name, values in batch.terms.items()},
        failed={name: grouped(values, False) for name, values in batch.failed.items()},
        degenerate=grouped(batch.degenerate, None),
        seconds=dict(batch.seconds),
    )
