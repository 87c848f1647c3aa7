"""Greedy CTC decoding: the reference for every WER in a sweep."""

from __future__ import annotations

import torch
from torch import Tensor

BLANK = 0


def greedy_decode(log_probs: Tensor, lengths: Tensor) -> tuple[list[list[int]], int]:
    """Best class of each frame, repeats merged, blanks dropped.

    Args:
        log_probs: (B, T, V).
        lengths: (B,) valid frames.

    Returns:
        One list of class indices a sequence, and how many valid frames had blank as their best class.
    """
    best = log_probs.argmax(-1)  # (B, T)
    valid = torch.arange(best.shape[1], device=best.device) < lengths.to(best.device)[:, None]
    blanks = int(((best == BLANK) & valid).sum())
    first = torch.ones_like(valid)
    first[:, 1:] = best[:, 1:] != best[:, :-1]
    keep = (valid & first & (best != BLANK)).cpu()
    return [row[mask].tolist() for row, mask in zip(best.cpu(), keep, strict=True)], blanks


def best_classes(log_probs: Tensor, lengths: Tensor) -> set[int]:
    """The classes that are the best of some valid frame, blank included. Shapes as for `greedy_decode`."""
    valid = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths.to(log_probs.device)[:, None]
    return set(log_probs.argmax(-1)[valid].tolist())
