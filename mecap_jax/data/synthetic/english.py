"""English texts: words for the facts of a clip, in captions (`write`), rationales (`explain`), parts (`describe`)."""

from __future__ import annotations

import numpy as np

from mecap_jax.data.synthetic.facts import Facts
from mecap_jax.data.synthetic.grammar import Templates, choose, overall, parts, pick

MIN_WORDS, MAX_WORDS = 12, 26

# Adjectives by emotion: mild, moderate, strong and (vivid) strong. All emotion words belong to the emotion lexicon.
_ADJECTIVES = {
    "neutral": ("neutral", "composed", "unemotional", "matter-of-fact", "detached", "impassive"),
    "happy": (
        ("pleased", "glad", "contented"),
        ("happy", "cheerful", "joyful"),
        ("overjoyed", "elated"),
        ("ecstatic", "thrilled"),
    ),
    "sad": (
        ("downcast", "gloomy", "wistful"),
        ("sad", "sorrowful", "unhappy"),
        ("dejected", "miserable"),
        ("heartbroken", "grief-stricken"),
    ),
    "angry": (
        ("annoyed", "irritated"),
        ("angry", "indignant", "mad"),
        ("infuriated", "outraged"),
        ("furious", "enraged"),
    ),
    "surprised": (
        ("bewildered",),
        ("surprised", "amazed", "startled"),
        ("astonished", "astounded"),
        ("shocked", "stunned"),
    ),
    "disgusted": (
        ("disdainful", "queasy", "scornful"),
        ("disgusted", "repelled", "contemptuous"),
        ("appalled", "repulsed"),
        ("revolted", "sickened"),
    ),
    "fearful": (
        ("nervous", "uneasy", "anxious"),
        ("afraid", "scared", "fearful"),
        ("terrified", "petrified"),
        ("panicked", "horrified"),
    ),
}
_DEGREES = {
    "mild": ("slightly", "mildly", "a little", "faintly"),
    "moderate": ("clearly", "quite", "rather"),
    "strong": ("deeply", "extremely", "intensely"),
}
_NOUNS = {
    "happy": (("joy", "happiness", "delight"), ("elation", "glee")),
    "sad": (("sadness", "sorrow", "gloom"), ("grief", "misery")),
    "angry": (("anger", "irritation", "annoyance"), ("fury", "rage")),
    "surprised": (("surprise", "amazement"), ("astonishment", "shock")),
    "disgusted": (("disgust", "distaste", "aversion"), ("revulsion", "loathing")),
    "fearful": (("fear", "anxiety", "apprehension"), ("terror", "panic")),
}
_NOUN_DEGREES = {
    "mild": ("a hint of", "a touch of", "faint", "mild"),
    "moderate": ("clear", "evident"),
    "strong": ("intense", "overwhelming", "strong"),
}
_NEUTRAL_NOUNS = ("a neutral mood", "a composed mood", "a detached manner", "an unemotional manner")

TEMPO = {
    -2: ("very slowly", "at a dragging pace", "sluggishly"),
    -1: ("slowly", "unhurriedly", "at a slow pace"),
    0: ("at a steady pace", "at a moderate pace", "at an ordinary tempo"),
    1: ("quickly", "briskly", "at a fast pace"),
    2: ("very fast", "rapidly", "hurriedly"),
}
VOICE = {  # usual, strong
    "quiet": (("soft", "quiet"), ("hushed", "very quiet")),
    "loud": (("loud", "firm"), ("very loud", "booming")),
    "low": (("low", "lowered"), ("very low", "deep")),
    "high": (("high", "raised"), ("very high", "high-pitched")),
    "trembling": (("trembling", "unsteady"), ("quivering", "shaking")),
    "rough": (("rough", "hoarse"), ("harsh", "grating")),
    "creaky": (("creaky", "gravelly"), ("growling", "rasping")),
    "breathy": (("breathy",), ("airy", "whispery")),
    "rising": (("rising",), ("steeply rising", "soaring")),
    "falling": (("falling",), ("sinking",)),
    "lively": (("lively", "varied"), ("animated", "singsong")),
    "monotone": (("flat",), ("monotone",)),
    "bright": (("bright", "clear"), ("piercing",)),
    "dark": (("dark", "dull"), ("muffled",)),
}
PLAIN_VOICE = ("even", "level", "plain", "medium-pitched", "ordinary")

