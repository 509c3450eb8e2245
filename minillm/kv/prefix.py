"""Prompts that begin alike share the pages of what they share.

The keys and values of a page depend on all tokens up to its end, so a page is known by a hash of
them, chained from page to page. Only full pages are known; and of a prompt that is known whole the
last token is computed all the same, or there would be no logits.  Kwon et al., 2023; Zheng et al.,
2024 (with a tree).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import takewhile

import torch

from minillm.config import ModelConfig
from minillm.kv.pages import PagedKV
from minillm.machine import Machine


class PrefixKV(PagedKV):
    """Pages that are found by the text which they hold, also after their request has ended.

    >>> kv = PrefixKV(config, machine, torch.bfloat16, page_size=2, pages=8)
    >>> kv.find(0, [5, 6, 7]); kv.reserve(0, 3); kv.commit(0, [5, 6, 7]); kv.release(0)
    0
    True
    >>> kv.find(1, [5, 6, 8])   # the page of 5, 6
    2

    A page that nobody holds is given away when no page is empty, the one longest unused first. A
    pool that was not given its size goes back when nobody is here, with all that it knew.
    asked, hits: prompt tokens looked for so far, and those of them that were found.
    """

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, page_size: int = 16,
        pages: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, machine, dtype, page_size, pages)
        self.asked, self.hits, self.shares = 0, 0, True
        self._chains: dict[int, list[bytes]] = {}  # of each request: the keys of its full pages
        self._found: dict[int, int] = {}  # of each request: how many of them it did not fill itself

    def find(self, request: int, ids: Sequence[int]) -> int:
        """Take a request in: how many of its first tokens are known, and now its own."""
        super().find(request, ids)
        pages = self.pool.known.page_of
        root = b"" if self.shares else b"%d" % request
        chain = list(takewhile(pages.__contains__, self._keys(ids[:-1], root)))
        self._chains[request], self._found[request] = chain, len(chain)
        self.tables[request] = [pages[key] for key in chain]
        for page in self.tables[request]:
            self.pool.share(page)
        self.length[request] = len(chain) * self.page_size
        self.asked, self.hits = self.asked + len(ids), self.hits + self.length[request]
        return self.length[request]

    def commit(self, request: int, ids: Sequence[int]) -> None:
        """After the pass: exactly these tokens of the request are in the cache.

        Full pages may be found by others now; not those of a request that has forgotten something,
        for with the same text others have seen more.
        """
        self.length[request] = len(ids)
        chain, P = self._chains[request], self.page_size
        if len(ids) // P > len(chain) and request not in self._hidden:
            before = chain[-1] if chain else b"" if self.shares else b"%d" % request
            for key in self._keys(ids[len(chain) * P :], before):
                self.pool.known.enter(self.tables[request][len(chain)], key)
                chain.append(key)

    def fork(self, request: int, new: int) -> None:
        """A new request with the same past."""
        super().fork(request, new)
        self._chains[new], self._found[new] = list(self._chains[request]), self._found[request]

    def rewind(self, request: int, length: int) -> None:
        """Forget a request's tokens from `length` on; what its pages hold is as true as before."""
        super().rewind(request, length)
        full = length // self.page_size
        del self._chains[request][full:]
        self._found[request] = min(self._found[request], full)

    def release(self, request: int, keep: bool = True) -> None:
        """Forget a request. keep: whether its text stays known.

        That of an abandoned one does not: only what it had found, or others have found of it.
        """
        if request in self.tables:
            own = self.tables[request][self._found[request] : len(self._chains[request])]
            known = self.pool.known
            for page in () if keep else own:
                if self.pool.count[page] == 1:
                    known.forget(page)
            super().release(request)
            del self._chains[request], self._found[request]

    def _keys(self, ids: Sequence[int], before: bytes = b"") -> Iterator[bytes]:
        """The key of each full page of `ids`, which go on from the page of key `before`."""
        P = self.page_size
        for at in range(0, len(ids) - P + 1, P):
            before = sha256(before + array("q", ids[at : at + P]).tobytes()).digest()
            yield before
