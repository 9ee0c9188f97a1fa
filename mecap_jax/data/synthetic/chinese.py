"""Chinese texts (simplified characters): words for the facts of a clip, as in `english`."""

from __future__ import annotations

import numpy as np

from mecap_jax.data.synthetic.facts import Facts
from mecap_jax.data.synthetic.grammar import Templates, choose, overall, parts, pick

MIN_CHARACTERS, MAX_CHARACTERS = 16, 60

# Emotion words by emotion: usual ones and (vivid) strong ones. All belong to the emotion lexicon.
_EMOTIONS = {
    "neutral": (("平静", "中性", "冷静", "淡然", "平淡"), (), ()),
    "happy": (("高兴", "开心", "愉快"), ("喜悦", "欣喜"), ("欢快", "快乐")),
    "sad": (("难过", "伤心", "失落"), ("悲伤", "哀伤"), ("悲痛", "沮丧")),
    "angry": (("生气", "恼火", "不满"), ("愤怒", "气愤"), ("暴怒", "恼怒")),
    "surprised": (("惊讶", "意外", "诧异"), ("吃惊", "惊奇"), ("震惊", "惊愕")),
    "disgusted": (("厌恶", "反感", "嫌弃"), ("鄙夷", "轻蔑"), ("嫌恶", "憎恶")),
    "fearful": (("害怕", "不安", "担忧"), ("恐惧", "惧怕"), ("惊恐", "惊慌")),
}
_DEGREES = {
    "mild": ("有些", "略微", "稍微有点"),
    "moderate": ("比较", "明显", "相当"),
    "strong": ("非常", "极其", "十分"),
}
TEMPO = {
    -2: ("语速很慢", "语速拖沓"),
    -1: ("语速偏慢", "吐字不紧不慢"),
    0: ("语速适中", "语速平稳"),
    1: ("语速较快", "吐字较快"),
    2: ("语速很快", "吐字急促"),
}
VOICE = {  # usual, strong
    "quiet": (("声音轻柔", "声音较小"), ("声音很轻", "近乎低语")),
    "loud": (("声音响亮", "声音有力"), ("声音很大", "声音洪亮")),
    "low": (("音调偏低",), ("音调很低", "嗓音低沉")),
    "high": (("音调偏高",), ("音调很高", "嗓音尖细")),
    "trembling": (("声音发抖",), ("声音颤抖得厉害",)),
    "rough": (("嗓音粗糙", "嗓音沙哑"), ("嗓音刺耳",)),
    "creaky": (("嗓音嘎哑",), ("喉音浓重",)),
    "breathy": (("带着气声",), ("气息声很重",)),
    "rising": (("语调上扬",), ("语调陡然升高",)),
    "falling": (("语调下降",), ("语调下沉",)),
    "lively": (("语调起伏",), ("语调跳跃",)),
    "monotone": (("语调单一",), ("语调毫无起伏",)),
    "bright": (("音色明亮",), ("音色尖锐",)),
    "dark": (("音色暗淡",), ("音色沉闷",)),
}
PLAIN_VOICE = ("音调居中", "音量正常", "语调平稳")
FACE = {  # usual, strong
    "brows raised": (("眉毛上扬",), ("眉毛高高扬起",)),
    "brows slanted": (("眉头内侧上提",), ("眉毛呈八字",)),
    "brows knitted up": (("眉头微蹙",), ("眉毛上提并聚拢",)),
    "brows lowered": (("眉头下压",), ("眉头紧锁",)),
    "eyes wide": (("眼睛睁大",), ("双眼圆睁",)),
    "eyes crinkled": (("眼角起皱",), ("脸颊抬起",)),
    "eyes narrowed": (("眼睛眯起",), ("眼睑绷紧",)),
    "eyelids drooping": (("眼皮低垂",), ("双眼半闭",)),
    "nose wrinkled": (("鼻子微皱",), ("鼻梁紧皱",)),
    "smile toothy": (("露齿微笑",), ("咧嘴大笑",)),
    "smile closed": (("嘴角微微上翘",), ("嘴角高高扬起",)),
    "mouth downturned": (("嘴角下垂",), ("嘴角深深下撇",)),
    "lips stretched": (("嘴唇拉长",), ("嘴唇紧紧绷开",)),
    "lips pressed": (("嘴唇抿紧",), ("嘴唇紧闭",)),
    "lip curled": (("上唇抬起",), ("上唇翘起",)),
    "teeth bared": (("露出牙齿",), ("龇牙咧嘴",)),
    "jaw dropped": (("嘴巴微张",), ("嘴巴大张",)),
    "chin puckered": (("下巴收紧",), ("下巴皱起",)),
}
FACE_AT_REST = (("眉毛放松", "眉毛平直"), ("嘴角放松", "目光平稳", "额头平滑"))

