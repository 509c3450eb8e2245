"""Stage 3, the KV cache: the keys and values of past tokens, kept so as not to compute them again.

plan.py        one forward pass as the cache sees it; what a cache must be able to do
attention.py   attention over pages, written once, whatever store the pages lie in
pool.py        the pool that pages come from: free pages, reference counts
pages.py       a block table for each request; sharing, copy on write
prefix.py      pages found by their text: prompts that begin alike share them
offload.py     pages in HBM, DRAM and on SSD; a context larger than HBM
tiered.py      the pool behind it: frames in HBM, and the policy for who moves down
below.py       its pages in lower tiers
lower.py       DRAM, and a file on SSD, as places for pages
restore.py     whether to bring pages up again, or to compute them again
contiguous.py  the simplest cache, as pages that are as long as the longest text
"""

from minillm.kv.contiguous import ContiguousKV
from minillm.kv.offload import OffloadKV
from minillm.kv.pages import PagedKV, drop_oldest
from minillm.kv.plan import KV, Plan, Step
from minillm.kv.prefix import PrefixKV

__all__ = ["KV", "ContiguousKV", "OffloadKV", "PagedKV", "Plan", "PrefixKV", "Step", "drop_oldest"]
