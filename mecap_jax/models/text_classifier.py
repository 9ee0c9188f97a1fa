"""Sequence classifiers over BERT, RoBERTa and XLM-R, such as the emotion verifier of ERV (arXiv 2510.23506).

`load_text_classifier` reads a Hugging Face directory. Both published heads are a dense layer with tanh over the first
token and a linear layer: BERT calls the first one its pooler, RoBERTa makes it part of the classifier.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mecap_jax.models.bert import (
    Bert,
    BertConfig,
    encoder_rules,
    fill_network,
    first_tokens,
    ignored_tensors,
    linear_rules,
)
from mecap_jax.models.checkpoints.safetensors_files import TensorFiles
from mecap_jax.models.text_directory import (
    TextModelError,
    load_tokenizer,
    read_json,
    sha256,
    weights_file,
)
from mecap_jax.models.text_packing import PackedTexts, check_texts

_ARCHITECTURES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
}


class TextClassifier:
    """Probabilities of labels for texts, in Flax and float32 throughout. Safe to share between threads.

    Attributes:
      name: the model's name, for logs and provenance.
      weights_sha256: SHA-256 of `model.safetensors`.
      labels: what each probability is of, in order.
    """

    def __init__(self, name: str, weights_sha256: str, labels: Sequence[str], texts: PackedTexts):
        self.name, self.weights_sha256, self.labels = name, weights_sha256, tuple(labels)
        self._texts = texts

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [n, labels]: independent probabilities for several labels a text, else rows that sum to one.

        A text beyond the model's limit is cut where its tokenizer cuts it.

        Raises:
          TypeError: an item is not a string.
          ValueError: an item is not valid Unicode.
        """
        check_texts(texts)
        unique = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        if not unique:
            return np.zeros((0, len(self.labels)), np.float32)
        return self._texts(list(unique))[[unique[text] for text in texts]]


def load_text_classifier(path: str | Path) -> TextClassifier:
    """Loads the sequence classifier in directory `path`.

    The probabilities are sigmoids where `problem_type` in `config.json` is multi_label_classification and a softmax
    where it is single_label_classification. Where it is left out the number of labels decides, as in the
    text-classification pipeline of `transformers`: one label is a sigmoid, several are a softmax.

    Args:
      path: a directory with `config.json`, `tokenizer.json` and `model.safetensors`.

    Raises:
      TextModelError: a file is missing or ill-formed, or asks for what is not implemented.
      CheckpointError: the weights do not fit the configuration.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise TextModelError(f"no such directory: {directory}")
    said = read_json(directory / "config.json", dict)
    try:
        config = BertConfig.from_hugging_face(said)
        labels, probabilities = _read_head(said)
    except ValueError as error:
        raise TextModelError(f"{directory / 'config.json'}: {error}") from error
    tokenizer = load_tokenizer(directory, config)
    if not tokenizer.encode("").ids:
        raise TextModelError(f"{directory / 'tokenizer.json'} puts no token before a text, which the head would read")
    weights = weights_file(directory)
    network = _load_network(weights, config, len(labels))
    apply = functools.partial(_apply, probabilities)
    packed = PackedTexts(tokenizer, config, network, apply, len(labels))
    return TextClassifier(directory.resolve().name, sha256(weights), labels, packed)


class _BertClassifier(nnx.Module):
    def __init__(self, config: BertConfig, labels: int, *, rngs: nnx.Rngs):
        self.encoder = Bert(config, rngs=rngs)
        self.dense = nnx.Linear(config.hidden_size, config.hidden_size, rngs=rngs)
        self.output = nnx.Linear(config.hidden_size, labels, rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "R L"], positions: Int[Array, "R L"], segments: Int[Array, "R L"], sentences: int
    ) -> Float[Array, "R {sentences} labels"]:
        """Returns the logits of each sentence packed into each row, see `Bert`."""
        first = first_tokens(self.encoder(tokens, positions, segments), segments, sentences)
        return self.output(jnp.tanh(self.dense(first)))


def _apply(
    probabilities: Callable[[Array], Array], network: _BertClassifier, *batch: Any
) -> Float[Array, "R S labels"]:
    return probabilities(network(*batch))


# --- the directory ------------------------------------------------------------------------------------------------


def _read_head(config: Mapping[str, Any]) -> tuple[list[str], Callable[[Array], Array]]:
    """Returns the labels and what turns logits into probabilities; raises ValueError for what no classifier has."""
    expected = [_ARCHITECTURES[config["model_type"]]]
    architectures = config.get("architectures") or expected
    if architectures != expected:
        raise ValueError(f"architectures must be {expected}, got {architectures!r:.80}")
    labels = _labels(config)
    problem = config.get("problem_type")
    if problem not in (None, "multi_label_classification", "single_label_classification"):
        raise ValueError(f"problem_type {problem!r:.40} gives no probabilities")
    if problem == "single_label_classification" and len(labels) == 1:
        raise ValueError("problem_type 'single_label_classification' needs several labels, id2label has one")
    is_softmax = problem == "single_label_classification" or (problem is None and len(labels) > 1)
    return labels, jax.nn.softmax if is_softmax else jax.nn.sigmoid


def _labels(config: Mapping[str, Any]) -> list[str]:
    # `transformers` writes neither field for two unnamed labels.
    names = config.get("id2label")
    if names is None:
        count = config.get("num_labels", 2)
        if type(count) is not int or count < 1:
            raise ValueError(f"num_labels must be a positive integer, got {count!r:.40}")
        names = {str(i): f"LABEL_{i}" for i in range(count)}
    if not isinstance(names, dict) or not names or set(names) != {str(i) for i in range(len(names))}:
        raise ValueError(f"id2label must name the labels 0, 1, ..., got {names!r:.80}")
    labels = [names[str(i)] for i in range(len(names))]
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise ValueError(f"the labels of id2label must be different strings, got {labels!r:.200}")
    return labels


def _load_network(path: Path, config: BertConfig, labels: int) -> _BertClassifier:
    prefix = config.key_prefix
    if config.model_type == "bert":
        head = ((f"{prefix}pooler.dense", "dense"), ("classifier", "output"))
    else:
        head = (("classifier.dense", "dense"), ("classifier.out_proj", "output"))
    rules = [*encoder_rules(prefix, "encoder."), *(rule for key, path_ in head for rule in linear_rules(key, path_))]
    return fill_network(
        lambda: _BertClassifier(config, labels, rngs=nnx.Rngs(0)),
        TensorFiles(path.parent, single=path.name),
        rules,
        ignored_tensors(prefix),
        path,
    )
