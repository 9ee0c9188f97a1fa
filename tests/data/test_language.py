"""The script of captions tells their language; what holds no word is no caption."""

import pytest

from mecap_jax.data.language import CHARACTER, WORD, caption_language, has_word, is_unspaced, language_code


@pytest.mark.parametrize(
    "texts, language",
    [
        (["她听起来很愤怒。"], "zh"),
        (["她 sounds 愤怒"], "zh"),
        (["She sounds angry", "愤怒"], "en"),
        (["Ella está 愤怒 de verdad"], "en"),
        (["彼女は怒っているように聞こえる。"], "ja"),
        (["그녀는 화가 난 것 같다."], "ko"),
        (["เธอฟังดูโกรธ"], "th"),
        (["Она звучит сердито."], "und-Cyrl"),
        (["هي تبدو غاضبة"], "und-Arab"),
        (["वह गुस्से में लगती है।"], "und-Deva"),
        (["She says “Привет” angrily."], "en"),
        (["😢", "..."], ""),
        ([], ""),
    ],
)
def test_the_script_decides(texts, language):
    assert caption_language(texts) == language


def test_tokens_of_scripts_without_blanks_are_characters_and_marks_are_parts_of_words():
    assert CHARACTER.findall("怒ってる ok 7") == ["怒", "っ", "て", "る", "ok", "7"]
    assert len(CHARACTER.findall("โกรธ")) == 4
    assert WORD.findall("वह गुस्से में है।") == ["वह", "गुस्से", "में", "है"]
    assert [is_unspaced(language) for language in ("zh-CN", "ja", "ko", "en", "")] == [True, True, False, False, False]


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
