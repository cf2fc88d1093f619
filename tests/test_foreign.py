"""Files that others wrote: whatever is in them, a value or two lines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from ssl_vit.errors import UserError
from ssl_vit.foreign import (
    Count,
    Document,
    Seconds,
    checked,
    json_lines,
    parse_json,
    parse_yaml,
    read_json,
    read_yaml,
    typed_lines,
)


class Inner(Document):
    size: Count


class Outer(Document):
    name: str
    parts: Annotated[list[Inner], Field(default=[], max_length=3)]


@dataclass(frozen=True)
class Event:
    kind: str
    time: Seconds
    step: Count = 0


def problem_of(caught: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in caught.value.problem + caught.value.remedy
    return caught.value.problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "EOF"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": 1} x', "trailing"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}", "recursion"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number out of range"),
        (b'{"a": "\\ud800"}', "hex escape"),
        (b'{"a": NaN}', "not valid JSON"),
    ],
)
def test_json_that_is_damaged_or_hostile_is_named(content: bytes, problem: str, tmp_path: Path):
    with pytest.raises(UserError, match=problem) as caught:
        parse_json(content, "SET/index.json", "make it again")
    assert problem_of(caught).startswith("SET/index.json is not ")
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_json(file, "make it again")


def test_a_file_that_cannot_be_read_or_is_too_large_is_named(tmp_path: Path):
    for path in (tmp_path / "missing", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(UserError, match="cannot read"):
            read_json(path, "restore it")
    file = tmp_path / "x.json"
    with file.open("wb") as opened:
        opened.truncate(2**40)  # sparse
    with pytest.raises(UserError, match="larger than 16 MiB"):
        read_json(file, "restore it")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "S has no name"),
        ({"name": 1}, "S: name=1: "),
        ({"name": "x", "parts": [{"size": 1}, {"size": -1}]}, r"S: parts\[1\]\.size=-1: "),
        ({"name": "x", "parts": [{"size": float("inf")}]}, r"S: parts\[0\]\.size=inf: "),
        ({"name": "x", "parts": [{"size": 10**30}]}, r"size=10{20,}: "),
        ({"name": "x", "parts": [{"size": True}]}, r"size=True: "),
        ({"name": "x", "parts": [{}]}, r"S has no parts\[0\]\.size"),
        ({"name": ["y" * 1000]}, "S: name=.{20,70}…: "),
    ],
)
def test_values_of_the_wrong_kind_are_named_with_their_place(values: dict, problem: str):
    with pytest.raises(UserError, match=problem) as caught:
        checked(Outer, values, "S", "make it again")
    assert len(problem_of(caught)) < 200


def test_what_nobody_reads_is_ignored():
    found = checked(Outer, {"name": "x", "parts": [{"size": 2, "new": 1}], "later": []}, "S", "")
    assert found == Outer(name="x", parts=[Inner(size=2)])


def test_damaged_lines_are_left_out():
    lines = ['{"kind": "a", "time": 1}', '{"kind": "b"', "[]", '{"kind": "c", "time": 2.5}', ""]
    assert [values["kind"] for values in json_lines(lines)] == ["a", "c"]
    worse = ['{"kind": 1, "time": 1}', '{"kind": "d", "time": 1e999}', '{"kind": "e", "time": -1}']
    assert list(typed_lines(Event, [*lines, *worse])) == [Event("a", 1.0), Event("c", 2.5)]


def test_yaml_becomes_what_json_knows():
    text = (
        "date: 2026-11-29\ntime: 1:30\nmode: 0640\nrate: 1e-3\ncount: 1_000\nhex: 0x1F\n"
        "yes: no\nnothing:\n7: seven\nhalf: .5\nshared: &x {a: 1}\nmerged:\n  <<: *x\n  b: 2\n"
    )
    assert parse_yaml(text, "P") == {
        "date": "2026-11-29",
        "time": "1:30",
        "mode": "0640",
        "rate": 0.001,
        "count": 1000,
        "hex": 31,
        "yes": False,
        "nothing": None,
        "7": "seven",
        "half": 0.5,
        "shared": {"a": 1},
        "merged": {"a": 1, "b": 2},
    }
    assert parse_yaml("# nothing\n", "P") == {}


LAUGHS = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "not a YAML mapping"),
        ("text", "not a YAML mapping"),
        ("a: [", "not readable as YAML"),
        ("a: " + "[" * 5000, "more than 32 levels"),
        ("a: " + "{a: " * 5000, "more than 32 levels"),
        (LAUGHS, "more than 10,000 values"),
        ("- a\n" * 20_000, "more than 10,000 values"),
        ("a: &x [*x]", "refers to itself"),
        ("a: *x", "undefined alias"),
        ("a: !!set {b}", "constructor for the tag"),
        ("a: !!python/object/apply:os.system [x]", "constructor for the tag"),
        ("? [1]\n: 2", "a key is not a string"),
        ("a: 1\na: 2", "duplicate key a"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: !!bool maybe", "not readable as YAML"),
        ('a: !!float ""', "not readable as YAML"),
        ("a: \0", "special characters"),
    ],
)
def test_yaml_that_is_damaged_or_hostile_is_named(text: str, problem: str, tmp_path: Path):
    file = tmp_path / "profile.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=problem) as caught:
        read_yaml(file)
    assert problem_of(caught).startswith(str(file))


def test_yaml_in_another_encoding_is_named(tmp_path: Path):
    file = tmp_path / "profile.yaml"
    file.write_bytes("name: Übung".encode("latin-1"))
    with pytest.raises(UserError, match="not text in UTF-8"):
        read_yaml(file)
    file.write_bytes("\ufeffname: Übung".encode())
    assert read_yaml(file) == {"name": "Übung"}


def test_an_error_is_two_lines_whatever_it_names():
    error = UserError("a\nb\x1b[31m \udcff é " + "x" * 5000, "do\tthis")
    problem, remedy = error.two_lines.splitlines()
    assert problem.startswith("error: a\\nb\\x1b[31m \\udcff é xxx")
    assert len(problem) < 1100
    assert remedy == "fix:   do\\tthis"


def test_a_long_number_in_hexadecimal_is_a_text():
    assert parse_yaml("a: 0x" + "f" * 6000, "S")["a"] == "0x" + "f" * 6000
    assert parse_yaml("a: 0xff", "S")["a"] == 255
