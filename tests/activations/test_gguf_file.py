"""The header of a .gguf file is walked with every count checked, before its reader believes one."""

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from sae_sweep.activations.gguf_file import check_gguf

NOT_A_BLOCK = ("token_embd.weight", "output.weight")
BROKEN = r"cut, or its header is damaged|its header is damaged|no GGUF file|its block_count is"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A header as llama.cpp writes it, with two blocks of tiny tensors."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_types([1, 1, 3])
    writer.add_array("tokenizer.flags", [True, False, True])
    for name in (*NOT_A_BLOCK, "blk.0.attn_q.weight", "blk.1.attn_q.weight"):
        writer.add_tensor(name, np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def behind(whole: bytes, key: bytes) -> int:
    return whole.index(key) + len(key)


def test_a_whole_file_passes(file: Path) -> None:
    check_gguf(file)


def test_a_cut_in_the_header_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(behind(whole, b"blk.1.attn_q.weight")):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=BROKEN):
            check_gguf(file)


@pytest.mark.parametrize("count", [0, 1, 3, 10**9])
def test_a_number_of_blocks_that_the_file_does_not_have_is_refused(file: Path, count: int) -> None:
    whole = file.read_bytes()
    place = behind(whole, b"llama.block_count") + 4
    file.write_bytes(whole[:place] + struct.pack("<I", count) + whole[place + 4 :])
    with pytest.raises(ValueError, match=f"its block_count is {count}, and it has 2 blocks"):
        check_gguf(file)


@pytest.mark.parametrize("key", [b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type", b"tokenizer.flags"])
@pytest.mark.parametrize("count", [2**40, 2**63, 2**64 - 1])
def test_an_absurd_length_is_refused_at_once(file: Path, key: bytes, count: int) -> None:
    whole = file.read_bytes()
    place = behind(whole, key) + 8
    file.write_bytes(whole[:place] + struct.pack("<Q", count) + whole[place + 8 :])
    began = time.monotonic()
    with pytest.raises(ValueError, match=BROKEN):
        check_gguf(file)
    assert time.monotonic() - began < 30


def test_any_flipped_bit_of_the_header_ends_soon(file: Path) -> None:
    whole = file.read_bytes()
    for place in range(behind(whole, b"blk.1.attn_q.weight")):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            check_gguf(file)
        except ValueError as error:
            problem = str(error)
        else:
            problem = ""  # a letter of a text, or a value of another kind
        assert "\n" not in problem


def test_arrays_inside_arrays_have_an_end(file: Path) -> None:
    nested = struct.pack("<IQ", 9, 1) * 100_000
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    file.write_bytes(header + nested)
    with pytest.raises(ValueError, match="its header is damaged"):
        check_gguf(file)
