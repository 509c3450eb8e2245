"""Stage 4: ranks, processes that drive a GPU each and send tensors to one another.

ranks.py     processes beside this one, and a function run by all of them
shards.py    how each of them gets its part of the weights: reads its own, or is sent it
tensor.py    a part of each weight on every rank, and two sums a layer
pipeline.py  the layers in stages, one after the other
"""
