"""Memory, peak speed and links of accelerators, from their data sheets; no torch."""

import re
from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator; peaks are those of dense matrix products, without sparsity."""

    title: str
    """Model name as it appears in the driver's name."""
    memory_gib: int
    half_tflops: float
    """Peak in bfloat16, or in float16 without bfloat16 support, accumulating in float32."""
    tf32_tflops: float
    """Peak of float32 rounded to TensorFloat-32; 0 if not supported."""
    float32_tflops: float
    link_gbs: float
    """GB/s that a GPU sends to others of its machine, in one direction: NVLink, Infinity Fabric, or
    16 lanes of PCI Express.
    """
    has_bfloat16: bool = True

    @property
    def memory_bytes(self) -> int:
        """Total memory in bytes."""
        return self.memory_gib * GIB

    def peak_flops(self, precision: Literal["float32", "bfloat16", "float16"], tf32: bool) -> float:
        """Peak number of operations per second."""
        if precision == "float32":
            return 1e12 * (self.tf32_tflops if tf32 and self.tf32_tflops else self.float32_tflops)
        return 1e12 * self.half_tflops


# Memory as reported by drivers with error correction on. The longest title that occurs in a
# driver's name as whole words is used.
DEVICES: dict[str, Device] = {
    "t4": Device("T4", 15, 65.0, 0.0, 8.1, 16.0, has_bfloat16=False),
    "v100": Device("V100", 15, 125.0, 0.0, 15.7, 16.0, has_bfloat16=False),
    "v100-32": Device("V100-SXM2-32GB", 31, 125.0, 0.0, 15.7, 150.0, has_bfloat16=False),
    "a10": Device("A10", 22, 125.0, 62.5, 31.2, 32.0),
    "a10g": Device("A10G", 22, 70.0, 35.0, 31.2, 32.0),
    "a100-40": Device("A100-SXM4-40GB", 39, 312.0, 156.0, 19.5, 300.0),
    "a100": Device("A100", 79, 312.0, 156.0, 19.5, 300.0),
    "a6000": Device("RTX A6000", 47, 154.8, 77.4, 38.7, 32.0),
    "rtx3090": Device("RTX 3090", 23, 71.0, 35.6, 35.6, 32.0),
    "rtx4090": Device("RTX 4090", 23, 165.2, 82.6, 82.6, 32.0),
    "rtx5090": Device("RTX 5090", 31, 209.5, 104.8, 104.8, 64.0),
    "rtx6000ada": Device("RTX 6000 Ada", 47, 364.2, 182.1, 91.1, 32.0),
    "l4": Device("L4", 22, 121.0, 60.0, 30.3, 32.0),
    "l40": Device("L40", 44, 181.0, 90.5, 90.5, 32.0),
    "l40s": Device("L40S", 44, 362.0, 183.0, 91.6, 32.0),
    "h100-pcie": Device("H100 PCIe", 79, 756.0, 378.0, 51.0, 64.0),
    "h100-nvl": Device("H100 NVL", 93, 835.5, 417.5, 60.0, 64.0),
    "h100": Device("H100", 79, 989.4, 494.7, 66.9, 450.0),
    "h200": Device("H200", 139, 989.4, 494.7, 66.9, 450.0),
    "gh200": Device("GH200", 94, 989.4, 494.7, 66.9, 450.0),
    "b200": Device("B200", 178, 2250.0, 1125.0, 75.0, 900.0),
    "mi250x": Device("MI250X", 63, 191.5, 0.0, 47.9, 50.0),
    "mi300x": Device("MI300X", 191, 1307.4, 653.7, 163.4, 448.0),
}
# Slower variants with the same name.
_OTHERS = re.compile(r"\b(LAPTOP|MAX-Q|MOBILE|4090 D|5090 D)\b")


def recognize(name: str) -> Device | None:
    """The device behind a driver's name, such as "NVIDIA H100 80GB HBM3"; None if unknown."""
    words = name.upper()
    if _OTHERS.search(words):
        return None
    known = [
        device
        for device in DEVICES.values()
        if re.search(rf"(?<![A-Z0-9]){re.escape(device.title.upper())}(?![A-Z0-9])", words)
    ]
    return max(known, key=lambda device: len(device.title), default=None)
