"""Our parser against the `safetensors` library, a corpus of damaged files, and fuzzers."""

from __future__ import annotations

import errno
import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillm.errors import CheckpointError
from minillm.load.readers import READERS
from minillm.load.safetensors import DTYPES, MAX_HEADER, read_header
from minillm.load.safetensors import header as written_header
from minillm.load.stream import Reader

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "I8", "shape": [4], "data_offsets": [8, 12]}
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def pack(header: Any, data: bytes = bytes(12), length: int | None = None) -> bytes:
    """A file: the header as JSON, or as the bytes it is; its true length unless one is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write(folder: Path, content: bytes) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(content)
    return file


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensors_of(file: Path, machine, reader: str) -> dict[str, torch.Tensor]:
    infos = list(read_header(file).values())
    tensors = {info.name: torch.empty(info.shape, dtype=info.dtype) for info in infos}
    with Reader(machine, reader, infos) as source:
        source.fill(tensors, infos)
    return tensors


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert raw_bytes(ours[name]) == raw_bytes(tensor), name


@pytest.mark.parametrize("reader", READERS)
def test_every_dtype_and_shape_reads_back_bit_identical(tmp_path, machine, reader):
    """Would catch a dtype under the wrong tag, and scalars or empty tensors that are lost."""
    tensors = {}
    for tag, dtype in DTYPES.items():
        for shape in [(), (0,), (3,), (2, 0, 5), (3, 1, 7)]:
            numbers = torch.randint(0, 2, (*shape, dtype.itemsize), dtype=torch.uint8)
            tensors[f"{tag} {shape}"] = numbers.view(dtype).view(shape)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"made": "here"})
    assert_equal(tensors_of(tmp_path / "model.safetensors", machine, reader), tensors)
    assert machine.dram.used == 0


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("padding", range(9))
def test_padding_and_unaligned_data_are_legal(tmp_path, machine, reader, padding):
    """Would catch a reader that needs data at a multiple of 8: the format does not promise it."""
    header = json.dumps({"__metadata__": {"k": "{["}, "": A, "b": B}).encode() + b" " * padding
    content = pack(header, bytes(range(12)))
    assert_equal(
        tensors_of(write(tmp_path, content), machine, reader), safetensors.torch.load(content)
    )


def test_header_tells_where_the_bytes_are(tmp_path):
    """Would catch offsets counted from the header, and an empty tensor taken for an overlap."""
    empty = {"dtype": "I8", "shape": [0], "data_offsets": [8, 8]}
    file = write(tmp_path, pack({"b": B, "empty": empty, "a": A}, b"AAAAAAAABBBB"))
    header = read_header(file)
    assert list(header) == ["a", "empty", "b"]  # in the order of the bytes
    content = file.read_bytes()
    assert content[header["b"].start : header["b"].end] == b"BBBB"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_header_that_we_write_is_read_by_us_and_by_others(tmp_path, dtype):
    """Would catch sizes counted in numbers and not in bytes, and data at no multiple of 64."""
    shapes = {"a": (3, 5), "empty": (0, 2), "one": ()}
    head = written_header(dtype, shapes)
    content = head + bytes(16 * DTYPES[dtype].itemsize)
    assert len(head) % 64 == 0
    assert {n: i.shape for n, i in read_header(write(tmp_path, content)).items()} == shapes
    theirs = safetensors.torch.load(content)
    assert {n: (tuple(t.shape), t.dtype) for n, t in theirs.items()} == {
        name: (shape, DTYPES[dtype]) for name, shape in shapes.items()}  # fmt: skip


DAMAGED = {  # name: (content, what the message must contain)
    "empty": (b"", "0 bytes"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "7 bytes"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "length past the end": (pack({}, b"", length=3), "at most 2,"),
    "length of 2**64 - 1": (pack({}, b"", length=2**64 - 1), "at most"),
    "no header": (pack(b"", b""), "JSON"),
    "pickle": (pack(b"\x80\x04K\x01.", b""), "JSON"),
    "a space before it": (pack(b" {}", b""), "JSON"),
    "not UTF-8": (pack(b'{"\xff": 1}', b""), "utf-8"),
    "half a header": (pack(b'{"a": {', b""), "JSON"),
    "two headers": (pack(b"{}{}", b""), "JSON"),
    "list": (pack([], b""), "JSON"),
    "nested too deep": (pack(b'{"a":' + b"[" * 10**5, b""), "JSON"),
    "a number of 10,000 digits": (pack(b'{"a":' + b"9" * 10**4 + b"}", b""), "found"),
    "name twice": (pack(b'{"twice": 1, "twice": 2}', b""), "'twice'"),
    "key twice": (pack(b'{"a": {"dtype": "I8", "dtype": "I8"}}', b""), "'dtype'"),
    "metadata not text": (pack({"__metadata__": {"a": 1}}, b""), "__metadata__"),
    "metadata not a map": (pack({"__metadata__": ["a"]}, b""), "__metadata__"),
    "entry not a map": (pack({"a": 1}), "tensor 'a'"),
    "no dtype": (pack({"a": {"shape": [2], "data_offsets": [0, 8]}}), "tensor 'a'"),
    "unknown key": (pack({"a": A | {"strides": [1]}, "b": B}), "tensor 'a'"),
    "unknown dtype": (pack({"a": A | {"dtype": "F31"}, "b": B}), "'F31'"),
    "dtype a list": (pack({"a": A | {"dtype": ["F32"]}, "b": B}), "tensor 'a'"),
    "shape a number": (pack({"a": A | {"shape": 2}, "b": B}), "tensor 'a'"),
    "negative size": (pack({"a": A | {"shape": [-2]}, "b": B}), "[-2]"),
    "true as a size": (pack({"a": A | {"shape": [2, True]}, "b": B}), "tensor 'a'"),
    "size 2.0": (pack({"a": A | {"shape": [2.0]}, "b": B}), "tensor 'a'"),
    "sizes of 2**64": (pack({"a": A | {"shape": [2**32, 2**32]}, "b": B}), "tensor 'a'"),
    "0 times 2**64": (pack({"a": A | {"shape": [0, 2**32, 2**32]}, "b": B}), "tensor 'a'"),
    "65 sizes": (pack({"a": A | {"shape": [2] + [1] * 64}, "b": B}), "tensor 'a'"),
    "100,000 sizes": (pack({"a": A | {"shape": [2**62] * 10**5}, "b": B}), "tensor 'a'"),
    "shape too large": (pack({"a": A | {"shape": [3]}, "b": B}), "tensor 'a'"),
    "shape too small": (pack({"a": A | {"shape": [1]}, "b": B}), "tensor 'a'"),
    "one offset": (pack({"a": A | {"data_offsets": [8]}, "b": B}), "tensor 'a'"),
    "offsets backwards": (pack({"a": A | {"data_offsets": [8, 0]}, "b": B}), "tensor 'a'"),
    "negative offset": (pack({"a": A | {"data_offsets": [-8, 0]}}, bytes(8)), "tensor 'a'"),
    "offset of 2**64": (pack({"a": A | {"data_offsets": [2**64, 2**64 + 8]}}), "tensor 'a'"),
    "past the end": (pack({"a": A, "b": B}, bytes(11)), "tensor 'b'"),
    "far past the end": (pack({"b": B | {"data_offsets": [2**62, 2**62 + 4]}}), "tensor 'b'"),
    "overlap": (pack({"a": A, "b": B | {"data_offsets": [4, 8]}}, bytes(8)), "tensor 'b'"),
    "same bytes twice": (pack({"a": A, "a2": A}, bytes(8)), "tensor 'a2'"),
    "hole": (pack({"a": A, "b": B | {"data_offsets": [9, 13]}}, bytes(13)), "tensor 'b'"),
    "hole at the start": (pack({"b": B}), "tensor 'b'"),
    "empty tensor in a hole": (
        pack({"e": {"dtype": "I8", "shape": [0], "data_offsets": [1, 1]}}, b""),
        "tensor 'e'",
    ),
    "bytes of no tensor": (pack({"a": A, "b": B}, bytes(13)), "1 bytes more"),
    "bytes without header": (pack({}), "12 bytes"),
    "name too long to print": (pack({"x" * 10**5: A | {"shape": [3]}}), "..."),
    "name with a newline and an escape": (pack({"a\n\x1b[2J": 1}), "\\x1b"),
    "lone surrogate as a name": (pack(b'{"\\ud800": 1}', b""), "ud800"),
    "shape of strings": (pack({"a": A | {"shape": ["2"]}, "b": B}), "tensor 'a'"),
    "offsets as text": (pack({"a": A | {"data_offsets": "08"}, "b": B}), "tensor 'a'"),
    "offsets as floats": (pack({"a": A | {"data_offsets": [0.0, 8.0]}, "b": B}), "tensor 'a'"),
    "NaN as an offset": (pack(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,NaN]}}'), "'a'"),
    "infinite size": (pack(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}'), "'a'"),
    "every tensor at the same place": (
        pack({f"t{i}": A for i in range(1000)}, bytes(8)),
        "an overlap",
    ),
    "a chain with one link too long": (
        pack({f"t{i}": B | {"data_offsets": [4 * i, 4 * i + 4]} for i in range(4)}, bytes(15)),
        "tensor 't3'",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_refused_by_name(tmp_path, case):
    """Would catch a check that is gone, and an error that does not say where and what to do."""
    content, says = DAMAGED[case]
    file = write(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    message = str(caught.value)
    assert says in message and str(file) in message and "; " in message
    assert len(message) < len(str(file)) + 600


def test_every_cut_of_a_file_is_refused(tmp_path):
    """Would catch a truncated download that is taken for whole, wherever the cut falls."""
    content = pack({"a": A, "b": B})
    for end in range(len(content)):
        with pytest.raises(CheckpointError):
            read_header(write(tmp_path, content[:end]))


def test_what_is_no_file_is_refused_at_once(tmp_path):
    """Would catch an open() that waits for ever for somebody to write into a pipe."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "absent", ".", "a" * 300, "a\0b"):
        with pytest.raises(CheckpointError):
            read_header(tmp_path / name)