FACE = {  # usual, strong
    "brows raised": (("raised eyebrows", "lifted eyebrows"), ("highly arched eyebrows", "eyebrows raised high")),
    "brows slanted": (("slanted eyebrows",), ("steeply slanted eyebrows", "inner eyebrows drawn up")),
    "brows knitted up": (("tense eyebrows",), ("eyebrows raised and drawn together", "strained eyebrows")),
    "brows lowered": (("lowered eyebrows", "a frown"), ("furrowed eyebrows", "a deep frown")),
    "eyes wide": (("widened eyes", "wide eyes"), ("staring eyes", "bulging eyes")),
    "eyes crinkled": (("crinkled eyes",), ("lifted cheeks", "squinting eyes")),
    "eyes narrowed": (("narrowed eyes",), ("tightened eyelids", "a hard stare")),
    "eyelids drooping": (("drooping eyelids", "heavy eyelids"), ("half-closed eyes",)),
    "nose wrinkled": (("a wrinkled nose",), ("a deeply wrinkled nose", "a scrunched nose")),
    "smile toothy": (("an open smile",), ("a broad smile", "a toothy grin")),
    "smile closed": (("a faint smile", "a small smile"), ("a wide smile",)),
    "mouth downturned": (("a downturned mouth",), ("drooping mouth corners", "a sharply downturned mouth")),
    "lips stretched": (("stretched lips",), ("lips pulled wide", "tautly stretched lips")),
    "lips pressed": (("pressed lips", "tight lips"), ("clamped lips", "firmly pressed lips")),
    "lip curled": (("a raised upper lip",), ("a curled upper lip", "a sneering lip")),
    "teeth bared": (("visible teeth",), ("bared teeth", "gritted teeth")),
    "jaw dropped": (("a parted mouth",), ("a dropped jaw", "a gaping mouth")),
    "chin puckered": (("a tightened chin",), ("a puckered chin",)),
}
FACE_AT_REST = (("relaxed eyebrows", "level eyebrows"), ("a relaxed mouth", "a calm gaze", "a smooth forehead"))
_FACE_PLAIN = ("stays calm", "remains relaxed", "shows little", "stays blank")
_VOICE_PLAIN = ("stays even", "remains level", "sounds plain", "stays calm")
_DIFFERS = ("says otherwise", "does not match", "tells another story")
_ACCENTS = {
    "en-us": "an American accent",
    "en-gb-x-rp": "a British accent",
    "en-gb-scotland": "a Scottish accent",
    "en-gb-x-gbclan": "a Lancashire accent",
    "en-gb-x-gbcwmd": "a Midlands accent",
}


# Templates of captions. E: emotion adjective, N: emotion noun, T: tempo, A: voice adjectives, W: the voice, V: tempo
# and voice, F: the face, S: the speaker, H: pronoun, C: what the departing modality shows. Where modalities disagree,
# the deciding emotion comes first.
_OVERALL = Templates(
    both_agree=(
        "{S} looks and sounds {E}, speaking {V} with {F}.",
        "{E} in voice and face, {S} talks {V}, showing {F}.",
        "With {F}, {S} speaks {V} and seems {E}.",
        "{W}, together with {F}, reveals {N} in {S}.",
        "{N} marks {S}, heard in {W} and seen in {F}.",
        "{S} talks {V}, and the expression, with {F}, is {E}.",
        "Speaking {V}, {S} shows {F} and comes across as {E}.",
    ),
    audio_only=(
        "{S} sounds {E}, speaking {V}.",
        "Talking {V}, {S} comes across as {E} to a listener.",
        "{N} is heard from {S}, who speaks {V}.",
        "{S}, who speaks {V}, seems {E} by tone alone.",
        "From {W} one can tell that {S}, talking {T}, is {E}.",
        "{W} and words spoken {T} reveal {N} in {S}.",
    ),
    face_departs=(
        "{S} sounds {E}, speaking {V}, although the face {C}.",
        "{N} is heard from {S}, who talks {V}, but the face {C}.",
        "{E} in tone, {S} speaks {V}, while the face {C}, with {F}.",
        "{S} has {N} in {W}, yet the face {C}.",
        "One hears {N} from {S} in {W}, though the face {C} with {F}.",
        "{S}, talking {T}, seems {E} from {W}, whereas the face {C}.",
    ),
    voice_departs=(
        "{S} looks {E}, with {F}, although the {A} voice {C}.",
        "{N} shows on {S}, who has {F}, but the {A} voice {C}.",
        "{E} in the face, with {F}, {S} speaks {T}, while the {A} voice {C}.",
        "The face of {S} is {E}, showing {F}, yet the {A} voice {C}.",
        "One sees {N} in {S} from {F}, though the {A} voice {C}.",
        "{S}, talking {T}, seems {E} from {F}, whereas the {A} voice {C}.",
    ),
)
_EMOTION = ("The speaker is {E}.", "{S} seems {E}.", "{N} is felt in this clip.", "The mood is {E}.")
_STYLE = ("{H} speaks {V}.", "The words are spoken {V}.", "{S} talks {T}, using {W}.", "{S} speaks {V}.")

