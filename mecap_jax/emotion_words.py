"""Which emotion a caption names: words of the lexicon, read with what stands around them.

No sentence encoder takes part, so it measures emotion independently of one. A mention counts where it is asserted:

- not where it is negated, near or far in its clause ("no trace of joy", "neither angry nor sad", "毫无惧色");
- not where it is the topic ("talks about a sad childhood", "a happy birthday song");
- less where it is conceded or feigned ("although she sounds happy, …", "feigned cheer", "看似高兴"), or a tinge
  ("a hint of fear");
- more where it corrects what stands before it ("…, but in truth it is grief").

Of those that count alike, the first one decides: "but" alone sets two emotions side by side, as of a voice and a face.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import re
from collections.abc import Collection, Iterator, Mapping

from mecap_jax.emotions import CALM, EMOTIONS, LEXICON, SHOWN, word_forms

_MOST_CHARACTERS = 4_000  # of a caption: what stands behind is not read


def first_emotion_word(caption: str, labels: Collection[str] = ()) -> str | None:
    """Returns the emotion class that a caption names, or None where it names none. English and Chinese.

    Args:
      labels: classes beside `EMOTIONS` that there are. A word that two classes share belongs to such a class, and every
        label is a word for itself ("peaceful" is "calm" where that is a class, and else stands for "neutral" where
        nothing else is named).
    """
    lexicon = _lexicon(frozenset(labels) - frozenset(EMOTIONS))
    caption = caption[:_MOST_CHARACTERS].casefold()
    mentions = _mentions(lexicon, _QUOTED.sub(" , ", caption)) or _mentions(lexicon, caption)
    return min(mentions, key=lambda mention: mention.order).label if mentions else None


def _mentions(lexicon: _Lexicon, caption: str) -> list[_Mention]:
    found = list(lexicon.chinese_mentions(caption)) or list(lexicon.english_mentions(caption))
    return [mention for mention in found if mention.rank < _TOPIC]


_ASSERTED, _TINGE, _CONCEDED, _WEAK, _TOPIC = range(5)


@dataclasses.dataclass(frozen=True)
class _Mention:
    label: str
    rank: int
    place: int
    corrected: bool = False  # by a later one

    @property
    def order(self) -> tuple[int, bool, int]:
        return self.rank, self.corrected, self.place


def _weighed(found: list[tuple[str, int, int]], corrections: list[int], place: int) -> Iterator[_Mention]:
    """Yields mentions (label, rank, where), and which of them a later one corrects.

    Args:
      corrections: where words stand that correct what is before them, in order.
      place: of the text that `found` and `corrections` count in.
    """
    best_behind = [_TOPIC] * (len(found) + 1)  # of the mentions from i on
    for i in range(len(found) - 1, -1, -1):
        best_behind[i] = min(best_behind[i + 1], found[i][1])
    places = [start for _, _, start in found]
    for label, rank, start in found:
        next_one = bisect.bisect_right(corrections, start)
        behind = bisect.bisect_right(places, corrections[next_one]) if next_one < len(corrections) else len(found)
        corrected = best_behind[behind] <= rank and best_behind[behind] < _CONCEDED
        yield _Mention(label, rank, place + start, corrected)


# --- English ----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*|[,:()\u2013\u2014]|--|[.!?;\n]+")
_SENTENCE_ENDS = re.compile(r"[.!?;\n]")
_PAUSES = frozenset(", : ( ) \u2013 \u2014 --".split())

_NEGATIONS = frozenset(
    """not no never without neither nor hardly barely scarcely rarely seldom nothing none nobody cannot lack lacks
    lacked lacking devoid absence absent zero""".split()
)
_NEGATING_PHRASES = ("far from", "anything but", "rather than", "instead of", "free of", "free from", "no longer",
                     "by no means", "short of", "in vain for", "wrong to", "mistake to", "misleading to")  # fmt: skip
_AFFIRMED = frozenset("only just merely simply doubt wonder mistaking mistake question".split())  # "not only angry"
_HIDING = frozenset(
    """hide hides hiding hid hidden conceal conceals concealing concealed mask masks masking masked suppress suppresses
    suppressing suppressed contain contains containing contained disguise disguises disguising disguised restrain
    restrains restraining restrained veil veiled control controlled controlling controls help keep hold holds holding
    stifle stifled stifling swallow repress repressed bottled deny""".split()
)
_ENDS_OF_SCOPE = frozenset(
    """but yet however although though while whereas because so then instead still only just simply he she they it
    who""".split()
)
_SAYING = frozenset("say think call claim suggest describe mean believe that".split())  # "not say that he is …"
_SCOPE = 9  # words that a negation reaches over
_GONE = frozenset("absent missing nowhere lacking gone vanished drained evaporated dissipated subsided faded".split())
_COPULAS = frozenset("is was are were".split())
_FEELING = frozenset("emotion emotions feeling feelings affect emotionality".split())  # without any, one is neutral
# Of things, rather than of who speaks about them.
_CAUSING = frozenset(
    """terrifying frightening scary horrifying alarming worrying shocking surprising astonishing amazing startling
    stunning disgusting revolting repulsive sickening nauseating appalling annoying irritating infuriating maddening
    depressing heartbreaking saddening tragic delightful pleasing amusing exasperating dreadful outrageous""".split()
)
_USUAL = frozenset("usually normally ordinarily habitually famously typically otherwise formerly".split())
_MASKS = frozenset("mask facade façade act front pretense pretence show veneer put-on".split())

_CORRECTIONS = ("actually", "in fact", "in truth", "in reality", "really is", "is really", "turns out")
_CONCESSIONS = frozenset("although though while whilst whereas despite behind beneath underneath under".split())
_CONCEDING_PHRASES = ("even though", "in spite of", "for all", "at first", "on the surface", "once was", "used to",
                      "for once", "known for", "might expect", "would expect", "took for", "take for")  # fmt: skip
_FEIGNED = frozenset(
    """feigned feigning feigns faked faking fake fakes forced forcing pretend pretends pretending pretended pretense
    pretence claim claims claiming claimed supposedly outwardly ostensibly ostensible affected mock feign facade façade
    veneer superficially seemingly trying tries tried attempt attempts attempting insists insisting denies denying
    hides hiding mask masks mistake mistook mistaken initially opens opening begins starts""".split()
)
_TINGES = frozenset(
    """slight slightly faint faintly mild mildly little bit somewhat vaguely hint hints touch trace traces tinge tinged
    undertone undertones undercurrent edge flicker shade note tint momentarily fleeting fleetingly briefly""".split()
)
_TELLING = frozenset(
    """about mention mentions mentioned mentioning recounts recounting recalls recalling discusses discussing topic
    subject called quotes whether""".split()
)
_TITLES = frozenset("title titled entitled headline".split())
_TOPICS = frozenset(
    """childhood story stories news film films movie movies memory memories event events birthday song songs ending
    occasion topic subject tale poem novel scene scenes book chapter anniversary hour management years days
    school""".split()
)
_QUOTED = re.compile(r"[\"\u201c\u300c\u300a][^\"\u201c\u201d\u300c\u300d\u300a\u300b]{1,200}[\"\u201d\u300d\u300b]")

_NEW_PHRASE = (_PAUSES - {","}) | frozenset("his her the a an their whose and in".split())
# What is relaxed there says nothing of the person.
_FACE = frozenset(
    "eyebrows eyebrow brows brow gaze eyes eyelids mouth lips lip chin jaw nose forehead shoulders".split()
)


def _is_negation(token: str) -> bool:
    return token in _NEGATIONS or token.endswith("n't")


class _Sentence:
    """The words and pauses of a sentence, and what they do to a mention of an emotion."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens

    def negated(self, start: int, end: int) -> bool:
        words = self.tokens
        negation, reached = None, 0
        for i in range(start - 1, -1, -1):
            token = words[i]
            if token in _PAUSES and not {"or", "nor"} & set(words[i:start]):
                break
            if _is_negation(token) or any(self.phrase_at(i, phrase) for phrase in _NEGATING_PHRASES):
                negation = i
                break
            reached += 1
            said = token in ("he", "she", "they", "it") and i and words[i - 1] in _SAYING
            if (token in _ENDS_OF_SCOPE and not said) or reached > _SCOPE:
                break
            if token == "and" and start - i > 3:
                break
        after = words[end : end + 5]
        denied = after[:1] and after[0] in _COPULAS and after[1:2] and after[1] in ("not", "hardly", "never")
        if (denied and not (_HIDING | _FEIGNED) & set(after)) or after[:1] in (["isn't"], ["wasn't"]):
            return True
        stops = [i for i, token in enumerate(after) if token in _PAUSES or token in _ENDS_OF_SCOPE or token == "and"]
        gone = bool(_GONE & set(after[: stops[0] if stops else 5]))
        if negation is None:
            return gone
        between = words[negation + 1 : start]
        if between and (between[0] in _AFFIRMED or _HIDING & set(between)):
            return gone
        comparative = words[start].endswith("ier") or "more" in between
        if comparative and {"be", "been", "looked", "sounded", "seen", "get"} & set(between):  # "could not be happier"
            return gone
        if words[negation] == "nothing" and between[:1] in (["but"], ["short"]):
            return False
        if words[negation] == "without" and negation and _is_negation(words[negation - 1]):
            return False
        return True

    def rank(self, start: int, end: int, since: int) -> int:
        """How much a mention counts; a word that qualifies one qualifies none behind it.

        Args:
          since: where the mention before it ends.
        """
        words = self.tokens
        if set(words[end : end + 2]) & _TOPICS and not _PAUSES & set(words[end : end + 1]):
            return _TOPIC
        if words[end : end + 1] == ["of"] and _TOPICS & set(words[end : end + 5]):  # "the misery of his school years"
            return _TOPIC
        clause = self._clause_before(start)
        before = clause[-(start - since) :] if start > since else []
        if _TELLING & set(before[-6:]) or _TITLES & set(words[max(0, start - 8) : start]):
            return _TOPIC
        after = words[end : end + 5]
        if any(token in _COPULAS and _MASKS & set(after[i + 1 : i + 4]) for i, token in enumerate(after)):
            return _CONCEDED
        given_way = after[:1] and after[0] in ("gives", "gave", "giving") and after[1:2] == ["way"]
        turned = "from" in words[max(0, start - 3) : start] and {"to", "into"} & set(words[end : end + 4])
        if given_way or turned or after[:2] == ["at", "first"]:
            return _CONCEDED
        if _USUAL & set(before) or (
            set(words[start:end]) & _CAUSING and end < len(words) and words[end] not in _PAUSES
        ):
            return _CONCEDED
        if _FEIGNED & set(before[-8:]) or _CONCESSIONS & set(clause) or self._has_phrase(before):
            return _CONCEDED
        if _TINGES & set(before[-4:]):
            return _TINGE
        return _ASSERTED

    def describes(self, end: int, parts: frozenset[str]) -> bool:
        """Whether what ends there describes a part of the face, or a voice: a level brow, a monotone, falling voice."""
        behind = itertools.takewhile(lambda token: token not in _NEW_PHRASE, self.tokens[end : end + 5])
        return bool(set(self.tokens[end : end + 1]) & parts or set(behind) & parts & {"voice"})

    def _clause_before(self, start: int) -> list[str]:
        for i in range(start - 1, -1, -1):
            if self.tokens[i] in _PAUSES or self.tokens[i] in ("but", "yet", "and"):
                return self.tokens[i + 1 : start]
        return self.tokens[:start]

    @staticmethod
    def _has_phrase(words: list[str]) -> bool:
        text = f" {' '.join(words)} "
        return any(f" {phrase} " in text for phrase in _CONCEDING_PHRASES)

    def phrase_at(self, i: int, phrase: str) -> bool:
        parts = phrase.split()
        return self.tokens[i : i + len(parts)] == parts


