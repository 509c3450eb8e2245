"""The ceilings of this machine, measured once: what every "% of" divides by.

probe.py       measures all of it, and keeps it as a profile
measure.py     one measurement: the same work several times, the spread kept
ssd.py         the disk, past the page cache
page_cache.py  how much of a file the page cache holds
memory.py      DRAM: read, copy, latency
compute.py     products: what the cores or the card can do at most
links.py       loopback between processes; HBM and PCIe of a card
"""

from minillm.probe.measure import Measurement
from minillm.probe.memory import dram_bandwidth
from minillm.probe.probe import Profile, machine_name, probe

__all__ = ["Measurement", "Profile", "dram_bandwidth", "machine_name", "probe"]
