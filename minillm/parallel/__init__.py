"""Stage 4: ranks, processes that drive a GPU each and send tensors to one another.

ranks.py        processes beside this one, and a function or a notebook's cell run by all of them
worker.py       the life of such a process
shards.py       how each of them gets its part of the weights: reads its own, or is sent it
links.py        messages between two of them; on a scale model each pays NVLink or InfiniBand
collectives.py  sums and copies among all of them, by hand, of such messages
mesh.py         one grid of ranks; groups of them, with torch's collectives, traced
tensor.py       a part of each weight on every rank, and two sums a layer
pipeline.py     the layers in stages, one after the other
world.py        what rank 0 tells the others, and which of them has failed
"""
