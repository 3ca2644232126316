"""Structure-aware mutators: each returns damaged or hostile bytes of a valid file.

A random state gives the same bytes.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from factories.mutants import CSV, IMAGE

Mutator = Callable[[random.Random, bytes], bytes]
"""Mutator(random state, valid bytes) -> bytes."""
DEEP = 500
RAW = {
    "@deep": "[" * DEEP + "]" * DEEP,
    "@objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "@open": "[" * 20_000,
    "@digits": "9" * 5000,
    "@many": "-" + "7" * 4000,
    "@huge": "1e400",
    "@nan": "NaN",
    "@inf": "-Infinity",
    "@half": r'"\ud800"',
    "@halfkey": r'{"\udfff": 1}',
    "@twice": '{"a": 1, "a": 2}',
    "@tiny": "5e-324",
    "@nul": r'"\u0000"',
}
"""Placeholder of a JSON text -> what is written in its place."""
PLAIN: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**39, 1e308, -1e-308, 0.5, "", " ", "a", "NaN", "\n",
    "\u202e", "../../x", "x" * 100_000, [], {}, [[]], {"": None}, [0] * 1000, "2020-02-31", "\u00e9", "0",
]  # fmt: skip
"""Values that are put into a JSON document."""
WORDS = [
    b"", b"-1", b"0", b"1e400", b"nan", b"9" * 5000, b"%n%s" * 20, b"A" * 1024, b"A" * 200_000, b"\xff\xfe", b"\0",
    b"'", b'"', b"[" * 600, b"{a: " * 600, b"..", b"/etc/passwd", b"LIST", b"LOCAL", b"\xed\xa0\x80", b"-inf",
    b"0x" + b"f" * 2000, b"&a", b"*a", b"!!python/name:os.system", b"!!binary aGk=", b"2020-02-31", b"\t", b"\r",
    b"=1+1",     b"1:1:1:1", b"<<", b"? ", b"- - - -", b"~", b"\xe2\x80\xae", b"#", b"99999 99999 99999", b"2147483648",
    b"-2147483649",
]  # fmt: skip
"""Hostile words of text formats."""


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key in value:
            found += _paths(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 50)):
            found += _paths(value[i], (*path, i))
    return found


def _edit(rng: random.Random, document: Any) -> Any:
    """Replace, remove, rename, wrap or exchange one value of a document."""
    paths = [p for p in _paths(document) if p]
    if not paths:
        return copy.deepcopy(rng.choice([*PLAIN, *RAW]))
    *way, last = rng.choice(paths)
    node = document
    for step in way:
        node = node[step]
    action = rng.choice(["put", "put", "put", "raw", "raw", "drop", "rename", "wrap", "swap", "twin"])
    if action == "put":
        node[last] = copy.deepcopy(rng.choice(PLAIN))  # a later edit changes it
    elif action == "raw":
        node[last] = rng.choice(list(RAW))
    elif action == "drop":
        del node[last]
    elif action == "rename" and isinstance(node, dict):
        node[rng.choice(["", "x", "@half", str(last).upper(), "schema", "é"])] = node.pop(last)
    elif action == "wrap":
        node[last] = rng.choice([[node[last]], {"value": node[last]}, str(node[last])])
    elif action == "swap":
        source = document
        for step in rng.choice(paths):
            source = source[step]
        node[last] = json.loads(json.dumps(source))
    elif isinstance(node, list):
        node *= rng.choice([0, 2, 100])
    return document


def _dump(document: Any) -> bytes:
    text = json.dumps(document, ensure_ascii=False)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode("utf-8", "surrogatepass")


def json_document(rng: random.Random, data: bytes) -> bytes:
    """Edit the values of a JSON document, or its bytes."""
    if rng.random() < 0.2:
        return any_bytes(rng, data)
    document = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        document = _edit(rng, document)
    return _dump(document)


def json_lines(rng: random.Random, data: bytes) -> bytes:
    """Edit one line of a journal, or exchange, repeat or cut lines."""
    lines = data.split(b"\n")
    at = rng.randrange(max(1, len(lines) - 1))
    action = rng.choice(["edit", "edit", "drop", "repeat", "exchange", "cut", "bytes"])
    if action == "edit" and lines[at].strip():
        lines[at] = json_document(rng, lines[at]).replace(b"\n", b" ")
    elif action == "drop":
        del lines[at]
    elif action == "repeat":
        lines[at:at] = [lines[at]] * rng.choice([1, 2, 2000])
    elif action == "exchange":
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif action == "cut":
        return data[: rng.randrange(len(data))]
    else:
        return any_bytes(rng, data)
    return b"\n".join(lines)


def any_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat or exchange bytes."""
    raw = bytearray(data)
    action = rng.choice(["flip", "flip", "cut", "insert", "run", "swap", "empty", "repeat"])
    if action == "empty" or not raw:
        return rng.choice([b"", b"\0" * 64, b"\xff" * 16, b"null", b"[]", b"\n" * 100])
    at = rng.randrange(rng.choice([min(len(raw), 64), min(len(raw), 2000), len(raw)]))
    if action == "flip":
        for _ in range(rng.randint(1, 6)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif action == "cut":
        del raw[at : at + rng.choice([1, 2, 50, len(raw)])]
    elif action == "insert":
        raw[at:at] = rng.choice(WORDS)
    elif action == "run":
        size = rng.choice([1, 2, 4, 8, 40])
        raw[at : at + size] = bytes([rng.choice([0, 1, 127, 128, 255])]) * len(raw[at : at + size])
    elif action == "swap":
        other, size = rng.randrange(len(raw)), rng.choice([1, 4, 30])
        raw[at : at + size], raw[other : other + size] = raw[other : other + size], raw[at : at + size]
    else:
        raw += raw[at:]
    return bytes(raw)


def text(rng: random.Random, data: bytes) -> bytes:
    """Drop, repeat, exchange or damage lines and words of a text: TOML, YAML, a header, a vocabulary."""
    if rng.random() < 0.15:
        return any_bytes(rng, data)
    lines = data.split(b"\n")
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(lines))
        action = rng.choice(["word", "word", "word", "value", "value", "drop", "repeat", "exchange", "indent", "put"])
        line = lines[at]
        if action == "word" and (found := list(re.finditer(rb"[^\s,:={}\[\]]+", line))):
            word = rng.choice(found)
            lines[at] = line[: word.start()] + rng.choice(WORDS) + line[word.end() :]
        elif action == "value" and (mark := re.search(rb"[:=] ?", line)):
            lines[at] = line[: mark.end()] + rng.choice(WORDS)
        elif action == "drop" and len(lines) > 1:
            del lines[at]
        elif action == "repeat":
            lines[at:at] = [line] * rng.choice([1, 1, 50])
        elif action == "exchange":
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], line
        elif action == "indent":
            lines[at] = rng.choice([b"  ", b"\t", b"- ", b"? "]) + line
        else:
            lines[at:at] = [rng.choice(WORDS)]
    return b"\n".join(lines)