def parsing_peak(file: Path) -> int:
    """Bytes that reading the header holds at its peak, whatever comes of it."""
    tracemalloc.start()
    try:
        read_header(file)
    except CheckpointError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, MAX_HEADER + 1, MAX_HEADER, 2**20 + 2])
def test_a_lying_length_costs_no_memory(tmp_path, length):
    """Would catch read(length) before length is held against the file's size."""
    file = write(tmp_path, pack(b"{", bytes(2**20), length=length))
    assert parsing_peak(file) < 2**17 < file.stat().st_size


def test_reading_the_header_of_a_real_sized_file_costs_less_than_the_file(tmp_path):
    """Would catch a parser that reads tensors, or copies the file, to learn what is in it."""
    layer = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(64, 320) for i in range(100)}
    safetensors.torch.save_file(layer, tmp_path / "model.safetensors")
    file = tmp_path / "model.safetensors"
    assert parsing_peak(file) < file.stat().st_size / 20


@pytest.mark.parametrize("bomb", ["[],", "{},", '"ab",', "1.5,", "[[[[]]]],", '{"":{}},'])
def test_a_header_made_to_swell_stays_within_a_multiple_of_its_text(tmp_path, bomb):
    """Would catch memory that grows faster than the text: JSON's maps alone are 70 times it."""
    text = ('{"a":[' + bomb * (2**18 // len(bomb)) + "0]}").encode()
    assert parsing_peak(write(tmp_path, pack(text, b""))) < 20 * len(text)


def test_the_most_tensors_that_a_header_has_room_for_are_read(tmp_path):
    """Would catch a limit against headers that swell that real ones reach: here is the densest."""
    entry = {"dtype": "I8", "shape": [], "data_offsets": [0, 0]}
    text = json.dumps({str(n): entry | {"data_offsets": [n, n + 1]} for n in range(20_000)})
    packed = pack(text.replace(" ", "").encode(), bytes(20_000))
    assert len(read_header(write(tmp_path, packed))) == 20_000


def test_too_many_open_files_says_how_to_allow_more(tmp_path):
    """Would catch "check that it is there" for a file that is there."""
    file, full = write(tmp_path, pack({"a": A, "b": B})), OSError(errno.EMFILE, "Too many")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError, match="ulimit"):
        patch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(full))
        read_header(file)


