"""Mutants of files: damage as disks, networks, editors and strangers do it; and their table.

Each mutator takes a file's content and a generator and returns other content.
``python tests/faults/mutants.py --n 10000 [--format NAME]`` reads that many mutants of every format
and prints how many were refused in one line, read as before, or worse.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # as in pytest's settings
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

Mutator = Callable[[bytes, np.random.Generator], bytes]
_PAGE = 512
# values that readers meet where they expect another
NUMBERS = [-1, 0, 1, 2, 0.5, 1e200, -1e200, 1e-300, 2**31, 2**60, 2**63 - 1, 10**400]
NUMBERS += [float("nan"), float("inf"), -float("inf")]
TEXTS = [
    "",
    "x",
    "NaN",
    "-1",
    "1e999",
    "a\0b",
    "\x1b[2J",
    "é",
    "../../x",
    "x" * 5000,
    "=1+1",
    "[/b]",
]
VALUES: list[Any] = [*NUMBERS, *TEXTS, None, True, [], [1, "a"], {}, {"a": 1}, [[1, 2], [3, 4]]]
WORDS = [b"", b"-1", b"0", b"1e200", b"nan", b"inf", b"x", b'"', b",", b"\t", b"\n", b"\0", b"\xff"]
WORDS += [
    b"9" * 400,
    b"2147483648",
    b"18446744073709551616",
    b"{",
    b"]",
    b"null",
    b"1.5",
    b"x" * 999,
]


def choice(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _span(content: bytes, rng: np.random.Generator, longest: int = 4096) -> tuple[int, int]:
    start = int(rng.integers(len(content) + 1))
    return start, min(len(content), start + int(rng.integers(1, longest)))


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content) + 1))]


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(choice(rng, [1, 1, 1, 2, 8])) if damaged else 0):
        damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def flip_head(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits where files keep their structure."""
    return flip(content[:2048], rng) + content[2048:]


def put_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite a few bytes with 0, 255 or random ones."""
    start, stop = _span(content, rng, 9)
    new = choice(rng, [b"\0" * 8, b"\xff" * 8, rng.bytes(8)])[: stop - start]
    return content[:start] + new + content[stop:]


def zero_page(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content) // _PAGE + 1)) * _PAGE
    page = content[start : start + _PAGE]
    return content[:start] + bytes(len(page)) + content[start + _PAGE :]


def splice(content: bytes, rng: np.random.Generator) -> bytes:
    """Copy a part over another, insert it there, or remove it."""
    start, stop = _span(content, rng, 600)
    at = int(rng.integers(len(content) + 1))
    part = content[start:stop]
    kind = int(rng.integers(3))
    if kind == 0:
        return content[:at] + part + content[at + len(part) :]
    return content[:at] + part + content[at:] if kind == 1 else content[:start] + content[stop:]


BYTES: tuple[Mutator, ...] = (truncate, flip, flip, flip_head, put_bytes, zero_page, splice)


def edit_tokens(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace, remove, repeat or exchange words, numbers and marks of a text."""
    tokens = re.findall(rb"[\w.+-]+|\s|[^\w\s]", content)
    for _ in range(int(choice(rng, [1, 1, 2, 4])) if tokens else 0):
        at, other = (int(rng.integers(len(tokens))) for _ in range(2))
        kind = int(rng.integers(4))
        if kind == 0:
            tokens[at] = choice(rng, WORDS)
        elif kind == 1:
            tokens[at] = b""
        elif kind == 2:
            tokens[at] += tokens[other]
        else:
            tokens[at], tokens[other] = tokens[other], tokens[at]
    return b"".join(tokens)


def edit_rows(content: bytes, rng: np.random.Generator) -> bytes:
    """Remove, repeat, move or empty rows of a table, or a column's name."""
    rows = content.splitlines(keepends=True) or [b""]
    at, kind = int(rng.integers(len(rows))), int(rng.integers(5))
    if kind == 0:
        del rows[at]
    elif kind == 1:
        rows.insert(at, rows[at])
    elif kind == 2:
        rows.insert(int(rng.integers(len(rows))), rows.pop(at))
    elif kind == 3:
        rows[at] = b"\n"
    else:
        rows[0] = edit_tokens(rows[0], rng)
    return b"".join(rows)


