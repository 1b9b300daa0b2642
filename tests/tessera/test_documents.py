"""JSON and YAML that are damaged, huge or hostile: one line, in bounded time, and never a wrong value."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tessera import documents
from tessera.documents import DEPTH, JSON_BYTES, parse_json, parse_yaml, read_bytes, read_json, read_yaml
from tessera.errors import UserError

BOMB = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 40))


def message(reader: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        reader(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parameters_that_tests_write_are_read_as_they_were_written(raw_params, a_text_is_read_once):
    assert a_text_is_read_once(json.dumps(raw_params)) == raw_params


def test_values_come_back(tmp_path):
    value = {"a": [1, 2.5, None, True, "ä"], "b": {"c": -1e-300}}
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == value
    (tmp_path / "a.yaml").write_text("rate: 3e-4\nbase: &b {x: no, y: 1.e-3}\nmore: {<<: *b, z: [0x10, ~]}\n", "utf-8")
    base = {"x": "no", "y": 1e-3}
    assert read_yaml(tmp_path / "a.yaml") == {"rate": 3e-4, "base": base, "more": {"z": [16, None], **base}}


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert parse_json(b"\xef\xbb\xbf[1]", "file") == [1]
    assert parse_yaml(b"\xef\xbb\xbfa: 1", "file") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"a": 1', "line 1"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "the key 'a' occurs twice"),
        ("[NaN]", "only finite numbers"),
        ('{"a": [-Infinity]}', "only finite numbers"),
        ("1e999", ": NaN or an infinite number; only finite numbers"),
        ('{"a": {"b": [0, NaN]}, "c": NaN}', "a.b.1: NaN"),
        ("9" * 5000, "digits"),
        ('{"a": ["\\ud800"]}', "half a surrogate pair"),
        ('{"\\udfff": 1}', "half a surrogate pair"),
        ("[" * 10**6, "nested too deeply"),
        ('{"a":' * 10**5, "nested too deeply"),
        ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), f"nested more than {DEPTH} levels deep"),
    ],
)
def test_what_is_no_plain_json_is_one_line_with_the_reason_and_the_advice(text, reason):
    said = message(parse_json, text.encode(), "config.json", "train again")
    assert said.startswith("config.json: not valid JSON: ") and reason in said and said.endswith("; train again")


def test_infinite_numbers_may_be_allowed():
    assert parse_json(b"[Infinity, -Infinity]", "state.json", finite=False) == [float("inf"), float("-inf")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "line 1"),
        ("a: 1\nb:\n  c: 2\n  c: 3\n", "duplicate key"),
        ("a: .nan", "only finite numbers"),
        ("a: {b: [1, {c: -.inf}]}", "a.b.1.c: NaN or an infinite number; only finite numbers are allowed"),
        ("[" * 10**5, f"nested more than {DEPTH} levels deep"),
        ("- " * 10**4, f"nested more than {DEPTH} levels deep"),
        ("? " * 10**4, f"nested more than {DEPTH} levels deep"),
        (BOMB, "with aliases expanded"),
        (MERGES, "with aliases expanded"),
        ("&a [*a]", "stands inside the value"),
        ("a: *b", "undefined alias"),
        ("--- 1\n--- 2", "another document"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !!bool x", "KeyError"),
        ("a: !!int x", "invalid literal"),
        ("a: \x00", "not allowed"),
        ("a: " + "9" * 5000, "digits"),
    ],
)
def test_what_is_no_plain_yaml_is_one_line_with_the_reason_and_the_advice(text, reason):
    said = message(parse_yaml, text, "params.yaml", "mend it")
    assert said.startswith("params.yaml: not valid YAML: ") and reason in said and said.endswith("; mend it")


@pytest.mark.parametrize("bomb", [BOMB, MERGES])
def test_an_alias_bomb_is_answered_at_once(bomb):
    parse_yaml("a: 1", "warm")  # the library is imported on first use
    began = time.process_time()
    message(parse_yaml, bomb, "params.yaml")
    assert time.process_time() - began < 1


def test_aliases_are_allowed_while_they_expand_to_few_values():
    text = "shared: &s [1, 2, 3]\n" + "".join(f"k{i}: *s\n" for i in range(100))
    assert parse_yaml(text, "params.yaml")["k99"] == [1, 2, 3]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_another_encoding_is_named(parse, encoding):
    said = message(parse, '{"a": "é"}'.encode(encoding), "params.yaml")
    assert said.startswith("params.yaml: not UTF-8 text (byte ") and "save it as UTF-8" in said


@pytest.mark.parametrize("reader", [read_json, read_yaml])
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, reader, monkeypatch):
    monkeypatch.setattr(documents, "JSON_BYTES", 10)
    monkeypatch.setattr(documents, "YAML_BYTES", 10)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"[1, 2, 3, 4]")
    (tmp_path / "secret").write_bytes(b"1")
    places = {
        tmp_path / "gone": "no such file",
        tmp_path: "directory",
        tmp_path / "pipe": "not a regular file",
        Path("/dev/zero"): "not a regular file",
        tmp_path / "large": "larger than 10 bytes",
        tmp_path / "secret" / "below": "cannot be read",
    }
    for path, reason in places.items():
        said = message(reader, path)
        assert str(path) in said and reason in said and "restore it" in said


def test_a_sparse_file_is_refused_without_being_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    began = time.process_time()
    assert "larger than" in message(read_bytes, tmp_path / "sparse", JSON_BYTES)
    assert time.process_time() - began < 1


def test_random_damage_gives_a_value_or_one_line(repository):
    """The YAML library itself raises many types; whatever the damage, none of them comes through."""
    source, chance = (repository / "params.yaml").read_bytes()[:1500], random.Random(0)
    pieces = [b"!!omap ", b"!!set ", b"!!pairs ", b"!!binary ", b"!!timestamp ", b"&a ", b"*a ", b"<<: ", b"? ", b"- "]
    pieces += [
        b"| ",
        b"> ",
        b"%YAML 1.1\n",
        b"---\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\t",
        b"!!int ",
        b"!!float ",
        b"!!null ",
    ]
    refused = 0
    for _ in range(150):
        text = bytearray(source)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(text))
            text[place : place + chance.randint(0, 1)] = chance.choice([bytes([chance.randrange(256)]), *pieces])
        try:
            parse_yaml(bytes(text), "params.yaml")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def test_a_key_that_is_there_twice_among_very_many_is_found_in_one_pass() -> None:
    text = "{" + ", ".join(f'"{number}": 1' for number in [*range(100_000), 99_999]) + "}"  # squared, it took a minute
    with pytest.raises(UserError, match="the key '99999' occurs twice"):
        parse_json(text.encode(), "file")
