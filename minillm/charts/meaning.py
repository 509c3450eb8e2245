"""What an event means to a reader: its ink, name, row and ceiling.

Each of these rules is written here and nowhere else. Charts ask them; a page is told the answers
with each kind of event (see wire.py), so its JavaScript decides only what depends on the moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.trace import Event, bare, rank_of

RESERVED = "kv reserved"  # the label of a pool's empty pages: taken, and not in use
# The rows of a timeline, from the top down, with their names.
ROWS = {
    "ssd": "SSD", "copy": "copies", "cpu": "CPU", "compute": "compute", "nvlink": "NVLink",
    "infiniband": "InfiniBand", "network": "network",
}  # fmt: skip


def ink(event: Event) -> str:
    """The ink of an event: its link, the tier it copies to, or the unit that works or waits."""
    unit, target = bare(event.resource), bare(event.target)
    if event.name.startswith("wait "):
        return "idle"
    if unit == "copy":
        return target if target in ("hbm", "dram") else "cpu"
    return "ffn" if event.name == "ffn" else unit


def name_of(event: Event) -> str:
    """What a reader calls it: 'logits → DRAM' for a transfer, else its name."""
    if event.kind == "transfer":
        return f"{event.label or event.name} → {bare(event.target).upper()}"
    return f"page cache ({event.name})" if from_cache(event) else event.name


def said(label: str) -> str:
    """A label of memory, as a reader calls it."""
    return {"kv": "KV cache", RESERVED: "KV reserved"}.get(label, label)


def from_cache(event: Event) -> bool:
    """Whether it read weights that the page cache held: work of the CPU, no transfer from SSD."""
    return (event.kind, event.stage, event.label) == ("span", "load", "weights") and event.name in (
        "read", "mmap",
    )  # fmt: skip


def row(event: Event) -> str:
    """Its row in a timeline, a key of ROWS: the unit that was busy, or which network."""
    unit = bare(event.resource)
    return event.link if unit == "network" and event.link in ROWS else unit


def limit(event: Event) -> str:
    """Whose ceiling its bytes/s are held against: a key for `ceiling`."""
    return "hbm" if bare(event.resource) == "compute" else row(event)


def ceiling(ceilings: Mapping[str, float], key: str) -> float | None:
    """Bytes/s; what is known of the network in general holds for its links."""
    general = ceilings.get("network") if key in ("nvlink", "infiniband") else None
    return ceilings.get(key, general)


def plain(name: str) -> str:
    """Rank 0 without its suffix: 'hbm:0' -> 'hbm'."""
    return name.removesuffix(":0")


def told(event: Event) -> dict[str, Any]:
    """An event as a page holds it: its fields by name, and its ink, name, row and limit."""
    unit, source, target = map(plain, (event.resource, event.source, event.target))
    name = plain(event.name) if event.kind == "counter" else event.name
    places = (unit, source, target, name if event.kind == "counter" else "")
    rank = next((rank_of(place) for place in places if ":" in place), 0)
    fields = event._replace(
        name=name, resource=unit, source=source, target=target, label=said(event.label),
        rank=rank if event.rank is None else event.rank,
    )  # fmt: skip
    if event.kind == "counter":
        return fields._asdict() | {"ink": "", "said": name, "row": "", "limit": ""}
    means = {"ink": ink(event), "said": name_of(event), "row": row(event), "limit": limit(event)}
    return fields._asdict() | means
