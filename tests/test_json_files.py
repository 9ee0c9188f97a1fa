"""What the project writes as JSON anybody can read."""

import ast
import math
from pathlib import Path

import pytest

from mecap_jax.json_files import as_json, parse_json, to_json, write_json

ROOT = Path(__file__).parent.parent


def test_numbers_that_are_not_finite_become_null_at_any_depth():
    value = {"a": math.nan, "b": [math.inf, {"c": (-math.inf, 1.5)}], "d": "NaN"}
    assert parse_json(to_json(value)) == as_json(value) == {"a": None, "b": [None, {"c": [None, 1.5]}], "d": "NaN"}


@pytest.mark.parametrize("text", ["她很生气", "\udc80", 'a "quoted" \\ud800', "\u2028", "\x00"])
def test_any_text_survives_a_file(tmp_path, text):
    write_json(tmp_path / "a.json", {text: text})
    assert parse_json((tmp_path / "a.json").read_bytes()) == {text: text}


def test_a_file_is_whole_or_as_it_was(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert parse_json((tmp_path / "a.json").read_bytes()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_nobody_else_writes_json():
    """`json.dumps` writes NaN unless it is told not to, so whoever calls it must say what becomes of one."""
    careless = []
    for folder in ("mecap_jax", "scripts", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                call = isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps")
                if call and "allow_nan" not in {keyword.arg for keyword in node.keywords}:
                    careless.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    # A chat template may write what it likes, as in transformers; it goes into a prompt and no file.
    assert [place for place in careless if "template" not in place] == []