def edit_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace, remove, rename or add a value anywhere in a JSON document."""
    try:
        root = {"": json.loads(content)}
    except (ValueError, RecursionError):
        return edit_tokens(content, rng)
    places: list[tuple[Any, Any]] = []
    pending: list[Any] = [root]
    while pending:
        value = pending.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value))
        places += [(value, key) for key in keys]
        pending += [value[key] for key in keys if isinstance(value[key], dict | list)]
    owner, key = choice(rng, places)
    kind = int(rng.integers(4))
    if kind == 0 and owner is not root:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict) and owner is not root:
        owner[choice(rng, TEXTS)] = owner.pop(key)
    elif kind == 2 and isinstance(owner, list):
        owner.insert(0, choice(rng, VALUES))
    else:
        owner[key] = choice(rng, VALUES)
    return json.dumps(root[""]).encode("utf-8", "surrogatepass")


def deepen_json(content: bytes, rng: np.random.Generator) -> bytes:
    depth = int(choice(rng, [100, 5000, 100_000]))
    return b"[" * depth + content + b"]" * depth


def edit_h5(content: bytes, rng: np.random.Generator) -> bytes:
    """Edit an attribute, a member or an array of an HDF5 file."""
    import h5py

    buffer = io.BytesIO(content)
    try:
        with h5py.File(buffer, "r+") as file:
            items = [file]
            file.visititems(lambda _, item: items.append(item))
            groups = [item for item in items if isinstance(item, h5py.Group)]
            arrays = [item for item in items if isinstance(item, h5py.Dataset)]
            kind = int(rng.integers(4))
            with_attrs = [item for item in items if len(item.attrs)]
            if kind <= 1 and with_attrs:
                _edit_attribute(choice(rng, with_attrs), rng)
            elif kind == 2 and len(items) > 1:
                _edit_member(choice(rng, [g for g in groups if len(g)]), rng)
            elif arrays:
                _edit_array(choice(rng, arrays), rng)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return flip(content, rng)  # it was damaged before
    return buffer.getvalue()


def _edit_attribute(item: Any, rng: np.random.Generator) -> None:
    import h5py

    name = choice(rng, sorted(item.attrs))
    values: list[Any] = [v for v in VALUES if isinstance(v, int | float) and abs(v) < 2**63]
    values += [v.replace("\0", "") for v in TEXTS] + [b"bytes", b"\xff\xfe", np.zeros(0)]
    values += [np.arange(3), np.zeros((2, 2)), np.array(["a", "b"], object), np.bool_(True)]
    values += [h5py.Empty("f"), h5py.Empty("S10"), 1 + 2j, h5py.Reference(), np.float16(1)]
    kind = int(rng.integers(8))
    if kind == 0:
        del item.attrs[name]
    elif kind == 1:
        item.attrs["renamed"] = item.attrs[name]
        del item.attrs[name]
    else:
        item.attrs[name] = choice(rng, values)


def _edit_member(group: Any, rng: np.random.Generator) -> None:
    import h5py

    name, kind = choice(rng, sorted(group)), int(rng.integers(8))
    new = choice(rng, ["renamed", name + "s", "é", "x" * 300, sorted(group)[0] + "1"])
    if kind == 0:
        del group[name]
    elif kind == 1:
        group.move(name, new)
    elif kind == 2:
        group[new] = group[name]  # the same object twice
    elif kind == 3:
        del group[name]
        links = [h5py.SoftLink("/"), h5py.SoftLink("/nowhere"), h5py.ExternalLink("x.h5", "/")]
        group[name] = choice(rng, links)
    elif kind == 4:
        del group[name]
        group[name] = h5py.Empty(choice(rng, ["f4", "i8", "S3"]))
    elif kind == 5:
        group[f"{name}/under" if isinstance(group[name], h5py.Group) else "loop"] = group
    else:
        del group[name]
        value = choice(rng, [v for v in VALUES if isinstance(v, float | str)])
        group[name] = value.replace("\0", "") if isinstance(value, str) else value


def _edit_array(data: Any, rng: np.random.Generator) -> None:
    parent, name, attrs = data.parent, data.name.rsplit("/", 1)[1], dict(data.attrs)
    array = np.asarray(data[()])
    kind = int(rng.integers(7))
    if kind == 0 and array.size and array.dtype.kind in "iuf":
        value = choice(rng, [v for v in NUMBERS if array.dtype.kind == "f" or abs(v) < 2**31])
        flat = array.astype(np.float64).reshape(-1)
        flat[int(rng.integers(flat.size))] = float(min(value, 1e300))
        with np.errstate(all="ignore"):
            array = flat.reshape(array.shape).astype(array.dtype)
    elif kind == 1 and array.ndim:
        array = array[: len(array) // 2]
    elif kind == 2 and array.ndim:
        array = np.concatenate([array, array[:1]])
    elif kind == 3:
        array = array[None]
    elif kind == 4 and array.dtype.kind in "iuf":
        dtype = choice(rng, ["f2", ">f4", "i1", "u8", "c8", "S4", "?", "f8"])
        with np.errstate(all="ignore"):
            array = array.real.astype(dtype)
    elif kind == 5 and array.ndim:
        array = array[:0]
    elif array.size and array.dtype.kind in "SO":
        flat = array.reshape(-1)
        flat[int(rng.integers(flat.size))] = choice(rng, [b"", flat[0], b"\xff", b"x" * 400])
    del parent[name]
    parent[name] = array
    parent[name].attrs.update(attrs)


def edit_safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    """Edit the header, the length of which is kept right half the time."""
    n = int.from_bytes(content[:8], "little")
    header = edit_json(content[8 : 8 + n], rng)
    stated = len(header) if rng.random() < 0.5 else choice(rng, [0, n, 2**40, 2**63, 2**64 - 1])
    return struct.pack("<Q", stated) + header + content[8 + n :]


def edit_pth(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace a tensor or a key of a state dict, or a single tensor."""
    import torch

    try:
        state = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        return flip(content, rng)
    single = isinstance(state, torch.Tensor)
    state = {"": state} if single else dict(state)
    key = choice(rng, list(state))
    x = state[key] if isinstance(state[key], torch.Tensor) else torch.zeros(2, 2)
    changes: list[Any] = [x * torch.nan, x + torch.inf, x.to(torch.complex64), x > 0, x.half()]
    changes += [
        x.to_sparse() if x.dim() else x,
        x[:0] if x.dim() else x,
        x[None],
        x.double() * 1e300,
    ]
    changes += [torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8), x.long(), x.to("meta")]
    changes += [
        None,
        3,
        "text",
        [x],
        {"a": x},
        x.t().contiguous() if x.dim() == 2 else x,
        x.bfloat16(),
    ]
    kind = int(rng.integers(4))
    if kind == 0 and not single:
        state[choice(rng, [1, None, "", "x\0", "\ud800", ("a",), 2.5, "x" * 500])] = state.pop(key)
    elif kind == 1 and not single:
        del state[key]
    else:
        state[key] = choice(rng, changes)
    buffer = io.BytesIO()
    torch.save(state[""] if single else state, buffer)
    return buffer.getvalue()


