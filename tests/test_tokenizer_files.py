"""Strangers' tokenizers: those of the published kinds load, whatever else a file asks for is refused before it runs."""

import base64
import json
import os
import time

import pytest
from tokenizers import Regex, pre_tokenizers

from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.families import QWEN2_WORDS
from mecap_jax.models.sentence_encoder import packaged_directory
from mecap_jax.tokenizer_files import LONGEST_TEXT, read_tokenizer
from tests.hub_layout import write_processor
from tests.models import text_models


@pytest.fixture
def directory(tmp_path):
    write_processor(tmp_path, "qwen2")
    return tmp_path


def edit(directory, **parts):
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    for part, value in parts.items():
        content[part] = content[part] | value if part == "model" else value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", text_models.FAMILIES)
def test_the_kinds_that_encoders_are_published_with_load(tmp_path, kind):
    expected = text_models.tokenizer(kind)
    expected.save(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer(tmp_path / "tokenizer.json")
    for text in text_models.random_texts(40):
        assert ours.encode(text).ids == expected.encode(text).ids


def test_the_packaged_encoders_tokenizer_loads():
    tokenizer = read_tokenizer(packaged_directory() / "tokenizer.json")
    tokenizer.no_padding()
    assert tokenizer.encode("He is sad.").ids == [101, 2002, 2003, 6517, 1012, 102]


def step(kind, **fields):
    return {"type": kind, **fields}


def replace(content, **pattern):
    return step("Replace", pattern=pattern, content=content)


def split(**pattern):
    return step("Split", pattern=pattern, behavior="Isolated", invert=False)


def normalizers(*steps):
    return {"normalizer": step("Sequence", normalizers=list(steps))}


def character_map(becomes):
    tree = bytes(8)
    content = len(tree).to_bytes(4, "little") + tree + becomes + b"\0"
    return step("Precompiled", precompiled_charsmap=base64.b64encode(content).decode())


@pytest.mark.parametrize(
    "normalizer",
    [
        step("Sequence", normalizers=[step("NFC"), replace(" ", Regex=" {2,}")]),
        step("Sequence", normalizers=[step("Sequence", normalizers=[step("NFKC")]), step("Lowercase")]),
        step("Sequence", normalizers=[step("Prepend", prepend="▁"), replace("▁", String=" ")]),
        None,
    ],
)
def test_steps_that_are_known_to_be_safe_are_read(directory, normalizer):
    assert read_tokenizer(edit(directory, normalizer=normalizer)).encode("so  sad").ids


@pytest.mark.parametrize(
    "parts, problem",
    [
        (
            {"pre_tokenizer": split(Regex="(a+)+$")},
            "pre_tokenizer: Split: the regular expression .* is not one of those",
        ),
        ({"normalizer": replace("", Regex="(a|aa)+$")}, "normalizer: Replace: the regular expression"),
        ({"decoder": step("Sequence", decoders=[replace("", Regex="(a+)+$")])}, "decoder: Replace: the regular"),
        (normalizers(*[replace("a" * 10, String="a")] * 9), "'a+' is longer than what it replaces, 'a'"),
        ({"normalizer": replace("", String="")}, "longer than what it replaces"),
        (normalizers(step("NFKD"), step("NFKD")), "NFKD is there 2 times"),
        ({"pre_tokenizer": step("Sequence", pretokenizers=[step("ByteLevel")] * 30)}, "ByteLevel is there 30 times"),
        ({"normalizer": step("ByteLevel")}, "'ByteLevel' is not one of the steps"),
        ({"normalizer": character_map(b"x" * 1000)}, "a character becomes more than 64 bytes"),
        ({"normalizer": step("Precompiled", precompiled_charsmap="?")}, "not base64"),
        ({"normalizer": step("Prepend", prepend="x" * 10**6)}, "prepends more"),
        ({"normalizer": step("Sequence", normalizers=5)}, "normalizer: 5 is not one of the steps"),
        ({"normalizer": [1]}, "is not one of the steps"),
        ({"post_processor": step("TemplateProcessing", single=["[CLS]"] * 10**4)}, "more than 10000 characters"),
        ({"model": {"type": "Tomorrow"}}, "the model is none of"),
        ({"model": {"dropout": 0.5}}, "drops merges at random"),
        ({"model": {"continuing_subword_prefix": "x" * 10**5}}, "continuing_subword_prefix has more than"),
        ({"model": {"max_input_chars_per_word": 10**9}}, "max_input_chars_per_word"),
        ({"added_tokens": [{"id": 1, "content": "x" * 10**5}]}, "added_tokens are more than"),
    ],
)
def test_whatever_could_run_away_is_refused_by_file_and_step(directory, parts, problem):
    path = edit(directory, **parts)
    start = time.process_time()
    for read in (lambda: read_tokenizer(path), lambda: Tokenizer.from_directory(directory, "qwen2")):
        with pytest.raises(ValueError, match=f"^{path}: .*{problem}"):
            read()
    assert time.process_time() - start < 5


def test_what_the_library_panics_at_is_an_error(directory):
    for parts in ({"added_tokens": [{"id": -1}]}, {"model": {"merges": [["a"]]}}, {"model": {"vocab": {"a": 2**70}}}):
        with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
            read_tokenizer(edit(directory, **parts))


def test_files_that_are_too_large_or_no_files_are_refused_unread(directory):
    path = directory / "tokenizer.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="it is not a file"):
        read_tokenizer(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="it is not a file"):
        read_tokenizer(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**33)  # a hole, not bytes
    with pytest.raises(ValueError, match=f"{path} has more than {2**26} bytes"):
        read_tokenizer(path)


PUBLISHED = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)


@pytest.mark.parametrize("text", ["a", " ", "\n", "'", "  a", "\u0300a", "😀", "'s'"], ids=ascii)
def test_long_texts_take_little_time(directory, text):
    """Of what the published expressions can be made to scan again and again."""
    edit(directory, pre_tokenizer=json.loads(PUBLISHED.__getstate__()))
    tokenizer = Tokenizer.from_directory(directory, "qwen2")
    start = time.process_time()
    tokenizer.encode(text * (100_000 // len(text)))
    assert time.process_time() - start < 5
    with pytest.raises(ValueError, match="is longer than any prompt"):
        tokenizer.encode(text * (LONGEST_TEXT + 1))


def test_halves_of_characters_are_refused(directory):
    """In a text, or made by a template: JSON can hold them."""
    tokenizer = Tokenizer.from_directory(directory, "qwen2")
    with pytest.raises(ValueError, match="not valid Unicode"):
        tokenizer.encode("sad \ud800")
    (directory / "chat_template.jinja").write_text(r"{{ '\ud800' }}")
    with pytest.raises(ValueError, match="not valid Unicode"):
        Tokenizer.from_directory(directory, "qwen2").encode_conversation([{"role": "user", "content": "x"}])
