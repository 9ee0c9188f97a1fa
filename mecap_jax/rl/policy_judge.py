"""The policy as a judge: it answers questions about what it wrote, between rollout and update, on the mesh.

A question about a clip goes on from the clip's media as the rollout's prompt has them: they are encoded once for all
questions of the group, by the sampler that also makes the completions. Every process asks at the same time; the host
threads of the rewards never launch a device program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mecap_jax.batch import MEDIA, Array, Completions, PromptBatch
from mecap_jax.data.prompts import user_turn
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.generation.sampler import generate
from mecap_jax.model_config import DecoderConfig
from mecap_jax.rewards.base import Question
from mecap_jax.sharding import all_items, batch_sharding, local_rows, put_batch

_ROOM = 32  # least length that questions are padded to, and what they take for words of their own

# Of this process's prompts, for each completion of the group: a question, or None where nothing is asked.
Questions = Sequence[Sequence[Question | None]]
Replies = list[list[str | None]]


class PolicyJudge:
    """Asks the policy."""

    def __init__(self, graphdef: nnx.GraphDef, tokenizer: Tokenizer, mesh: Mesh):
        self._graphdef, self._tokenizer, self._mesh = graphdef, tokenizer, mesh
        self._decoder: DecoderConfig | None = None  # which the first model that is asked tells
        # Spelt out: left to itself, a compiler may give every process all rows.
        rows = batch_sharding(mesh)
        self._begun = {
            True: jax.jit(_with_media, out_shardings=rows),
            False: jax.jit(_without_media, out_shardings=rows),
        }

    def ask(
        self, params: Any, prompt: PromptBatch, valid: Array, questions: Questions, media: bool, max_new_tokens: int
    ) -> Replies:
        """Returns the likeliest reply to each question; None where none was asked, the chat template refuses it, or it
        is longer than what the policy has learned positions for.

        Args:
          prompt: B prompts on the mesh, whose media are asked about.
          valid: bool [B] on the mesh, which prompts count.
          questions: of this process's prompts.
          media: whether the questions come with the media; if not, the text is all that the policy sees.
          max_new_tokens: longest reply.
        """
        begun = self._begun[media](prompt)
        tokens, length = (local_rows(x) for x in (begun.tokens, begun.length))
        suffixes = [
            [self._rest(question, int(row[n - 1])) for question in group]
            for group, row, n in zip(questions, tokens, length, strict=True)
        ]
        most = self._prompt_room(params, max_new_tokens)
        if most is not None:
            most -= begun.tokens.shape[1]
            suffixes = [[ids if len(ids) <= most else [] for ids in group] for group in suffixes]
        longest = max((len(ids) for group in suffixes for ids in group if ids), default=1)
        room = _padded(max(all_items([longest])))
        room = room if most is None else min(room, most)
        shape = (len(tokens), len(questions[0]) if questions else 0, room)
        ids, mask = np.full(shape, self._tokenizer.pad_id, np.int32), np.zeros(shape, bool)
        for b, group in enumerate(suffixes):
            for g, suffix in enumerate(group):
                suffix = suffix or [self._tokenizer.pad_id]  # something has to be there, whatever is said to it
                ids[b, g, room - len(suffix) :], mask[b, g, room - len(suffix) :] = suffix, True
        generation = generate(
            self._graphdef,
            params,
            begun,
            np.zeros(2, np.uint32),
            put_batch(np.zeros(len(tokens), np.int32), self._mesh),
            valid=valid,
            suffix=put_batch(Completions(ids, mask), self._mesh),
            group_size=shape[1],
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            end_ids=self._tokenizer.end_ids,
        )
        replies, lengths = local_rows(generation.tokens), local_rows(generation.length)
        return [
            [self._tokenizer.decode(reply[:n]) if suffix else None for suffix, reply, n in zip(group, *row)]
            for group, *row in zip(suffixes, replies, lengths)
        ]

    def _prompt_room(self, params: Any, reply: int) -> int | None:
        """Most tokens before a reply of so many; None: any number."""
        if self._decoder is None:
            self._decoder = nnx.merge(self._graphdef, params).language_model.config
        return self._decoder.prompt_room(reply)

    def _rest(self, question: Question | None, last: int) -> list[int]:
        """What stands behind the token `last` in the conversation that asks a question: behind its media, or behind
        its first token. Nothing where nothing can be asked."""
        if question is None:
            return []
        kind = self._tokenizer.media_kind(last)
        try:
            ids = self._tokenizer.encode_conversation(user_turn((kind,) if kind else (), question.text))
        except ValueError:  # what the policy wrote must not end the run
            return []
        if not kind:
            return ids[1:]
        place = max(place for place, token in enumerate(ids) if token in self._tokenizer.placeholders)
        return ids[place + 1 :]


def question_room(answer: int) -> int:
    """How many tokens a question about an answer of so many may take: it quotes the answer, with a few words to it."""
    return answer + _ROOM


def _padded(length: int) -> int:
    """A power of two, or one and a half times one, that has room for `length`: few lengths, few programs."""
    power = _ROOM
    while power < length:
        power *= 2
    return max(_ROOM, power * 3 // 4) if power * 3 // 4 >= length else power


def _with_media(prompt: PromptBatch) -> PromptBatch:
    """The prompts up to their last media token, or to their first token where they have none."""
    places = jnp.arange(prompt.tokens.shape[1])
    last = jnp.max(jnp.where(prompt.media_index >= 0, places, 0), axis=1)
    following = jnp.take_along_axis(prompt.positions[:, 0], (last + 1)[:, None], axis=1)[:, 0]
    return prompt._replace(length=last + 1, next_position=following)


def _without_media(prompt: PromptBatch) -> PromptBatch:
    """The first token of the prompts: what every conversation begins with."""
    first = {name: getattr(prompt, name)[:, :1] for name in ("tokens", "media_index")}
    one = jnp.ones_like(prompt.length)
    return prompt.without(MEDIA)._replace(
        **first, positions=prompt.positions[:, :, :1], length=one, next_position=prompt.positions[:, 0, 1]
    )
