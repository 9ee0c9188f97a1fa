"""The script of captions tells their language; what holds no word is no caption."""

import pytest

from mecap_jax.data.language import caption_language, has_word, language_code


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


@pytest.mark.parametrize(
    "name, code",
    [
        ("zh", "zh"),
        ("cn", "zh"),
        ("Chinese", "zh"),
        ("中文", "zh"),
        ("zh_CN", "zh-CN"),
        ("English", "en"),
        ("sv", "sv"),
    ],
)
def test_what_tables_call_a_language_becomes_its_code(name, code):
    assert language_code(name) == code


@pytest.mark.parametrize("name", ["", "Klingon", "e", "3", "gr", "xx-YY"])
def test_what_names_no_language_is_refused(name):
    with pytest.raises(ValueError, match="is no code of a language"):
        language_code(name)
