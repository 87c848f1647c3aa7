"""Optuna's own pruners over our rows, and our rules as one of Optuna's pruners."""

from sweeps.optuna_pruners.ctc_pruner import CTCPruner
from sweeps.optuna_pruners.decisions import decide_by
from sweeps.optuna_pruners.in_memory import InMemoryPruner

__all__ = ["CTCPruner", "InMemoryPruner", "decide_by"]
