"""Template phrases an emotion, for anchors where there are no train captions. Our own wording.

Twenty of each emotion that corpora often label: five adjectives, five nouns, five signs in voice and face, and five
situations, after the appraisal themes that go with an emotion (a loss, a threat, something foul; Lazarus 1991).
Adjectives and nouns alone make worse anchors: captions often show an emotion without naming it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mecap_jax.emotions import phrases

_TEMPLATES: Mapping[str, str] = {
    "neutral": """
        neutral; calm and even; matter-of-fact; unemotional; composed
        neutrality; no particular emotion; plain composure; indifference; an even temper
        a steady, level voice; a flat and even tone; a relaxed, blank face; an even pace; a plain delivery
        plainly stating facts; giving routine information; an everyday conversation about nothing special;
        no sign of any feeling; reading a list aloud""",
    "happy": """
        happy; cheerful; joyful; delighted; amused
        happiness; joy; delight; good cheer; warm pleasure
        a bright smile; a lively, lilting voice; laughter in the voice; shining eyes; a light, bouncy pace
        laughing and celebrating; sharing good news; having fun with friends; getting what one has hoped for;
        smiling from the heart""",
    "sad": """
        sad; sorrowful; grieving; dejected; heartbroken
        sadness; sorrow; grief; melancholy; despair
        a low, breaking voice; tears in the eyes; a slow, heavy pace; a drooping mouth; quiet sobs
        crying over a loss; feeling lonely and hopeless; mourning someone dear; giving up after a disappointment;
        speaking through tears""",
    "angry": """
        angry; furious; irritated; enraged; indignant
        anger; rage; fury; irritation; resentment
        a loud, harsh voice; clenched teeth; a hard glare; shouted, clipped words; drawn brows
        shouting at somebody; accusing others of an injustice; a heated quarrel; losing one's temper;
        threatening and scolding""",
    "surprised": """
        surprised; astonished; amazed; startled; stunned
        surprise; astonishment; amazement; disbelief; sudden wonder
        raised eyebrows; wide eyes and an open mouth; a sudden gasp; a sharply rising pitch; a dropped jaw
        hearing something completely unexpected; not believing one's ears; being caught off guard;
        a sudden turn of events; exclaiming in wonder""",
    "disgusted": """
        disgusted; revolted; repelled; contemptuous; nauseated
        disgust; revulsion; distaste; contempt; loathing
        a wrinkled nose; a curled lip; words spat out; a sneering tone; a face turned away
        seeing something filthy and rotten; wanting to vomit; despising someone's behaviour;
        pushing something foul away; sneering at what is vile""",
    "fearful": """
        fearful; afraid; terrified; anxious; frightened
        fear; terror; dread; anxiety; panic
        a shaking voice; darting, frightened eyes; shallow breaths; a thin, trembling tone; a pale face
        facing a danger; begging for help; expecting something terrible; wanting to run and hide;
        trembling at a threat""",
    "calm": """
        calm; peaceful; serene; relaxed; tranquil
        calmness; peace; serenity; ease; tranquillity
        a soft, slow voice; a gentle tone; a restful face; unhurried words; soft, easy breathing
        resting in comfort; soothing somebody; being at peace with oneself; nothing to worry about;
        letting go of all tension""",
    "bored": """
        bored; weary; uninterested; listless; dull
        boredom; weariness; tedium; lack of interest; listlessness
        a dragging voice; a monotonous tone; drooping eyelids; a sigh and a yawn; a slack, absent face
        waiting for it to end; doing the same thing for hours; paying no attention; finding nothing of interest;
        counting the minutes""",
}


def template_sentences(labels: Sequence[str]) -> dict[str, list[str]]:
    """Returns template phrases of each of `labels`: those above, or what captions from templates say of the emotion."""
    return {label: _phrases(label) for label in labels}


def _phrases(label: str) -> list[str]:
    if label in _TEMPLATES:
        return [" ".join(phrase.split()) for phrase in _split(_TEMPLATES[label])]
    both = (phrase for strong in (False, True) for kind in phrases(label, strong=strong) for phrase in kind)
    return list(dict.fromkeys(both))


def _split(text: str) -> list[str]:
    return [phrase for line in text.replace(";\n", ";").splitlines() for phrase in line.split(";") if phrase.strip()]