# Templates of captions. E: emotion, T: tempo, V: tempo and voice, W: voice, F: face, S: speaker, C: what the departing
# modality shows. Where modalities disagree, the deciding emotion comes first.
_OVERALL = Templates(
    both_agree=(
        "{S}显得{E}，{V}，{F}。",
        "{S}{V}，同时{F}，看起来{E}。",
        "画面中{S}{F}，{V}，情绪{E}。",
        "{F}，{V}，可以感到{S}{E}。",
        "{S}的神情和声音都{E}，{F}，{V}。",
        "{S}说话时{F}，{V}，透露出{E}的情绪。",
    ),
    audio_only=(
        "{S}听起来{E}，说话时{V}。",
        "{S}说话时{V}，让人觉得{E}。",
        "从声音判断，{S}{E}，{V}。",
        "{V}，说话的{S}显得{E}。",
        "录音里{S}{V}，语气{E}。",
        "语音中{S}的情绪{E}，{V}。",
    ),
    face_departs=(
        "{S}听起来{E}，{V}，但是{C}。",
        "从声音听，{S}{E}，{V}，不过{C}。",
        "{S}的语气{E}，{V}，然而{C}，{F}。",
        "{S}声音里的情绪{E}，{T}，{W}，可是{C}。",
        "{S}的话音{E}，{V}，虽然{C}。",
    ),
    voice_departs=(
        "{S}看起来{E}，{F}，但是{C}，{V}。",
        "从脸上看，{S}{E}，{F}，不过{C}。",
        "{S}的表情{E}，{F}，然而{C}，{T}。",
        "{S}脸上的情绪{E}，{F}，可是{C}，{W}。",
        "{S}神情{E}，{F}，虽然{C}，{T}。",
    ),
)
_EMOTION = ("说话人{E}。", "{S}的情绪{E}。", "这段话透露出{E}的情绪。")
_STYLE = ("{S}说话时{V}。", "说话风格：{V}。", "这段话{V}。")

# Sentences of rationales. M: what the modality shows.
_HEARD = ("{S}{V}，听起来{M}。", "从声音听，{V}，显得{M}。")
_SEEN = ("脸上{F}，看起来{M}。", "从表情看，{F}，显得{M}。")
_CONCLUSIONS = {
    "agree": ("声音和表情一致，说话人{E}。", "两者都说明说话人{E}。"),
    "heard": ("因此说话人{E}。", "这说明说话人{E}。"),
    "seen": ("因此这个人{E}。", "这说明这个人{E}。"),
    "video": ("声音比表情更能说明问题，说话人{E}。",),
    "audio": ("表情比声音更能说明问题，说话人{E}。",),
}


# Parts of structured answers. P: positive or negative, and how aroused.
_HEARD_ALONE = ("{S}{V}。", "从声音听，{V}。")
_SEEN_ALONE = ("脸上{F}。", "从表情看，{F}。")
_FELT = ("这样的人会感到{E}。", "这样说话的人{E}。")
_FELT_SEEN = ("这样的人会感到{E}。", "有这种表情的人{E}。")
_JUDGED = ("这种情绪{P}。",)
_POLARITY = {
    "neutral": "既不积极也不消极，唤醒度低",
    "happy": "是积极的，唤醒度高",
    "sad": "是消极的，唤醒度低",
    "angry": "是消极的，唤醒度高",
    "surprised": "既不积极也不消极，唤醒度高",
    "disgusted": "是消极的，唤醒度高",
    "fearful": "是消极的，唤醒度高",
}


def write(facts: Facts, rng: np.random.Generator) -> dict[str, tuple[str, ...]]:
    """Returns captions by kind: one reference for emotion, style and speaker, `grammar.REFERENCES` for overall.

    The first emotion word of an emotion or overall caption names `facts.emotion`; overall captions have
    `MIN_CHARACTERS` to `MAX_CHARACTERS` characters.
    """
    return {
        "emotion": (_fill(pick(_EMOTION, rng), facts, rng),),
        "style": (_fill(pick(_STYLE, rng), facts, rng),),
        "speaker": (_speaker(facts, rng),),
        "overall": overall(_OVERALL, facts, _fill, lambda c: MIN_CHARACTERS <= len(c) <= MAX_CHARACTERS, rng),
    }


