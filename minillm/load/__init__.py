"""Stage 1: weights go from files on SSD through DRAM to HBM.

safetensors.py  what the bytes of one file mean, and two ways to read them
shard.py        a folder of such files, and which tensor becomes which parameter in HBM
"""

from minillm.load.safetensors import TensorInfo, read_header
from minillm.load.shard import Checkpoint, load

__all__ = ["Checkpoint", "TensorInfo", "load", "read_header"]
