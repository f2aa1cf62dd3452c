"""JSON records: a checksum that is verified, and one line for every damage."""

import errno
import json
import os
from pathlib import Path

import pytest

from sae_sweep.config import SaeSweepError
from sae_sweep.store import read_json, read_record, write_record
from tests.store.damage import DOCUMENTS, IN_ITS_PLACE, check_reader

RECORD = {"name": "ä", "number": 17, "ratio": 0.1, "list": [1, 2], "nested": {"10": 1, "9": None}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_record(tmp_path / "record.json", RECORD)
    return tmp_path / "record.json"


def test_a_record_comes_back_without_its_checksum(file: Path) -> None:
    assert read_record(file, "remove it") == RECORD
    assert list(json.loads(file.read_text()))[-1] == "checksum"


def test_keys_that_are_numbers_come_back_as_text(tmp_path: Path) -> None:
    write_record(tmp_path / "x.json", {"layers": {10: 1, 9: 2}})
    assert read_record(tmp_path / "x.json", "") == {"layers": {"10": 1, "9": 2}}


def test_a_record_of_an_earlier_version_has_no_checksum(file: Path) -> None:
    file.write_text(json.dumps(RECORD))
    assert read_record(file, "remove it") == RECORD


def test_another_digit_is_refused_with_the_remedy(file: Path) -> None:
    file.write_text(file.read_text().replace("17", "18"))
    with pytest.raises(SaeSweepError, match=r"cannot read .*record\.json: its content .*; remove it"):
        read_record(file, "remove it")


def test_no_damage_is_believed(file: Path) -> None:
    def read() -> object:
        record = read_record(file, "remove it")
        return record if record.keys() == RECORD.keys() else None

    check_reader(file, read)


@pytest.mark.parametrize("text", DOCUMENTS)
def test_what_is_no_record_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "record.json"
    file.write_text(text)
    for read in (lambda: read_record(file, "remove it")["name"], lambda: read_json(file)["name"]):
        with pytest.raises((SaeSweepError, KeyError, TypeError)) as refused:
            read()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_nobody_is_told_to_remove_a_file_that_may_be_whole(
    file: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(SaeSweepError) as refused:
            read_record(file, "remove it")
    said = "make it readable, then the same command goes on"
    assert str(refused.value) == f"cannot read {file}: {os.strerror(number)}; {said}"


@pytest.mark.parametrize("put", IN_ITS_PLACE)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, put) -> None:  # type: ignore[no-untyped-def]
    put(tmp_path / "record.json")
    with pytest.raises(SaeSweepError, match=r"cannot read .*record\.json: .*; remove it"):
        read_record(tmp_path / "record.json", "remove it")
