import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mecap_jax.data.utterance import Utterance
from mecap_jax.emotions import EMOTIONS, LABELS
from mecap_jax.rewards.anchors import Anchors, AnchorsError, build_anchors, captions_by_label, check_encoder
from mecap_jax.rewards.emotion import DistinctivenessReward, EmotionReward
from mecap_jax.rewards.templates import template_sentences
from tests.rewards.conftest import TableEncoder

TABLE = {"joy": [1, 0, 0], "glee": [0, 1, 0], "rage": [0, 0, 1], "-rage": [0, 0, -1]}


@pytest.fixture
def table():
    return build_anchors(
        TableEncoder(TABLE), {"happy": ["Joy", " glee"], "angry": ["RAGE"]}, kind="captions", source="a test"
    )


def test_anchors_are_normalised_means(table):
    assert table.labels == ("happy", "angry") and table.counts == (2, 1)
    np.testing.assert_allclose(table.vectors, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(table.text_mean, [1 / 3] * 3, atol=1e-6)
    assert (table.encoder, table.encoder_sha256, table.source) == ("table", "0" * 64, "a test")


def test_text_mean_can_come_from_other_texts():
    anchors = build_anchors(
        TableEncoder(TABLE), {"happy": ["joy"], "angry": ["rage"]}, kind="templates", source="", texts=["glee", "joy"]
    )
    np.testing.assert_allclose(anchors.text_mean, [0.5, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize(
    "sentences, message",
    [
        ({"happy": ["joy"], "angry": []}, r"no captions for the emotions \['angry'\] in a test"),
        ({"happy": ["joy"]}, "'labels' must be two or more"),
        ({"happy": ["joy"], "angry": ["rage", "-rage"]}, "cancel out in a test"),
    ],
)
def test_what_gives_no_anchors_is_refused(sentences, message):
    with pytest.raises(AnchorsError, match=message):
        build_anchors(TableEncoder(TABLE), sentences, kind="captions", source="a test")


def test_a_saved_file_reads_back_the_same(table, tmp_path):
    table.save(tmp_path / "new" / "anchors.safetensors")
    loaded = Anchors.load(tmp_path / "new" / "anchors.safetensors")
    for field in dataclasses.fields(Anchors):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(table, field.name))


def resave(path, tensors=None, version="1", **changes):
    """Rewrites an anchors file with something changed."""
    about = {
        "labels": ["happy", "angry"],
        "encoder": "table",
        "encoder_sha256": "0" * 64,
        "kind": "captions",
        "source": "",
        "counts": [2, 1],
    } | changes
    about = {key: value for key, value in about.items() if value is not None}
    metadata = {"format": "mecap_jax.anchors", "version": version, "anchors": json.dumps(about)}
    save_file(tensors or load_file(path), path, metadata=metadata)


@pytest.mark.parametrize(
    "damage, message",
    [
        (dict(version="2"), r"'2'.*this code reads .*'1'"),
        (dict(labels=["happy", "happy"]), "'labels'"),
        (dict(labels=["happy", "angry", "sad"]), "'vectors'"),
        (dict(kind="guesses"), "'kind' must be one of .*'guesses'"),
        (dict(counts=[2, 0]), "'counts'"),
        (dict(encoder_sha256=None), "encoder_sha256"),
        (dict(surprise=1), "surprise"),
        (dict(tensors={"vectors": np.eye(2, dtype="f")}), "text_mean"),
        (dict(tensors={"vectors": 2 * np.eye(2, dtype="f"), "text_mean": np.zeros(2, "f")}), "unit length"),
        (dict(tensors={"vectors": np.full((2, 2), np.nan, "f"), "text_mean": np.zeros(2, "f")}), "unit length"),
        (dict(tensors={"vectors": np.eye(2, dtype="f"), "text_mean": np.zeros(3, "f")}), "'text_mean'"),
    ],
)
def test_damaged_files_are_refused(table, tmp_path, damage, message):
    path = tmp_path / "anchors.safetensors"
    table.save(path)
    resave(path)
    Anchors.load(path)
    resave(path, **damage)
    with pytest.raises(AnchorsError, match=message) as error:
        Anchors.load(path)
    assert str(path) in str(error.value)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "anchors.npz"
    with pytest.raises(AnchorsError, match="no such anchors file: .*anchors.npz"):
        Anchors.load(path)
    np.savez(path, vectors=np.eye(2))
    with pytest.raises(AnchorsError, match="anchors.npz is no anchors file"):
        Anchors.load(path)
    save_file({"vectors": np.eye(2)}, path)
    with pytest.raises(AnchorsError, match="has format and version"):
        Anchors.load(path)


def test_another_encoder_is_refused_with_both_names(table, encoder, anchors):
    check_encoder(anchors["captions"], encoder)
    with pytest.raises(AnchorsError) as error:
        check_encoder(table, encoder)
    for value in ("'table'", "0" * 64, "'all-MiniLM-L6-v2'", encoder.weights_sha256):
        assert value in str(error.value)
    with pytest.raises(AnchorsError):
        EmotionReward(encoder, table)
    with pytest.raises(AnchorsError):
        DistinctivenessReward(encoder, table, [["a text"]])


def test_there_are_templates_for_every_label():
    sentences = template_sentences((*EMOTIONS, "calm", "bored"))
    assert all(len(set(group)) == len(group) == 20 for group in sentences.values())
    every = [text for group in sentences.values() for text in group]
    assert len(set(every)) == len(every)
    further = template_sentences((*LABELS, "hangry"))
    assert all(len(set(group)) == len(group) >= 4 for group in further.values())
    assert {"jealous", "very jealous", "jealousy"} <= set(further["jealous"])
    assert "a hangry mood" in further["hangry"]


def test_captions_are_grouped_by_label_in_the_official_order():
    def clip(i, split="train", label="happy", **captions):
        labels = {} if label is None else {"multimodal": label}
        return Utterance(f"u{i}", "d", split, "s", labels=labels, captions=captions)

    groups = captions_by_label(
        [
            clip(0, label="calm", overall=("a",)),
            clip(1, label="angry", overall=("b", "c")),
            clip(2, overall=("d",), style=("x",)),
            clip(3, overall=("e",)),
            clip(4, style=("no such kind",)),
            clip(5, label=None, overall=("no label",)),
            clip(6, split="test", overall=("held out",)),
        ],
        "train",
        "overall",
    )
    assert list(groups.items()) == [("happy", ["d", "e"]), ("angry", ["b", "c"]), ("calm", ["a"])]
