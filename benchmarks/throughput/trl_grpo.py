"""TRL's `GRPOTrainer` as a side of a comparison, with generation by `transformers`.

trl_grpo.py [float32 | bfloat16 | mixed]; "mixed" are parameters and moments in float32, and products in bfloat16
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.throughput.torch_setup import device_bytes, prepare_torch, synchronize
from benchmarks.throughput.work import Work, plain, read_prompts, reward, versions
from benchmarks.throughput.worker import Parent

prepare_torch()  # declares what the imports below look for
from datasets import Dataset  # noqa: E402
from transformers import AutoProcessor, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

_STEPS = 1_000_000  # the parent says when it is enough


class Timed(GRPOTrainer):
    """The trainer with a clock: `self.phases` gets the seconds of each phase of a step."""

    prompt_ids: list[list[int]] | None

    def _tokenize_prompts(self, prompts: list[Any]):
        if self.prompt_ids is None:
            return self._timed("data", super()._tokenize_prompts, prompts)
        return [self.prompt_ids[int(prompt)] for prompt in prompts], None, {}

    def _generate_single_turn(self, *args, **kwargs):
        return self._timed("rollout", super()._generate_single_turn, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        compute = super()._get_per_token_logps_and_entropies
        return (
            self._timed("reference", compute, model, *args, **kwargs)
            if model is self.ref_model
            else compute(model, *args, **kwargs)
        )

    def _generate_and_score_completions(self, inputs):
        outputs = super()._generate_and_score_completions(inputs)
        synchronize()
        self.scored, self.prompt_tokens = time.perf_counter(), outputs["prompt_ids"].shape[1]
        return outputs

    def _timed(self, phase: str, function, *args, **kwargs):
        synchronize()
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            synchronize()
            self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - began


class Steps(TrainerCallback):
    """Waits for the parent before a step, and tells it behind one."""

    def __init__(self, parent: Parent, work: Work):
        self.parent, self.work, self.trainer = parent, work, None

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.parent.wants_step():
            sys.exit(0)
        self.trainer.phases, self.began = {}, time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        now, trainer = time.perf_counter(), self.trainer
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        facts = {
            "prompt_tokens": trainer.prompt_tokens,
            "completion_tokens": metrics["completions/mean_length"],
            "reward": metrics["reward"],
            "entropy": metrics["entropy"],
            "kl": metrics["kl"],
        }
        phases = {**trainer.phases, "update": now - trainer.scored}
        self.parent.took(now - self.began, phases, facts, device_bytes())


def rewards(completions: list[Any], **kwargs) -> list[float]:
    return [reward(text if isinstance(text, str) else text[0]["content"]) for text in completions]


def example(number: int, prompt: Any) -> dict[str, Any]:
    """A prompt as the trainer takes it: the number of one that is ids, or a conversation and its image."""
    if isinstance(prompt[0], int):
        return {"prompt": str(number)}
    image, text = prompt[0]["content"]
    question = [{"role": "user", "content": text["text"]}]
    return {"prompt": question, "image": Image.fromarray(image["image"])}


class MediaEmbedding(torch.nn.Module):
    """Token embeddings whose ids from the vocabulary's size on are rows of a fixed table."""

    def __init__(self, words: torch.nn.Embedding, media: torch.Tensor):
        super().__init__()
        self.words, self.weight = words, words.weight
        self.register_buffer("media", media.to(words.weight.device), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vocabulary = len(self.words.weight)
        media = self.media[(ids - vocabulary).clamp(min=0)].to(self.words.weight.dtype)
        return torch.where((ids >= vocabulary)[..., None], media, self.words(ids.clamp(max=vocabulary - 1)))


def main() -> None:
    directory, parent = Path("."), Parent()
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    work, prompts = Work.read(directory), read_prompts(directory)
    rows = work.prompts * work.group
    config = GRPOConfig(
        output_dir="trl",
        model_init_kwargs={"dtype": "float32" if dtype == "mixed" else dtype, "attn_implementation": "sdpa"},
        bf16=dtype != "float32",
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=rows // work.accumulate,
        gradient_accumulation_steps=work.accumulate,
        num_generations=work.group,
        max_completion_length=work.completion_tokens,
        generation_kwargs={"min_new_tokens": work.completion_tokens},
        loss_type="grpo",
        beta=work.beta,
        epsilon=work.clip,
        use_bias_correction_kl=False,  # plain k3, which all sides have
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=work.clip_norm,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        max_steps=_STEPS,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        seed=work.seed,
    )
    steps = Steps(parent, work)
    trainer = Timed(
        model="model",
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_list([example(*item) for item in enumerate(prompts)]),
        processing_class=(AutoProcessor if work.row == "image" else AutoTokenizer).from_pretrained("model"),
        callbacks=[steps],
    )
    trainer.prompt_ids, steps.trainer = None if work.row == "image" else prompts, trainer
    if work.row == "embeddings":
        media = torch.from_numpy(np.load(directory / "media.npy", allow_pickle=False))
        for model in (trainer.model, trainer.ref_model):
            model.model.embed_tokens = MediaEmbedding(model.model.embed_tokens, media)
    parent.ready(
        plain(
            {
                "arguments": {name: value for name, value in config.to_dict().items() if value is not None},
                "generation": trainer.generation_config.to_dict(),
                "model": trainer.model.config.to_dict(),
                "dtype": trainer.model.dtype,
                "threads": torch.get_num_threads(),
            }
        ),
        versions("trl", "transformers", "torch", "accelerate", "datasets"),
    )
    trainer.train()


if __name__ == "__main__":
    main()
