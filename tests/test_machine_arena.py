"""A block of a tier, and a place in it for each name: aligned, apart, and given back whole."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillm.config import ModelConfig
from minillm.errors import OutOfMemory
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.model.llama import Llama

DTYPES = [torch.int8, torch.bfloat16, torch.float32, torch.int64]
shapes = st.lists(st.integers(0, 9), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6))
def test_every_name_has_a_place_of_its_own_at_a_multiple_of_64(machine, wanted):
    """Would catch an int8 place that shifts the float one behind it, and places that overlap."""
    arena = Arena(machine, {str(n): each for n, each in enumerate(wanted)}, "dram", "weights")
    assert list(arena.places) == [str(n) for n in range(len(wanted))]
    for n, place in enumerate(arena.places.values()):
        assert (list(place.shape), place.dtype) == (wanted[n][0], wanted[n][1])
        assert place.data_ptr() % 64 == 0 and place.is_contiguous()
        place.fill_(n)
    assert all(place.eq(int(name)).all() for name, place in arena.places.items())
    least = sum(math.prod(shape) * dtype.itemsize for shape, dtype in wanted)
    assert least <= arena.nbytes == machine.dram.used < least + 64 * len(wanted) + 1
    arena.close()
    assert machine.dram.used == 0


@pytest.mark.parametrize("folder", ["town", *TINY])
def test_a_models_weights_take_the_bytes_that_arithmetic_predicts(tiny, machine, folder):
    """Would catch gaps between weights, so that HBM holds more than a lesson predicts."""
    config = ModelConfig.from_pretrained("data/town" if folder == "town" else tiny(folder))
    with torch.device("meta"):
        model = Llama(config)
    wanted = {name: (p.shape, torch.bfloat16) for name, p in model.named_parameters()}
    arena = Arena(machine, wanted, "hbm", "weights")
    predicted = sum(2 * p.numel() for p in model.parameters())
    assert machine.hbm.by_label == {"weights": predicted} and arena.nbytes == predicted


def test_arenas_of_equal_shapes_are_laid_out_alike(machine):
    """Would catch a layer that arrives in its slot some bytes off its place."""
    wanted = {"a": ((3,), torch.int8), "b": ((2, 5), torch.float32)}
    home, slot = (Arena(machine, wanted, tier, "weights") for tier in ("dram", "hbm"))
    home.places["a"].fill_(3)
    home.places["b"].fill_(0.5)
    machine.copy(home.block, slot.block, label="weights", stage="load")
    assert all(torch.equal(slot.places[name], place) for name, place in home.places.items())


def test_without_room_nothing_is_kept():
    """Would catch places taken one by one, the first of which stay when the last has no room."""
    machine = Machine.here(hbm="1 KiB", device="cpu")
    with pytest.raises(OutOfMemory) as caught:
        Arena(machine, {n: ((5, 64), torch.int8) for n in "abcd"}, "hbm", "kv")
    assert (caught.value.asked, caught.value.free) == (1280, 1024)
    assert machine.hbm.used == machine.hbm.peak == 0


def test_a_closed_arena_holds_no_memory_even_for_those_who_kept_its_places(machine):
    """Would catch all of HBM held by the frames of a notebook's last error; and a second close
    that gives back what somebody else holds."""
    arena = Arena(machine, {"a": ((64,), torch.int8)}, "hbm", "weights")
    places, memory = arena.places, weakref.ref(arena.block.untyped_storage())
    arena.close()
    other = Arena(machine, {"a": ((64,), torch.int8)}, "hbm", "weights")
    arena.close()
    assert not places and memory() is None and machine.hbm.used == other.nbytes
