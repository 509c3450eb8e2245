"""Stage 4: ranks, processes that drive a GPU each and send tensors to one another.

ranks.py     processes beside this one, and a function run by all of them
shards.py    how each of them gets its part of the weights: reads its own, or is sent it
mesh.py      the grid they form, the groups that are slices of it, and what a group does together
links.py     messages between two of them, and what each link costs
tensor.py    a part of each weight on every rank, and two sums a layer
pipeline.py  the layers in stages, one after the other
world.py     who they are, what the first tells the others, and which of them has failed
"""
