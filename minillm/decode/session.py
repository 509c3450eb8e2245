"""A conversation that outlives its process: its ids, keys and values in one file on SSD.

    header      as in any safetensors file (`load/safetensors.py`); in its metadata, as JSON: which
                model, dtype, page size and format this is, the token ids, how chance stands
    page.0 …    (L, 2, K, P, E), keys then values of all layers; the last one ends with the text
    checksum    crc32 of all bytes before it

One file, and not a second one beside it for the words: so neither can be of another moment. It is
written under another name, put on disk, and then takes its place (`files.save`): two writers leave
one whole session, a full disk leaves the one that was there.

Shapes: L layers, K kv heads, P page size, E head size.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property, partial
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.errors import MinillmError, SessionError
from minillm.files import StrPath, save
from minillm.kv import PagedKV
from minillm.load.checkpoint import Checkpoint
from minillm.load.safetensors import DTYPES, header, opened, short
from minillm.machine import Machine
from minillm.tokens.tokenizer import Tokenizer

FORMAT, SUM = 1, 4  # the version; bytes of the checksum
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BY = {"stage": "decode", "label": "session"}
_COPY = "take another copy, or let the engine read the text anew"
_LOAD = "load the engine with that, or let it read the text anew"


class Session(list):
    """A conversation out of a file: its token ids, a prompt for `stream` and `generate`.

    >>> session = engine.resume("tonight.safetensors")
    >>> engine.generate([session + " Where is the key?"])

    tokens: so many of them have their keys and values in `pages`, all but the last, which was
    chosen and never read. chance: how its generator stands, b"" if it was given no seed. Its bytes
    stay in DRAM as long as it lives.
    """

    def __init__(
        self, ids: Sequence[int], tokens: int, chance: bytes, pages: Tensor, sessions: Sessions
    ) -> None:  # fmt: skip
        super().__init__(ids)
        self.tokens, self.chance, self.pages, self.sessions = tokens, chance, pages, sessions

    def __add__(self, more: str | Sequence[int]) -> Session:
        """The same conversation, and a text or ids after it."""
        encode = self.sessions.tokenizer.encode
        ids = [*self, *(encode(more, add_special=False) if isinstance(more, str) else more)]
        longer = Session(ids, self.tokens, self.chance, self.pages, self.sessions)
        longer.origin = self  # whose end would give the DRAM back
        return longer

    def restore(self, request: int) -> int:
        """Fill a request's pages, which are reserved: how many of its tokens are in the cache.

        What the prefix cache has found of it stays as it is.
        """
        kv = self.sessions.kv
        if kv.length[request] < self.tokens:
            self.sessions.move(request, self.pages, self.tokens, "hbm", kv.length[request])
            kv.commit(request, self[: self.tokens])
        return kv.length[request]


class Sessions:
    """Saves and opens the sessions of the model in `folder`, for one cache.

    >>> Sessions(kv, machine, config, folder, tokenizer).open("tonight.safetensors")
    """

    def __init__(
        self, kv: PagedKV, machine: Machine, config: ModelConfig, folder: Path, tokenizer: Tokenizer
    ) -> None:  # fmt: skip
        self.kv, self.tokenizer, self._machine = kv, tokenizer, machine
        self._config, self._folder, self.alone = config, folder, True  # no other rank has a part

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What must be the same where a session goes on, as JSON has it."""
        if not self.alone:
            wanted = "wanted the whole KV cache for a session, found one rank's part of it"
            raise SessionError(f"{wanted}; save and resume on a single rank")
        cache = {"dtype": _NAMES[self.kv.pool.dtype], "page_size": self.kv.page_size}
        facts = asdict(self._config) | cache  # whose dtype may be another than the checkpoint's
        model = fingerprint(self._folder)
        return json.loads(json.dumps(facts | {"format": FORMAT, "model": model}))

    def save(self, request: Any) -> None:
        """Write the session of a request of the engine to its `save`, whole or not at all.

        If it cannot be, its `error` is a SessionError, and the old file is there. Peak: its bytes
        in DRAM. A page that lies below HBM comes up for it.
        """
        if request.save is None or request.error:
            return
        kv, number, tokens = self.kv, request.number, self.kv.length[request.number]
        try:
            if kv.forget:
                wanted = "a text that is seen whole"
                raise _refused(request.save, wanted, "a policy in kv.forget", "save without it")
            state = request.chance.get_state() if request.params.seed is not None else ()
            own = {"ids": request.ids, "tokens": tokens, "chance": bytes(state).hex()}
            head = self._head(self.facts | own)
            size = len(head) + tokens * kv.nbytes_per_token + SUM
            with ExitStack() as stack:
                room, data = self._room(size, stack)
                data[: len(head)] = head
                self.move(number, room[len(head) :], tokens, "dram")
                if error := kv.lost.get(number):
                    raise error
                data[-SUM:] = crc32(data[:-SUM]).to_bytes(SUM, "little")
                write = partial(save, request.save, data, "a session")
                self._machine.carry(write, size, source="dram", target="ssd", **_BY)
        except MinillmError as error:  # no room in DRAM, or on the disk
            request.error = SessionError(str(error))

    def open(self, path: StrPath) -> Session:
        """Read a session, all of it. SessionError if a bit is not as it was written, or if it is
        of another model, dtype, page size or format."""
        try:
            with ExitStack() as stack, opened(Path(path)) as (stream, size):
                room, data = self._room(max(size, 2 * SUM), stack)
                read = partial(BufferedReader(stream).readinto, data)
                self._machine.carry(read, size, source="ssd", target="dram", **_BY)
                if crc32(data[:-SUM]) != int.from_bytes(data[-SUM:], "little"):
                    raise _refused(path, "a session as it was written", "other bytes", _COPY)
                begin = 8 + int.from_bytes(data[:8], "little")
                facts = self._facts(path, bytes(data[:begin]), size - begin - SUM)
                session = Session(*facts, room[begin:-SUM], self)
                weakref.finalize(session, stack.pop_all().close)
                return session
        except MinillmError as error:  # no such file, or no room in DRAM
            raise SessionError(str(error)) from error

    def move(self, request: int, data: Tensor, tokens: int, target: str, start: int = 0) -> None:
        """Copy a request's pages from token `start` on between HBM and `data`, the bytes of all."""
        kv, pool, tiers = self.kv, self.kv.pool, getattr(self.kv.pool, "hbm", None)
        source = "dram" if target == "hbm" else "hbm"
        for at in range(start // kv.page_size, kv.pages_for(tokens)):
            page, count = kv.tables[request][at], min(kv.page_size, tokens - at * kv.page_size)
            if tiers:  # there the number of a page is no place
                tiers.bring((page,), (page,))
                page = tiers.slots[page] * tiers.L
            there = [layer[page][:, :, :count] for layer in pool.layers]
            here = data[at * pool.page_nbytes :][: count * kv.nbytes_per_token].view(pool.dtype)
            here = here.view(len(there), *there[0].shape)
            pair = (there, [*here]) if target == "hbm" else ([*here], there)
            copy = partial(torch._foreach_copy_, *pair)
            with self._machine.trace.at(request=request):
                self._machine.carry(copy, here.nbytes, source=source, target=target, **_BY)

    def _room(self, size: int, stack: ExitStack) -> tuple[Tensor, memoryview]:
        room = self._machine.empty((size,), torch.uint8, "dram", "session")
        stack.callback(self._machine.free, room)
        return room, memoryview(room.numpy())

    def _head(self, facts: dict[str, Any]) -> bytes:
        c, P, dtype = self._config, facts["page_size"], self.kv.pool.dtype
        ends = [min(P, facts["tokens"] - at) for at in range(0, facts["tokens"], P)]
        inner = c.num_hidden_layers, 2, c.num_key_value_heads
        shapes = {f"page.{n}": (*inner, end, c.head_dim) for n, end in enumerate(ends)}
        shapes["checksum"] = (SUM // dtype.itemsize,)
        return header(_NAMES[dtype], shapes, {"session": json.dumps(facts)})

    def _facts(self, path: StrPath, head: bytes, nbytes: int) -> tuple[list[int], int, bytes]:
        """ids, tokens and chance; the rest is held against this engine and the pages' bytes."""
        try:
            facts = json.loads(json.loads(head[8:])["__metadata__"]["session"])
            for name, value in self.facts.items():
                if facts[name] != value:
                    found = f"{name} {short(facts[name])}"
                    raise _refused(path, f"a session of {name} {short(value)}", found, _LOAD)
            ids, tokens, chance = facts["ids"], facts["tokens"], bytes.fromhex(facts["chance"])
            right = all(0 <= token < self._config.vocab_size for token in ids)
            right = right and 0 < tokens < len(ids) and self._head(facts) == head
            if not right or tokens * self.kv.nbytes_per_token != nbytes:
                raise ValueError("its ids, its header and its pages do not fit together")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _refused(path, "a session", f"another file: {error!r}", _COPY) from error
        return ids, tokens, chance


def fingerprint(folder: Path) -> str:
    """Which model, and which tokenizer: a hash of the first bytes of every tensor.

    A model that was trained on differs in all of them. To hash all bytes takes as long as a load.
    """
    found = sha256((folder / "tokenizer.json").read_bytes())
    for name, info in sorted(Checkpoint.open(folder).tensors.items()):
        with opened(info.file) as (stream, _):
            stream.seek(info.start)
            found.update(f"{name} {info.dtype} {info.shape}".encode())
            found.update(stream.read(min(info.nbytes, 4096)))
    return found.hexdigest()


def _refused(path: StrPath, wanted: str, found: str, do: str) -> SessionError:
    return SessionError(f"wanted {wanted}, found {found} in {path}; {do}")
