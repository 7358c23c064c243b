"""What a benchmark ran on."""

import datetime
import platform
from pathlib import Path


def cpu() -> str:
    """The CPU, what it has for products, and the date."""
    about, flags = platform.processor() or platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                about = value.strip()
            elif name.strip() == "flags":
                wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni")
                flags = " ".join(flag for flag in wanted if flag in value.split())
    except OSError:
        # Other systems have no such file; the name is what Python knows.
        flags = ""
    return f"{about} ({flags or 'no flags known'}), {datetime.date.today()}"
