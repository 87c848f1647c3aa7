"""How busy the machine was during an epoch, under the names that MLflow's tab of system metrics reads."""

from __future__ import annotations

import sys

import psutil

MEGABYTE = 1e6


class SystemMetrics:
    """Loads since the last look: each look begins the time that the next one is about."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.look()

    def look(self) -> dict[str, float]:
        """CPU and memory of the machine and of this process, and the memory of each CUDA device where there is one."""
        memory, mine = psutil.virtual_memory(), self._process.memory_info().rss
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/process_cpu_utilization_percentage": self._process.cpu_percent(),
            "system/system_memory_usage_megabytes": (memory.total - memory.available) / MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_usage_megabytes": mine / MEGABYTE,
            **_devices(),
        }


def _devices() -> dict[str, float]:
    torch = sys.modules.get("torch")  # a trainer of one's own may do without
    if torch is None or not torch.cuda.is_available():
        return {}
    found = {}
    for device in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(device)
        found[f"system/gpu_{device}_memory_usage_megabytes"] = (total - free) / MEGABYTE
        found[f"system/gpu_{device}_memory_usage_percentage"] = 100 * (1 - free / total)
    return found