# --- Chinese ----------------------------------------------------------------------------------------------------

_HAN = re.compile(r"[\u3400-\u9fff]")
_CLAUSE_ENDS = re.compile(r"[，。！？；：,.!?;:\n]")
_ZH_AFFIRMED = re.compile(
    r"忍不住|不由得|不由自主|不禁|禁不住|抑制不住|控制不住|按捺不住|掩饰不住|掩不住|藏不住|压不住|遮不住|止不住|难掩|毫不掩饰|"
    r"毫不避讳|不加掩饰|不仅|不但|不光|不只|不单|无不|无疑|不得不|不断|不停|不已|无法掩饰|无法抑制|无比|说不出的|不小|不少|不时|"
    r"不同|不久|不再掩饰|不如说|倒不如|不如|不得不说|无奈之下|不一样|非常|非凡|除非|溢于言表"
)
_ZH_NEGATIONS = re.compile(r"不|没|无|未|别|非|毫无|缺乏|缺少|谈不上|绝非|而非|免于")
_ZH_CORRECTIONS = re.compile(r"其实|实际上|实则|而是|反而|反倒|事实上")
_ZH_ENDS_OF_SCOPE = re.compile(r"但|却|然而|可是|不过|其实|实际上|实则|而是|反而|反倒|只是")
_ZH_CONCEDED = re.compile(
    r"虽然|虽说|虽|尽管|表面上|表面|看似|看上去像|乍一听|乍听|乍看|起初|故作|装作|假装|佯装|强装|强作|伪装|努力装|试图|与其说|与其|"
    r"一向|向来|平时|平日|素来|往常|嘴上"
)
_ZH_TINGES = re.compile(r"一丝|一点|些许|略|微微|稍|有点|有些|隐约|淡淡|几分|轻微|夹杂|带着点")
_ZH_TOPICS = re.compile(r"(?:讲述|谈到|谈论|提到|说起|回忆|叙述|描述|介绍|讲的是|聊到|念|朗读)[^，。；！？]{0,8}$")
_ZH_VOICE = re.compile(r"(?:声线|嗓音|音色)[^，。]{0,3}$")  # neither a man's nor a woman's
# Without any feeling, one is neutral.
_ZH_NO_FEELING = re.compile(r"(?:没有|没啥|没什么|没|毫无|不带|不含|缺乏)[^，。]{0,5}?(?:情绪|感情|情感)")
_ZH_SCOPE = 8  # characters that a negation reaches over


