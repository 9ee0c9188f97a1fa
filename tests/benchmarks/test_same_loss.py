"""The loss and gradient of a step equal those of the baseline, computed in torch with the weights that are exported."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from benchmarks.throughput.ours import from_ids, grpo_config
from benchmarks.throughput.models import DECODER
from benchmarks.throughput.prepare import save
from benchmarks.throughput.rounds import Process
from benchmarks.throughput.work import Work
from mecap_jax.batch import Completions
from mecap_jax.data.processor import Processor
from mecap_jax.data.tokenizer import train_tokenizer
from mecap_jax.json_files import write_json
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.checkpoints.hub import load_model, save_weights
from mecap_jax.rl.objective import TrainExample, denominators, grpo_loss
from mecap_jax.sharding import make_mesh
from mecap_jax.config import MeshConfig
from mecap_jax.train_state import abstract_model

LOSSES = ("grpo", "dapo", "dr_grpo")
WORK = Work("text", prompts=2, group=3, prompt_tokens=10, completion_tokens=6)
TINY = dataclasses.replace(
    DECODER, vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """A step's inputs for both sides, and our losses and gradients; the latter as the export lays tensors out."""
    directory, rng = tmp_path_factory.mktemp("exported"), np.random.default_rng(0)
    model = ModelConfig(name="tiny", family="qwen2", decoder=TINY)
    save(directory, Processor(train_tokenizer(["sad and tired"], 300, model.family), model), seed=0)
    graphdef, abstract = abstract_model(model, make_mesh(MeshConfig(), jax.devices()[:1]))
    params = load_model(directory, model, abstract)
    shape = (WORK.prompts, WORK.group, WORK.completion_tokens)
    ids = rng.integers(16, TINY.vocab_size, (WORK.prompts, WORK.prompt_tokens))
    tokens = rng.integers(16, TINY.vocab_size, shape)
    mask = np.arange(shape[2]) < rng.integers(1, shape[2] + 1, (*shape[:2], 1))
    # Far enough from the policy that some ratios are clipped.
    old, reference = (np.float32(-5.8 + rng.normal(0, 0.3, shape)) for _ in range(2))
    advantages = np.float32(rng.normal(size=shape[:2]))
    completions = Completions(np.int32(tokens), mask)
    example = TrainExample(
        from_ids(ids.tolist(), None, model), np.ones(len(ids), bool), completions, old, reference, advantages, None
    )
    example = jax.tree.map(jnp.asarray, example)

    def losses(params):
        values = []
        for name in LOSSES:
            config = grpo_config(WORK)
            config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, name=name))
            shared = (denominators(example, config.loss), jnp.float32(WORK.beta))
            values.append(grpo_loss(nnx.merge(graphdef, params), example, shared, config)[0])
        return jnp.stack(values)

    values, gradients = jax.jit(lambda params: (losses(params), jax.jacrev(losses)(params)))(params)
    ours = {}
    for i, name in enumerate(LOSSES):
        target = tmp_path_factory.mktemp(name)
        save_weights(target, model, jax.tree.map(lambda x, i=i: x[i], gradients))
        ours[name] = (float(values[i]), load_file(target / "model.safetensors"))
    return SimpleNamespace(
        directory=directory, ids=ids, tokens=tokens, mask=mask, old=old, reference=reference, advantages=advantages,
        ours=ours,
    )  # fmt: skip


def their_inputs(step):
    """One row a completion, as TRL has them."""

    def rows(x):
        return torch.tensor(x.reshape(-1, *x.shape[2:]))

    prompts = torch.tensor(np.repeat(step.ids, WORK.group, axis=0))
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": rows(step.tokens),
        "completion_mask": rows(step.mask).long(),
        "advantages": rows(step.advantages),
        "old_per_token_logps": rows(step.old),
        "ref_per_token_logps": rows(step.reference),
        "num_items_in_batch": torch.tensor(step.mask.sum()),
    }


def formula(model, inputs, name):
    """TRL's loss as its documentation writes it: the clipped surrogate and beta times k3, averaged."""
    tokens, mask = inputs["completion_ids"], inputs["completion_mask"]
    whole = torch.cat([inputs["prompt_ids"], tokens], dim=1)
    logits = model(whole).logits[:, -tokens.shape[1] - 1 : -1]
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    ratio, advantages = torch.exp(logprobs - inputs["old_per_token_logps"]), inputs["advantages"][:, None]
    clipped = ratio.clamp(1 - WORK.clip, 1 + WORK.clip)
    distance = inputs["ref_per_token_logps"] - logprobs
    per_token = -torch.minimum(ratio * advantages, clipped * advantages)
    per_token = (per_token + WORK.beta * (distance.exp() - distance - 1)) * mask
    if name == "grpo":
        return (per_token.sum(1) / mask.sum(1)).mean()
    return per_token.sum() / (mask.sum() if name == "dapo" else mask.numel())


def check(model, loss, ours):
    value, gradients = ours
    model.zero_grad()
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert theirs.keys() == gradients.keys()
    for name, gradient in theirs.items():
        np.testing.assert_allclose(
            gradients[name], gradient, rtol=1e-4, atol=1e-4 * np.abs(gradient).max(), err_msg=name
        )


@pytest.fixture(scope="module")
def model(step):
    return AutoModelForCausalLM.from_pretrained(step.directory, dtype=torch.float32)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_formula_in_torch(step, model, name):
    check(model, formula(model, their_inputs(step), name), step.ours[name])


@pytest.mark.filterwarnings("ignore")  # what TRL and transformers say of each other
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_those_of_trl_where_it_is_installed(step, name, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    trainer = trl.GRPOTrainer(
        model=str(step.directory),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            model_init_kwargs={"dtype": "float32"},
            bf16=False,
            use_cpu=True,
            per_device_train_batch_size=WORK.prompts * WORK.group,
            num_generations=WORK.group,
            max_completion_length=WORK.completion_tokens,
            loss_type=name,
            beta=WORK.beta,
            epsilon=WORK.clip,
            use_bias_correction_kl=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=AutoTokenizer.from_pretrained(step.directory),
    )
    trainer.current_gradient_accumulation_steps = 1
    check(trainer.model, trainer._compute_loss(trainer.model, their_inputs(step)), step.ours[name])


def test_our_side_takes_steps_of_the_work(step, tmp_path):
    WORK.save(tmp_path)
    write_json(tmp_path / "prompts.json", np.concatenate([step.ids, step.ids]).tolist())
    (tmp_path / "model").symlink_to(step.directory)
    process = Process("ours", tmp_path, sys.executable)
    try:
        first, second = process.step(), process.step()
    finally:
        process.close()
    assert process.about["settings"]["grpo"]["loss"]["beta"] == WORK.beta
    for taken in (first, second):
        assert taken["facts"]["prompt_tokens"] == WORK.prompt_tokens
        assert taken["facts"]["completion_tokens"] == WORK.completion_tokens, "an end of text was sampled"
        assert set(taken["phases"]) == {"data", "rollout", "reference", "update"}
        assert sum(taken["phases"].values()) <= taken["seconds"]
    assert first["facts"]["kl"] < 1e-9 < second["facts"]["kl"], "the policy starts at the reference, and moves"
