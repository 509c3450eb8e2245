"""The machine: three tiers of memory (SSD, DRAM, HBM) with budgets, and copies between them.

On CUDA, HBM is the card, DRAM buffers are pinned, and copies run on their own streams, timed by
events. On a CPU, HBM is emulated: separate allocations in DRAM, held to a budget, and every copy
between the tiers is a real copy. As a scale model, the links are slowed too, in proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from minillm.errors import ConfigError, OutOfMemory
from minillm.machine import host
from minillm.machine.copies import HostLink, Sending, T, Way, way_of
from minillm.machine.cuda import CudaLink
from minillm.machine.disk import free_disk
from minillm.machine.scale import ScaleModel
from minillm.machine.tiers import Tier
from minillm.predict import Hardware, find_hardware
from minillm.probe import Profile, dram_bandwidth
from minillm.trace import Trace
from minillm.units import format_size, parse_size

Owned = dict[int, tuple[Tier, dict[str, int], ref]]  # address: tier, bytes by label, till it dies


class Machine:
    """The tiers of this machine, the tensors in them, and the copies between: `Machine.here()`.

    ssd, dram, hbm: its tiers. device: where the model computes. emulated: whether HBM is a
    budget in DRAM. scale: the ScaleModel that slows its links, or None. trace: every reservation
    and every copy. Thread-safe.

    >>> machine = Machine.here(hbm="64 MiB", device="cpu")
    >>> placed = machine.copy(torch.zeros(2**20), "hbm", label="weights", stage="load")
    >>> machine.hbm.by_label
    {'weights': 4194304}
    """

    def __init__(
        self, device: torch.device, ssd: int, dram: int, hbm: int, trace: Trace,
        scale: ScaleModel | None = None,
    ):  # fmt: skip
        host.limit_threads()
        self.device, self.emulated = device, device.type == "cpu"
        sizes = {"ssd": ssd, "dram": dram, "hbm": hbm}
        self.ssd, self.dram, self.hbm = (Tier(name, n, trace) for name, n in sizes.items())
        self.trace, self.scale, self._owned = trace, scale, Owned()
        card = None if self.emulated else CudaLink(device, trace)
        self._link: HostLink = scale or card or HostLink(trace)
        self._way = cache(partial(way_of, trace, self.emulated, scale is not None))
        trace.meta |= _facts(self)

    @classmethod
    def here(
        cls, hbm: int | str | None = None, device: str = "auto", trace: Trace | None = None
    ) -> Machine:
        """This machine. device: "auto" is the current CUDA device, without one the CPU.

        hbm: its budget, such as "64 MiB". By default nine tenths of what is free on the card
        (libraries and activations need the rest); emulated, half of the DRAM available to this
        process, and what is left is the tier DRAM. The SSD is the working directory's disk. Torch's
        threads keep to a CPU quota. Raises ConfigError for a device or a budget that cannot be.
        """
        where = host.find_device(device)
        return cls(where, *_sizes(where, hbm), trace or Trace())

    @classmethod
    def scale_model(cls, of: Hardware | str, hbm: int | str | None = None) -> Machine:
        """This machine's CPU, with the links of a server: a name in `HARDWARE`, or figures.

        Links are slowed until HBM : PCIe : NVMe : NVLink : InfiniBand are as there, with HBM as
        fast as this machine reads DRAM (by its saved profile, else measured now, in half a
        second). Compute and sizes are this machine's own. Every transfer over a link is labelled
        emulated. hbm, and errors: as `here`; ConfigError for an unknown server.
        """
        server, trace, where = find_hardware(of), Trace(), torch.device("cpu")
        profile = Profile.here()
        pace = profile["dram.read"] if profile else dram_bandwidth(seconds=0.5)
        return cls(where, *_sizes(where, hbm), trace, ScaleModel(server, pace.best, trace))

    def describe(self) -> str:
        """This machine in one line, for the head of a report."""
        return _describe(self)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, tier: str, label: str) -> Tensor:
        """A new tensor in tier "dram" or "hbm", its bytes reserved for `label` until `free`.

        Contents are arbitrary. On CUDA a tensor in DRAM is pinned: the card reads it directly.
        Raises OutOfMemory, and then nothing is reserved. A tensor that dies gives its bytes back.
        """
        assert tier in ("dram", "hbm"), "a tensor lives in DRAM or HBM; the SSD holds files"
        nbytes, held = torch.Size(shape).numel() * dtype.itemsize, getattr(self, tier)
        held.reserve(nbytes, label)
        device = self.device if tier == "hbm" else "cpu"
        pinned = {"pin_memory": True} if tier == "dram" and not self.emulated else {}
        try:
            tensor = torch.empty(shape, dtype=dtype, device=device, **pinned)
        except RuntimeError as error:  # within the budget, and yet the memory is not there
            held.release(nbytes, label)
            raise OutOfMemory(tier, nbytes, held.free, held.by_label) from error
        if nbytes:  # else it has no address
            _own(self._owned, tensor.untyped_storage(), held, {label: nbytes})
        return host.huge_pages(tensor) if self.emulated else tensor

    def free(self, tensor: Tensor) -> None:
        """Give back the bytes of a tensor of `empty` or `copy`; any view of it will do.

        The memory itself goes when the last reference to it does, so drop yours.
        """
        if tensor.numel():
            owned = self._owned.pop(tensor.untyped_storage().data_ptr(), None)
            assert owned, "not the machine's, or freed before"
            owned[0].give_back(owned[1])

    def relabel(self, tensor: Tensor, nbytes: int, source: str, target: str) -> None:
        """Give bytes of a tensor to another label: how a pool tells how much of it is in use."""
        tier, held, _ = self._owned[tensor.untyped_storage().data_ptr()]
        tier.relabel(nbytes, source, target)
        held |= {source: held[source] - nbytes, target: held.get(target, 0) + nbytes}

    def tier_of(self, tensor: Tensor) -> Tier:
        """The tier of a tensor. One that the machine did not make: HBM if on a card, else DRAM."""
        owned = self._owned.get(tensor.untyped_storage().data_ptr())
        return owned[0] if owned else self.hbm if tensor.is_cuda else self.dram

    def copy(self, tensor: Tensor, target: str | Tensor, **more: Any) -> Tensor:
        """Copy a tensor into a tier, as a new tensor there, or into a given one; returns it.

        More arguments, and what is recorded: as `send`.
        """
        return self._link.copy(*self._prepare(tensor, target, **more))

    def send(self, tensor: Tensor, target: str | Tensor, **more: Any) -> Sending:
        """Begin a copy for later: `.wait()` before computing with its `.out`, `.join()` before
        the source changes. Compute queued in between runs beside it.

        label, stage (both needed), name, detail: as in an Event. source: the tensor's tier, if the
        machine did not make it: computed logits are in "hbm". Recorded when it is over (`join`, or
        at the latest `sync()`), as a transfer of `tensor.nbytes`. A given target may have another
        dtype; a tier without room raises OutOfMemory. On CUDA, only a copy from or to pinned
        memory (of `empty`) lets the CPU go on.
        """
        return self._link.send(*self._prepare(tensor, target, **more))

    def _prepare(
        self, tensor: Tensor, target: str | Tensor, *, label: str, stage: str,
        name: str = "", source: str = "", detail: str = "",
    ) -> tuple[Tensor, Tensor, Way, str]:  # fmt: skip
        given = isinstance(target, Tensor)
        out = target if given else self.empty(tensor.shape, tensor.dtype, target, label)
        begin, end = source or self.tier_of(tensor).name, self.tier_of(out).name
        return tensor, out, self._way(name, stage, label, begin, end, ""), detail

    def carry(
        self, do: Callable[[], T], nbytes: int, *, source: str, target: str, stage: str,
        label: str = "", name: str = "", over: str = "", detail: str = "",
    ) -> T:  # fmt: skip
        """Run `do()`, which moves `nbytes` from tier `source` to tier `target`; returns its result.

        Recorded as one transfer (the rest as in an Event), unless `do` raises. Any thread may call
        it, several at a time; on a scale model they queue for the link. over: between GPUs,
        "nvlink" (the default) or "infiniband".
        """
        way = self._way(name, stage, label, source, target, over)
        return self._link.carry(do, nbytes, way, detail)

    def sync(self) -> None:
        """Wait for all copies and all compute, and record the copies that were under way.

        What went wrong in one of them is raised. No thread of the machine's own is left.
        """
        self._link.settle()


def _own(owned: Owned, storage: torch.UntypedStorage, tier: Tier, held: dict[str, int]) -> None:
    address = storage.data_ptr()
    died = ref(storage, lambda _: (owned.pop(address, None), tier.lost.append(held)))
    owned[address] = (tier, held, died)


def _sizes(device: torch.device, hbm: int | str | None) -> tuple[int, int, int]:
    """Bytes of SSD, DRAM and HBM: as asked, or the default that `Machine.here` speaks of."""
    dram, emulated = host.available_dram(), device.type == "cpu"
    room = dram if emulated else torch.cuda.mem_get_info(device)[0]
    budget = parse_size(hbm) if hbm is not None else room // 2 if emulated else room * 9 // 10
    if not 0 < budget <= room:
        raise ConfigError(
            f"wanted an HBM budget within the {format_size(room)} that are free here, "
            f"found {format_size(budget)}; choose another"
        )
    return free_disk(), dram - budget if emulated else dram, budget


def _describe(machine: Machine) -> str:
    dram, hbm, scale = machine.dram.capacity, format_size(machine.hbm.capacity), machine.scale
    if machine.emulated:
        dram += machine.hbm.capacity
        hbm += " (emulated in DRAM)"
    else:
        hbm += f" on {torch.cuda.get_device_name(machine.device)}"
    line = f"{host.n_cores()} cores · {host.cpu_name()} · {format_size(dram)} DRAM free · HBM {hbm}"
    line += f" · torch {torch.__version__}"
    return line + (f" · scale model of {scale.of}, {scale.slower:.0f} × slower" if scale else "")


def _facts(machine: Machine) -> dict[str, object]:
    """What a trace's reader wants to know of the machine it was made on."""
    facts = {
        "machine": machine.describe(), "device": machine.device.type, "torch": torch.__version__,
        "capacity": {t.name: t.capacity for t in (machine.ssd, machine.dram, machine.hbm)},
    }  # fmt: skip
    if machine.scale:
        return facts | {"ceilings": machine.scale.ceilings(), "scale_model": machine.scale.facts()}
    profile = Profile.here()
    return facts | ({"ceilings": profile.ceilings(machine.device.type)} if profile else {})
