"""The errors that reach a user: "wanted this, found that; do this".

They are raised at the public door, where input from outside comes in. Inside the package short
asserts hold, so an error of any other class is a mistake of ours.
"""

from __future__ import annotations

from minillm.units import format_size


class MinillmError(Exception):
    """The base of every error the package raises on purpose. `str(error)` is meant for people.

    The message names what was wanted, what was found and what to do; it reads as one line
    however the terminal wraps it, so a caller prints it after "error: " and adds nothing.

    >>> raise MinillmError("wanted a trace file, found an empty file; record the run again")
    Traceback (most recent call last):
    minillm.errors.MinillmError: wanted a trace file, found an empty file; record the run again
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # a JSON or tokenizer error may span lines


class CheckpointError(MinillmError):
    """Files on SSD that are missing, damaged, or do not fit the model."""


class ConfigError(MinillmError):
    """A setting that is unknown, out of range, or asks for what is not implemented."""


class PromptError(MinillmError):
    """A prompt that is empty, is not text, or is longer than the model's context."""


class SessionError(MinillmError):
    """A saved conversation that is damaged, or of another model or settings, or cannot be saved."""


class OutOfMemory(MinillmError):
    """A tier of memory has no room. Nothing was reserved: the tier is as it was before.

    tier: "ssd", "dram" or "hbm". asked: bytes refused. free: bytes left at that moment.
    holders: label to bytes in use, such as {"weights": 16_000_000, "kv": 2_000_000}. why: what the
    free bytes are made of, if not of room in that tier alone.

    >>> print(OutOfMemory("hbm", 3 * 2**20, 2**20, {"weights": 63 * 2**20}))
    wanted 3.0 MiB of HBM, found 1.0 MiB free (weights hold 63.0 MiB); take a smaller model, \
dtype, batch or context, or give HBM a larger budget
    """

    def __init__(
        self, tier: str, asked: int, free: int, holders: dict[str, int], why: str = ""
    ) -> None:
        super().__init__(tier, asked, free, holders, why)  # in args, so that pickling works
        self.tier, self.asked, self.free, self.holders = tier, asked, free, dict(holders)
        self.why = why

    def __str__(self) -> str:
        by_size = sorted(self.holders.items(), key=lambda held: -held[1])
        held = ", ".join(f"{label} hold {format_size(nbytes)}" for label, nbytes in by_size)
        held = self.why or held
        return (
            f"wanted {format_size(self.asked)} of {self.tier.upper()}, "
            f"found {format_size(self.free)} free ({held or 'nothing else holds any'}); "
            f"{_REMEDY.get(self.tier, 'free some memory first')}"
        )


class RankError(MinillmError):
    """Ranks that failed, or that were waiting when another one did, or for too long.

    found: of each such rank, what it did or at which line it was. do: what to do.

    >>> print(RankError({1: "ValueError: no number at line 2: int(x)"}, "mend it"))
    wanted every rank to do its work, found rank 1: ValueError: no number at line 2: int(x); mend it
    """

    def __init__(self, found: dict[int, str], do: str) -> None:
        super().__init__(found, do)  # in args, so that pickling works
        self.found, self.do = dict(found), do

    def _lines(self) -> list[str]:
        return [f"rank {rank}: {' '.join(what.split())}" for rank, what in self.found.items()]

    def __str__(self) -> str:
        return f"wanted every rank to do its work, found {'; '.join(self._lines())}; {self.do}"

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: our own frames would say nothing about the cell."""
        return ["RankError: wanted every rank to do its work, found", *self._lines(), self.do]


_REMEDY = {
    "hbm": "take a smaller model, dtype, batch or context, or give HBM a larger budget",
    "dram": "close other programs, or take a smaller model or a smaller HBM budget",
    "ssd": "delete files on this disk, or choose a folder on another one",
}
