import base64
import gzip
import json

import numpy as np
import pytest

from sae_sweep.report.page.pack import Strings, columns, encoded, shares, smallest, text
from tests.report.page.reading import unpacked


def test_columns_come_back_as_they_were_and_aligned() -> None:
    arrays = {
        "a": np.arange(3, dtype=np.uint8),
        "b": np.array([1.5, np.nan, -2], dtype=np.float32),
        "none": np.zeros(0, dtype=np.uint16),
        "c": np.array([-1, 2**31 - 1], dtype=np.int32),
        "d": np.array([[2**32 - 1, 0]], dtype=np.uint32).ravel(),
    }
    block = columns(arrays, {"of": "ö", "nan": float("nan")})
    header, found = unpacked(block)
    assert header == {"of": "ö", "nan": None}
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
    size = int.from_bytes(block[:4], "little")
    assert (4 + size) % 8 == 0
    assert all(place % 8 == 0 for _, place, _ in json.loads(block[4 : 4 + size])["columns"].values())


def test_text_is_safe_inside_html_and_equal_for_equal_values() -> None:
    value = {"</script>": [float("nan"), np.float32(0.5), np.int64(3), (None, True)], 7: np.arange(2)}
    packed = text(value)
    assert packed == text(value)
    assert set(packed) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    read = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert read == {"</script>": [None, 0.5, 3, [None, True]], "7": [0, 1]}
    assert gzip.decompress(base64.b64decode(encoded(b"\0\xff"))) == b"\0\xff"


@pytest.mark.parametrize(("most", "kind"), [(255, np.uint8), (256, np.uint16), (2**16, np.uint32)])
def test_whole_numbers_take_the_smallest_type(most: int, kind: type) -> None:
    found = smallest(np.array([0, most]))
    assert found.dtype == kind
    assert found.tolist() == [0, most]
    assert smallest(np.zeros(0, dtype=int)).dtype == np.uint8


def test_shares_keep_their_ends_and_nan() -> None:
    assert shares(np.array([0, 1, np.nan, 1.2, -0.1, 0.5])).tolist() == [0, 254, 255, 254, 0, 127]


def test_strings_are_kept_once_in_the_order_in_which_they_came() -> None:
    strings = Strings()
    assert strings.numbers(["", "a", ""]).tolist() == [1, 2, 1]
    assert strings.numbers(["b", "a"]).tolist() == [3, 2]
    assert strings.texts == ["", "", "a", "b"]