# -- fuzzers: whatever is in the file, it is refused by name or read as the library reads it ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def check(folder: Path, machine, content: bytes) -> None:
    file = write(folder, content)
    try:
        ours = tensors_of(file, machine, "read")
    except CheckpointError as error:
        assert str(file) in str(error) and len(str(error)) < len(str(file)) + 600
        str(error).encode()  # printable, whatever the file says
        return
    # The library knows neither lone surrogates nor -0, which JSON allows.
    if b"\\u" not in content and b"-0" not in content:
        assert_equal(ours, safetensors.torch.load(content))
    for reader in ("mmap", "direct"):
        assert_equal(ours, tensors_of(file, machine, reader))
    assert machine.dram.used == 0


VALID = pack(
    b'{"__metadata__":{"k":"v"},"a":%s,"b":%s} ' % (json.dumps(A).encode(), json.dumps(B).encode())
)
edits = st.lists(
    st.tuples(st.integers(0, len(VALID)), st.integers(0, 3), st.binary(max_size=3)), max_size=4
)


@fuzz
@given(edits)
def test_fuzzed_bytes(folder, machine, edits):
    """Would catch any error of another class, a crash, or a difference from the library."""
    content = VALID
    for at, drop, insert in edits:
        content = content[:at] + insert + content[at + drop :]
    check(folder, machine, content)


