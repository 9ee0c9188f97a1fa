r"""One strict parser reads every protocol: each block once, in order, nothing outside, in linear time."""

import time

import pytest

from mecap_jax.tasks.protocols import LONGEST_ANSWER, LONGEST_WORD, MOST_WORDS, PROTOCOLS

R1 = PROTOCOLS["think_answer"]
R3 = PROTOCOLS["steps_boxed"]
MIGR = PROTOCOLS["modalities_think_answer"]
STEPS = "<step1>A man falls. {1}</step1> <step2>It hurts him.</step2>\n<step3>negative, high</step3>"
TAGGED = {name: protocol for name, protocol in PROTOCOLS.items() if name != "caption"}


@pytest.mark.parametrize(
    "text, fields",
    [
        ("<think>Loud.</think><answer>angry</answer>", {"think": "Loud.", "answer": "angry"}),
        ("\n <think>\n A.\n\nB. </think>\t\n<answer> sad\n</answer>\n", {"think": "A.\n\nB.", "answer": "sad"}),
        ("<think>a < b and <b>c</b></think><answer>愤怒</answer>", {"think": "a < b and <b>c</b>", "answer": "愤怒"}),
    ],
)
def test_what_follows_the_protocol_is_read(text, fields):
    assert dict(R1.parse(text).fields) == fields
    assert R1.parse(text).reason is None
    assert R1.answer == "answer"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "no <think>"),
        ("angry", "no <think>"),
        ("Well. <think>a</think><answer>b</answer>", "text before <think>"),
        ("<think>a</think> so <answer>b</answer>", "text before <answer>"),
        ("<think>a</think><answer>b</answer>.", "text behind </answer>"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "text behind </answer>"),
        ("<think>a</think><think>a</think><answer>b</answer>", "text before <answer>"),
        ("<think>a<think>b</think></think><answer>c</answer>", "<think> within <think>"),
        ("<think>a<answer>b</answer></think><answer>c</answer>", "<answer> within <think>"),
        ("<think>a</think><answer>b<answer>c</answer>", "<answer> within <answer>"),
        ("<think>a</answer></think><answer>c</answer>", "</answer> within <think>"),
        ("<answer>b</answer><think>a</think>", "text before <think>"),
        ("<think>a", "no </think> behind <think>"),
        ("<think>a</think>", "no <answer>"),
        ("<think>a</think><answer>b", "no </answer> behind <answer>"),
        ("<think> \n </think><answer>b</answer>", "nothing in <think>"),
        ("<think>... \u200b\n</think><answer>b</answer>", "nothing in <think>"),
        ("<think>a</think><answer> </answer>", "nothing in <answer>"),
        ("<think>a</think><answer>b\nc</answer>", "no short answer in <answer>"),
        (f"<think>a</think><answer>{'b' * (LONGEST_ANSWER + 1)}</answer>", "no short answer in <answer>"),
        ("<Think>a</Think><answer>b</answer>", "no <think>"),
    ],
)
def test_what_does_not_is_refused_with_a_reason(text, reason):
    parsed = R1.parse(text)
    assert parsed.reason == reason
    assert not parsed.fields


def test_a_list_of_words_may_be_longer_than_one_answer():
    words = [f"an emotion word number {i}" for i in range(MOST_WORDS)]
    text = f"<think>a</think><answer>{', '.join(words)}</answer>"
    assert len(text) > 3 * LONGEST_ANSWER
    assert R1.parse(text, several=True).fields["answer"] == ", ".join(words)
    assert R1.parse(text).reason == "no short answer in <answer>"
    fields = {"think": "a", "answer": ", ".join(words)}
    assert dict(R1.parse(R1.render(fields, several=True), several=True).fields) == fields
    for wrong in (", ".join([*words, "more"]), "x" * (LONGEST_WORD + 1)):
        reason = R1.parse(f"<think>a</think><answer>{wrong}</answer>", several=True).reason
        assert reason == "too many words, or too long ones, in <answer>"
    for wrong in ("happy\nsad", "a," * 4_000):
        assert (
            R1.parse(f"<think>a</think><answer>{wrong}</answer>", several=True).reason == "no short answer in <answer>"
        )


