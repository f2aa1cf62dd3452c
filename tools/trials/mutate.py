"""Ways to damage a file; each returns what it did, or None where it does not apply."""

import json
import os
import re
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from random import Random

Mutation = Callable[[Path, Random], str | None]

_DEEP = 100_000


def flip_bit(path: Path, random: Random) -> str | None:
    whole = bytearray(path.read_bytes())
    if not whole:
        return None
    at, bit = random.randrange(len(whole)), random.randrange(8)
    whole[at] ^= 1 << bit
    return _replace(path, bytes(whole), f"bit {bit} of byte {at} flipped")


def flip_digit(path: Path, random: Random) -> str | None:
    whole = path.read_bytes()
    places = [match.start() for match in re.finditer(rb"[0-9]", whole)]
    if not places:
        return None
    at = random.choice(places)
    digit = random.choice([d for d in b"0123456789" if d != whole[at]])
    return _replace(path, whole[:at] + bytes([digit]) + whole[at + 1 :], f"digit at {at} is {chr(digit)}")


def cut(path: Path, random: Random) -> str | None:
    whole = path.read_bytes()
    if not whole:
        return None
    length = random.randrange(len(whole))
    return _replace(path, whole[:length], f"cut to {length} of {len(whole)} bytes")


def empty(path: Path, random: Random) -> str | None:
    return _replace(path, b"", "emptied")


def delete(path: Path, random: Random) -> str | None:
    path.unlink()
    return "deleted"


def overwrite(path: Path, random: Random) -> str | None:
    whole = path.read_bytes()
    at, length = random.randrange(len(whole) + 1), random.choice((1, 4, 16, 200, 4096))
    return _replace(
        path, whole[:at] + random.randbytes(length) + whole[at + length :], f"{length} random bytes at {at}"
    )


def insert(path: Path, random: Random) -> str | None:
    whole = path.read_bytes()
    at, more = random.randrange(len(whole) + 1), random.randbytes(random.choice((1, 3, 8, 4096)))
    return _replace(path, whole[:at] + more + whole[at:], f"{len(more)} random bytes inserted at {at}")


def zeros(path: Path, random: Random) -> str | None:
    """What a file system may leave after a crash: the length is right, the content is not."""
    return _replace(path, bytes(path.stat().st_size), "zeros only")


def not_text(path: Path, random: Random) -> str | None:
    return _replace(path, random.randbytes(200), "200 random bytes")


def folder_in_place(path: Path, random: Random) -> str | None:
    path.unlink()
    path.mkdir()
    return "a folder in its place"


def fifo_in_place(path: Path, random: Random) -> str | None:
    path.unlink()
    os.mkfifo(path)
    return "a FIFO in its place"


def dangling_link(path: Path, random: Random) -> str | None:
    path.unlink()
    path.symlink_to(path.with_name(f"nowhere{path.suffix}"))
    return "a dangling link in its place"


def looping_link(path: Path, random: Random) -> str | None:
    path.unlink()
    path.symlink_to(path.name)
    return "a link to itself in its place"


def swap(path: Path, random: Random) -> str | None:
    """Exchange it with another run's file of the same name."""
    run = next((parent for parent in path.parents if parent.parent.name == "s"), None)
    if run is None:
        return None
    within = path.relative_to(run)
    others = [other / within for other in sorted(run.parent.iterdir()) if other != run]
    others = [other for other in others if other.is_file()]
    if not others:
        return None
    other = random.choice(others)
    shutil.copy2(other, path)
    return f"replaced by that of {other.relative_to(run.parent).parts[0]}"


def sibling(path: Path, random: Random) -> str | None:
    """Replace it by another file of its folder."""
    others = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other != path]
    if not others:
        return None
    other = random.choice(others)
    return _replace(path, other.read_bytes(), f"replaced by {other.name}")


_VALUES = (
    *(
        "null",
        "true",
        "-1",
        "0",
        "1e400",
        "-1e400",
        "NaN",
        "1e23",
        "18446744073709551616",
        "0.5",
        '""',
        '"x"',
    ),
    *("[]", "{}", "[1]", '{"a": 1}', '"\\u0000\\u001b[31m"', '"../../x"', '"' + "a" * 5_000 + '"'),
)


def json_value(path: Path, random: Random) -> str | None:
    """Give a key another value."""
    return _edit(path, random, lambda random, value: random.choice(_VALUES))


def json_deep(path: Path, random: Random) -> str | None:
    return _edit(path, random, lambda random, value: "[" * _DEEP + "]" * _DEEP)


def json_duplicate(path: Path, random: Random) -> str | None:
    """Write a key twice, with two values."""
    return _edit(path, random, lambda random, value: f'{value}, "KEY": {random.choice(_VALUES)}')


