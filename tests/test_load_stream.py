"""Several reads in flight, in bounded memory, and nothing left behind however it ends."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minillm.errors import CheckpointError, OutOfMemory
from minillm.load import readers
from minillm.load.checkpoint import Checkpoint, bring
from minillm.load.chunks import BLOCK
from minillm.load.readers import READERS
from minillm.load.safetensors import read_header
from minillm.load.stream import Reader
from minillm.machine import Machine
from minillm.machine.arena import Arena

CHUNK = 2 * BLOCK
MIB = 2**20


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Two files: a tensor of many chunks, many tensors of one chunk, an empty one."""
    generator = torch.Generator().manual_seed(3)
    large = {"large": torch.randn(100, 333, generator=generator).bfloat16()}
    small = {f"small.{i}": torch.randn(7, generator=generator).bfloat16() for i in range(500)}
    save_file(large | {"empty": torch.ones(0, 3).bfloat16()}, tmp_path / "a.safetensors")
    save_file(small, tmp_path / "b.safetensors")
    tensors = {}
    for name in ("a", "b"):
        tensors |= read_header(tmp_path / f"{name}.safetensors")
    return Checkpoint(tmp_path, tensors)


def places(checkpoint: Checkpoint, machine: Machine, tier: str = "hbm", dtype=torch.bfloat16):
    wanted = {name: (info.shape, dtype) for name, info in checkpoint.tensors.items()}
    arena = Arena(machine, wanted, tier, "weights")
    return arena.block, arena.places


