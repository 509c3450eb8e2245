"""The arithmetic of inference, before anything runs: parameters, bytes, seconds, what fits.

Plain numbers in, plain numbers out: no torch, no machine. Every result is labelled "predicted"
and is set beside a measurement wherever the course has one.

sizes.py     how much there is of a model
time.py      how long something takes, and what sets the time
plan.py      what fits where
hardware.py  data sheets
"""

from minillm.predict.hardware import HARDWARE, Hardware, Wire, find_hardware
from minillm.predict.plan import Plan, plan
from minillm.predict.sizes import dtype_bytes, kv_bytes_per_token, parameters, weight_bytes
from minillm.predict.time import Prediction, load_time

__all__ = [
    "HARDWARE", "Hardware", "Plan", "Prediction", "Wire", "dtype_bytes", "find_hardware",
    "kv_bytes_per_token", "load_time", "parameters", "plan", "weight_bytes",
]  # fmt: skip
