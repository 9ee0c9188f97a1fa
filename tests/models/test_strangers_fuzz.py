"""Damaged directories of strangers' models: refused in words, or read; never a crash, a hang or a silent NaN."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import functools
import json
import shutil
import time

import jax
import numpy as np
import pytest
from flax import nnx

from mecap_jax.data import template_sandbox
from mecap_jax.data.processor import Processor
from mecap_jax.models.checkpoints.hub import load_weights, published_part, save_weights
from mecap_jax.models.checkpoints.hub_config import read_config
from mecap_jax.models.checkpoints.peft import load_peft, read_peft_config, save_peft
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.models.parameters import split_params
from tests import hub_models, miniature
from tests.fuzz import json_mutant, mutant
from tests.hub_layout import write_processor

SECONDS = 5.0  # of processor time, for one file
MESSAGES = [{"role": "user", "content": "It's 2024!\n\n  他 says <|im_end|> hello"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Qwen2 in shards, its processor and an adapter of the miniature."""
    directory = tmp_path_factory.mktemp("strangers")
    hub_models.make("qwen2").save_pretrained(directory / "whole")
    config = read_config(directory / "whole")
    params = load_weights(directory / "whole", config, shapes(config))
    (directory / "model").mkdir()
    save_weights(directory / "model", config, params, max_shard_bytes=20_000)
    shutil.copy(directory / "whole" / "config.json", directory / "model")
    write_processor(directory / "model", "qwen2")
    adapted = miniature.trained_adapters(miniature.model(config=miniature.LORA)[1])
    save_peft(directory / "adapter", adapted, miniature.LORA, "somewhere")
    return directory, adapted


@functools.cache
def shapes(config):
    state = nnx.state(nnx.eval_shape(lambda: MultimodalLM(config, nnx.Rngs(0))))
    return published_part(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state)))


def read_weights(directory, _):
    config = read_config(directory)
    params = load_weights(directory, config, shapes(config))
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(params))


def read_processor(directory, _):
    config = read_config(directory)
    tokenizer = Processor.from_directory(directory, config).tokenizer
    ids = tokenizer.encode_conversation(MESSAGES)
    assert isinstance(tokenizer.decode(ids), str) and all(0 <= i < tokenizer.vocab_size for i in ids)


def read_adapter(directory, params):
    read_peft_config(directory, split_params(params, ())[1], miniature.CONFIG)
    adapters = load_peft(directory, params, miniature.LORA)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(adapters))


# (directory, file, what reads it, damaged files)
CASES = {
    "shard": ("model", "model-00002-of-*.safetensors", read_weights, 100),
    "index": ("model", "model.safetensors.index.json", read_weights, 100),
    "config": ("model", "config.json", read_weights, 100),
    "tokenizer": ("model", "tokenizer.json", read_processor, 100),
    "settings": ("model", "tokenizer_config.json", read_processor, 100),
    "template": ("model", "chat_template.jinja", read_processor, 100),
    "adapter": ("adapter", "adapter_model.safetensors", read_adapter, 100),
    "adapter_config": ("adapter", "adapter_config.json", read_adapter, 100),
}


def examine(case, model, tmp_path, seed, count=None):
    """Reads damaged copies of a file; how many of them were refused, and how many read.

    Raises:
      AssertionError: what must not happen did; names the copy.
    """
    (root, params), (part, pattern, read, usual) = model, CASES[case]
    directory = tmp_path / part
    shutil.copytree(root / part, directory, dirs_exist_ok=True)
    if case == "template":
        (directory / pattern).write_text(json.loads((directory / "tokenizer_config.json").read_text())["chat_template"])
    path = next(directory.glob(pattern))
    original = path.read_bytes()
    count = usual if count is None else count
    refused = 0
    for number in range(count):
        random = np.random.default_rng((seed, number))
        if path.suffix == ".json" and number % 2:
            path.write_text(json.dumps(json_mutant(json.loads(original), random)))
        else:
            path.write_bytes(mutant(original, random))
        begin = time.process_time()
        try:
            read(directory, params)
        except (CheckpointError, ValueError, FileNotFoundError) as error:
            assert type(error) in (CheckpointError, ValueError, FileNotFoundError), (case, number, repr(error))
            assert str(error), (case, number)
            refused += 1
        spent = time.process_time() - begin
        assert spent < SECONDS, (case, number, spent)
    return refused, count - refused


@pytest.mark.parametrize("case", CASES)
def test_damaged_files_are_refused_or_read(case, model, tmp_path, monkeypatch):
    monkeypatch.setattr(template_sandbox, "_CPU_SECONDS", 0.2)
    refused, read = examine(case, model, tmp_path, seed=8)
    print(f"{case}: {refused} refused, {read} read")
    assert refused > 5
