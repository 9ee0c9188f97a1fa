"""The Flax classifiers equal those of transformers on small random models of every class and kind of label."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.models.text_classifier import load_text_classifier
from mecap_jax.models.text_directory import TextModelError
from tests.models.text_models import FAMILIES, WORDS, random_model, random_texts, save_tokenizer

CLASSES = {
    "bert": transformers.BertForSequenceClassification,
    "roberta": transformers.RobertaForSequenceClassification,
    "xlm-roberta": transformers.XLMRobertaForSequenceClassification,
}
LABELS = {i: f"emotion {i}" for i in range(28)}
MULTI = {"id2label": LABELS, "problem_type": "multi_label_classification"}
SINGLE = {"id2label": {0: "sad", 1: "glad", 2: "calm"}, "problem_type": "single_label_classification"}


def save_classifier(directory, family, max_tokens=60, tokenizer=None, **config):
    random_model(CLASSES[family], **config).save_pretrained(directory)
    save_tokenizer(directory, family, max_tokens, **(tokenizer or {}))
    return directory


def reference_logits(directory, texts):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True).eval()
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request, tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp(request.param), request.param, **MULTI)


@pytest.fixture(scope="module")
def roberta_directory(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"), "roberta", **MULTI)


@pytest.fixture(scope="module")
def roberta(roberta_directory):
    return load_text_classifier(roberta_directory)


def assert_equal(classifier, directory, texts, probabilities):
    expected = probabilities(reference_logits(directory, texts)).numpy()
    assert np.std(expected, axis=0).min() > 0.01  # every label tells texts apart
    actual = classifier.predict(texts)
    assert actual.dtype == np.float32 and actual.shape == (len(texts), len(classifier.labels))
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def test_sigmoids_of_28_labels_equal_torch(directory):
    classifier = load_text_classifier(directory)
    assert classifier.labels == tuple(LABELS.values())
    assert_equal(classifier, directory, random_texts(60), torch.sigmoid)


@pytest.mark.parametrize("family", FAMILIES)
def test_softmax_equals_torch(tmp_path, family):
    directory = save_classifier(tmp_path, family, **SINGLE)
    classifier = load_text_classifier(str(directory))
    assert classifier.labels == ("sad", "glad", "calm")
    assert_equal(classifier, directory, random_texts(60)[:12], lambda logits: logits.softmax(-1))
    np.testing.assert_allclose(classifier.predict(["a", "b c"]).sum(axis=1), 1, atol=1e-6)


def test_texts_of_every_row_length_equal_torch(tmp_path):
    directory = save_classifier(tmp_path, "roberta", max_tokens=270, max_position_embeddings=300, **MULTI)
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(WORDS, n)) for n in (1, 5, 20, 40, 55, 80, 90, 100, 150, 400)]
    assert_equal(load_text_classifier(directory), directory, texts, torch.sigmoid)


@pytest.mark.parametrize("problem_type, labels", [(None, 1), (None, 2), ("multi_label_classification", 2)])
def test_kind_of_probability_is_that_of_the_pipeline(tmp_path, problem_type, labels):
    directory = save_classifier(tmp_path, "bert", num_labels=labels, problem_type=problem_type)
    pipeline = transformers.pipeline("text-classification", str(directory), device="cpu", top_k=None)
    expected = [{entry["label"]: entry["score"] for entry in result} for result in pipeline(WORDS[:3])]
    classifier = load_text_classifier(directory)
    actual = [dict(zip(classifier.labels, row)) for row in classifier.predict(WORDS[:3])]
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_long_texts_are_cut_where_the_tokenizer_cuts(tmp_path):
    directory = save_classifier(tmp_path, "roberta", 20, {"truncation_side": "left"}, **MULTI)
    assert_equal(load_text_classifier(directory), directory, random_texts(60)[-6:], torch.sigmoid)


def test_unlimited_tokenizer_is_cut_at_the_position_table(tmp_path):
    directory = save_classifier(tmp_path, "xlm-roberta", max_tokens=int(1e30), **MULTI)
    long = " ".join(WORDS[:200])
    ids = transformers.AutoTokenizer.from_pretrained(directory)(long, truncation=True, max_length=68)["input_ids"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.sigmoid().numpy()
    np.testing.assert_allclose(load_text_classifier(directory).predict([long]), expected, atol=1e-5, rtol=0)


def test_result_does_not_depend_on_order_or_neighbours(roberta):
    texts = random_texts(60)
    together = roberta.predict(texts + texts[::-1])
    np.testing.assert_array_equal(together[: len(texts)], together[len(texts) :][::-1])
    alone = np.concatenate([roberta.predict([text]) for text in texts[-12:]])
    np.testing.assert_allclose(alone, together[len(texts) - 12 : len(texts)], atol=2e-6, rtol=0)
    assert roberta.predict([]).shape == (0, 28)


def test_programs_are_reused(roberta):
    rng = np.random.default_rng(3)
    for count in range(1, 40, 3):
        roberta.predict([" ".join(rng.choice(WORDS, n)) for n in rng.integers(1, 60, count)])
    assert roberta._texts._forward._cache_size() <= 3  # one row length, three row counts


def test_bad_texts_are_named(roberta):
    with pytest.raises(TypeError, match="text 1 must be a string, got int|Type-check error"):
        roberta.predict(["fine", 1])
    with pytest.raises(TypeError, match="one string"):
        roberta.predict("fine")
    with pytest.raises(ValueError, match="text 1 is not valid Unicode"):
        roberta.predict(["fine", "\ud800"])


# --- directories that do not load ---------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path, directory):
    """A copy of a good directory of each class, to be damaged."""
    return shutil.copytree(directory, tmp_path / "broken")


@pytest.fixture
def broken_roberta(tmp_path, roberta_directory):
    return shutil.copytree(roberta_directory, tmp_path / "broken")


def edit_config(directory, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_unknown_missing_and_misshapen_weights_are_all_listed(broken):
    tensors = load_file(broken / "model.safetensors")
    prefix = "bert." if "bert.pooler.dense.weight" in tensors else "roberta."
    dense, output = (
        ("bert.pooler.dense", "classifier") if prefix == "bert." else ("classifier.dense", "classifier.out_proj")
    )
    layer = f"{prefix}encoder.layer.1.attention"
    del tensors[f"{layer}.self.key.bias"], tensors[f"{dense}.weight"]
    tensors[f"{layer}.self.query.weight"] = np.zeros((24, 12), np.float32)
    tensors[f"{output}.bias"] = np.zeros(27, np.float32)
    tensors["lm_head.bias"] = tensors["encoder.layer.0.output.dense.bias"] = np.zeros(24, np.float32)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_text_classifier(broken)
    message = str(error.value)
    assert str(broken / "model.safetensors") in message
    for problem in (
        "no tensor for parameter encoder.layers.1.key.bias",
        "no tensor for parameter dense.kernel",
        f"tensor {layer}.self.query.weight has shape (24, 12)",
        f"tensor {output}.bias has shape (27,)",
        "unknown tensor lm_head.bias",
        "unknown tensor encoder.layer.0.output.dense.bias",
    ):
        assert problem in message


def test_leftovers_of_older_files_are_passed_over(broken_roberta, roberta):
    tensors = load_file(broken_roberta / "model.safetensors")
    tensors["roberta.embeddings.position_ids"] = np.arange(70)[None]
    tensors["roberta.pooler.dense.weight"] = np.zeros((24, 24), np.float32)
    tensors["roberta.pooler.dense.bias"] = np.zeros(24, np.float32)
    save_file(tensors, broken_roberta / "model.safetensors")
    np.testing.assert_array_equal(load_text_classifier(broken_roberta).predict(WORDS[:3]), roberta.predict(WORDS[:3]))


def test_half_precision_weights_are_computed_in_float32(tmp_path):
    random_model(CLASSES["roberta"], **MULTI).to(torch.bfloat16).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "roberta", 60)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        ids = transformers.AutoTokenizer.from_pretrained(tmp_path)(WORDS[0], return_tensors="pt")["input_ids"]
        expected = model(ids).logits.sigmoid().numpy()
    np.testing.assert_allclose(load_text_classifier(tmp_path).predict(WORDS[:1]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not implemented"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' is not implemented, only 'gelu' is"),
        ({"is_decoder": True}, "is_decoder True is not implemented"),
        ({"add_cross_attention": True}, "add_cross_attention True is not implemented"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is not implemented"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not implemented"),
        ({"model_type": "electra"}, "model_type 'electra' is none of bert, roberta, xlm-roberta"),
        ({"architectures": ["RobertaForMaskedLM"]}, r"architectures must be \['RobertaForSequenceClassification'\]"),
        ({"problem_type": "regression"}, "problem_type 'regression' gives no probabilities"),
        (
            {"problem_type": "single_label_classification", "id2label": {"0": "joy"}},
            "problem_type 'single_label_classification' needs several labels",
        ),
        ({"id2label": {"0": "joy", "2": "anger"}}, "id2label must name the labels 0, 1, ..."),
        ({"id2label": ..., "num_labels": "all"}, "num_labels must be a positive integer, got 'all'"),
        ({"id2label": {}}, "id2label must name the labels 0, 1, ..."),
        ({"id2label": ["joy"]}, "id2label must name the labels 0, 1, ..."),
        ({"id2label": {"0": "joy", "1": "joy"}}, "must be different strings"),
        ({"id2label": {"0": 0, "1": 1}}, "must be different strings"),
        ({"hidden_size": ..., "vocab_size": "many"}, "vocab_size must be a positive integer, got 'many'; hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is out of range"),
        ({"num_attention_heads": 5}, "hidden_size 24 is no multiple of num_attention_heads 5"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be a number"),
        ({"pad_token_id": None}, "pad_token_id must be a token, got None"),
        ({"vocab_size": 100}, "tokenizer.json has 320 tokens, more than the 100 of config.json"),
    ],
)
def test_configurations_that_do_not_fit_are_refused_by_name(broken_roberta, changes, message):
    edit_config(broken_roberta, **changes)
    with pytest.raises(TextModelError, match=message):
        load_text_classifier(broken_roberta)


def test_defaults_left_out_of_the_configuration_are_those_of_transformers(broken_roberta, roberta):
    edit_config(broken_roberta, hidden_act=..., pad_token_id=..., is_decoder=..., architectures=...)
    np.testing.assert_array_equal(load_text_classifier(broken_roberta).predict(WORDS[:3]), roberta.predict(WORDS[:3]))


def test_other_number_of_labels_than_weights_is_named(broken):
    edit_config(broken, id2label={str(i): f"emotion {i}" for i in range(7)})
    with pytest.raises(CheckpointError, match=r"shape \(28, 24\).* output.kernel wants \(7, 24\)"):
        load_text_classifier(broken)


def test_pickled_weights_are_not_read(broken_roberta):
    (broken_roberta / "model.safetensors").rename(broken_roberta / "pytorch_model.bin")
    with pytest.raises(TextModelError, match="model.safetensors .pickled weights are not read"):
        load_text_classifier(broken_roberta)


def test_ill_formed_and_absent_files_are_named(broken_roberta):
    (broken_roberta / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors: no safetensors header"):
        load_text_classifier(broken_roberta)
    (broken_roberta / "tokenizer_config.json").write_text('{"truncation_side": "middle"}')
    with pytest.raises(TextModelError, match="tokenizer_config.json: truncation_side 'middle' is no side"):
        load_text_classifier(broken_roberta)
    bare = json.loads((broken_roberta / "tokenizer.json").read_text()) | {"post_processor": None}
    (broken_roberta / "tokenizer_config.json").unlink()
    (broken_roberta / "tokenizer.json").write_text(json.dumps(bare))
    with pytest.raises(TextModelError, match="tokenizer.json puts no token before a text"):
        load_text_classifier(broken_roberta)
    (broken_roberta / "tokenizer.json").write_text("{}")
    with pytest.raises(TextModelError, match="tokenizer.json: the model is none of"):
        load_text_classifier(broken_roberta)
    (broken_roberta / "tokenizer.json").unlink()
    with pytest.raises(TextModelError, match="no such file: .*tokenizer.json"):
        load_text_classifier(broken_roberta)
    (broken_roberta / "config.json").write_text("[]")
    with pytest.raises(TextModelError, match="config.json must hold a JSON object, got list"):
        load_text_classifier(broken_roberta)
    with pytest.raises(TextModelError, match="no such directory: .*nowhere"):
        load_text_classifier(broken_roberta / "nowhere")
