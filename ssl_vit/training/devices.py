"""What accelerators can do, from their makers' data sheets; no torch."""

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator: dense matrix products, without sparsity."""

    title: str
    """As a part of what the driver calls it."""
    memory: int
    """GiB."""
    half_tflops: float
    """Peak in bfloat16, or in float16 where there is no bfloat16, adding up in float32."""
    tf32_tflops: float
    """Peak of float32 rounded to TensorFloat-32; 0 where there is none."""
    float32_tflops: float
    has_bfloat16: bool = True

    def peak_flops(self, precision: Literal["float32", "bfloat16", "float16"], tf32: bool) -> float:
        """Operations a second at most."""
        if precision == "float32":
            return 1e12 * (self.tf32_tflops if tf32 and self.tf32_tflops else self.float32_tflops)
        return 1e12 * self.half_tflops


# The more exact titles first: the first that the driver's name contains is taken.
DEVICES: dict[str, Device] = {
    "v100": Device("V100", 32, 125.0, 0.0, 15.7, has_bfloat16=False),
    "t4": Device("T4", 16, 65.0, 0.0, 8.1, has_bfloat16=False),
    "a100-40": Device("A100-SXM4-40GB", 40, 312.0, 156.0, 19.5),
    "a100": Device("A100", 80, 312.0, 156.0, 19.5),
    "a10": Device("A10", 24, 125.0, 62.5, 31.2),
    "a6000": Device("RTX A6000", 48, 154.8, 77.4, 38.7),
    "rtx3090": Device("RTX 3090", 24, 71.0, 35.6, 35.6),
    "rtx4090": Device("RTX 4090", 24, 165.2, 82.6, 82.6),
    "rtx5090": Device("RTX 5090", 32, 209.5, 104.8, 104.8),
    "rtx6000ada": Device("RTX 6000 Ada", 48, 364.2, 182.1, 91.1),
    "l40s": Device("L40S", 48, 362.0, 183.0, 91.6),
    "l4": Device("L4", 24, 121.0, 60.0, 30.3),
    "h100-pcie": Device("H100 PCIe", 80, 756.0, 378.0, 51.0),
    "h100": Device("H100", 80, 989.4, 494.7, 66.9),
    "h200": Device("H200", 141, 989.4, 494.7, 66.9),
    "gh200": Device("GH200", 96, 989.4, 494.7, 66.9),
    "b200": Device("B200", 180, 2250.0, 1125.0, 75.0),
    "mi250x": Device("MI250X", 64, 191.5, 0.0, 23.9),
    "mi300x": Device("MI300X", 192, 1307.4, 653.7, 163.4),
}


def recognize(name: str) -> Device | None:
    """The device behind a driver's name, such as "NVIDIA H100 80GB HBM3"; None if unknown."""
    words = name.upper()
    known = [device for device in DEVICES.values() if device.title.upper() in words]
    return max(known, key=lambda device: len(device.title), default=None)