def stored(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {
        name: info.file.read_bytes()[info.start : info.end]
        for name, info in checkpoint.tensors.items()
    }


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def left_behind(machine: Machine) -> list[str]:
    """What should be gone: threads, memory, open files of ours."""
    gc.collect()  # mapped files stay open as long as a tensor looks into them
    readers = [t for t in threading.enumerate() if t.name.startswith("minillm-read")]
    for thread in readers:  # those of a pool that has just been collected are about to end
        thread.join(5)
    threads = [thread.name for thread in readers if thread.is_alive()]
    fds = "/proc/self/fd"
    links = [os.path.join(fds, fd) for fd in os.listdir(fds)] if os.path.isdir(fds) else []
    files = [os.readlink(link) for link in links if os.path.lexists(link)]
    held = [f"{tier.name}: {tier.by_label}" for tier in (machine.dram, machine.hbm) if tier.used]
    return threads + [file for file in files if file.endswith(".safetensors")] + held


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize("tier", ["hbm", "dram"])
@pytest.mark.parametrize("slots", [1, 2, 8])
def test_what_arrives_is_what_is_stored(checkpoint, machine, how, tier, slots):
    """Would catch a slot that is filled anew while its bytes are on their way."""
    block, where = places(checkpoint, machine, tier)
    infos = list(checkpoint.tensors.values())
    block.zero_()
    with Reader(machine, how, infos, chunk=CHUNK, slots=slots) as reader:
        reader.fill(where, infos)
    assert {name: raw(place) for name, place in where.items()} == stored(checkpoint)
    machine.free(block)
    assert not left_behind(machine)


@pytest.mark.parametrize("how", READERS)
def test_chunks_come_in_order_and_stay_until_the_next(checkpoint, machine, how):
    """Would catch the order of the threads instead of the files', and staging reused too soon."""
    infos = list(checkpoint.tensors.values())
    found = {info.name: b"" for info in infos}
    with Reader(machine, how, infos, chunk=CHUNK, slots=3) as reader:
        for arrived in reader.chunks(infos):
            time.sleep(1e-4)  # let the others run ahead, if they would
            for piece, tensor in arrived:
                assert piece.at == len(found[piece.info.name])
                found[piece.info.name] += raw(tensor)
    assert found == stored(checkpoint)


@pytest.mark.parametrize("how", READERS)
def test_a_reader_can_be_asked_again(checkpoint, machine, how):
    """Would catch staging, files or threads made anew for each layer of a streamed model."""
    infos = list(checkpoint.tensors.values())
    block, where = places(checkpoint, machine)
    with Reader(machine, how, infos, chunk=CHUNK) as reader:
        made = machine.dram.used
        for info in reversed(infos):
            reader.fill(where, [info])
            assert machine.dram.used == made
        assert {name: raw(place) for name, place in where.items()} == stored(checkpoint)
    machine.free(block)


def save_layout(path: Path, sizes: list[int]) -> Checkpoint:
    """Tensors of so many bytes, zero, in a file with holes: it takes no disk."""
    header, at = {}, 0
    for number, n in enumerate(sizes):
        header[f"t{number}"] = {"dtype": "U8", "shape": [n], "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    with open(path / "model.safetensors", "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
    return Checkpoint.open(path)


@pytest.mark.parametrize("how", ["read", "direct"])
@pytest.mark.parametrize(
    "sizes",
    [[90 * MIB], [1] * 2000, [MIB - 1] * 90, [100] * 500 + [64 * MIB]],
    ids=["one large", "many tiny", "middling", "mixed"],
)
def test_staging_is_bounded_whatever_the_layout(tmp_path, how, sizes):
    """Would catch staging as large as the largest tensor, or a slot for each tensor."""
    machine = Machine.here(hbm="256 MiB", device="cpu")
    checkpoint = save_layout(tmp_path, sizes)
    block, where = places(checkpoint, machine, dtype=torch.uint8)
    bring(where, checkpoint, machine, how)
    assert machine.dram.peak <= min(64 * MIB, 3 * sum(sizes) + 16 * BLOCK)
    machine.free(block)


def test_mapped_files_need_no_staging(checkpoint, machine):
    """Would catch a copy that mmap is there to save."""
    block, where = places(checkpoint, machine)
    bring(where, checkpoint, machine, "mmap")
    assert machine.dram.peak == 0
    machine.free(block)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("how", READERS)
def test_another_dtype_is_converted_on_the_way(checkpoint, machine, dtype, how):
    """Would catch bytes that are taken for another dtype, and elements cut at a chunk's border."""
    block, where = places(checkpoint, machine, dtype=dtype)
    infos = list(checkpoint.tensors.values())
    with Reader(machine, how, infos, chunk=CHUNK) as reader:
        reader.fill(where, infos)
    for name, content in stored(checkpoint).items():
        theirs = torch.frombuffer(bytearray(content or b"\0\0"), dtype=torch.bfloat16)
        assert torch.equal(where[name].view(-1), theirs[: where[name].numel()].to(dtype)), name
    machine.free(block)


@pytest.mark.parametrize("how", ["read", "mmap"])
def test_the_trace_knows_every_byte_and_by_what_way_it_came(checkpoint, machine, cold, how):
    """Would catch bytes that move unseen, and a rate that does not say what was measured."""
    block, where = places(checkpoint, machine)
    bring(where, checkpoint, machine, how)
    reads = machine.trace.select(kind="transfer", source="ssd", target="dram", stage="load")
    copies = machine.trace.select(kind="transfer", source="dram", target="hbm", stage="load")
    for moved in (reads, copies):
        assert sum(event.nbytes for event in moved) == checkpoint.nbytes
        assert {event.label for event in moved} == {"weights"}
    assert all(event.name == how and "page cache" in event.detail for event in reads)
    told = " ".join(event.detail for event in copies)
    assert "large" in told and "small.0" in told
    machine.free(block)


@pytest.mark.parametrize("how", ["read", "mmap"])
def test_what_the_page_cache_holds_is_not_said_to_come_from_the_ssd(
    checkpoint, machine, monkeypatch, how
):
    """Would catch a second load that seems to read an SSD at the speed of DRAM."""
    monkeypatch.setattr(readers, "cached", lambda fd, size: 1.0)
    block, where = places(checkpoint, machine)
    bring(where, checkpoint, machine, how)
    assert not machine.trace.select(source="ssd") and not machine.trace.select(resource="ssd")
    copies = machine.trace.select(kind="transfer", source="dram", target="hbm")
    assert sum(event.nbytes for event in copies) == checkpoint.nbytes
    assert {event.resource for event in machine.trace.select(name=how)} == {"cpu"}
    machine.free(block)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")
def test_direct_reads_whole_blocks_and_the_trace_says_so(checkpoint, machine):
    """Would catch a trace that tells what was wanted, and not what the disk had to read."""
    block, where = places(checkpoint, machine)
    bring(where, checkpoint, machine, "direct")
    reads = machine.trace.select(kind="transfer", source="ssd")
    if not reads[0].detail.endswith("O_DIRECT"):
        pytest.skip("this folder's file system has no O_DIRECT")
    assert all(event.nbytes % BLOCK == 0 for event in reads)
    assert 0 <= sum(event.nbytes for event in reads) - checkpoint.nbytes < 4 * BLOCK
    machine.free(block)


def test_reads_are_stamped_with_what_they_are_done_for(checkpoint, machine, cold):
    """Would catch weights streamed for token 3 that the trace shows as done for nobody."""
    infos = list(checkpoint.tensors.values())
    with Reader(machine, "read", infos) as reader, machine.trace.at(token=3, request=1):
        list(reader.chunks(infos))
    reads = machine.trace.select(kind="transfer", source="ssd")
    assert {(event.token, event.request) for event in reads} == {(3, 1)}


# -- faults -------------------------------------------------------------------------------------


def fail_at(monkeypatch, number: int, act) -> None:
    """Have the read with this number, and all that follow, do `act` instead."""
    counter, read_at = iter(range(10**9)), readers.read_at

    def at(fd, view, offset):
        return act(fd, view, offset) if next(counter) >= number else read_at(fd, view, offset)

    monkeypatch.setattr(readers, "read_at", at)


def unreadable(fd, view, offset):
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("how", ["read", "direct"])
@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize(
    ("act", "says"), [(unreadable, "Input/output error"), (lambda *_: 0, "the file's end at")]
)
def test_a_read_that_fails_in_mid_load_is_named_and_leaves_nothing(
    checkpoint, machine, monkeypatch, how, number, act, says
):
    """Would catch a thread, a file, or staging that survives the error; and a bare OSError."""
    fail_at(monkeypatch, number, act)
    block, where = places(checkpoint, machine)
    infos = list(checkpoint.tensors.values())
    with pytest.raises(CheckpointError) as caught:
        with Reader(machine, how, infos, chunk=CHUNK, slots=3) as reader:
            reader.fill(where, infos)
    assert says in str(caught.value) and ".safetensors, tensor '" in str(caught.value)
    machine.free(block)
    assert not left_behind(machine)


@pytest.mark.parametrize("how", READERS)
def test_an_error_in_the_consumer_leaves_nothing(checkpoint, machine, how):
    """Would catch reads that go on into staging that is no longer ours."""
    infos = list(checkpoint.tensors.values())
    with pytest.raises(KeyError):
        with Reader(machine, how, infos, chunk=CHUNK) as reader:
            for arrived in reader.chunks(infos):
                del arrived
                raise KeyError
    assert not left_behind(machine)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("how", ["read", "direct"])
def test_ctrl_c_in_mid_load_leaves_nothing(checkpoint, machine, monkeypatch, how):
    """Would catch a load that goes on in the background of a notebook, with its memory."""
    read_at, reads = readers.read_at, []

    def slow(fd, view, offset):
        reads.append(offset)
        if len(reads) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # so that the signal finds the main thread waiting
        return read_at(fd, view, offset)

    monkeypatch.setattr(readers, "read_at", slow)
    block, where = places(checkpoint, machine)
    with pytest.raises(KeyboardInterrupt):
        with Reader(machine, how, [checkpoint.tensors["large"]], chunk=BLOCK, slots=2) as reader:
            reader.fill(where, [checkpoint.tensors["large"]])
    assert len(reads) <= 4  # of 5 out of the page cache, 17 past it
    machine.free(block)
    assert not left_behind(machine)


def test_the_last_error_holds_no_memory(checkpoint, machine, monkeypatch):
    """Would catch staging that lives on in the frames of an error, which a notebook keeps."""
    fail_at(monkeypatch, 5, unreadable)
    block, where = places(checkpoint, machine)
    infos = list(checkpoint.tensors.values())
    try:
        with Reader(machine, "direct", infos, chunk=CHUNK, slots=3) as reader:
            staging = weakref.ref(reader._staging.untyped_storage())
            reader.fill(where, infos)
    except CheckpointError as error:
        kept = error
    assert kept.__traceback__ is not None and staging() is None
    machine.free(block)


def test_a_file_that_cannot_be_opened_in_mid_load_leaves_nothing(checkpoint, machine):
    """Would catch an error between two shards that leaves the first one's reads running."""
    os.unlink(checkpoint.folder / "b.safetensors")
    block, where = places(checkpoint, machine)
    with pytest.raises(CheckpointError, match="b.safetensors"):
        bring(where, checkpoint, machine, "read")
    machine.free(block)
    assert not left_behind(machine)


def test_too_little_dram_for_staging_is_told_before_a_file_is_opened(checkpoint, machine):
    """Would catch staging that is not in the books."""
    machine.dram.reserve(machine.dram.free - 1000, "others")
    infos = list(checkpoint.tensors.values())
    with pytest.raises(OutOfMemory, match="of DRAM"):
        Reader(machine, "direct", infos)
    assert machine.dram.by_label == {"others": machine.dram.capacity - 1000}
    machine.dram.release(machine.dram.used, "others")
    assert not left_behind(machine)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("how", READERS)
def test_on_a_card_staging_is_pinned_and_what_arrives_is_what_is_stored(checkpoint, how):
    """Would catch copies from pageable memory, and a slot refilled before its copy was over."""
    machine = Machine.here(hbm="64 MiB", device="cuda")
    block, where = places(checkpoint, machine)
    infos = list(checkpoint.tensors.values())
    with Reader(machine, how, infos, chunk=CHUNK, slots=2) as reader:
        assert reader._staging is None or reader._staging.is_pinned()
        reader.fill(where, infos)
    assert {name: raw(place.cpu()) for name, place in where.items()} == stored(checkpoint)
    copies = machine.trace.select(kind="transfer", target="hbm")
    assert sum(event.nbytes for event in copies) == checkpoint.nbytes
    machine.free(block)
    assert not left_behind(machine)
