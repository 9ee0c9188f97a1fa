"""Tunix's `GRPOLearner` with its vanilla roll-out as a side of a comparison."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tokenizers
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_files
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

from benchmarks.throughput.work import Work, plain, read_prompts, reward, versions
from benchmarks.throughput.worker import Parent
from mecap_jax.json_files import read_json_object

_STEPS = 1_000_000  # the parent says when it is enough


class Tokenizer:
    """Prompts are numbers of lists of ids; completions are decoded by the work's tokenizer."""

    def __init__(self, prompts: list[list[int]], pad: int):
        self._prompts, self._pad = prompts, pad
        self._backend = tokenizers.Tokenizer.from_file("model/tokenizer.json")

    def encode(self, text: str, **_: Any) -> list[int]:
        return self._prompts[int(text)]

    def decode(self, ids: list[int], **_: Any) -> str:
        return self._backend.decode(list(map(int, ids)), skip_special_tokens=True).strip()

    def bos_id(self) -> int | None:
        return None

    def eos_id(self) -> int:
        return self._pad

    def pad_id(self) -> int:
        return self._pad


class Steps:
    """The training data: asking for the next batch ends a step."""

    def __init__(self, parent: Parent, work: Work, cluster: rl_cluster.RLCluster, prompts: int):
        self.parent, self.work, self.cluster, self.prompts = parent, work, cluster, prompts
        self.phases: dict[str, float] = {}
        self.rewards: list[float] = []
        cluster.generate = self._timed("rollout", cluster.generate)
        cluster.get_ref_per_token_logps = self._timed("reference", cluster.get_ref_per_token_logps)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start = 0
        while self.parent.wants_step():
            self.phases, self.rewards, began = {}, [], time.perf_counter()
            yield {"prompts": np.array([str(start + i) for i in range(self.work.prompts)])}
            jax.block_until_ready(nnx.state(self.cluster.actor_trainer.model))
            seconds = time.perf_counter() - began
            update = seconds - sum(self.phases.values())
            facts = {
                "prompt_tokens": self.work.prompt_tokens,
                "completion_tokens": self.work.completion_tokens,
                "reward": float(np.mean(self.rewards)),
            }
            self.parent.took(seconds, {**self.phases, "update": update}, facts)
            start = (start + self.work.prompts) % self.prompts
        sys.exit(0)

    def reward(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        self.rewards = [reward(text) for text in completions]
        return self.rewards

    def _timed(self, phase: str, function):
        def timed(*args, **kwargs):
            began = time.perf_counter()
            result = jax.block_until_ready(function(*args, **kwargs))
            self.phases[phase] = time.perf_counter() - began
            return result

        return timed


def main() -> None:
    directory, parent = Path("."), Parent()
    work, prompts = Work.read(directory), read_prompts(directory)
    fields = read_json_object(directory / "model" / "config.json")
    config = qwen2.ModelConfig(
        num_layers=fields["num_hidden_layers"],
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        hidden_dim=fields["intermediate_size"],
        num_heads=fields["num_attention_heads"],
        head_dim=fields["hidden_size"] // fields["num_attention_heads"],
        num_kv_heads=fields["num_key_value_heads"],
        rope_theta=fields["rope_parameters"]["rope_theta"],
        norm_eps=fields["rms_norm_eps"],
        use_tied_embedding=fields["tie_word_embeddings"],
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    actor, reference = (qwen2_files.create_model_from_safe_tensors("model", config, mesh) for _ in range(2))
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(
            optax.clip_by_global_norm(work.clip_norm), optax.adamw(work.learning_rate, weight_decay=0.0)
        ),
        eval_every_n_steps=_STEPS,
        max_steps=_STEPS,
        mini_batch_size=work.prompts,
        train_micro_batch_size=work.prompts,
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=work.completion_tokens,
        max_prompt_length=work.prompt_tokens,
        kv_cache_size=work.prompt_tokens + work.completion_tokens,
        temperature=1.0,
        top_p=1.0,
        eos_tokens=[config.vocab_size],  # no token: completions go on to their longest length
    )
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=actor,
        reference=reference,
        tokenizer=Tokenizer(prompts, fields["pad_token_id"]),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh), training_config=training, rollout_config=rollout
        ),
    )
    algorithm = GRPOConfig(num_generations=work.group, beta=work.beta, epsilon=work.clip, kl_loss_mode="low_var_kl")
    steps = Steps(parent, work, cluster, len(prompts))
    learner = GRPOLearner(cluster, algorithm, steps.reward)
    settings = {
        "model": dataclasses.asdict(config),
        "training": dataclasses.asdict(training),
        "rollout": dataclasses.asdict(rollout),
        "algorithm": dataclasses.asdict(algorithm),
    }
    parent.ready(plain(settings), versions("google-tunix", "jax", "jaxlib", "flax", "optax"))
    with mesh:
        learner.train(steps)


if __name__ == "__main__":
    main()
