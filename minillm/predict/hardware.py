"""What the makers' data sheets say: memory, compute and links of the machines LLMs run on.

Bandwidth is bytes a second in *one* direction. Makers of GPUs like to add up both, so "PCIe Gen5
128 GB/s" stands here as 64e9, and "NVLink 900 GB/s" as 450e9. Compute is dense: sheets also give
a figure with sparsity, which is twice as much. Links are one GPU's share of its server.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minillm.errors import ConfigError


@dataclass(frozen=True)
class Wire:
    """One direction of a link: a transfer takes latency + nbytes / bandwidth.

    bandwidth: bytes a second. latency: seconds before the first byte arrives.

    >>> Wire(bandwidth=64e9, latency=1e-6).seconds(64_000)
    2e-06
    """

    bandwidth: float
    latency: float = 0.0

    def seconds(self, nbytes: float) -> float:
        """How long one transfer of `nbytes` takes."""
        return self.latency + nbytes / self.bandwidth


@dataclass(frozen=True)
class Hardware:
    """One GPU (or one CPU) with the memory and the links it has in its server.

    hbm_bytes, hbm_bandwidth: the memory that weights are read from at each token, whatever it is
    made of. bf16_flops: dense, a second. dram_bandwidth: its share of the host's memory.
    nvme, pcie, nvlink, infiniband: None where there is none.
    page_cache: bytes a second out of the kernel's cache of a file; None takes half of DRAM's
    bandwidth, since that copy reads and writes it.
    shared: HBM is a part of DRAM, so that the cores that read the page cache also copy to it.
    sources: for each of these figures, where it is from.
    """

    name: str
    hbm_bytes: int
    hbm_bandwidth: float
    bf16_flops: float
    dram_bandwidth: float
    nvme: Wire
    pcie: Wire | None = None
    nvlink: Wire | None = None
    infiniband: Wire | None = None
    page_cache: float | None = None
    shared: bool = False
    sources: dict[str, str] = field(default_factory=dict, repr=False)


# The start-up time of a link is in no data sheet. For links between GPUs we take what NCCL's own
# cost model uses for one hop of a ring with protocol LL, which is for small messages (with Simple,
# for large ones, 3.4, 5.7 and 14 µs); a copy over PCIe that a program asks for costs more.
_NCCL = "latency: NCCL, src/graph/tuning.cc (since 2.31 src/tuning/cost_model.cc), hwLat: ring, LL"
_NVLINK, _PCIE, _NETWORK = 0.6e-6, 1.0e-6, 2.7e-6
_FLASH = 1e-4
_FLASH_SOURCE = "latency: of 3D NAND flash; Micron 9200 data sheet, 92 to 150 µs at queue depth 1"

_GEN4_DRIVE = Wire(7.0e9, _FLASH)
_GEN4_SOURCE = (
    "one PCIe 4.0 drive a GPU, as in a DGX (one of A100 40 GB has only 4 drives for 8); "
    "Samsung PM1733, sequential read 7,000 MB/s; " + _FLASH_SOURCE
)
_GEN5_DRIVE = Wire(13.0e9, _FLASH)
_GEN5_SOURCE = (
    "one PCIe 5.0 drive; Samsung announces the PM1743, 2021: sequential read 13,000 MB/s; "
    + _FLASH_SOURCE
)
_GEN4, _GEN5 = Wire(32e9, _PCIE), Wire(64e9, _PCIE)

_A100 = "NVIDIA A100 Tensor Core GPU data sheet"
_A100_LINKS = {
    "bf16_flops": f"{_A100}: BFLOAT16 Tensor Core 312 TFLOPS, 624 with sparsity",
    "dram_bandwidth": "DGX A100 data sheet: 2 AMD EPYC 7742; AMD: 204.8 GB/s a socket; over 8 GPUs",
    "nvme": _GEN4_SOURCE,
    "pcie": f"{_A100}: PCIe Gen4 64 GB/s, both directions; {_NCCL}",
    "nvlink": f"{_A100}: NVLink 600 GB/s, both directions; {_NCCL}",
    "infiniband": f"DGX A100 data sheet: 8 ConnectX-6, 200 Gb/s each; {_NCCL}",
}
_HOPPER = "NVIDIA H100 and H200 Tensor Core GPU data sheets, SXM"
_HOPPER_LINKS = {
    "bf16_flops": "NVIDIA H100 whitepaper, SXM5: BF16 989.4 TFLOPS dense, 1,978.9 with sparsity",
    "dram_bandwidth": (
        "DGX H100 user guide: 2 Xeon 8480C; over 8 GPUs; 8 channels of at most DDR5-4800 each "
        "(4400 with two modules a channel)"
    ),
    "nvme": _GEN4_SOURCE,
    "pcie": f"{_HOPPER}: PCIe Gen5 128 GB/s, both directions; {_NCCL}",
    "nvlink": f"{_HOPPER}: NVLink 900 GB/s, both directions; {_NCCL}",
    "infiniband": f"DGX H100 and H200 data sheets: 8 ConnectX-7, 400 Gb/s each; {_NCCL}",
}
_B200 = "DGX B200 data sheet, for 8 GPUs"
_ADA = "NVIDIA Ada GPU Architecture whitepaper, GeForce RTX 4090"
_APPLE = "Apple newsroom, 18 October 2021, M1 Max"
_EPYC = "AMD EPYC 9654 product page"

_GB = 10**9
HARDWARE: dict[str, Hardware] = {
    machine.name: machine
    for machine in (
        Hardware(
            "A100-40GB", 40 * _GB, 1555e9, 312e12, 51.2e9, _GEN4_DRIVE, _GEN4,
            Wire(300e9, _NVLINK), Wire(25e9, _NETWORK),
            sources=_A100_LINKS | {
                "hbm_bytes": f"{_A100}: 40 GB HBM2", "hbm_bandwidth": f"{_A100}: 1,555 GB/s",
            },
        ),
        Hardware(
            "A100", 80 * _GB, 2039e9, 312e12, 51.2e9, _GEN4_DRIVE, _GEN4,
            Wire(300e9, _NVLINK), Wire(25e9, _NETWORK),
            sources=_A100_LINKS | {
                "hbm_bytes": f"{_A100}: 80 GB HBM2e, SXM",
                "hbm_bandwidth": f"{_A100}: 2,039 GB/s, SXM",
            },
        ),
        Hardware(
            "H100", 80 * _GB, 3350e9, 989.4e12, 76.8e9, _GEN4_DRIVE, _GEN5,
            Wire(450e9, _NVLINK), Wire(50e9, _NETWORK),
            sources=_HOPPER_LINKS | {
                "hbm_bytes": f"{_HOPPER}: H100 80 GB", "hbm_bandwidth": f"{_HOPPER}: 3.35 TB/s",
            },
        ),
        Hardware(
            "H200", 141 * _GB, 4800e9, 989.4e12, 76.8e9, _GEN4_DRIVE, _GEN5,
            Wire(450e9, _NVLINK), Wire(50e9, _NETWORK),
            sources=_HOPPER_LINKS | {
                "hbm_bytes": f"{_HOPPER}: H200 141 GB", "hbm_bandwidth": f"{_HOPPER}: 4.8 TB/s",
            },
        ),
        Hardware(
            "B200", 180 * _GB, 8000e9, 2250e12, 89.6e9, _GEN5_DRIVE, _GEN5,
            Wire(900e9, _NVLINK), Wire(50e9, _NETWORK),
            sources={
                "hbm_bytes": f"{_B200}: 1,440 GB HBM3e",
                "hbm_bandwidth": f"{_B200}: 64 TB/s",
                "bf16_flops": f"{_B200}: FP8 72 PFLOPS with sparsity; BF16 dense a quarter",
                "dram_bandwidth": f"{_B200}: 2 Xeon 8570; 8 channels of at most DDR5-5600 each",
                "nvme": _GEN5_SOURCE,
                "pcie": f"NVIDIA HGX B200: PCIe Gen5 x16; {_NCCL}",
                "nvlink": f"{_B200}: 14.4 TB/s, both directions; {_NCCL}",
                "infiniband": f"{_B200}: 8 ConnectX-7, 400 Gb/s each; {_NCCL}",
            },
        ),
        Hardware(
            "RTX 4090", 24 * _GB, 1008e9, 165.2e12, 89.6e9, Wire(7.45e9, _FLASH), _GEN4,
            sources={
                "hbm_bytes": f"{_ADA}: 24 GB GDDR6X, no HBM",
                "hbm_bandwidth": f"{_ADA}: 1,008 GB/s",
                "bf16_flops": f"{_ADA}: BF16 with FP32 accumulate, 165.2 TFLOPS dense",
                "dram_bandwidth": "two channels of DDR5-5600, as in a desktop: 2 × 44.8 GB/s",
                "nvme": f"Samsung 990 PRO data sheet: read up to 7,450 MB/s; {_FLASH_SOURCE}",
                "pcie": f"a card for PCIe Gen4 x16, 32 GB/s each way; {_NCCL}",
            },
        ),
        Hardware(
            "M1 Max", 64 * _GB, 400e9, 10.4e12, 400e9, Wire(7.4e9, _FLASH), shared=True,
            sources={
                "hbm_bytes": f"{_APPLE}: up to 64 GB, unified, which CPU and GPU share",
                "hbm_bandwidth": f"{_APPLE}: up to 400 GB/s",
                "bf16_flops": "Apple, November 2020: M1, 2.6 TFLOPS with 8 GPU cores; M1 Max has "
                              "32; taken as float32, none for bf16",
                "dram_bandwidth": f"{_APPLE}: the same memory",
                "nvme": f"Apple newsroom, MacBook Pro, 2021: up to 7.4 GB/s; {_FLASH_SOURCE}",
            },
        ),
        Hardware(
            "DDR5 server", 768 * _GB, 460.8e9, 14.7e12, 460.8e9, _GEN5_DRIVE, shared=True,
            sources={
                "hbm_bytes": "one EPYC 9654 with 12 modules of 64 GB; the makers allow 6 TB",
                "hbm_bandwidth": f"{_EPYC}: 12 channels DDR5-4800, 460.8 GB/s a socket",
                "bf16_flops": f"{_EPYC}: 96 cores × 2.4 GHz; × 64 a cycle (Zen 4, two pipes of "
                              "256 bits, VDPBF16PS); none published",
                "dram_bandwidth": f"{_EPYC}: the same memory",
                "nvme": _GEN5_SOURCE,
            },
        ),
    )
}  # fmt: skip
"""Name to figures: "A100-40GB", "A100" (80 GB), "H100", "H200", "B200" (all SXM, in a DGX), …"""


def find_hardware(hardware: Hardware | str) -> Hardware:
    """A name in `HARDWARE`, or figures of your own as they are. ConfigError if unknown."""
    if isinstance(hardware, Hardware):
        return hardware
    if not isinstance(hardware, str) or hardware not in HARDWARE:
        known = ", ".join(HARDWARE)
        raise ConfigError(f"wanted one of {known}, found {hardware!r}; take one of these")
    return HARDWARE[hardware]
