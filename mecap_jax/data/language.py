"""In which language captions are written, told by their script, and whether a text says anything at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

# What tables call a language, folded, where that is not its code.
_NAMES = {
    "zh": "cn chi zho cmn chinese mandarin putonghua 中文 汉语 漢語 普通话 国语 國語".split(),
    "en": "eng english us gb 英文 英语".split(),
    "de": "deu ger german deutsch".split(),
    "fr": "fra fre french français".split(),
    "es": "spa spanish español".split(),
    "ja": "jp jpn japanese 日本語".split(),
    "ko": "kr kor korean 한국어".split(),
    "it": "ita italian italiano".split(),
    "pt": "por portuguese português".split(),
    "ru": "rus russian русский".split(),
    "ar": "ara arabic العربية".split(),
    "hi": "hin hindi हिन्दी".split(),
    "tr": "tur turkish türkçe".split(),
}
_CODES = {name: code for code, names in _NAMES.items() for name in names}
_ISO_639_1 = frozenset(
    """aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
    eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka
    kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl
    nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw
    ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu""".split()
)
_CODE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{1,8})*")
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = r"\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
# Scripts without blanks between words: Han, kana, Thai, Lao, Burmese, Khmer.
UNSPACED = rf"{_HAN}{_KANA}\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u1000-\u1049\u1780-\u17d3"
MARKS = r"\u0900-\u0963\u0971-\u0dff"  # Indic: vowels that are marks are parts of words
WORD = re.compile(rf"[\w{MARKS}]+(?:['’-][\w{MARKS}]+)*")
# A character of such a script is a token; the rest stays whole: numbers, Latin words.
CHARACTER = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\w{MARKS}])+")
_UNSPACED_LANGUAGES = frozenset("zh ja th lo my km".split())
# By script, in the order of `_SCRIPTS`' groups; where a script has many languages, the code says the script alone.
_SCRIPTS = re.compile(
    rf"(?P<han>[{_HAN}])|(?P<kana>[{_KANA}])|(?P<ko>[\u1100-\u11ff\uac00-\ud7af])|(?P<th>[\u0e00-\u0e7f])|"
    r"(?P<lo>[\u0e80-\u0eff])|(?P<my>[\u1000-\u109f])|(?P<km>[\u1780-\u17ff])|(?P<Cyrl>[\u0400-\u052f])|"
    r"(?P<Grek>[\u0370-\u03ff])|(?P<Arab>[\u0600-\u06ff\u0750-\u077f])|(?P<Hebr>[\u0590-\u05ff])|"
    r"(?P<Deva>[\u0900-\u097f])"
)
_LEAST_KANA = 0.1  # of a Japanese text's characters


def language_code(name: str) -> str:
    """Returns the BCP-47 code of a language: "zh" for "Chinese", "cn" and "zh_CN"; codes are kept.

    Raises:
      ValueError: the name is neither a code nor known.
    """
    language, _, rest = name.strip().replace("_", "-").partition("-")
    language = language.casefold()
    code = _CODES.get(language, language) + (f"-{rest}" if rest else "")
    if not _CODE.fullmatch(code) or (len(language) == 2 and code[:2] not in _ISO_639_1):
        raise ValueError(f"{name!r:.80} is no code of a language, such as 'en' or 'zh'")
    return code


def caption_language(texts: Iterable[str]) -> str:
    """The language of captions, as far as the script of most of their tokens tells it; "" without any.

    "zh", "ja", "ko", "th", "lo", "my" and "km" have scripts of their own. Of Cyrillic, Greek, Arabic, Hebrew and
    Devanagari the script alone is told ("und-Cyrl"). What is written otherwise counts as "en".
    """
    tokens = [token for text in texts for token in CHARACTER.findall(text)]
    if not tokens:
        return ""
    scripts = Counter(match.lastgroup for token in tokens if (match := _SCRIPTS.match(token)))
    east_asian = scripts["han"] + scripts["kana"]
    if 2 * east_asian > len(tokens):
        return "ja" if scripts["kana"] > _LEAST_KANA * east_asian else "zh"
    script, count = max(scripts.items(), key=lambda item: item[1], default=("", 0))
    if 2 * count <= len(tokens):
        return "en"
    return f"und-{script}" if script[0].isupper() else script


def is_unspaced(language: str) -> bool:
    """Whether words of a language stand without blanks, so that its characters are counted."""
    return language.partition("-")[0] in _UNSPACED_LANGUAGES


def has_word(text: str) -> bool:
    """Whether a text holds a word; "😢" and "..." do not."""
    return bool(WORD.search(text))
