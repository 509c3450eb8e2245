"""Stage 3, the model: attention and FFN, from weights in HBM.

layers.py     Linear, RMSNorm, rotary positions, the FFN
attention.py  grouped-query attention; the past is a function put on from outside
llama.py      a layer, and the whole model or a stage of it
kernels.py    the same halves in C (kernels.c, pool.h), for machines that compute on their CPU
products.py   what torch then multiplies with
"""

from minillm.model.llama import Llama

__all__ = ["Llama"]
