"""Damage to files: of bytes, and of what JSON says."""

import copy
import json

DEEP = 0
for _ in range(900):  # deep, yet JSON can be written of it
    DEEP = [DEEP]
# What a damaged or hostile file may say in place of a value.
VALUES = [
    *(None, True, False, 0, -1, 1, 3, 7, 1.5, 2**31, 2**32 - 1, 2**63, 2**64, 10**400),
    *(float("nan"), float("inf"), 1e-300, "", "x", "../../x", "0", "\0", "ğ", "9" * 5000),
    *([], {}, [[]], ["x"], [None], {"x": 1}, {"content": 1}, [1] * 100, DEEP),
]
NAMES = ["x", "", "__class__", "__reduce__", "auto_map", "model", "type", "content"]


def mutated_bytes(rng, content: bytes) -> bytes:
    """The bytes with one damage: bits flipped, or a part cut off, taken out or overwritten."""
    start, stop = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    stop = min(stop, start + 64)
    noise = rng.integers(0, 256, max(1, stop - start), dtype="uint8").tobytes()
    flipped = bytearray(content)
    for place in rng.integers(0, len(content), rng.integers(1, 4)):
        flipped[place] ^= 1 << int(rng.integers(8))
    return [
        bytes(flipped),
        content[:start],
        content[:start] + content[stop:],
        content[:stop] + content[start:],
        content[:start] + noise + content[stop:],
        content[:start] + b"\0" * len(noise) + content[stop:],
        content + noise,
    ][rng.integers(7)]


def mutated_json(rng, content: bytes) -> bytes:
    """The JSON with one value replaced, removed, added or exchanged for another one."""
    value = json.loads(content)
    places = [((), None), *walk(value)]
    holder, key = places[rng.integers(len(places))]
    other = copy.copy(VALUES[rng.integers(len(VALUES))])
    if key is None:
        value = [other, {"x": value}, [value]][rng.integers(3)]
    elif (kind := rng.integers(6)) < 3:
        holder[key] = other
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, dict):
        holder[NAMES[rng.integers(len(NAMES))]] = holder[key]
    else:
        second_holder, second = places[rng.integers(1, len(places))]
        holder[key] = copy.deepcopy(second_holder[second])
    return json.dumps(value).encode()


def walk(value):
    """Every place in a JSON value: what holds it, and by which key or number."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield value, key
        yield from walk(value[key])
