import gc
import subprocess
import sys

import numpy as np
import pytest
from pycocoevalcap.meteor.meteor import Meteor as PackageMeteor
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from mecap_jax.evaluation.java_tools import JavaError, Meteor, meteor_score, ptb_tokenize
from tests.evaluation.conftest import tokenized


def test_tokens_equal_those_of_pycocoevalcap(java, capfd):
    texts = [
        "She isn't happy - she's furious!",
        'naïve café; "quoted" (aside)...',
        "plain",
        "A  low-pitched voice, 3.5%",
    ]
    expected = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert ptb_tokenize(texts) == [expected[i][0] for i in range(len(texts))]


def test_tokenizer_keeps_texts_apart_and_the_console_clean(java, capfd):
    texts = ["", "one\ntwo", "three\u2028four\x0bfive\r\nsix", "...", "\x85", "end"]
    assert ptb_tokenize(texts) == ["", "one two", "three four five six", "", "", "end"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_meteor_equals_pycocoevalcap(meteor, corpus):
    clips, captions = corpus
    candidates = [*ptb_tokenize(captions), "", "zebra", ptb_tokenize(clips[0].references)[0]]
    references = tokenized([clip.references for clip in clips])
    references += [["a voice"], ["a voice"], references[0]]
    package = PackageMeteor()
    try:
        truth, results = dict(enumerate(references)), {i: [text] for i, text in enumerate(candidates)}
        expected, segments = package.compute_score(truth, results)
    finally:
        package.meteor_p.stdout.close()
        package.meteor_p.stderr.close()
        del package
    statistics = meteor.statistics(candidates, references)
    assert meteor_score(statistics.sum(axis=0)) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(meteor_score(statistics), segments, atol=1e-12)
    assert meteor_score(statistics)[-1] == pytest.approx(1.0)


def test_meteor_with_a_stem_by_hand(meteor):
    # "tone" matches exactly (1), "laughs" by its stem (.6), the third word not: precision and recall are 1.6 / 3, two
    # matches in one chunk cost .6 * (1 / 2) ** .2. All are content words, so delta cancels.
    (row,) = meteor.statistics(["laughs tone zebra"], [["laughed tone mountain"]])
    assert meteor_score(row) == pytest.approx(1.6 / 3 * (1 - 0.6 * 0.5**0.2))


def test_meteor_with_function_words_by_hand(meteor):
    # "the" and "is" are function words (weight .25 against .75), "voice" is matched and "happy" not; one chunk.
    (row,) = meteor.statistics(["the voice is happy"], [["the voice is mountain"]])
    share = (0.75 * 1 + 0.25 * 2) / (0.75 * 2 + 0.25 * 2)
    assert meteor_score(row) == pytest.approx(share * (1 - 0.6 * (1 / 3) ** 0.2))


def test_separators_in_texts_do_not_break_the_protocol(meteor):
    plain, hostile = meteor.statistics(["a bright voice"] * 2, [["a bright voice"], ["a ||| bright\nvoice", "x ||| y"]])
    np.testing.assert_array_equal(plain, hostile)


def test_without_java_the_reason_is_given(no_java):
    with pytest.raises(JavaError, match="no `java` on the PATH"):
        ptb_tokenize(["text"])
    with Meteor() as meteor, pytest.raises(JavaError, match="no `java` on the PATH"):
        meteor.statistics(["text"], [["text"]])


@pytest.fixture
def fake_java(no_java, tmp_path):
    """Returns a function that puts a shell script in the place of Java."""

    def install(script: str):
        (tmp_path / "java").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "java").chmod(0o755)

    return install


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "no output"),
        ("echo cannot reserve memory >&2; exit 1", "cannot reserve memory"),
        ("read line; echo 1 2", "1 2|1 lines for 2 texts"),
    ],
)
def test_a_java_that_fails_is_reported_and_leaves_nothing_open(fake_java, script, reason):
    fake_java(script)
    with pytest.raises(JavaError, match=f"METEOR failed: ({reason})"), Meteor() as meteor:
        meteor.statistics(["text"], [["text"]])
    with pytest.raises(JavaError, match=f"PTB tokenizer .*({reason})"):
        ptb_tokenize(["one", "two"])
    gc.collect()  # an open pipe would raise a ResourceWarning here


def test_meteor_starts_once_and_ends_with_its_block(fake_java):
    fake_java(f"echo started >&2; while read line; do echo {'0 ' * 23}; done")
    with Meteor() as meteor:
        for _ in range(3):
            assert not meteor.statistics(["a", "b"], [["a"], ["b"]]).any()
        process = meteor._process
        meteor._errors.seek(0)
        assert meteor._errors.read() == b"started\n"
    assert process.poll() is not None


def test_meteor_starts_at_first_use_where_it_may_not_be_asked(fake_java):
    fake_java(f"while read line; do echo {'0 ' * 23}; done")
    with Meteor(ahead=False) as meteor:
        assert meteor._process is None
        assert not meteor.statistics(["a"], [["a"]]).any()
        process = meteor._process
    assert process.poll() is not None


def test_importing_starts_nothing():
    code = "import subprocess; subprocess.Popen = None; import mecap_jax.evaluation.captions"
    subprocess.run([sys.executable, "-c", code], check=True)
