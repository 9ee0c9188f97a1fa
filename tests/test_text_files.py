"""Text is read in whatever encoding it came; lines end where people end them; names cannot write to a terminal."""

import pytest

from mecap_jax.json_files import parse_json, read_json_object
from mecap_jax.text_files import decode_text, error_message, printable, read_lines, split_lines


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_the_same_text_in_any_encoding(tmp_path, encoding):
    (tmp_path / "t").write_bytes("naïve “quotes”\r\nsecond\n\n".encode(encoding))
    assert read_lines(tmp_path / "t") == ["naïve “quotes”", "second", ""]


def test_every_sequence_of_bytes_is_some_text():
    assert decode_text(bytes(range(256))) and decode_text(b"") == "" and decode_text(b"\xff\xfea") == "ÿþa"


def test_lines_end_with_lf_or_crlf_only():
    assert split_lines("a\u2028b\x85c\x0cd\x1ce\rf\r\ng") == ["a\u2028b\x85c\x0cd\x1ce\rf", "g"]
    assert split_lines("") == [] and split_lines("\n") == [""] and split_lines("a\n") == split_lines("a") == ["a"]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain été 你好 \u00a0.wav", "plain été 你好 \u00a0.wav"),
        ("a\nb\tc\x1b[2J\x7f\x9b", r"a\nb\tc\x1b[2J\x7f\x9b"),
        ("\udcff\ud800", r"\xff\ud800"),
        ("exe.\u202egpj", r"exe.\u202egpj"),
        ("a\u2028b", r"a\u2028b"),
    ],
)
def test_what_must_not_reach_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown
    assert shown.encode()


def test_a_message_keeps_its_lines_and_nothing_else():
    assert error_message(ValueError("a\x1b[2J\n  b\rc\u2028")) == r"error: a\x1b[2J" + "\n" + r"  b\rc\u2028"


@pytest.mark.parametrize("text", ["NaN", "[1, Infinity]", "-Infinity", "1e999", "[" * 100_000, "", "{", "1" * 5000])
def test_json_is_read_strictly(tmp_path, text):
    with pytest.raises(ValueError):
        parse_json(text)
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ValueError, match="f.json is not JSON"):
        read_json_object(tmp_path / "f.json")


def test_json_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "f.json").write_bytes(b'\xef\xbb\xbf{"a": 1.5}')
    assert read_json_object(tmp_path / "f.json") == {"a": 1.5}
    assert parse_json(b'"\xc3\xa9"') == "é"
    with pytest.raises(ValueError):
        parse_json(b'"\xe9"')
