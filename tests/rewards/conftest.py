import functools

import jax
import numpy as np
import pytest

from mecap_jax.models.sentence_encoder import load_sentence_encoder
from mecap_jax.rewards.anchors import build_anchors
from mecap_jax.rewards.base import Sample
from mecap_jax.rewards.templates import template_sentences
from tests.rewards.captions import CAPTIONS
from tests.rewards.train_captions import TRAIN_CAPTIONS
from tests.xla_flags import thorough


@pytest.fixture(scope="session")
def encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=thorough()))
        return load_sentence_encoder()


@pytest.fixture(scope="session")
def anchors(encoder):
    """Anchors by kind."""
    return {
        "templates": build_anchors(encoder, template_sentences(tuple(CAPTIONS)), kind="templates", source="templates"),
        "captions": build_anchors(encoder, TRAIN_CAPTIONS, kind="captions", source="hand-written"),
    }


class TableEncoder:
    """An encoder whose embeddings are written down: unit vectors by text."""

    name, weights_sha256 = "table", "0" * 64

    def __init__(self, table):
        self.table = {text: np.array(x, np.float32) / np.linalg.norm(x) for text, x in table.items()}
        self.dim = len(next(iter(self.table.values())))

    def encode(self, texts):
        return np.array([self.table[text] for text in texts], np.float32).reshape(-1, self.dim)


def sample(completion, references=(), group=0, finished=True, label=None):
    return Sample(completion, finished, "prompt", f"clip-{group}", tuple(references), label, group)