def json_number(path: Path, random: Random) -> str | None:
    """Change a number by a little, so that no schema tells."""

    def other(random: Random, value: str) -> str | None:
        try:
            number = json.loads(value)
        except ValueError:
            return None
        if isinstance(number, bool) or not isinstance(number, int | float):
            return None
        return repr(
            number + random.choice((1, -1)) * (1 if isinstance(number, int) else abs(number) / 4 + 0.1)
        )

    return _edit(path, random, other)


def json_drop(path: Path, random: Random) -> str | None:
    """Remove a key."""
    return _edit(path, random, lambda random, value: "DROP")


def yaml_laughs(path: Path, random: Random) -> str | None:
    """Expand to 10^12 items."""
    if path.suffix != ".yaml":
        return None
    lines = [f"a0: &a0 [{', '.join(['x'] * 10)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return _replace(path, path.read_bytes() + "\n".join(lines).encode(), "a billion laughs appended")


def yaml_value(path: Path, random: Random) -> str | None:
    """Give a key of a YAML file another value."""
    if path.suffix != ".yaml":
        return None
    lines = path.read_text().splitlines()
    at = random.choice([n for n, line in enumerate(lines) if re.search(r": \S", line)])
    key = lines[at].partition(": ")[0]
    value = random.choice(
        (*_VALUES, ".nan", ".inf", "!!python/object/apply:os.getcwd []", "${oc.env:HOME}", "&a *a")
    )
    lines[at] = f"{key}: {value}"
    return _replace(path, "\n".join(lines).encode() + b"\n", f"{key.strip()}: {value[:40]}")


def forge_header(path: Path, random: Random) -> str | None:
    """Change a dtype, a shape or an offset in the header of a safetensors file."""
    if path.suffix != ".safetensors":
        return None
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    entry = header[random.choice([name for name in header if name != "__metadata__"])]
    change = random.choice(("dtype", "shape", "offsets", "drop", "metadata"))
    if change == "dtype":
        entry["dtype"] = random.choice(
            [d for d in ("F32", "I32", "U32", "F64", "BF16") if d != entry["dtype"]]
        )
    elif change == "shape":
        entry["shape"] = random.choice(([*entry["shape"], 1], entry["shape"][::-1], [-1], [2**63]))
    elif change == "offsets":
        entry["data_offsets"] = random.choice(([0, 0], [0, 2**60], [4, 2], None))
    elif change == "drop":
        header = {name: value for name, value in header.items() if value is not entry}
    else:
        header["__metadata__"] = {"progress": "{}"}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return _replace(
        path, len(text).to_bytes(8, "little") + text + whole[8 + length :], f"header: {change} forged"
    )


ANY_FILE: tuple[Mutation, ...] = (
    *(flip_bit, flip_digit, cut, empty, delete, overwrite, insert, zeros, not_text),
    *(folder_in_place, fifo_in_place, dangling_link, looping_link, swap, sibling),
)
TEXT_FILE: tuple[Mutation, ...] = (
    *(json_value, json_value, json_value, json_deep, json_duplicate, json_number, json_number, json_drop),
    *(yaml_laughs, yaml_value, yaml_value, yaml_value),
)


def mutate(path: Path, random: Random) -> str:
    """Damage a file in a way that applies to it."""
    choices = [*ANY_FILE, forge_header]
    if path.suffix in (".json", ".jsonl", ".yaml"):
        choices += TEXT_FILE
    while True:
        mutation = random.choice(choices)
        done = mutation(path, random)
        if done is not None:
            return f"{mutation.__name__}: {done}"


_PAIR = re.compile(r'"(?P<key>[\w./-]+)": (?P<value>"[^"]*"|[^\s,{}\[\]]+)')


def _edit(path: Path, random: Random, change: Callable[[Random, str], str | None]) -> str | None:
    """Replace the value of a random key of a JSON file, as text."""
    if path.suffix not in (".json", ".jsonl"):
        return None
    text = path.read_text()
    found = list(_PAIR.finditer(text))
    if not found:
        return None
    pair = random.choice(found)
    value = change(random, pair["value"])
    if value is None:
        return None
    if value == "DROP":
        end = re.match(r",?\s*", text[pair.end() :])
        text = text[: pair.start()] + text[pair.end() + (end.end() if end else 0) :]
    else:
        text = text[: pair.start("value")] + value.replace("KEY", pair["key"]) + text[pair.end("value") :]
    shown = "".join(c if c in string.printable else "?" for c in value[:40])
    return _replace(path, text.encode(), f"{pair['key']} at {pair.start()}: {pair['value'][:30]} -> {shown}")


def _replace(path: Path, content: bytes, did: str) -> str:
    """Write a new file under the name, so that other links to the old one keep theirs."""
    path.unlink()
    path.write_bytes(content)
    return did
