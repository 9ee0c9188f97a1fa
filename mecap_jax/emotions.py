"""Emotion labels and the emotion lexicon: the one vocabulary that data, rewards and evaluation share.

`EMOTIONS` are EmotionTalk's seven labels in its official order (arXiv 2505.23018). `canonical_label` maps the
spellings of other corpora onto them. `first_emotion_word` finds the class that a caption names first; it reads
words only, so it measures emotion independently of any sentence encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

EMOTIONS = ("neutral", "happy", "sad", "angry", "surprised", "disgusted", "fearful")

# Labels of other corpora -> ours. RAVDESS and EMO-DB use nouns and add classes that EmotionTalk lacks ("calm",
# "boredom"): those keep their own name, because folding them into a neighbour would invent annotations.
_LABEL_ALIASES = {
    "neutral": "neutral",
    "happy": "happy",
    "happiness": "happy",
    "joy": "happy",
    "sad": "sad",
    "sadness": "sad",
    "angry": "angry",
    "anger": "angry",
    "surprised": "surprised",
    "surprise": "surprised",
    "disgusted": "disgusted",
    "disgust": "disgusted",
    "fearful": "fearful",
    "fear": "fearful",
    "calm": "calm",
    "boredom": "bored",
    "bored": "bored",
    "中性": "neutral",
    "快乐": "happy",
    "悲伤": "sad",
    "愤怒": "angry",
    "惊讶": "surprised",
    "厌恶": "disgusted",
    "恐惧": "fearful",
}


def canonical_label(label: str) -> str:
    """Returns the canonical spelling of an emotion label ("Anger" -> "angry").

    Raises:
      ValueError: the label is not one that any supported corpus uses.
    """
    try:
        return _LABEL_ALIASES[label.strip().lower()]
    except KeyError:
        known = ", ".join(sorted(set(_LABEL_ALIASES)))
        raise ValueError(f"unknown emotion label {label!r}; known labels: {known}") from None


# Our own word lists. English entries are whole words (all inflections spelled out); Chinese entries are matched
# as substrings, longest first. Words that also describe voice or face without naming an emotion ("low", "bright",
# "tense", "flat", "trembling") are left out on purpose.
LEXICON: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "en": {
        "neutral": (
            "neutral",
            "neutrally",
            "neutrality",
            "impassive",
            "impassively",
            "matter-of-fact",
            "unemotional",
            "unemotionally",
            "emotionless",
            "dispassionate",
            "dispassionately",
            "indifferent",
            "indifferently",
            "composed",
            "even-tempered",
            "detached",
            "level-headed",
            "unmoved",
            "unruffled",
            "untroubled",
            "businesslike",
            "deadpan",
            "expressionless",
            "nonchalant",
            "unconcerned",
        ),
        "happy": (
            "happy",
            "happily",
            "happiness",
            "happier",
            "joy",
            "joyful",
            "joyfully",
            "joyous",
            "cheerful",
            "cheerfully",
            "cheer",
            "delight",
            "delighted",
            "delightedly",
            "glad",
            "gladly",
            "gladness",
            "pleased",
            "elated",
            "elation",
            "merry",
            "merrily",
            "jubilant",
            "ecstatic",
            "overjoyed",
            "gleeful",
            "gleefully",
            "glee",
            "thrilled",
            "contented",
            "amused",
            "amusement",
            "exhilarated",
            "beaming",
            "jolly",
            "blissful",
            "euphoric",
            "upbeat",
        ),
        "sad": (
            "sad",
            "sadly",
            "sadness",
            "sadder",
            "sorrow",
            "sorrowful",
            "sorrowfully",
            "grief",
            "grieving",
            "grief-stricken",
            "mournful",
            "mournfully",
            "melancholy",
            "melancholic",
            "dejected",
            "dejectedly",
            "dejection",
            "despondent",
            "despondently",
            "heartbroken",
            "tearful",
            "tearfully",
            "tears",
            "unhappy",
            "unhappily",
            "miserable",
            "miserably",
            "misery",
            "gloomy",
            "gloomily",
            "gloom",
            "downcast",
            "disheartened",
            "forlorn",
            "forlornly",
            "wistful",
            "dispirited",
            "crestfallen",
            "anguish",
            "anguished",
            "glum",
        ),
        "angry": (
            "angry",
            "angrily",
            "anger",
            "angered",
            "furious",
            "furiously",
            "fury",
            "rage",
            "raging",
            "enraged",
            "irate",
            "irately",
            "irritated",
            "irritation",
            "irritably",
            "annoyed",
            "annoyance",
            "mad",
            "outraged",
            "outrage",
            "indignant",
            "indignantly",
            "indignation",
            "infuriated",
            "incensed",
            "livid",
            "wrathful",
            "wrath",
            "exasperated",
            "exasperation",
            "resentful",
            "resentfully",
            "resentment",
            "seething",
            "hostile",
            "fuming",
            "cross",
            "vexed",
        ),
        "surprised": (
            "surprised",
            "surprise",
            "surprising",
            "surprisedly",
            "astonished",
            "astonishment",
            "astonishedly",
            "amazed",
            "amazement",
            "startled",
            "stunned",
            "shocked",
            "shock",
            "astounded",
            "flabbergasted",
            "dumbfounded",
            "taken-aback",
            "thunderstruck",
            "disbelief",
            "incredulous",
            "incredulously",
            "bewildered",
            "bewilderment",
            "speechless",
            "wonderstruck",
        ),
        "disgusted": (
            "disgusted",
            "disgust",
            "disgustedly",
            "revolted",
            "revulsion",
            "repulsed",
            "repulsion",
            "repelled",
            "sickened",
            "nauseated",
            "nausea",
            "contempt",
            "contemptuous",
            "contemptuously",
            "loathing",
            "loathe",
            "distaste",
            "distasteful",
            "distastefully",
            "aversion",
            "appalled",
            "abhorrence",
            "grossed-out",
            "scornful",
            "scornfully",
            "scorn",
            "disdain",
            "disdainful",
            "disdainfully",
            "queasy",
        ),
        "fearful": (
            "fearful",
            "fearfully",
            "fear",
            "afraid",
            "scared",
            "frightened",
            "fright",
            "terrified",
            "terror",
            "panicked",
            "panic",
            "panicky",
            "panic-stricken",
            "horrified",
            "horror",
            "dread",
            "dreading",
            "anxious",
            "anxiously",
            "anxiety",
            "nervous",
            "nervously",
            "nervousness",
            "timid",
            "timidly",
            "apprehensive",
            "apprehensively",
            "apprehension",
            "alarmed",
            "alarm",
            "petrified",
            "worried",
            "spooked",
            "uneasy",
        ),
    },
    "zh": {
        "neutral": ("中性", "平静", "冷静", "淡然", "平淡", "镇定", "漠然", "无动于衷", "不动声色", "从容", "客观"),
        "happy": ("快乐", "高兴", "开心", "喜悦", "愉快", "欢快", "欣喜", "兴高采烈", "欢乐", "欣慰", "喜气", "雀跃"),
        "sad": ("悲伤", "难过", "伤心", "哀伤", "沮丧", "忧伤", "悲痛", "失落", "消沉", "哽咽", "心碎", "忧郁", "悲哀"),
        "angry": ("愤怒", "生气", "恼火", "气愤", "恼怒", "暴怒", "怒气", "怒火", "愤慨", "愤恨", "火冒三丈", "不满"),
        "surprised": ("惊讶", "吃惊", "惊奇", "震惊", "诧异", "意外", "惊愕", "难以置信", "大吃一惊", "错愕"),
        "disgusted": ("厌恶", "反感", "恶心", "嫌弃", "鄙夷", "憎恶", "嫌恶", "作呕", "轻蔑", "鄙视", "唾弃"),
        "fearful": ("恐惧", "害怕", "惊恐", "惧怕", "恐慌", "胆怯", "惊慌", "畏惧", "惶恐", "担忧", "不安", "心惊胆战"),
    },
}


def _english_index() -> dict[str, str]:
    return {word: emotion for emotion, words in LEXICON["en"].items() for word in words}


def _chinese_pattern() -> tuple[re.Pattern[str], dict[str, str]]:
    index = {word: emotion for emotion, words in LEXICON["zh"].items() for word in words}
    return re.compile("|".join(sorted(index, key=len, reverse=True))), index


_ENGLISH = _english_index()
_CHINESE_PATTERN, _CHINESE = _chinese_pattern()
_ENGLISH_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_NEGATIONS = frozenset({"not", "no", "never", "without", "neither", "nor", "hardly", "barely"})


def first_emotion_word(caption: str) -> str | None:
    """Returns the emotion class of the first emotion word in `caption`, or None where it has none.

    A word directly behind a negation ("not angry", "no fear", "without any joy") does not count. The script of the
    text decides between the English and the Chinese word list.
    """
    match = _CHINESE_PATTERN.search(caption)
    if match:
        return _CHINESE[match.group()]
    words = _ENGLISH_WORD.findall(caption.lower())
    for i, word in enumerate(words):
        if word in _ENGLISH and not _NEGATIONS & set(words[max(0, i - 2) : i]):
            return _ENGLISH[word]
    return None
