"""Damaged directories of strangers' models: refused in words, or read; never a crash, a hang or a silent NaN."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import functools
import json
import shutil
import time
from pathlib import Path

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


# (directory, file, what reads it)
CASES = {
    "shard": ("model", "model-00002-of-*.safetensors", read_weights),
    "index": ("model", "model.safetensors.index.json", read_weights),
    "config": ("model", "config.json", read_weights),
    "tokenizer": ("model", "tokenizer.json", read_processor),
    "settings": ("model", "tokenizer_config.json", read_processor),
    "template": ("templated", "chat_template.jinja", read_processor),
    "adapter": ("adapter", "adapter_model.safetensors", read_adapter),
    "adapter_config": ("adapter", "adapter_config.json", read_adapter),
}


class Workplace:
    """A Qwen2 in shards with its processor, and an adapter: one file after another is damaged and mended."""

    def __init__(self, root: Path):
        hub_models.make("qwen2").save_pretrained(root / "whole")
        config = read_config(root / "whole")
        (root / "model").mkdir()
        params = load_weights(root / "whole", config, shapes(config))
        save_weights(root / "model", config, params, max_shard_bytes=20_000)
        shutil.copy(root / "whole" / "config.json", root / "model")
        write_processor(root / "model", "qwen2")
        shutil.copytree(root / "model", root / "templated")
        template = json.loads((root / "model" / "tokenizer_config.json").read_text())["chat_template"]
        (root / "templated" / "chat_template.jinja").write_text(template)
        self.params = miniature.trained_adapters(miniature.model(config=miniature.LORA)[1])
        save_peft(root / "adapter", self.params, miniature.LORA, "somewhere")
        self.root = root

    def damage(self, case: str, random: np.random.Generator) -> bool:
        """Reads a damaged copy of a file: whether it was read, or refused in words.

        Raises:
          AssertionError: what must not happen did.
        """
        directory, pattern, read = CASES[case]
        path = next((self.root / directory).glob(pattern))
        original = path.read_bytes()
        if path.suffix == ".json" and random.integers(2):
            path.write_text(json.dumps(json_mutant(json.loads(original), random)))
        else:
            path.write_bytes(mutant(original, random))
        begin = time.process_time()
        try:
            read(self.root / directory, self.params)
            return True
        except (CheckpointError, ValueError, FileNotFoundError) as error:
            assert type(error) in (CheckpointError, ValueError, FileNotFoundError), repr(error)
            assert str(error)
            return False
        finally:
            path.write_bytes(original)
            assert time.process_time() - begin < SECONDS


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("strangers"))


@pytest.mark.parametrize("case", CASES)
def test_damaged_files_are_refused_or_read(case, workplace, monkeypatch):
    monkeypatch.setattr(template_sandbox, "_CPU_SECONDS", 0.2)
    read = [workplace.damage(case, np.random.default_rng((8, number))) for number in range(100)]
    assert read.count(False) > 5
