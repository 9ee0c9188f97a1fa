"""The script of captions tells their language; what holds no word is no caption."""

import pytest

from mecap_jax.data.language import caption_language, has_word


@pytest.mark.parametrize(
    "texts, language",
    [
        (["她听起来很愤怒。"], "zh"),
        (["她 sounds 愤怒"], "zh"),
        (["She sounds angry", "愤怒"], "en"),
        (["Ella está 愤怒 de verdad"], "en"),
        (["😢", "..."], ""),
        ([], ""),
    ],
)
def test_the_script_decides(texts, language):
    assert caption_language(texts) == language


def test_words():
    assert [has_word(text) for text in ("sad", "难过", "7", "😢", "...", "")] == [True] * 3 + [False] * 3