# Sentences of rationales. M: what the modality shows.
_HEARD = ("The {A} voice speaks {T}, which sounds {M}.", "{H} talks {V}: it sounds {M}.")
_SEEN = ("The face has {F}, which looks {M}.", "One sees {F}: it looks {M}.")
_CONCLUSIONS = {
    "agree": ("Voice and face agree: the speaker is {E}.", "Both tell that the speaker is {E}."),
    "heard": ("So the speaker is {E}.", "This tells that the speaker is {E}."),
    "seen": ("So the person is {E}.", "This tells that the person is {E}."),
    "video": ("The voice tells more than the face: the speaker is {E}.",),
    "audio": ("The face tells more than the voice: the speaker is {E}.",),
}


# Parts of structured answers. P: positive or negative, and how aroused.
_HEARD_ALONE = ("The {A} voice speaks {T}.", "{H} talks {V}.")
_SEEN_ALONE = ("The face has {F}.", "One sees {F}.")
_FELT = ("A person like this feels {E}.", "Whoever speaks like this is {E}.")
_FELT_SEEN = ("A person like this feels {E}.", "Whoever looks like this is {E}.")
_JUDGED = ("The emotion is {P}.",)
_POLARITY = {
    "neutral": "neither positive nor negative, with little arousal",
    "happy": "positive, with much arousal",
    "sad": "negative, with little arousal",
    "angry": "negative, with much arousal",
    "surprised": "neither positive nor negative, with much arousal",
    "disgusted": "negative, with much arousal",
    "fearful": "negative, with much arousal",
}


def write(facts: Facts, rng: np.random.Generator) -> dict[str, tuple[str, ...]]:
    """Returns captions by kind: one reference for emotion, style and speaker, `grammar.REFERENCES` for overall.

    The first emotion word of an emotion or overall caption names `facts.emotion`; overall captions have `MIN_WORDS`
    to `MAX_WORDS` words.
    """
    return {
        "emotion": (_fill(pick(_EMOTION, rng), facts, rng),),
        "style": (_fill(pick(_STYLE, rng), facts, rng),),
        "speaker": (_speaker(facts, rng),),
        "overall": overall(_OVERALL, facts, _fill, lambda c: MIN_WORDS <= len(c.split()) <= MAX_WORDS, rng),
    }


def explain(facts: Facts, rng: np.random.Generator) -> str:
    """Returns why the emotion is what it is: what is heard, what is seen, and what follows, a sentence each."""

    def sentence(options: tuple[str, ...], modality: str = "") -> str:
        departs = modality == facts.conflict
        return _fill(pick(options, rng), facts, rng, _other_emotion(facts, rng) if departs else None)

    if not facts.has_voice:
        return f"{sentence(_SEEN)} {sentence(_CONCLUSIONS['seen'])}"
    heard, kind = [sentence(_HEARD, "audio")], "heard"
    if facts.has_face:
        heard, kind = [*heard, sentence(_SEEN, "video")], "agree" if facts.conflict == "none" else facts.conflict
    return " ".join([*heard, sentence(_CONCLUSIONS[kind])])


def describe(facts: Facts, rng: np.random.Generator) -> dict[str, str]:
    """Returns the parts of structured answers by name, see `grammar.parts`."""
    return parts((_HEARD_ALONE, _SEEN_ALONE, _FELT, _FELT_SEEN, _JUDGED), facts, _fill, " ", rng)


