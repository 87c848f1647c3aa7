"""The model of a checkpoint behind the interface that MLflow loads models by: features in, a sentence out.

    model = mlflow.pyfunc.load_model("models:/m-...")
    model.predict(features)     # (T, D) float32, one recording as it is stored -> ["REGEN MORGEN"]

Nothing of MLflow is needed here, and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoint import Checkpoint, read
from model.decode import greedy_decode
from model.trained import trained_model


class Recogniser:
    """Reads one recording at a time, by greedy decoding, as the WERs of sweeps are measured."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._model = checkpoint, trained_model(checkpoint)
        self._stride = checkpoint.config.output_stride

    @torch.no_grad()
    def predict(self, features: NDArray[np.float32], params: Mapping[str, Any] | None = None) -> list[str]:
        """
        Args:
            features: (T, D) of one recording, before normalisation; NaN where a part of the body was not found.
            params: none are known.

        Returns: one sentence, its glosses joined by one space.

        Raises:
            ValueError: not of that shape, or a value that is not finite.
        """
        width = sum(self._checkpoint.modalities.values())
        if features.ndim != 2 or features.shape[1] != width or np.isinf(features).any():
            raise ValueError(
                f"features of shape {features.shape}: give one recording, (frames, {width}), without infinite numbers"
            )
        if len(features) < self._stride:
            return [""]
        x = (torch.as_tensor(features) - self._checkpoint.mean) * self._checkpoint.scale
        x = x.float().nan_to_num(nan=0.0)  # as training does: a part that is missing says nothing
        log_probs, lengths = self._model(x[None], torch.tensor([len(features)]))
        (classes,), _ = greedy_decode(log_probs, lengths)
        return [" ".join(self._checkpoint.glosses[each] for each in classes)]


def _load_pyfunc(path: str) -> Recogniser:
    """What MLflow calls with the checkpoint's file."""
    return Recogniser(read(Path(path)))