def edit_tiff(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a field of a tag of a little-endian TIFF."""
    if content[:4] != b"II*\0" or len(content) < 10:
        return flip(content, rng)
    at, pages = int.from_bytes(content[4:8], "little"), []
    while 0 < at < len(content) - 2 and len(pages) < 8:
        n = int.from_bytes(content[at : at + 2], "little")
        pages.append((at, n))
        end = at + 2 + 12 * n
        at = int.from_bytes(content[end : end + 4], "little")
    start, n = choice(rng, pages) if pages else (0, 1)
    entry = start + 2 + 12 * int(rng.integers(max(n, 1)))
    offset, size = choice(rng, [(0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 4), (8, 2)])
    value = choice(rng, [0, 1, 2, 3, 4, 8, 16, 255, 400_000, 2**31, 2**32 - 1]) % 256**size
    place = entry + offset
    return content[:place] + value.to_bytes(size, "little") + content[place + size :]


def edit_png(content: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes of a chunk and make its checksum fit."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        n = int.from_bytes(content[at : at + 4], "big")
        chunks.append((at, n))
        at += 12 + n
    at, n = choice(rng, chunks[:1] * 3 + chunks) if chunks else (0, 0)
    body = put_bytes(content[at + 4 : at + 8 + n], rng) if n else content[at + 4 : at + 8]
    check = zlib.crc32(body).to_bytes(4, "big")
    return content[: at + 4] + body + check + content[at + 12 + n :]


def edit_zip(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a member of an archive, which is packed again, or its name, method or stated size."""
    buffer, kind = io.BytesIO(), int(rng.integers(5))
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        members = old.infolist()
        chosen = choice(rng, members).filename
        for member in members:
            name, data, method = member.filename, old.read(member), member.compress_type
            if kind == 0:
                method = choice(rng, methods)
            elif name == chosen and kind == 1:
                data = choice(rng, mutators_of(name))(data, rng)
            elif name == chosen and kind == 2:
                names = [f"../{name}", f"/{name}", f"other/{name}", f"{name}x", "é", "c"]
                name = choice(rng, names)
            elif name == chosen and kind == 3:
                new.writestr(name, rng.bytes(9))  # and once more
            elif name == chosen:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name that is there twice
                new.writestr(name, data, method)
    packed = buffer.getvalue()
    return flip(packed, rng) if rng.random() < 0.5 and kind == 0 else packed


def edit_zip_record(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a field of one of the records that describe a member, or all of them."""
    starts = [m.start() for m in re.finditer(rb"PK\x03\x04|PK\x01\x02|PK\x05\x06", content)]
    at = (choice(rng, starts) if starts else 0) + int(rng.integers(4, 46))
    size = int(choice(rng, [1, 2, 4]))
    value = choice(rng, [0, 1, 8, 9, 12, 14, 99, 2**15, 2**16 - 1, 2**31, 2**32 - 1]) % 256**size
    return content[:at] + value.to_bytes(size, "little") + content[at + size :]


def edit_parquet(content: bytes, rng: np.random.Generator) -> bytes:
    """Rename, remove or convert a column, or put another value into it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content))
    except Exception:
        return flip(content, rng)
    at, kind = int(rng.integers(table.num_columns)), int(rng.integers(4))
    n, name = table.num_rows, table.column_names[at]
    columns = [[None] * n, ["a"] * n, [b"\xff"] * n, [True] * n, [[1, 2]] * n, [{"a": 1}] * n]
    columns += [[1e200] * n, [float("nan")] * n, [2**60] * n, [-1] * n]
    if kind == 0:
        table = table.remove_column(at)
    elif kind == 1:
        new = choice(rng, ["renamed", *table.column_names])
        table = table.rename_columns(
            [new if i == at else c for i, c in enumerate(table.column_names)]
        )
    else:
        table = table.set_column(at, name, pa.array(choice(rng, columns)))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def in_gzip(mutator: Mutator) -> Mutator:
    """Return a mutator of what a .gz holds."""

    def mutate(content: bytes, rng: np.random.Generator) -> bytes:
        try:
            inner = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return mutator(content, rng)
        return gzip.compress(mutator(inner, rng), 1, mtime=0)

    return mutate