def csv_table(rng: random.Random, data: bytes) -> bytes:
    """Damage cells, rows and columns of a CSV file."""
    if rng.random() < 0.6:
        return rng.choice(CSV)(rng, data)
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    action = rng.choice(["drop", "repeat", "separator", "column", "quote", "newlines", "bom", "word"])
    if action == "drop":
        del lines[at]
    elif action == "repeat":
        lines[at:at] = [lines[at]] * rng.choice([1, 3, 500])
    elif action == "separator":
        return data.replace(b",", rng.choice([b";", b"\t", b"|", b",,", b" "]))
    elif action == "column":
        lines = [line.partition(b",")[2] if rng.random() < 0.9 else line for line in lines]
    elif action == "quote":
        lines[at] = b'"' + lines[at] + rng.choice([b'"', b"", b'""'])
    elif action == "newlines":
        return data.replace(b"\n", rng.choice([b"\r", b"\r\n", b"\n\n", b"\0"]))
    elif action == "bom":
        return rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"]) + data
    else:
        cells = lines[at].split(b",")
        cells[rng.randrange(len(cells))] = rng.choice(WORDS)
        lines[at] = b",".join(cells)
    return b"\n".join(lines)


def header_and_data(end: bytes) -> Mutator:
    """Mutator of a file that begins with a text header, up to and with `end` and the rest of its line."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        if rng.random() < 0.15:
            return any_bytes(rng, data)
        at = data.find(b"\n", data.find(end)) + 1 if end.strip() else data.find(end) + len(end)
        return text(rng, data[: at - 1]) + data[at - 1 :]

    return mutate


def nifti(rng: random.Random, data: bytes) -> bytes:
    """Damage the header fields or the stream of a compressed NIfTI file."""
    return rng.choice(IMAGE)(rng, data)


def plain_nifti(rng: random.Random, data: bytes) -> bytes:
    """Damage an uncompressed NIfTI file."""
    mutant = rng.choice(IMAGE)(rng, gzip.compress(data, 1))
    try:
        return gzip.decompress(mutant)
    except (OSError, EOFError, zlib.error):
        return mutant


def workbook(rng: random.Random, data: bytes) -> bytes:
    """Damage the XML of one part of a workbook, or the archive."""
    if rng.random() < 0.2:
        return any_bytes(rng, data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as parts, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as mutant:
        names = parts.namelist()
        chosen = rng.choice([n for n in names if "sheet" in n or "style" in n or "shared" in n] or names)
        chosen = chosen if rng.random() < 0.7 else rng.choice(names)
        for name in names:
            content = parts.read(name)
            if name == chosen:
                if rng.random() < 0.1:
                    continue  # a missing part
                content = _xml(rng, content)
            mutant.writestr(name, content)
    return out.getvalue()


def _xml(rng: random.Random, data: bytes) -> bytes:
    tags = list(re.finditer(rb"<[^>]+>", data))
    values = list(re.finditer(rb'="([^"]*)"|>([^<]+)<', data))
    action = rng.choice(["value", "value", "value", "drop", "repeat", "bytes", "doctype"])
    if action == "value" and values:
        value = rng.choice(values)
        start, end = value.span(1 if value[1] is not None else 2)
        return data[:start] + rng.choice([*WORDS, b"&#0;", b"&lol;", b"A1048576", b"ZZZ1", b"1e999"]) + data[end:]
    if action in ("drop", "repeat") and tags:
        tag = rng.choice(tags)
        return data[: tag.start()] + tag[0] * (0 if action == "drop" else rng.choice([2, 3000])) + data[tag.end() :]
    if action == "doctype":
        return b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>' + data
    return any_bytes(rng, data)


def dicom(rng: random.Random, data: bytes) -> bytes:
    """Set an element of a DICOM file to a hostile value, or damage its bytes."""
    import pydicom

    if rng.random() < 0.4:
        return any_bytes(rng, data)
    try:
        with _unchecked():
            dataset = pydicom.dcmread(io.BytesIO(data))
            for _ in range(rng.choice([1, 1, 2])):
                _set_element(rng, dataset)
            out = io.BytesIO()
            dataset.save_as(out, enforce_file_format=False)
            return out.getvalue()
    except Exception:  # noqa: BLE001 - pydicom cannot write the value
        return any_bytes(rng, data)


def _set_element(rng: random.Random, dataset: Any) -> None:
    """Set or remove one element of a data set, of its file header or of a nested item."""
    group = rng.choice([dataset, dataset, dataset, dataset.file_meta])
    nested = [e for e in dataset if e.VR == "SQ" and e.value]
    if nested and rng.random() < 0.4:
        group = rng.choice(rng.choice(nested).value)
    elements = [e for e in group if e.VR != "SQ"]
    if not elements:
        return
    element = rng.choice(elements)
    action = rng.choice(["text", "bytes", "drop", "many", "number"])
    if action == "drop":
        del group[element.tag]
    elif action == "number":
        element.value = rng.choice([0, -1, 1, 65535, 2**31 - 1])
    elif action == "many" and element.VR in ("DS", "IS", "CS", "LO", "UI"):
        element.value = [str(element.value)[:16]] * rng.choice([2, 4, 300])
    elif action == "bytes":
        element.value = rng.choice(WORDS)
    else:
        element.value = rng.choice(["", "NaN", "-1", "1e400", "0", "1.2.3", "A" * 2000, "\\\\", "\u00e9", "5\\6"])


@contextmanager
def _unchecked() -> Iterator[None]:
    """Let pydicom read and write values that it would reject."""
    from pydicom import config

    before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config.settings.reading_validation_mode = config.settings.writing_validation_mode = config.IGNORE
        try:
            yield
        finally:
            config.settings.reading_validation_mode, config.settings.writing_validation_mode = before


def safetensors(rng: random.Random, data: bytes) -> bytes:
    """Edit the JSON header of a safetensors file, its length or its bytes."""
    size = int.from_bytes(data[:8], "little")
    action = rng.choice(["header", "header", "length", "bytes"])
    if action == "header":
        header = json_document(rng, data[8 : 8 + size])
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    if action == "length":
        return struct.pack("<Q", rng.choice([0, 1, 2**63, 2**40, size + 1, size - 1])) + data[8:]
    return any_bytes(rng, data)


def length_prefixed_json(rng: random.Random, data: bytes) -> bytes:
    """Edit the JSON header that follows a length of eight bytes, or any bytes."""
    return safetensors(rng, data)
