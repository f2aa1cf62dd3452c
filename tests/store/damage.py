"""Damaged files: bytes that were flipped, cut, doubled or lost, and other things in a file's place."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_sweep.config import SaeSweepError

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 10**400, 0.5, 1e308, "", "x", "..", "a/b", "\n", "\ud800", "0"),
    *([], {}, [[]], {"a": 1}, [None], {"": {"": []}}),
)
DOCUMENTS = (
    *("", " ", "{", "[]", "1", "null", '"text"', "{}", '{"a": 1}', '{"state": NaN}', '{"tokens": Infinity}'),
    *('{"tokens": 1e400}', '{"a": 1, "a": 1}', "[" * 100_000, '{"a":' * 20_000, "\x00" * 4096, "\ufeff{}"),
    '{"tokens": ' + "9" * 10_000 + "}",
)
"""Whole files, none of which is a record."""


def damaged_bytes(whole: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """`number` damaged versions of a file's bytes, all different from them."""
    chance = random.Random(seed)
    for _ in range(number):
        at = chance.randrange(len(whole))
        to = min(len(whole), at + chance.choice((1, 2, 10, 512)))
        kind = chance.choice(("bit", "byte", "cut", "lost", "doubled", "zeros", "digit"))
        changed = {
            "bit": whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :],
            "byte": whole[:at] + bytes([chance.randrange(256)]) + whole[at + 1 :],
            "cut": whole[:at],
            "lost": whole[:at] + whole[to:],
            "doubled": whole[:to] + whole[at:to] + whole[to:],
            "zeros": whole[:at] + bytes(to - at) + whole[to:],
            "digit": whole[:at] + chance.choice(b"0123456789").to_bytes(1, "big") + whole[at + 1 :],
        }[kind]
        if changed != whole:
            yield changed


def lost_lines(whole: bytes) -> Iterator[bytes]:
    """Versions of a text without some lines that follow each other: what is left may be well-formed."""
    lines = whole.splitlines(keepends=True)
    for start in range(len(lines)):
        for end in range(start + 1, len(lines) + 1):
            left = b"".join(lines[:start] + lines[end:])
            yield left
            if start and end < len(lines):  # without the comma that the last member must not have
                yield b"".join([*lines[: start - 1], lines[start - 1].replace(b",\n", b"\n"), *lines[end:]])


def changed_values(whole: Any) -> Iterator[Any]:
    """Copies of JSON values in which one value has another value or is missing, or one key is too many."""
    if isinstance(whole, dict):
        for key, value in whole.items():
            rest = {other: kept for other, kept in whole.items() if other != key}
            yield rest
            yield from ({**rest, key: other} for other in (*VALUES, *changed_values(value)))
        yield {**whole, "unknown": 1}
    if isinstance(whole, list):
        for index, value in enumerate(whole):
            for other in (*VALUES, *changed_values(value)):
                yield [*whole[:index], other, *whole[index + 1 :]]
        yield whole * 2


def put_folder(path: Path) -> None:
    path.mkdir()


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def put_circle(path: Path) -> None:
    path.symlink_to(path)


def put_huge_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


IN_ITS_PLACE: tuple[Callable[[Path], None], ...] = (
    put_folder,
    put_pipe,
    put_dangling_link,
    put_circle,
    put_huge_file,
)


def outcome(path: Path, read: Callable[[], Any]) -> Any:
    """What a reader returns, or None if it refuses the file in one line that names it and says what to do."""
    try:
        return read()
    except SaeSweepError as error:
        line = str(error)
        assert line.isprintable(), line
        assert str(path) in line, line
        assert "; " in line, line
        assert len(line) < 2000, line
        return None


def check_reader(path: Path, read: Callable[[], Any], number: int = 300) -> None:
    """Damage a written file in every way: it is read as it was, or refused in one line."""
    whole, right = path.read_bytes(), read()
    assert right is not None
    for changed in (*damaged_bytes(whole, number), *(text.encode() for text in DOCUMENTS)):
        path.write_bytes(changed)
        found = outcome(path, read)
        assert found is None or found == right, changed
    for put in IN_ITS_PLACE:
        path.unlink()
        put(path)
        with pytest.raises(SaeSweepError) as refused:
            read()
        assert str(path) in str(refused.value)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
            path.touch()
    path.unlink()
    path.write_bytes(whole)


def check_without_checksum(path: Path, read: Callable[[], Any]) -> None:
    """Change every value of a file of an earlier version: it is read, or refused in one line."""
    record = json.loads(path.read_text())
    for mark in ("format", "checksum"):
        record.pop(mark, None)
    path.write_text(json.dumps(record))
    assert read() is not None
    for changed in changed_values(record):
        path.write_text(json.dumps(changed))
        outcome(path, read)