def explain(facts: Facts, rng: np.random.Generator) -> str:
    """Returns why the emotion is what it is: what is heard, what is seen, and what follows, a sentence each."""

    def sentence(options: tuple[str, ...], modality: str = "") -> str:
        departs = modality == facts.conflict
        return _fill(pick(options, rng), facts, rng, _other_emotion(facts, rng) if departs else None)

    if not facts.has_voice:
        return sentence(_SEEN) + sentence(_CONCLUSIONS["seen"])
    heard, kind = sentence(_HEARD, "audio"), "heard"
    if facts.has_face:
        heard, kind = heard + sentence(_SEEN, "video"), "agree" if facts.conflict == "none" else facts.conflict
    return heard + sentence(_CONCLUSIONS[kind])


def describe(facts: Facts, rng: np.random.Generator) -> dict[str, str]:
    """Returns the parts of structured answers by name, see `grammar.parts`."""
    return parts((_HEARD_ALONE, _SEEN_ALONE, _FELT, _FELT_SEEN, _JUDGED), facts, _fill, "", rng)


def _fill(template: str, facts: Facts, rng: np.random.Generator, shown: str | None = None) -> str:
    tempo, voice = pick(TEMPO[facts.tempo], rng), "，".join(_voice(facts, rng))
    emotion = _emotion(facts.emotion, facts.intensity, facts.vivid, rng)
    return template.format(
        E=emotion,
        M=shown or emotion,
        T=tempo,
        W=voice,
        V=f"{tempo}，{voice}",
        F="，".join(_face(facts, rng)),
        S=_subject(facts, rng),
        C=_departure(facts, rng),
        P=_POLARITY[facts.emotion],
    )


def _emotion(emotion: str, intensity: str, vivid: bool, rng: np.random.Generator) -> str:
    usual, strong, strong_vivid = _EMOTIONS[emotion]
    if emotion == "neutral":
        return pick(usual, rng)
    if intensity == "strong":
        usual = strong_vivid if vivid else strong
    return pick(_DEGREES[intensity], rng) + pick(usual, rng)


def _voice(facts: Facts, rng: np.random.Generator) -> list[str]:
    if not facts.voice:
        return [pick(PLAIN_VOICE, rng)]
    return choose(facts.voice, VOICE, 1, 3 if facts.has_face else 4, rng)


def _face(facts: Facts, rng: np.random.Generator) -> list[str]:
    if not facts.face:
        return [pick(phrases, rng) for phrases in FACE_AT_REST[: int(rng.integers(1, 3))]]
    return choose(facts.face, FACE, 1, 3, rng)


def _subject(facts: Facts, rng: np.random.Generator) -> str:
    person = "女子" if facts.gender == "woman" else "男子"
    trait = {"": "", "beard": "留胡子的", "glasses": "戴眼镜的", "long hair": "长发"}[pick(("",) + facts.looks, rng)]
    return pick(("一名", "这位"), rng) + trait + person


def _departure(facts: Facts, rng: np.random.Generator) -> str:
    seems = "脸上" if facts.conflict == "video" else "声音"
    if facts.other_emotion == "neutral":
        return seems + pick(("没有什么表现", "没有变化", "显得普通"), rng)
    if rng.random() < 0.5:
        return seems + pick(("并不一致", "有所不同"), rng)
    return seems + "显得" + _other_emotion(facts, rng)


def _other_emotion(facts: Facts, rng: np.random.Generator) -> str:
    return _emotion(facts.other_emotion, facts.other_intensity, False, rng)


def _speaker(facts: Facts, rng: np.random.Generator) -> str:
    traits = {"beard": "留着胡子", "glasses": "戴着眼镜", "long hair": "留着长发"}
    looks = "".join(f"，{traits[name]}" for name in facts.looks)
    person = "女性" if facts.gender == "woman" else "男性"
    language = "普通话" if facts.language == "zh" else "英语"
    return pick((f"说话人是一名{person}，说{language}{looks}。", f"一名{person}在说{language}{looks}。"), rng)
