"""Ceilings of links: the loopback network here; on CUDA, PCIe both ways, and HBM."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from minillm.probe.compute import finished
from minillm.probe.measure import Measurement, NotHere, rates, summary

_CHUNK = 2**20
_BATCH = 64 * 2**20  # bytes between two answers of the other side
# The other process: it answers each single byte at once, and each batch when it has it all.
_ECHO = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as link:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    into = memoryview(bytearray(int(sys.argv[2])))
    while link.recv_into(into[:1]) == 1:
        if into[0]:
            left = int(sys.argv[3])
            while left:
                left -= link.recv_into(into[:left]) or sys.exit()
        link.sendall(b"!")
"""


def loopback(seconds: float = 1.0) -> Iterator[Measurement]:
    """TCP to another process on this machine: bytes a second one way, and one way's latency."""
    command = [sys.executable, "-I", "-S", "-c", _ECHO]
    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", 0))
        except OSError as error:
            raise NotHere(f"this system allows no loopback: {error}") from error
        listening.listen(1)
        listening.settimeout(20)
        numbers = (listening.getsockname()[1], _CHUNK, _BATCH)
        other = subprocess.Popen([*command, *map(str, numbers)], stderr=subprocess.DEVNULL)
        try:
            link, _ = listening.accept()
            with link:
                yield from _talk(link, seconds / 2)
        except OSError as error:
            raise NotHere(f"the other process did not answer: {error}") from error
        finally:
            other.kill()
            other.wait()


def _talk(link: socket.socket, seconds: float) -> Iterator[Measurement]:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.settimeout(20)
    chunk = bytes(_CHUNK)

    def batch() -> None:
        link.sendall(b"\x01")
        for _ in range(_BATCH // _CHUNK):
            link.sendall(chunk)
        assert link.recv(1) == b"!"

    def ping() -> None:
        link.sendall(b"\x00")
        assert link.recv(1) == b"!"

    how = f"TCP to another process, {_CHUNK >> 20} MiB a call"
    yield summary("loopback.bandwidth", "bytes/s", rates(batch, _BATCH, seconds), how)
    trips = [0.5 / rate for rate in rates(ping, 1, min(seconds, 0.5))]
    yield summary("loopback.latency", "s", trips, "TCP, one byte there and back, half of it")


def cuda_memory(device: torch.device, seconds: float = 3.0) -> Iterator[Measurement]:
    """HBM read and copied within the card; copies over PCIe, from pageable and from pinned DRAM."""
    nbytes = min(2**30, torch.cuda.mem_get_info(device)[0] // 4)
    here = torch.zeros(nbytes // 4, device=device)
    there = torch.empty_like(here)
    size = f"{nbytes >> 20} MiB"
    each = seconds / 6
    samples = _several(here.sum, device, nbytes, each)
    yield summary("hbm.read", "bytes/s", samples, f"torch's sum of {size}")
    samples = _several(lambda: there.copy_(here), device, nbytes, each)
    yield summary("hbm.copy", "bytes/s", samples, f"copy_ of {size}; bytes that arrive")
    small = min(nbytes, 2**28)
    card = here[: small // 4]
    for kind, pinned in (("pageable", False), ("pinned", True)):
        host = torch.zeros(small // 4, pin_memory=pinned)
        how = f"copy_ of {small >> 20} MiB, DRAM {kind}"
        into = _several(lambda h=host: card.copy_(h, non_blocking=True), device, small, each)
        yield summary(f"h2d.{kind}", "bytes/s", into, how)
        back = _several(lambda h=host: h.copy_(card, non_blocking=True), device, small, each)
        yield summary(f"d2h.{kind}", "bytes/s", back, how)


def _several(
    work: Callable[[], object], device: torch.device, nbytes: int, seconds: float
) -> list[float]:
    """Bytes a second over five launches at a time, so that the wait for the card weighs little."""

    def run() -> None:
        for _ in range(5):
            work()

    return rates(finished(run, device), 5 * nbytes, seconds)