def _chinese_rank(clause: str, start: int) -> int:
    before = clause[:start]
    if _ZH_TOPICS.search(before):
        return _TOPIC
    if _ZH_CONCEDED.search(before):
        return _CONCEDED
    if _ZH_TINGES.search(before[-6:]):
        return _TINGE
    return _ASSERTED


def _chinese_negated(clause: str, start: int) -> bool:
    before = _ZH_AFFIRMED.sub(lambda match: "\u3000" * len(match.group()), clause[:start])
    found = [match.end() for match in _ZH_NEGATIONS.finditer(before)]
    return bool(found) and start - found[-1] <= _ZH_SCOPE and not _ZH_ENDS_OF_SCOPE.search(before[found[-1] :])


# --- the lexicon ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Lexicon:
    """Classes by word; words of several parts are looked for first."""

    english: Mapping[str, str]
    shown: frozenset[str]  # behaviour, which says less than a word for what is felt: one laughs for fear, too
    weak: frozenset[str]  # that stand for "neutral" only where nothing else is named
    chinese: Mapping[str, str]
    chinese_words: re.Pattern[str]
    longest: int

    def english_mentions(self, caption: str) -> Iterator[_Mention]:
        tokens = _TOKEN.findall(caption.replace("\u2019", "'"))
        place, sentence = 0, []
        for token in [*tokens, "."]:
            if _SENTENCE_ENDS.match(token):
                for mention in self._in_sentence(sentence, place):
                    asked = "?" in token  # "Sad? No. …"
                    yield dataclasses.replace(mention, rank=max(mention.rank, _CONCEDED)) if asked else mention
                place, sentence = place + len(sentence), []
            else:
                sentence.append(token)

    def _in_sentence(self, tokens: list[str], place: int) -> Iterator[_Mention]:
        sentence, i, since, found = _Sentence(tokens), 0, 0, []
        while i < len(tokens):
            for count in range(min(self.longest, len(tokens) - i), 0, -1):
                phrase = " ".join(tokens[i : i + count])
                if (label := self.english.get(phrase)) is not None:
                    if not sentence.negated(i, i + count):
                        rank = sentence.rank(i, i + count, since)
                        if phrase in self.shown or phrase in self.weak:
                            rank = max(rank, _CONCEDED if phrase in self.shown else _WEAK)
                            parts = _FACE | {"voice"} if phrase in self.shown else _FACE
                            rank = _TOPIC if sentence.describes(i + count, parts) else rank
                        found.append((label, rank, i))
                    since = i + count
                    i = since - 1
                    break
            else:
                near = any(map(_is_negation, tokens[max(0, i - 4) : i]))
                if tokens[i] in _FEELING and near and sentence.negated(i, i + 1):
                    found.append((EMOTIONS[0], _ASSERTED, i))
            i += 1
        corrections = [i for i in range(len(tokens)) if any(sentence.phrase_at(i, phrase) for phrase in _CORRECTIONS)]
        yield from _weighed(found, corrections, place)

    def chinese_mentions(self, caption: str) -> Iterator[_Mention]:
        if not _HAN.search(caption):
            return
        place, found = 0, []
        for clause in _CLAUSE_ENDS.split(caption):
            for match in self.chinese_words.finditer(clause):
                if _ZH_VOICE.search(clause[: match.start()]) and match.group() == "中性":
                    continue
                if not _chinese_negated(clause, match.start()):
                    word = match.group()
                    rank = _WEAK if word in self.weak else _chinese_rank(clause, match.start())
                    found.append((self.chinese[word], rank, place + match.start()))
            found += [(EMOTIONS[0], _TINGE, place + match.end()) for match in _ZH_NO_FEELING.finditer(clause)]
            place += len(clause) + 1
        yield from _weighed(found, [match.start() for match in _ZH_CORRECTIONS.finditer(caption)], 0)


@functools.cache
def _lexicon(further: frozenset[str]) -> _Lexicon:
    classes = [*EMOTIONS, *sorted(further)]
    weak = {word for language in LEXICON.values() for word in language[CALM]}
    shown = {word: label for label in classes for word in SHOWN.get(label, ())}
    words = dict.fromkeys(weak, EMOTIONS[0]) | shown
    words |= {form: label for label in sorted(further) for form in word_forms(label)}
    words |= {word: label for language in LEXICON.values() for label in classes for word in language.get(label, ())}
    words |= {word.replace("-", " "): label for word, label in words.items() if "-" in word}
    words |= {label: label for label in classes}
    strong = {word for language in LEXICON.values() for label in classes for word in language.get(label, ())}
    chinese = {word: label for word, label in words.items() if _HAN.search(word)}
    return _Lexicon(
        english=words,
        shown=frozenset(shown) - strong,
        weak=frozenset(weak - strong - set(classes)),
        chinese=chinese,
        chinese_words=re.compile("|".join(map(re.escape, sorted(chinese, key=len, reverse=True)))),
        longest=max(len(word.split()) for word in words),
    )
