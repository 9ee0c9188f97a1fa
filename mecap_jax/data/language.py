"""In which language captions are written, told by their script, and whether a text says anything at all."""

from __future__ import annotations

import re
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
HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(r"\w+(?:['’-]\w+)*")
# A Han character is a token; what is not Han stays whole: numbers, Latin words.
CHARACTER = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
_IS_HAN = re.compile(f"[{HAN}]")


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
    """The language of captions: "zh" where most of their tokens are Chinese characters, else "en"; "" without any."""
    tokens = [token for text in texts for token in CHARACTER.findall(text)]
    if not tokens:
        return ""
    return "zh" if 2 * sum(bool(_IS_HAN.match(token)) for token in tokens) > len(tokens) else "en"


def has_word(text: str) -> bool:
    """Whether a text holds a word; "😢" and "..." do not."""
    return bool(WORD.search(text))
