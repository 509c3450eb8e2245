"""Stage 3, the KV cache: the keys and values of past tokens, kept so as not to compute them again.

contiguous.py  one block of HBM a batch, reserved for the longest text it may hold
"""

from minillm.kv.contiguous import ContiguousKV

__all__ = ["ContiguousKV"]
