"""Safetensors by hand: what the bytes of one file mean, and two ways to read them.

A file is three things in a row (https://github.com/huggingface/safetensors, section Format):

    8 bytes   N, the header's length, little endian
    N bytes   JSON: {"model.norm.weight": {"dtype": "BF16", "shape": [320],
                                           "data_offsets": [0, 640]}, …}   perhaps padded by spaces
    the rest  the tensors, row-major, one after another; offsets count from here

Whatever the file says is checked before it is believed: no number in it makes us read past its
end, or allocate for it. Parsing takes memory for the header's own text and objects.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from minillm.errors import CheckpointError
from minillm.machine import Machine

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# Bytes: room for 200,000 tensors. The reference implementation allows three times as much, but
# JSON made to swell becomes objects of 40 times its size.
MAX_HEADER = 32 * 2**20
MAX_DIMS = 64  # sizes in one shape; torch's own limit for most of its operations

_AGAIN = "the file is damaged or unfinished, copy or download it again"
_reprlib = reprlib.Repr()
_reprlib.maxstring = 100


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: bytes `start` to `end` of `file`, counted from its first byte."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int
    file: Path

    @property
    def end(self) -> int:
        return self.start + self.nbytes


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


def read_bytes(machine: Machine, infos: list[TensorInfo]) -> Iterator[tuple[TensorInfo, Tensor]]:
    """Have the kernel copy each tensor's bytes into our own buffer, the same one each time.

    Yields bytes, (nbytes,) uint8 in DRAM, good until the next are asked for. Staging: as large as
    the largest tensor. Raises CheckpointError if a file has become shorter than its header says.
    """
    largest = max((info.nbytes for info in infos), default=0)
    staging = machine.empty((largest,), torch.uint8, machine.dram, "staging")
    try:
        window = memoryview(staging.numpy())
        for file, group in groupby(infos, key=lambda info: info.file):
            with opened(file) as (stream, _):
                for info in group:
                    with _moving(machine, "read", info):
                        _fill(window[: info.nbytes], stream, info)
                    yield info, staging[: info.nbytes]
    finally:
        machine.free(staging)


def _fill(window: memoryview, stream: BinaryIO, info: TensorInfo) -> None:
    stream.seek(info.start)
    done = 0
    while done < info.nbytes:  # the kernel gives 2 GiB a call at most
        got = stream.readinto(window[done:])
        if not got:
            raise _cut_short(info, info.start + done)
        done += got


def map_bytes(machine: Machine, infos: list[TensorInfo]) -> Iterator[tuple[TensorInfo, Tensor]]:
    """Let each file appear in our memory; a page of it is fetched when it is first touched.

    Yields and raises as `read_bytes` does, but the bytes are the page cache's own: no staging, no
    copy, good for as long as they are held. The price: a file cut short while its pages are being
    touched ends the process (SIGBUS), and no check beforehand can rule that out.
    """
    for file, group in groupby(infos, key=lambda info: info.file):
        with opened(file) as (stream, size):
            group = list(group)
            if size < group[-1].end:
                raise _cut_short(group[-1], size)
            # A private map: a stray write goes to a copy of the page, never to the file.
            pages = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY)
            whole = torch.frombuffer(pages, dtype=torch.uint8)  # it keeps the map alive
            for info in group:
                size = os.fstat(stream.fileno()).st_size
                if size < info.end:
                    raise _cut_short(info, size)
                raw = whole[info.start : info.end]
                with _moving(machine, "map", info):
                    # One byte of each page, so that the SSD is waited for here, on the clock,
                    # and not unseen inside the copy to HBM.
                    raw[:: mmap.PAGESIZE].sum()
                # The format aligns nothing, but torch wants elements at multiples of their size.
                yield info, raw.clone() if info.start % info.dtype.itemsize else raw


READERS = {"read": read_bytes, "mmap": map_bytes}


def _moving(machine: Machine, name: str, info: TensorInfo) -> Any:
    fields = {"stage": "load", "source": "ssd", "target": "dram", "label": "weights"}
    return machine.trace.moving(name, nbytes=info.nbytes, detail=info.name, **fields)


@contextmanager
def opened(file: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file, unbuffered, and its size in bytes. What the system refuses is CheckpointError."""
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe would have us wait for ever
            raise damaged(file, "a file", "a folder or a device", do="check the path")
        with open(file, "rb", buffering=0) as stream:
            yield stream, os.fstat(stream.fileno()).st_size
    except OSError as error:
        do = "check that it is there, that you may read it, and the disk"
        raise damaged(file, "a file to read", f"“{error.strerror}”", do=do) from error


def parse_json(file: Path, text: bytes) -> dict[str, Any]:
    """A JSON object in which no key comes twice."""
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


def _cut_short(info: TensorInfo, end: int) -> CheckpointError:
    found = f"the file's end at {end:,} (it was longer a moment ago)"
    return damaged(info.file, f"bytes {info.start:,} to {info.end:,}", found, info.name)


def damaged(
    file: Path, wanted: str, found: str, tensor: str | None = None, do: str = _AGAIN
) -> CheckpointError:
    """The error for `file`, or for one tensor in it."""
    where = f"{file}" if tensor is None else f"{file}, tensor {short(tensor)}"
    return CheckpointError(f"wanted {wanted}, found {found} in {where}; {do}")


def short(value: Any) -> str:
    """A value from a file as a message may show it: never long, never unprintable."""
    return _reprlib.repr(value)
