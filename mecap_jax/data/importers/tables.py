"""Tables as people have them: JSON Lines, CSV and TSV in any encoding, with empty lines and fields of any length."""

from __future__ import annotations

import csv
import functools
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mecap_jax.data.importers.files import ImporterError
from mecap_jax.json_files import parse_json
from mecap_jax.text_files import find_encoding, printable, split_lines

SUFFIXES = (".jsonl", ".csv", ".tsv")
_DELIMITERS = ",;\t"


def read_table(path: Path) -> list[tuple[int, dict[str, Any] | ValueError]]:
    """Returns (line number, row) for every line that is not empty, a row being what its columns hold by name.

    A row that cannot be read, among others that can, is the error that says why. Cells of CSV (comma or semicolon) and
    TSV are text, empty ones are absent.

    Raises:
      ImporterError: the file cannot be read, or is no table at all; names the line.
    """
    text = _read_text(path)
    rows = _json_lines(text) if path.suffix.lower() == ".jsonl" else _delimited(text, path)
    if not rows:
        raise ImporterError(f"{path} is empty")
    if all(isinstance(row, ValueError) for _, row in rows):
        kind = "JSON Lines" if path.suffix.lower() == ".jsonl" else "a table"
        raise ImporterError(f"{path} is not {kind}: line {rows[0][0]}: {rows[0][1]}")
    return rows


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Returns the first two columns of a CSV or TSV file, of every line that is not empty.

    Raises:
      ImporterError: the file cannot be read, or a line has one column; names the line.
    """
    lines = list(_cells(_read_text(path)))
    for number, cells in lines:
        if isinstance(cells, ValueError) or len(cells) < 2:
            raise ImporterError(f"{path}, line {number}: expected two columns")
    return [(cells[0], cells[1]) for _, cells in lines]


def _json_lines(text: str) -> list[tuple[int, dict[str, Any] | ValueError]]:
    rows: list[tuple[int, dict[str, Any] | ValueError]] = []
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, got {row!r:.80}")
            rows.append((number, row))
        except ValueError as error:
            rows.append((number, error))
    return rows


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImporterError(f"{path} cannot be read: {error.strerror}") from error
    if (encoding := find_encoding(data)) in ("cp1252", "latin-1"):
        _say_once(f"{path} is not UTF-8: read as Latin-1 ({encoding}); save it as UTF-8 if that is wrong")
    return data.decode(encoding)


@functools.cache
def _say_once(message: str) -> None:
    print(printable(message), file=sys.stderr)


def _delimited(text: str, path: Path) -> list[tuple[int, dict[str, Any] | ValueError]]:
    header: list[str] | None = None
    rows: list[tuple[int, dict[str, Any] | ValueError]] = []
    for number, cells in _cells(text):
        if isinstance(cells, ValueError):
            rows.append((number, cells))
        elif header is None:
            header = _checked_header(cells, path, number)
        elif len(cells) < len(header) or any(cells[len(header) :]):
            rows.append((number, ValueError(f"{len(cells)} columns, expected {len(header)}")))
        else:
            rows.append((number, {name: cell for name, cell in zip(header, cells) if name and cell}))
    return rows


def _cells(text: str) -> Iterator[tuple[int, list[str] | ValueError]]:
    """Yields (line number, cells) of CSV or TSV; the delimiter is the one that the first line has most of."""
    first = next((line for line in split_lines(text) if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=first.count))
    limit = csv.field_size_limit(len(text) + 1)  # the text is in memory already; the default refuses 128 KiB
    number = 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        yield number, ValueError(f"not CSV: {error}")
    finally:
        csv.field_size_limit(limit)


def _checked_header(cells: list[str], path: Path, line: int) -> list[str]:
    named = [cell for cell in cells if cell]
    twice = sorted({cell for cell in named if named.count(cell) > 1})
    if twice:
        raise ImporterError(f"{path}, line {line}: column {printable(twice[0])!r} occurs twice")
    return cells
