"""The arithmetic of inference, before anything runs: parameters, bytes, seconds, what fits.

Plain numbers in, plain numbers out: no torch, no machine. Every result is labelled "predicted"
and is set beside a measurement wherever the course has one.

sizes.py     how much there is of a model
operators.py what a forward pass computes and reads
time.py      how long something takes, and what sets the time
links.py     what collectives cost
plan.py      what fits where
hardware.py  data sheets
"""

from minillm.predict.hardware import HARDWARE, Hardware, Wire, find_hardware
from minillm.predict.links import (
    Fit,
    Split,
    all_gather,
    all_reduce,
    broadcast,
    bubble,
    bus_bandwidth,
    bus_bytes,
    fit,
    flat_ring,
    hierarchical,
    pipeline_bytes,
    reduce_scatter,
    splits,
    tensor_bytes,
)
from minillm.predict.operators import Operator, operators
from minillm.predict.plan import Plan, plan
from minillm.predict.sizes import dtype_bytes, kv_bytes_per_token, parameters, weight_bytes
from minillm.predict.time import (
    Prediction,
    critical_batch,
    decode_step,
    load_time,
    prefill,
    restore,
)

__all__ = [
    "Fit", "HARDWARE", "Hardware", "Operator", "Plan", "Prediction", "Split", "Wire", "all_gather",
    "all_reduce", "broadcast", "bubble", "bus_bandwidth", "bus_bytes", "critical_batch",
    "decode_step", "dtype_bytes", "find_hardware", "fit", "flat_ring", "hierarchical",
    "kv_bytes_per_token", "load_time", "operators", "parameters", "pipeline_bytes", "plan",
    "prefill", "reduce_scatter", "restore", "splits", "tensor_bytes", "weight_bytes",
]  # fmt: skip