def _fill(template: str, facts: Facts, rng: np.random.Generator, shown: str | None = None) -> str:
    adjectives = _voice_adjectives(facts, rng)
    voice = _with_article(f"{', '.join(adjectives)} voice")
    tempo = pick(TEMPO[facts.tempo], rng)
    emotion = _emotion_adjective(facts, rng)
    caption = template.format(
        E=emotion,
        M=shown or emotion,
        N=_emotion_noun(facts, rng),
        T=tempo,
        A=", ".join(adjectives),
        W=voice,
        V=f"{tempo} in {voice}",
        F=_join(_face(facts, rng)),
        S=_subject(facts, rng),
        H="she" if facts.gender == "woman" else "he",
        C=_departure(facts, rng),
        P=_POLARITY[facts.emotion],
    )
    return caption[0].upper() + caption[1:]


def _emotion_adjective(facts: Facts, rng: np.random.Generator) -> str:
    if facts.emotion == "neutral":
        return pick(_ADJECTIVES["neutral"], rng)
    mild, moderate, strong, vivid = _ADJECTIVES[facts.emotion]
    special = {"mild": mild, "moderate": moderate, "strong": vivid if facts.vivid else strong}[facts.intensity]
    if facts.intensity == "moderate" or rng.random() < 0.6:
        return pick(special, rng)
    return f"{pick(_DEGREES[facts.intensity], rng)} {pick(moderate, rng)}"


def _emotion_noun(facts: Facts, rng: np.random.Generator) -> str:
    if facts.emotion == "neutral":
        return pick(_NEUTRAL_NOUNS, rng)
    usual, strong = _NOUNS[facts.emotion]
    nouns = strong if facts.intensity == "strong" and rng.random() < 0.6 else usual
    return f"{pick(_NOUN_DEGREES[facts.intensity], rng)} {pick(nouns, rng)}"


def _voice_adjectives(facts: Facts, rng: np.random.Generator) -> list[str]:
    if not facts.voice:
        return [PLAIN_VOICE[i] for i in rng.permutation(len(PLAIN_VOICE))[:2]]
    return choose(facts.voice, VOICE, 2, 3 if facts.has_face else 4, rng)


def _face(facts: Facts, rng: np.random.Generator) -> list[str]:
    if not facts.face:
        return [pick(phrases, rng) for phrases in FACE_AT_REST[: int(rng.integers(1, 3))]]
    return choose(facts.face, FACE, 1, 3, rng)


def _subject(facts: Facts, rng: np.random.Generator) -> str:
    noun = facts.gender
    trait = pick(("",) + facts.looks, rng)
    if trait == "beard":
        noun = f"bearded {noun}"
    elif trait == "long hair":
        noun = f"long-haired {noun}"
    elif trait == "glasses":
        noun = f"{noun} with glasses"
    elif rng.random() < 0.25:
        noun = f"{'Mandarin' if facts.language == 'zh' else 'English'}-speaking {noun}"
    determiner = pick(("a", "the", "this"), rng)
    return _with_article(noun) if determiner == "a" else f"{determiner} {noun}"


def _departure(facts: Facts, rng: np.random.Generator) -> str:
    seems = "looks" if facts.conflict == "video" else "sounds"
    if facts.other_emotion == "neutral":
        return pick(_FACE_PLAIN if facts.conflict == "video" else _VOICE_PLAIN, rng)
    if rng.random() < 0.5:
        return pick(_DIFFERS, rng)
    return f"{seems} {_other_emotion(facts, rng)}"


def _other_emotion(facts: Facts, rng: np.random.Generator) -> str:
    if facts.other_emotion == "neutral":
        return pick(_ADJECTIVES["neutral"], rng)
    return f"{pick(_DEGREES[facts.other_intensity], rng)} {pick(_ADJECTIVES[facts.other_emotion][1], rng)}"


def _speaker(facts: Facts, rng: np.random.Generator) -> str:
    traits = {"beard": "a beard", "glasses": "glasses", "long hair": "long hair"}
    looks = f" with {_join([traits[name] for name in facts.looks])}" if facts.looks else ""
    speech = "speaks Mandarin" if facts.language == "zh" else f"speaks English with {_ACCENTS[facts.accent]}"
    return pick((f"A {facts.gender}{looks} {speech}.", f"The speaker is a {facts.gender}{looks} who {speech}."), rng)


def _join(phrases: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouE' else 'a'} {noun}"