_TABLE: tuple[Mutator, ...] = (edit_tokens, edit_tokens, edit_rows)
_BY_SUFFIX: dict[str, tuple[Mutator, ...]] = {
    ".h5": (edit_h5,) * 5,
    ".h5ad": (edit_h5,) * 5,
    ".json": (*(edit_json,) * 5, edit_tokens, deepen_json),
    ".xenium": (edit_json,) * 4,
    ".toml": (edit_tokens,) * 5,
    ".csv": _TABLE * 2,
    ".tsv": _TABLE * 2,
    ".mtx": _TABLE * 2,
    ".gtf": _TABLE * 2,
    ".txt": _TABLE * 2,
    ".safetensors": (edit_safetensors,) * 5,
    ".pth": (edit_pth,) * 5,
    ".pt": (edit_pth,) * 5,
    ".tif": (edit_tiff,) * 6,
    ".svs": (edit_tiff,) * 6,
    ".png": (edit_png,) * 6,
    ".parquet": (edit_parquet,) * 5,
    ".zip": (edit_zip, edit_zip, edit_zip_record, edit_zip_record, edit_zip_record),
}


def mutators_of(name: str) -> tuple[Mutator, ...]:
    """Return the mutators of a file by its name."""
    if name.endswith(".gz"):
        return BYTES + tuple(map(in_gzip, mutators_of(name.removesuffix(".gz")))) * 2
    return BYTES + _BY_SUFFIX.get(Path(name).suffix, ())


def mutate(name: str, content: bytes, rng: np.random.Generator) -> bytes:
    """Return a mutant of a file: one change, sometimes two or three."""
    chosen = [choice(rng, mutators_of(name)) for _ in range(int(choice(rng, [1, 1, 1, 1, 2, 3])))]
    # edits come first: the libraries that make them would hang on damage, as readers must not
    for mutator in sorted(chosen, key=lambda one: one in BYTES):
        try:
            content = mutator(content, rng)
        except Exception:  # what cannot be written, or edited any more
            content = flip(content, rng)
    return content


def main() -> None:
    from faults.formats import FORMATS
    from faults.trials import HEADER, run_format

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="mutants per format")
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=None, help="per format at most")
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    failed = False
    for name in arguments.format or FORMATS:
        tally = run_format(FORMATS[name], arguments.n, arguments.seed, arguments.seconds)
        print(tally.row(), flush=True)
        for trial in tally.failures:
            print(f"    {trial}", flush=True)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
