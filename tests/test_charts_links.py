"""The ladder's rates are the trace's bytes over its busy seconds, link by link."""

from __future__ import annotations

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_machine_scale import Clock, model

from minillm.charts import ladder
from minillm.charts.links import find_hops
from minillm.errors import MinillmError
from minillm.machine import Machine
from minillm.trace import Trace
from minillm.trace.event import Event

MB = 10**6


def moved(source: str, target: str, start: float, seconds: float, nbytes: int, **more) -> Event:
    """One transfer, in megabytes."""
    resource = more.pop("resource", "ssd" if "ssd" in (source, target) else "copy")
    return Event("transfer", "move", "load", resource, start, seconds, nbytes * MB, source, target,
                 "weights", **more)  # fmt: skip


def read(rank: str, start: float, seconds: float, nbytes: int) -> Event:
    return Event("span", "decode step", "model", "compute" + rank, start, seconds, nbytes * MB,
                 bytes_how="predicted")  # fmt: skip


def a_trace(*events: Event, **meta) -> Trace:
    return Trace.of(events, meta)


def one_gpu() -> Trace:
    """SSD 100 MB in 0.1 s; into HBM in two overlapping copies, busy for 50 ms; two steps."""
    return a_trace(
        moved("ssd", "dram", 0.0, 0.1, 100),
        moved("dram", "hbm", 0.10, 0.03, 60, how="emulated"),
        moved("dram", "hbm", 0.11, 0.04, 40, how="emulated"),
        read("", 0.2, 0.010, 100), read("", 0.3, 0.030, 100),
        Event("span", "attention", "model", "compute", 0.2, 0.005, 50 * MB),  # within the step
        model="town", weight_bytes=100 * MB, ceilings={"ssd": 2e9, "hbm": 10e9},
    )  # fmt: skip


def test_rate_is_bytes_over_busy_seconds_and_overlap_counts_once() -> None:
    """Catches two copies at once counted as slow, and a layer's bytes on top of its step's."""
    ssd, fill, reading = find_hops(one_gpu(), {})
    assert [h.name for h in (ssd, fill, reading)] == ["SSD → DRAM", "DRAM → HBM", "HBM → compute"]
    assert [hop.rate for hop in (ssd, fill, reading)] == pytest.approx([1e9, 2e9, 5e9])
    assert reading.nbytes == 200 * MB and reading.transfers == "2 × 95.4 MiB predicted"
    assert (ssd.how, fill.how) == ("measured", "emulated")


def test_title_says_how_the_ceilings_climb_from_ssd_to_hbm() -> None:
    """Catches a title on what a tiny model reached, where the tiers are the subject."""
    ceilings = {"ssd": 2.8e9, "copy": 17.8e9, "hbm": 35.5e9}
    title = ladder(one_gpu(), ceilings).get_suptitle()
    assert title == "From SSD to HBM the ceiling climbs 2.8 GB/s → 17.8 GB/s → 35.5 GB/s"
    slow = ladder(one_gpu(), ceilings | {"ssd": 7e7}).finding
    assert slow == "From SSD to HBM the ceiling climbs 70 MB/s → 17.8 GB/s → 35.5 GB/s"
    load = a_trace(moved("ssd", "dram", 0, 1, 9), moved("dram", "hbm", 1, 1, 9))
    title = ladder(load, ceilings).finding
    assert title == "From SSD to DRAM the ceiling climbs 2.8 GB/s → 17.8 GB/s"
    assert "climbs" not in ladder(one_gpu(), ceilings | {"copy": 1e9}).finding, "it does not"


def test_without_ceilings_the_title_compares_the_links_that_differ_most() -> None:
    """Catches a ratio turned round."""
    title = ladder(one_gpu(), {}).get_suptitle()
    assert title == "HBM → compute is 5.0 × as fast as SSD → DRAM: 5 GB/s against 1 GB/s"
    slow = a_trace(moved("dram", "hbm", 0, 1, 100), read("", 1, 10, 100))
    assert ladder(slow).finding.startswith("DRAM → HBM is 10 × as fast as HBM → compute: 100 MB/s")
    alone = a_trace(moved("ssd", "dram", 0, 1, 100), ceilings={"ssd": 1e9})
    assert ladder(alone).finding == "SSD → DRAM moves 100 MB/s, 10 % of its ceiling"


def test_a_link_over_which_hardly_a_byte_went_is_compared_with_none() -> None:
    """Catches '400 × as fast as DRAM → HBM' where only eight bytes of ids came in."""
    ids = moved("dram", "hbm", 0, 1e-6, 1)._replace(nbytes=8, label="ids")
    assert ladder(a_trace(ids, read("", 1, 0.01, 100))).finding == "HBM → compute moves 10 GB/s"


