"""GRPO of clips in plain torch over `transformers`' Qwen2.5-Omni thinker, as R1-Omni's trainer does it.

That trainer (humanOmni_grpo_trainer.py of its repository) takes one prompt at a time and repeats it for every
completion: in sampling and in both scoring passes, the towers and the prompt run G times. Log-probabilities come from
the logits of all positions, the policy that sampled is the one that is trained, and gradients of the prompts add up.

  omni_loop.py [float32 | bfloat16]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.throughput.torch_setup import prepare_torch
from benchmarks.throughput.work import Work, batches, plain, read_prompts, reward, versions
from benchmarks.throughput.worker import Parent

prepare_torch()  # declares what the imports below look for
from transformers import AutoProcessor, GenerationConfig, Qwen2_5OmniThinkerForConditionalGeneration  # noqa: E402

from mecap_jax.json_files import read_json_object  # noqa: E402


def main() -> None:
    directory, parent = Path("."), Parent()
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    work, prompts = Work.read(directory), read_prompts(directory)
    torch.manual_seed(work.seed)
    loop = Loop(work, dtype)
    settings = {
        "model": loop.policy.config.to_dict(),
        "generation": loop.sampling.to_dict(),
        "optimizer": {name: value for name, value in loop.optimizer.defaults.items()},
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }
    parent.ready(plain(settings), versions("transformers", "torch"))
    for conversations in batches(prompts, work.prompts):
        if not parent.wants_step():
            return
        began = time.perf_counter()
        phases, facts = loop.step(conversations)
        parent.took(time.perf_counter() - began, phases, facts)


class Loop:
    """The models, the optimiser, and a step."""

    def __init__(self, work: Work, dtype: str):
        self.work = work
        load = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained
        self.policy, self.reference = (load("model", dtype=dtype, attn_implementation="sdpa") for _ in range(2))
        self.policy.train()
        self.reference.eval().requires_grad_(False)
        self.processor = AutoProcessor.from_pretrained("model")
        sizes = read_json_object(Path("model") / "video_preprocessor_config.json")["size"]
        self.frames = {"size": sizes, "cap_pixels_per_frame": False}
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), work.learning_rate, weight_decay=0.0, fused=True)
        self.sampling = GenerationConfig(
            max_new_tokens=work.completion_tokens,
            min_new_tokens=work.completion_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            eos_token_id=self.processor.tokenizer.eos_token_id,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )

    def step(self, conversations: list[Any]) -> tuple[dict[str, float], dict[str, float]]:
        """Samples, judges and learns; the seconds of each phase, and what is to be compared."""
        phases = dict.fromkeys(("data", "rollout", "reference", "update"), 0.0)
        seen = []
        for conversation in conversations:
            marks = [time.perf_counter()]
            inputs = self._repeated(self._inputs(conversation))
            marks.append(time.perf_counter())
            prompt = inputs.pop("input_ids")
            whole = self._sampled(prompt, inputs)
            marks.append(time.perf_counter())
            inputs["attention_mask"] = torch.ones_like(whole)
            tokens = whole[:, prompt.shape[1] :]
            with torch.no_grad():
                reference = logprobs(self.reference, whole, tokens, inputs)
            marks.append(time.perf_counter())
            texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            rewards = torch.tensor([reward(text) for text in texts])
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
            own = logprobs(self.policy, whole, tokens, inputs)
            loss, divergence = grpo_loss(own, reference, advantages, self.work.beta)
            (loss / self.work.prompts).backward()
            marks.append(time.perf_counter())
            for phase, before, after in zip(phases, marks, marks[1:]):
                phases[phase] += after - before
            seen.append((prompt.shape[1], tokens.shape[1], rewards.mean().item(), divergence.item()))
        began = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.work.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        phases["update"] += time.perf_counter() - began
        names = ("prompt_tokens", "completion_tokens", "reward", "kl")
        return phases, {name: sum(values) / len(values) for name, values in zip(names, zip(*seen))}

    def _inputs(self, conversation: Any) -> dict[str, torch.Tensor]:
        items = conversation[0]["content"]
        bare = [{"role": "user", "content": [i if i["type"] == "text" else {"type": i["type"]} for i in items]}]
        text = self.processor.apply_chat_template(bare, tokenize=False, add_generation_prompt=True)
        media = {item["type"]: item[item["type"]] for item in items}
        return dict(
            self.processor(
                text=[text], audio=[media["audio"]], videos=[media["video"]], videos_kwargs=self.frames,
                return_tensors="pt",
            )
        )  # fmt: skip

    def _repeated(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        floats = {name: x.to(self.policy.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
        return {name: x.repeat(self.work.group, *[1] * (x.ndim - 1)) for name, x in floats.items()}

    @torch.no_grad()
    def _sampled(self, prompt: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.policy.generate(input_ids=prompt, generation_config=self.sampling, **inputs)


def logprobs(model, whole: torch.Tensor, tokens: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities [G, T] of the last tokens of each row; logits are computed of all."""
    logits = model(input_ids=whole, **inputs).logits[:, -tokens.shape[1] - 1 : -1]
    return torch.stack([row.log_softmax(-1).gather(-1, t[:, None])[:, 0] for row, t in zip(logits.float(), tokens)])


def grpo_loss(
    own: torch.Tensor, reference: torch.Tensor, advantages: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a group that the policy itself has sampled, and its mean divergence from the reference."""
    distance = reference - own
    divergence = distance.exp() - distance - 1
    ratio = (own - own.detach()).exp()
    return -(ratio * advantages[:, None] - beta * divergence).mean(), divergence.mean().detach()


if __name__ == "__main__":
    main()