@fuzz
@given(
    st.integers(0, 2**64 - 1) | st.integers(0, 300), st.binary(max_size=200), st.binary(max_size=20)
)
def test_fuzzed_lengths(folder, machine, length, header, data):
    """Would catch a header's length that is believed."""
    check(folder, machine, pack(header, data, length))


names = st.text(max_size=8) | st.sampled_from(["a", "b", "\0", "\ud800", "x" * 5000, "../a"])
sizes = st.lists(
    st.integers(-1, 4) | st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, True, 1.0, None]),
    max_size=4,
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(names, x, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4", ""]) | anything,
        "shape": sizes | anything,
        "data_offsets": sizes | anything,
    }
)


@fuzz
@given(
    st.dictionaries(names | st.just("__metadata__"), entries | anything, max_size=3),
    st.binary(max_size=20),
)
def test_fuzzed_headers(folder, machine, header, data):
    """Would catch an unchecked type: a list as dtype, NaN as a size, an object as a name."""
    check(folder, machine, pack(header, data))


shapes = st.lists(st.integers(0, 3), max_size=3)


@fuzz
@given(st.lists(st.tuples(st.sampled_from(list(DTYPES)), shapes), max_size=4), st.data())
def test_fuzzed_offsets(folder, machine, layout, data):
    """Would catch a hole, an overlap or an end that passes; and a whole file that does not."""
    header, at = {}, 0
    for number, (dtype, shape) in enumerate(layout):
        nbytes = torch.Size(shape).numel() * DTYPES[dtype].itemsize
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    shifts = data.draw(
        st.dictionaries(st.sampled_from([*header, "end"]), st.integers(-9, 9), max_size=2)
    )
    shuffled = {}
    for name in data.draw(st.permutations(list(header))):
        begin, end = header[name]["data_offsets"]
        by = shifts.get(name, 0)
        shuffled[name] = header[name] | {"data_offsets": [begin + by, end + by]}
    content = pack(shuffled, bytes(max(0, at + shifts.get("end", 0))))
    check(folder, machine, content)
    if not any(shifts.values()):
        assert len(read_header(folder / "model.safetensors")) == len(layout)
