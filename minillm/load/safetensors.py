"""Safetensors by hand: what the bytes of one file mean.

A file is three things in a row (https://github.com/huggingface/safetensors, section Format):

    8 bytes   N, the header's length, little endian
    N bytes   JSON: {"model.norm.weight": {"dtype": "BF16", "shape": [320],
                                           "data_offsets": [0, 640]}, …}   perhaps padded by spaces
    the rest  the tensors, row-major, one after another; offsets count from here

Whatever the file says is checked before it is believed: no number in it makes us read past its
end, or allocate for it. Parsing takes memory for the header's own text and objects.
"""

from __future__ import annotations

import errno
import json
import math
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from minillm.errors import CheckpointError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# Bytes: room for 60,000 tensors in one file; models of more are in many files. The reference
# implementation allows twelve times as much, but JSON becomes objects of many times its size.
MAX_HEADER = 8 * 2**20
# Lists and maps swell most, to 70 times. An entry has three, in 49 bytes at least; names may hold
# some brackets more.
_BYTES_EACH, _SPARE = 16, 1000
MAX_DIMS = 64  # sizes in one shape; torch's own limit for most of its operations

_AGAIN = "the file is damaged or unfinished, copy or download it again"
_reprlib = reprlib.Repr()
_reprlib.maxstring = 100


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `nbytes` bytes from byte `start` of `file`, counted from its first.

    A slice by columns is not contiguous: `rows` runs of equal length, `stride` bytes from the
    beginning of one to the beginning of the next.

    >>> info = TensorInfo("w", torch.int8, (2, 4), 100, 8, Path("f"), rows=2, stride=16)
    >>> info.ranges, info.end
    ([(100, 104), (116, 120)], 120)
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int
    file: Path
    rows: int = 1
    stride: int = 0

    @property
    def run(self) -> int:
        """Bytes of each run."""
        return self.nbytes // self.rows

    @property
    def end(self) -> int:
        """The byte of the file behind the last run."""
        return self.start + (self.rows - 1) * self.stride + self.run

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Begin and end of every run."""
        starts = range(self.start, self.end, self.stride) if self.rows > 1 else [self.start]
        return [(start, start + self.run) for start in starts]


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """What one file holds, in the order of its bytes; no tensor is read.

    Every byte after the header belongs to exactly one tensor, or CheckpointError names the file
    and the tensor at fault. A name told twice, or a key or dtype we do not know, is refused too.

    >>> read_header("model.safetensors")["model.norm.weight"].shape
    (320,)
    """
    with opened(file := Path(path)) as (stream, size):
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        limit = max(0, min(size - 8, MAX_HEADER))
        if size < 8 or length > limit:
            found = f"{length:,} as the length" if size >= 8 else f"{size} bytes"
            do = "run `git lfs pull`, this is but a pointer" if first == b"version " else _AGAIN
            raise damaged(file, f"8 bytes and a header of at most {limit:,}", found, do=do)
        text = stream.read(length)
    if len(text) < length or text[:1] != b"{":
        raise damaged(file, f"a JSON object of {length:,} bytes", f"{len(text):,}: {text[:20]!r}")
    entries = parse_json(file, text)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged(file, "text under each key of __metadata__", short(metadata))
    infos = [_tensor(file, name, entry, 8 + length) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.start, info.end))  # no bytes, then the neighbour's bytes
    _check_layout(file, infos, 8 + length, size)
    return {info.name: info for info in infos}


def header(
    dtype: str, shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The first two parts of a file of these tensors, all of one dtype of DTYPES, in this order.

    Spaces bring what follows to a multiple of 64 bytes.

    >>> len(header("BF16", {"model.norm.weight": (320,)}))
    128
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, shape in shapes.items():
        begin, at = at, at + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, at]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text


def _tensor(file: Path, name: str, entry: Any, data: int) -> TensorInfo:
    """One entry of the header, checked in itself; `data` is the byte at which the data begin."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(file, "dtype, shape and data_offsets", short(entry), name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        wanted = f"a dtype of {', '.join(DTYPES)}"
        raise damaged(file, wanted, short(dtype), name, do="save it in one of these")
    if not _sizes(shape) or len(shape) > MAX_DIMS or math.prod(n or 1 for n in shape) >= 2**63:
        raise damaged(file, "a list of sizes as shape", short(shape), name)
    if not _sizes(offsets) or len(offsets) != 2:
        raise damaged(file, "[begin, end] as data_offsets", short(offsets), name)
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        wanted = f"{nbytes:,} bytes for {dtype} {short(shape)}"
        raise damaged(file, wanted, f"data_offsets {offsets}", name)
    return TensorInfo(name, DTYPES[dtype], tuple(shape), data + offsets[0], nbytes, file)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(file: Path, infos: list[TensorInfo], data: int, size: int) -> None:
    """The tensors, in order, tile the file from byte `data` to its end at byte `size`."""
    at = data
    for info in infos:
        if info.start != at:
            wanted = f"data to begin at byte {at:,}, where those before end"
            fault = "a hole" if info.start > at else "an overlap"
            raise damaged(file, wanted, f"{fault}, {info.start:,}", info.name)
        at = info.end
        if at > size:
            raise damaged(file, f"data up to byte {at:,}", f"the file's end at {size:,}", info.name)
    if at < size:
        raise damaged(file, f"the end at byte {at:,}", f"{size - at:,} bytes more")


@contextmanager
def opened(file: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file, unbuffered, and its size in bytes. What the system refuses is CheckpointError."""
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe would have us wait for ever
            link = f"a link to {os.path.realpath(file)}, " * os.path.islink(file)
            raise damaged(file, "a file", f"{link}a folder or a device", do="check the path")
        try:
            stream = open(file, "rb", buffering=0)
        except ValueError as error:  # a zero byte
            raise damaged(file, "a path", f"“{error}”", do="correct it") from error
        with stream:
            yield stream, os.fstat(stream.fileno()).st_size
    except OSError as error:
        do = "check that it is there, that you may read it, and the disk"
        if error.errno == errno.EMFILE:
            do = "allow more open files (`ulimit -n`), or take a checkpoint of fewer shards"
        raise damaged(file, "a file to read", f"“{error.strerror}”", do=do) from error


def parse_json(file: Path, text: bytes) -> dict[str, Any]:
    """A JSON object in which no key comes twice, and most bytes are not brackets."""
    brackets, most = text.count(b"{") + text.count(b"["), _SPARE + len(text) // _BYTES_EACH
    if brackets > most:
        raise damaged(file, f"JSON of at most {most:,} lists and maps", f"{brackets:,}")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8, huge numbers, our own
        fault = f"“{str(error)[:200]}”"  # raised below, or the error would keep the text alive
    else:
        if isinstance(value, dict):
            return value
        fault = short(value)
    raise damaged(file, "a JSON object", fault)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{short(key)} comes twice")
        result[key] = value
    return result


def damaged(
    file: Path, wanted: str, found: str, tensor: str | None = None, do: str = _AGAIN
) -> CheckpointError:
    """The error for `file`, or for one tensor in it."""
    where = f"{file}" if tensor is None else f"{file}, tensor {short(tensor)}"
    return CheckpointError(f"wanted {wanted}, found {found} in {where}; {do}")


def short(value: Any) -> str:
    """A value from a file as a message may show it: never long, never unprintable."""
    text = _reprlib.repr(value)  # bounded in each text and each list, but not as a whole
    return text if len(text) <= 200 else text[:197] + "..."
