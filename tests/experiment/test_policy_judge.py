"""The policy as a judge: what it replies behind a shared beginning is what it says to the whole question."""

import dataclasses

import numpy as np
import pytest

from mecap_jax.data.clip_prompts import lay_out_clip
from mecap_jax.data.clips import DecodedClip
from mecap_jax.data.collate import collate
from mecap_jax.experiment import weights
from mecap_jax.experiment.setup import set_up
from mecap_jax.generation.sampler import Generation, generate
from mecap_jax.models.parameters import merge_params
from mecap_jax.rewards.base import Question
from mecap_jax.rl import policy_judge
from mecap_jax.rl.policy_judge import PolicyJudge, _padded
from mecap_jax.sharding import put_batch
from mecap_jax.train_state import abstract_model
from mecap_jax.training.logging import RunLogger
from tests.experiment.test_story import small

QUESTIONS = [
    [Question("Is it loud?"), Question("One sees raised eyebrows and a smile: yes or no? <think>"), None],
    [None, Question("x"), Question("Which emotion fits best? \U0001f622 <|im_end|> happy, sad.")],
    [Question("Say it. " * 9), Question("Is it loud?"), Question("")],
    [Question("?"), None, Question("happy")],
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, shared):
    workdir = tmp_path_factory.mktemp("judge")
    with RunLogger(workdir) as logger:
        yield set_up(small(*shared), workdir, logger)


def test_what_the_chat_template_refuses_is_not_asked(bench):
    graphdef, _ = abstract_model(bench.config.model, bench.mesh)
    judge = PolicyJudge(graphdef, bench.tokenizer, bench.mesh)
    last = bench.tokenizer.special(bench.tokenizer.media.audio)
    assert judge._rest(Question("Is it loud?"), last) and judge._rest(None, last) == []
    assert judge._rest(Question("x" * 10**7), last) == []


def test_a_question_without_room_among_learned_positions_is_not_asked(bench, monkeypatch):
    """What the policy wrote must not end the run; and the others are padded no further than there is room."""
    model, (bucket,) = bench.config.model, bench.config.data.buckets[-1:]
    sizes = {"num_key_value_heads": model.decoder.num_attention_heads, "mrope_section": None}
    learned = bucket.prompt_tokens + 40 + 6  # a question of 40 tokens has room, which would be padded to 48
    decoder = dataclasses.replace(model.decoder, **sizes, max_position_embeddings=learned)
    graphdef, params = abstract_model(dataclasses.replace(model, decoder=decoder), bench.mesh)
    given = {}

    def answer(graphdef, params, prompt, *_, suffix, group_size, **__):
        given.update(prompt=prompt, suffix=suffix)
        none = put_batch(np.zeros((len(prompt.tokens), group_size, 6), np.int32), bench.mesh)
        return Generation(none, none[..., 0], none[..., 0] > 0, none)

    monkeypatch.setattr(policy_judge, "generate", answer)
    judge = PolicyJudge(graphdef, bench.tokenizer, bench.mesh)
    batch = bench.dataset.assemble(bench.dataset.clips("train")[:1] * 8, bucket)
    last = int(batch.prompt.tokens[0][np.flatnonzero(batch.prompt.media_index[0] >= 0)[-1]])
    sized = {len(judge._rest(Question("a" * n), last)): Question("a" * n) for n in range(1, 60)}
    questions = [[sized[33], sized[40], sized[41]]] * 8
    valid = put_batch(np.ones(8, bool), bench.mesh)
    replies = judge.ask(params, put_batch(batch.prompt, bench.mesh), valid, questions, True, 6)
    assert [[reply is None for reply in group] for group in replies] == [[False, False, True]] * 8
    assert given["prompt"].tokens.shape[1] + given["suffix"].tokens.shape[2] + 6 == learned


def test_questions_of_all_lengths_have_few_shapes():
    shapes = [_padded(length) for length in range(1, 2049)]
    assert all(length <= shape < max(33, 1.5 * length + 1) for length, shape in enumerate(shapes, start=1))
    assert sorted(set(shapes)) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]


@pytest.mark.slow
@pytest.mark.parametrize("media", [True, False])
def test_replies_are_those_to_the_whole_question(bench, media):
    model = weights.open_model(bench.config, bench.mesh)
    params = merge_params(weights.starting_trainable(bench.config, bench.mesh), model.frozen)
    dataset, tokenizer = bench.dataset, bench.tokenizer
    # Clips with sound and picture, with sound alone, and one of which nothing can be shown.
    kinds = {record.has_video: i for i, record in enumerate(dataset.index)}
    numbers = [kinds[True], kinds[False], kinds[True], kinds[True]]
    hidden = [(), (), ("audio", "video"), ("audio",)]
    numbers, hidden, questions = numbers * 2, hidden * 2, QUESTIONS + [group[::-1] for group in QUESTIONS]
    (bucket,) = bench.config.data.buckets[-1:]
    batch = dataset.assemble(numbers, bucket, change=lambda position, clip: clip.without(hidden[position]))
    judge = PolicyJudge(model.graphdef, tokenizer, bench.mesh)
    valid = put_batch(np.ones(8, bool), bench.mesh)
    replies = judge.ask(params, put_batch(batch.prompt, bench.mesh), valid, questions, media, 6)
    assert [[reply is None for reply in group] for group in replies] == [[q is None for q in g] for g in questions]
    for g in range(3):
        clips = [dataset._decode(n).without(without) if media else DecodedClip() for n, without in zip(numbers, hidden)]
        texts = [group[g].text if group[g] else "" for group in questions]
        rows = [lay_out_clip(clip, text, tokenizer, bench.config.model) for clip, text in zip(clips, texts)]
        room = dataclasses.replace(bucket, prompt_tokens=max(len(row.layout.tokens) for row in rows))
        prompt = put_batch(collate(rows, room, bench.config.model, tokenizer.pad_id), bench.mesh)
        whole = generate(
            model.graphdef, params, prompt, np.zeros(2, np.uint32), put_batch(np.zeros(8, np.int32), bench.mesh),
            group_size=1, max_new_tokens=6, temperature=0.0, end_ids=tokenizer.end_ids,
        )  # fmt: skip
        said = [
            tokenizer.decode(ids[:n]) for ids, n in zip(np.asarray(whole.tokens[:, 0]), whole.length[:, 0].tolist())
        ]
        assert [group[g] for group in replies] == [text if group[g] else None for text, group in zip(said, questions)]
    assert len({reply for group in replies for reply in group}) > 3
