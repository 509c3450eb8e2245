"""What each rank holds: put together it is the checkpoint again, bit for bit."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from conftest import TINY

from minillm.config import ModelConfig
from minillm.errors import CheckpointError, ConfigError
from minillm.load import chunks, stream
from minillm.load.checkpoint import Checkpoint, bring
from minillm.load.chunks import BLOCK
from minillm.load.readers import READERS
from minillm.load.shard import Split, megatron, slices
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.parallel.shards import broadcast, together

FAMILIES = sorted(TINY)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """The tiny models would fit into one chunk, and nothing would ever be cut."""
    whole = stream.chunk_size
    size = lambda infos, largest=0: min(whole(infos), 2 * BLOCK)  # noqa: E731
    monkeypatch.setattr(stream, "chunk_size", size)


def read(checkpoint: Checkpoint, machine: Machine, how="read", fill=bring, dtype=torch.float32):
    """Every tensor of a checkpoint, by name. fill: as `bring`, or a broadcast."""
    wanted = {name: (info.shape, dtype) for name, info in checkpoint.tensors.items()}
    arena = Arena(machine, wanted, "hbm", "weights")
    arena.block.fill_(7)
    fill(arena.places, checkpoint, machine, how)
    places = dict(arena.places)
    arena.close()
    assert machine.dram.used == 0
    return places


def joined(parts: list[dict[str, torch.Tensor]], how, name: str) -> torch.Tensor:
    """The whole tensor of what the ranks have of it."""
    split, mine = how(name), [part[name] for part in parts]
    if split is None:
        assert all(torch.equal(tensor, mine[0]) for tensor in mine)
        return mine[0]
    copies = max(1, len(parts) // split.parts)  # ranks that have the same kv head
    for first in range(0, len(mine), copies):
        assert all(torch.equal(t, mine[first]) for t in mine[first : first + copies])
    return torch.cat(mine[::copies], split.axis)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_slices_put_together_are_the_checkpoint(tiny, machine, family, ranks):
    """Would catch a row too many, columns of the wrong rank, and a bias that is left whole."""
    checkpoint = Checkpoint.open(tiny(family))
    how = megatron(ModelConfig.from_pretrained(tiny(family)))
    whole = read(checkpoint, machine)
    own = [slices(checkpoint, rank, ranks, how) for rank in range(ranks)]
    for reader in READERS if ranks == 4 else ("read",):
        parts = [read(shard, machine, reader) for shard in own]
        for name, tensor in whole.items():
            assert torch.equal(joined(parts, how, name), tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_have_the_shapes_of_a_model_with_so_many_heads(tiny, family):
    """Would catch a split that no model of a rank's own size can hold."""
    config = ModelConfig.from_pretrained(tiny(family))
    tensors = slices(Checkpoint.open(tiny(family)), 1, 2, megatron(config)).tensors
    layer = "model.layers.2.self_attn."
    heads, keys, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert tensors[layer + "q_proj.weight"].shape == (heads // 2 * head, config.hidden_size)
    assert tensors[layer + "k_proj.weight"].shape == (keys // 2 * head, config.hidden_size)
    assert tensors[layer + "o_proj.weight"].shape == (config.hidden_size, heads // 2 * head)
    assert tensors["model.norm.weight"].shape == (config.hidden_size,)


def test_with_fewer_kv_heads_than_ranks_neighbours_have_the_same_one(tiny):
    """Would catch a rank whose queries look into the keys of others' heads."""
    config = ModelConfig.from_pretrained(tiny("llama"))
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    checkpoint = Checkpoint.open(tiny("llama"))
    keys = [
        slices(checkpoint, rank, 4, megatron(config)).tensors[
            "model.layers.0.self_attn.k_proj.weight"
        ]
        for rank in range(4)
    ]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    assert keys[0].shape == (config.head_dim, config.hidden_size)


def test_a_rank_asks_for_its_own_rows_only(tiny, machine, cold, monkeypatch):
    """Would catch a rank that reads the whole file and throws three quarters away."""
    monkeypatch.setattr(chunks, "GAP", 0)  # else the tiny tensors of the others are read over
    config = ModelConfig.from_pretrained(tiny("llama"))
    checkpoint = Checkpoint.open(tiny("llama"))
    own = slices(checkpoint, 1, 4, megatron(config)).tensors.values()
    rows = [info for info in own if info.rows == 1]
    with stream.Reader(machine, "read", rows) as reader:
        list(reader.chunks(rows))
    asked = sum(event.nbytes for event in machine.trace.select(kind="transfer", source="ssd"))
    assert asked == sum(info.nbytes for info in rows) < checkpoint.nbytes / 3


@pytest.mark.parametrize("how", READERS)
def test_columns_are_brought_without_their_neighbours(tiny, machine, how):
    """Would catch rows that are cut at the wrong place when their neighbours come along."""
    own = slices(
        Checkpoint.open(tiny("qwen3")), 3, 4, lambda name: Split(1, 4) if "down" in name else None
    )
    infos = [info for info in own.tensors.values() if info.rows > 1]
    places = {info.name: torch.empty(info.shape) for info in infos}
    with stream.Reader(machine, how, infos) as reader:
        reader.fill(places, infos)
    for info in infos:
        content = info.file.read_bytes()
        expected = b"".join(content[a:b] for a, b in info.ranges)
        assert places[info.name].numpy().tobytes() == expected


@pytest.mark.parametrize(
    ("rank", "ranks", "says"),
    [
        (0, 3, "wanted 4 parts of .*q_proj"),
        (0, 8, "4 parts"),
        (2, 2, "rank from 0 to 1"),
        (-1, 2, "rank"),
    ],
)
def test_ranks_that_cannot_share_are_told(tiny, rank, ranks, says):
    """Would catch a remainder that silently belongs to nobody."""
    config = replace(ModelConfig.from_pretrained(tiny("llama")))
    how = megatron(config)
    only = lambda name: how(name) if "q_proj" in name else None  # noqa: E731
    with pytest.raises(ConfigError, match=says):
        slices(Checkpoint.open(tiny("llama")), rank, ranks, only)


def test_a_tensor_without_bytes_and_a_name_without_a_dot_are_shared_too(tiny):
    """Would catch a division by the rows of an empty tensor, and a name taken apart too boldly."""
    checkpoint, how = Checkpoint.open(tiny("llama")), lambda name: Split(int(name), 2)
    info = next(iter(checkpoint.tensors.values()))
    shapes = {"0": [(0, 4), (4, 0)], "1": [(0, 4), (4, 0)]}
    for name, (first, second) in shapes.items():
        for shape in (first, second):
            empty = replace(info, name=name, shape=shape, nbytes=0)
            part = slices(Checkpoint(checkpoint.folder, {name: empty}), 1, 2, how).tensors[name]
            expected = torch.empty(shape).chunk(2, int(name))[1].shape
            assert (part.shape, part.nbytes, part.start) == (expected, 0, info.start)
    family = megatron(ModelConfig.from_pretrained(tiny("llama")))
    assert [family(name) for name in ("weight", "", ".", "q_proj")] == [None] * 4


def test_a_split_of_another_model_is_told(tiny):
    """Would catch heads of a size that the checkpoint does not have."""
    with pytest.raises(ConfigError, match="fall into 7 equal parts"):
        slices(Checkpoint.open(tiny("llama")), 0, 7, lambda name: Split(0, 7))
    with pytest.raises(ConfigError, match="axis 1 of model.norm.weight"):
        slices(
            Checkpoint.open(tiny("llama")), 0, 2,
            lambda name: Split(1, 2) if name == "model.norm.weight" else None,
        )  # fmt: skip


# -- one reads for all, with parallel/shards.py -------------------------------------------------


class Ring:
    """A broadcast between threads: what rank 0 gives is what all have."""

    def __init__(self, ranks: int):
        self.given: torch.Tensor | None = None
        self.barrier = threading.Barrier(ranks, timeout=20)
        self.nbytes = 0

    def sender(self, rank: int):
        def send(tensor: torch.Tensor) -> None:
            assert tensor.dtype == torch.uint8 and tensor.is_contiguous() and tensor.dim() == 1
            if rank == 0:
                self.given, self.nbytes = tensor, self.nbytes + tensor.numel()
            self.barrier.wait()
            if rank:
                tensor.copy_(self.given)
            self.barrier.wait()

        return send


def broadcast_all(checkpoint, how, ranks, reader="read", dtype=torch.float32, size=2 * BLOCK):
    """What each rank has when rank 0 has read for all; and each rank's machine."""
    ring, parts, machines = Ring(ranks), [None] * ranks, []

    def run(rank: int, machine: Machine) -> None:
        try:
            own = slices(checkpoint, rank, ranks, how)
            send = ring.sender(rank)
            fill = lambda places, own, machine, how: broadcast(  # noqa: E731
                places, checkpoint, own, machine, send, rank == 0, how, size
            )
            parts[rank] = read(own, machine, reader, fill, dtype)
        except BaseException:
            ring.barrier.abort()
            raise

    threads = []
    for rank in range(ranks):
        machines.append(Machine.here(hbm="8 MiB", device="cpu"))
        threads.append(threading.Thread(target=run, args=(rank, machines[rank])))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return parts, machines, ring


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("family", ["llama-bias", "qwen3", "llama3"])
def test_broadcast_gives_each_rank_what_it_would_have_read(tiny, machine, cold, family, ranks):
    """Would catch a slice cut out of the wrong place, or of the piece before."""
    checkpoint = Checkpoint.open(tiny(family))
    how = megatron(ModelConfig.from_pretrained(tiny(family)))
    for reader in READERS if ranks == 2 else ("read",):
        size = 1 if reader == "direct" else 6 * BLOCK  # each alone; neighbours together
        parts, machines, ring = broadcast_all(checkpoint, how, ranks, reader, size=size)
        for rank, part in enumerate(parts):
            expected = read(slices(checkpoint, rank, ranks, how), machine)
            assert all(torch.equal(part[name], tensor) for name, tensor in expected.items())
        assert ring.nbytes == checkpoint.nbytes
    read_by = [m.trace.select(kind="transfer", source="ssd") for m in machines]
    assert read_by[0] and not any(read_by[1:])


@pytest.mark.parametrize(("size", "groups"), [(1, [[4], [4], [9], [2]]), (8, [[4, 4], [9], [2]]),
                                              (100, [[4, 4, 9, 2]])])  # fmt: skip
def test_what_is_sent_together_keeps_order_and_size(tiny, size, groups):
    """Would catch a tensor that is sent twice or never, and a group larger than was asked for."""
    info = next(iter(Checkpoint.open(tiny("llama")).tensors.values()))
    infos = [replace(info, nbytes=nbytes) for nbytes in (4, 4, 9, 2)]
    assert [[each.nbytes for each in group] for group in together(infos, size)] == groups
    assert list(together([], size)) == []


def test_with_broadcast_nobody_holds_the_whole(tiny):
    """Would catch a receiver that keeps the checkpoint to cut its slices from."""
    checkpoint = Checkpoint.open(tiny("llama"))
    how = megatron(ModelConfig.from_pretrained(tiny("llama")))
    _, machines, _ = broadcast_all(checkpoint, how, 4)
    for rank, machine in enumerate(machines):
        assert machine.hbm.peak == slices(checkpoint, rank, 4, how).nbytes
        assert machine.dram.peak < checkpoint.nbytes / 2


def test_rows_longer_than_a_chunk_are_cut_too(tmp_path, machine):
    """Would catch the one matrix so wide that a row of it does not fit staging."""
    from safetensors.torch import save_file

    wide = torch.arange(3 * 10_000, dtype=torch.float32).view(3, 10_000)
    save_file({"w": wide}, tmp_path / "model.safetensors")
    checkpoint, how = Checkpoint.open(tmp_path), lambda name: Split(1, 2)
    parts, _, _ = broadcast_all(checkpoint, how, 2)
    assert torch.equal(joined(parts, how, "w"), wide)
    own = [read(slices(checkpoint, rank, 2, how), machine) for rank in range(2)]
    assert torch.equal(joined(own, how, "w"), wide)


def test_broadcast_converts_too(tiny):
    """Would catch a slice by columns that is not contiguous where torch wants it to be."""
    checkpoint = Checkpoint.open(tiny("llama"))
    how = megatron(ModelConfig.from_pretrained(tiny("llama")))
    exact, _, _ = broadcast_all(checkpoint, how, 2)
    parts, _, _ = broadcast_all(checkpoint, how, 2, dtype=torch.bfloat16)
    for rank in range(2):
        for name, tensor in exact[rank].items():
            assert torch.equal(parts[rank][name], tensor.bfloat16()), name


def test_a_reader_that_fails_gives_its_staging_back(tiny, machine):
    """Would catch memory that stays with a rank whose peers have died."""
    checkpoint = Checkpoint.open(tiny("llama"))

    def send(tensor: torch.Tensor) -> None:
        raise CheckpointError("rank 1 is gone")

    places = {name: torch.empty(info.shape) for name, info in checkpoint.tensors.items()}
    for reads in (True, False):
        with pytest.raises(CheckpointError, match="rank 1"):
            broadcast(places, checkpoint, checkpoint, machine, send, reads, size=2 * BLOCK)
        assert machine.dram.used == 0
        machine.hbm.release(machine.hbm.used, "weights")
