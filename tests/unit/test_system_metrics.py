"""The load of a machine over an epoch, under MLflow's own names."""

from __future__ import annotations

import time

import psutil

from sweeps.system_metrics import SystemMetrics


def test_a_busy_process_is_seen_from_one_look_to_the_next() -> None:
    busy = SystemMetrics()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    seen = busy.look()
    assert {name.partition("/")[0] for name in seen} == {"system"}
    assert seen["system/process_cpu_utilization_percentage"] > 10
    assert 0 <= seen["system/cpu_utilization_percentage"] <= 100
    assert 0 < seen["system/process_memory_usage_megabytes"] <= psutil.virtual_memory().total / 1e6
    time.sleep(0.3)
    assert busy.look()["system/process_cpu_utilization_percentage"] < seen["system/process_cpu_utilization_percentage"]
