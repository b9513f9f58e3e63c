"""What memory this process holds, and held at most."""

from __future__ import annotations


def forget_peak() -> float | None:
    """Let the peak start anew; MiB held now, or None where the system keeps no such count."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return None
    return memory_mb("VmRSS")


def memory_mb(field: str) -> float | None:
    """MiB: VmRSS, held now, or VmHWM, the most there was."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))
    except (OSError, StopIteration):
        return None


def grown(before: float | None) -> float | None:
    """MiB of the peak beyond `before`, what `forget_peak` returned."""
    peak = memory_mb("VmHWM")
    return None if peak is None or before is None else max(0.0, peak - before)