def test_each_row_says_its_rate_its_share_of_the_ceiling_and_the_time_of_the_weights() -> None:
    """Catches a share of another link's ceiling, and a ceiling made up where none was given."""
    said = [text.get_text() for text in ladder(one_gpu()).axes[0].texts]
    columns = {title: said[said.index(title) + 1 :][:3] for title in
               ("reached", "of ceiling", "weights take")}  # fmt: skip
    assert columns["reached"] == ["1 GB/s", "2 GB/s", "5 GB/s"]
    assert columns["of ceiling"] == ["50 %\nof 2 GB/s", "–", "50 %\nof 10 GB/s"]
    assert columns["weights take"] == ["100 ms", "50 ms", "20 ms"]
    given = ladder(one_gpu(), {"copy": 4e9}).alt
    assert given.count("ceiling") == 1 and "ceiling 4 GB/s; HBM → compute" in given


def test_several_gpus_are_told_as_one_link_of_them() -> None:
    """Catches eight HBMs added up and held against the ceiling of one."""
    ranks = ["", ":1", ":2", ":3"]
    events = [read(r, 0.0, 0.1, 200) for r in ranks]
    events += [moved("dram", f"hbm{r}", 0.5, 0.1, 50, resource=f"copy{r}") for r in ranks]
    events += [moved("hbm", "hbm:1", 1.0, 0.1, 90, resource="network", link="nvlink"),
               moved("hbm:1", "hbm", 1.0, 0.1, 90, resource="network", link="nvlink"),
               moved("hbm", "hbm:2", 1.2, 0.1, 10, resource="network", link="infiniband")]
    ceilings = {"network": 1e9, "infiniband": 2e8}
    fill, far, near, reading = find_hops(a_trace(*events), ceilings)
    hops = fill, far, near, reading
    assert [hop.rate for hop in hops] == pytest.approx([5e8, 1e8, 9e8, 2e9])
    assert [hop.links for hop in hops] == [4, 1, 2, 4]
    assert (near.name, near.ceiling) == ("GPU ↔ GPU NVLink", 1e9)
    assert (far.name, far.ceiling) == ("GPU ↔ GPU InfiniBand", 2e8)


def test_nvlink_and_infiniband_stay_two_links_of_a_scale_model() -> None:
    """Catches one "network" of which the second link's ceiling and bytes overwrite the first's."""
    scale, trace = model(Clock())
    machine = Machine(torch.device("cpu"), 0, 2**20, 2**20, trace, scale)
    sums = {"source": "hbm:0", "stage": "parallel", "label": "activations", "name": "all-reduce"}
    machine.carry(lambda: None, 7 * MB, target="hbm:1", **sums)
    machine.carry(lambda: None, 5 * MB, target="hbm:8", over="infiniband", **sums)
    far, near = find_hops(trace, trace.meta["ceilings"])
    assert (far.name, far.nbytes) == ("GPU ↔ GPU InfiniBand", 5 * MB)
    assert (near.name, near.nbytes) == ("GPU ↔ GPU NVLink", 7 * MB)
    assert far.ceiling == scale.wire("infiniband").bandwidth < near.ceiling
    assert near.ceiling == scale.wire("nvlink").bandwidth and near.how == "emulated"


def test_beyond_a_ceiling_is_explained() -> None:
    """Catches a file served from memory that looks like a fast disk."""
    trace = a_trace(moved("ssd", "dram", 0, 0.01, 100), ceilings={"ssd": 1e9})
    assert "from a cache" in ladder(trace).texts[-1].get_text()


@pytest.mark.parametrize("trace", [Trace(), a_trace(Event("span", "s", "decode", "cpu", 0, 1))])
def test_a_trace_in_which_nothing_moved_is_refused_with_what_to_do(trace: Trace) -> None:
    """Catches a chart of no rows."""
    with pytest.raises(MinillmError, match="load an engine"):
        ladder(trace)


@pytest.mark.parametrize("factor", [1, 10**6])
def test_all_words_stay_inside_the_picture(factor: int) -> None:
    """Catches a long figure that runs off the paper or into the next column."""
    events = [moved(a, b, 0, 0.123, 101 * factor, how="emulated") for a, b in
              [("ssd", "dram"), ("dram", "ssd"), ("dram", "hbm"), ("hbm", "dram")]]  # fmt: skip
    net = [moved("hbm", "hbm:1", 1, 0.1, 9, resource="network", link=d, how="emulated")
           for d in ("nvlink", "infiniband")]  # fmt: skip
    trace = a_trace(*events, *net, *[read(f":{i}", i, 0.999, 123) for i in range(120)],
                    weight_bytes=140 * 10**9, ceilings={"ssd": 1.23e12, "copy": 1.23e12})
    chart = ladder(trace)
    renderer = FigureCanvasAgg(chart).get_renderer()
    drawn, (wide, high) = chart.get_tightbbox(renderer), chart.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= wide and drawn.y1 <= high, drawn
    boxes = [t.get_window_extent(renderer) for t in chart.axes[0].texts if t.get_text()]
    boxes = [box.shrunk(0.98, 0.7) for box in boxes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