def test_steps_may_hold_braces_and_a_box_may_not():
    fields = R3.parse(STEPS + r"\boxed{fear}").fields
    assert fields["step1"] == "A man falls. {1}" and fields["boxed"] == "fear" == fields[R3.answer]
    assert R3.parse(STEPS + r"\boxed{\text{fear}}").reason == r"no short answer in \boxed{"
    assert R3.parse(STEPS + r"\boxed{fear}}").reason == "text behind }"
    assert R3.parse(STEPS + r"\boxed{fear} \boxed{awe}").reason == "text behind }"
    assert R3.parse(STEPS.replace("falls", r"falls \boxed{awe}") + r"\boxed{fear}").reason == r"\boxed{ within <step1>"
    assert R3.parse(STEPS).reason == r"no \boxed{"


def test_modalities_may_stand_in_either_order_and_the_order_is_told():
    see, hear, rest = "<vis_desc>s</vis_desc>", "<aud_desc>h</aud_desc>", "<think>t</think><answer>a</answer>"
    assert list(MIGR.parse(see + hear + rest).fields) == ["vis_desc", "aud_desc", "think", "answer"]
    assert list(MIGR.parse(hear + see + rest).fields) == ["aud_desc", "vis_desc", "think", "answer"]
    assert MIGR.parse(see + see + rest).reason == "no <aud_desc>"
    assert MIGR.parse(see + rest + hear).reason == "text before <aud_desc>"
    assert MIGR.render({"aud_desc": "h", "vis_desc": "s", "think": "t", "answer": "a"}).startswith("<aud_desc>")


def test_a_caption_is_the_whole_text():
    assert dict(PROTOCOLS["caption"].parse(" A <sad> voice.\n").fields) == {"caption": "A <sad> voice."}
    assert PROTOCOLS["caption"].parse(" ").reason == "nothing in caption"
    assert PROTOCOLS["caption"].answer is None
    assert PROTOCOLS["caption"].instruction() == ""


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_what_is_rendered_is_read_back(protocol):
    fields = {block.name: f"{block.name} text" for block in protocol.blocks}
    assert dict(protocol.parse(protocol.render(fields)).fields) == fields


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"think": "a"}, "has the fields"),
        ({"think": "a", "answer": "b", "more": "c"}, "has the fields"),
        ({"think": "a </think> b", "answer": "c"}, "no answer can hold these fields"),
        ({"think": "", "answer": "c"}, "nothing in <think>"),
    ],
)
def test_what_could_not_be_read_back_is_not_rendered(fields, message):
    with pytest.raises(ValueError, match=message):
        R1.render(fields)


@pytest.mark.parametrize("protocol", TAGGED.values(), ids=list(TAGGED))
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_instruction_shows_the_form_and_the_choices(protocol, language):
    text = protocol.instruction(language, ("happy", "sad"))
    places = [text.index(mark) for block in protocol.blocks for mark in (block.open, block.close)]
    assert places == sorted(places)
    assert "happy" in text and "sad" in text
    assert "sad" not in protocol.instruction(language)
    # A model that copies the form answers nothing that is in a label set, but it follows the form.
    form = text.split("\n", 1)[1].rsplit("\n", 1)[0]
    assert protocol.parse(form).reason is None


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<", r"\boxed{", "}", " ", "<step1>a"])
def test_hostile_text_takes_linear_time(protocol, piece):
    """Of quadratic work four megabytes would cost hours; a refused answer stands in the way of no other."""

    def seconds(size: int) -> float:
        text = piece * (size // len(piece))
        variants = [text, protocol.blocks[0].open + text, protocol.blocks[0].open + text + protocol.blocks[0].close]
        start = time.process_time()
        for variant in variants:
            protocol.parse(variant)
            protocol.parse(variant, several=True)
        return time.process_time() - start

    assert seconds(4_000_000) < 2
