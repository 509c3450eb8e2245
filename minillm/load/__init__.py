"""Stage 1: weights go from files on SSD through DRAM to HBM.

safetensors.py  what the bytes of one file mean
chunks.py       which bytes each read brings
readers.py      three ways to read a file: read, mmap, direct
place.py        from DRAM to where the bytes belong
stream.py       SSD → staging → HBM, several reads in flight, in bounded memory
checkpoint.py   a folder of files, and which tensor becomes which parameter in HBM
shard.py        what each of several ranks reads; or one reads and sends it on
"""

from minillm.load.checkpoint import Checkpoint, load
from minillm.load.readers import READERS, drop
from minillm.load.safetensors import TensorInfo, read_header
from minillm.load.stream import Reader

__all__ = ["READERS", "Checkpoint", "Reader", "TensorInfo", "drop", "load", "read_header"]
