"""Stated peaks of GPUs: dense bfloat16 products with accumulation in float32, from the vendors' data sheets."""

_TERAFLOPS = (
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200", 989.0),
    ("H100 NVL", 835.0),
    ("H100 PCIE", 756.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX A6000", 154.8),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("MI300X", 1307.4),
)
"""Words of the name that a driver gives a device, and its peak; the first line that fits counts."""


def known_teraflops(name: str) -> float | None:
    """The peak of a device by the name that its driver gives; None if it is not known.

    >>> known_teraflops("NVIDIA H100 80GB HBM3"), known_teraflops("NVIDIA L40S"), known_teraflops("Tesla T4")
    (989.0, 362.0, None)
    """
    words = f" {name.upper().replace('-', ' ')} "
    if " LAPTOP " in words:  # slower than the card of the same name
        return None
    return next((peak for known, peak in _TERAFLOPS if f" {known} " in words), None)
