"""Sizes and durations as people write and read them."""

import re

from ssl_vit.errors import UserError

_UNITS = {
    "": 1,
    **{"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12},
    **{"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40},
}


def parse_bytes(text: str, option: str) -> int:
    """Bytes from "268435456", "256MiB", "256M" or "1.5 GB".

    K, M, G and T count in thousands; Ki, Mi, Gi and Ti in 1024s.

    Args:
        option: The option that has this value, as it is written before it: "--shard-bytes ".

    Raises:
        UserError: The text is not a size, or less than one byte; names the option.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?", text.strip().upper())
    num_bytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if num_bytes < 1:
        raise UserError(
            f"{option}{text} is not a size in bytes", f"write for example  {option}256MiB"
        )
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """A size in decimal units, three digits: "1.50 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def format_seconds(seconds: float) -> str:
    """A duration as h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
