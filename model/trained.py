"""The model of a checkpoint, with its weights."""

from __future__ import annotations

from model.checkpoint import Checkpoint
from model.encoder import BiLSTMControl, Student, make_model
from model.types import BUILT_IN


def trained_model(checkpoint: Checkpoint) -> Student | BiLSTMControl:
    """On the CPU, in eval mode.

    Raises:
        ValueError: the checkpoint is of another trainer, or its weights do not fit its own config.
    """
    state, trainer = checkpoint.trainer.get("model"), checkpoint.identity.get("trainer", BUILT_IN)
    if not isinstance(state, dict) or trainer != BUILT_IN:
        who = "it keeps no 'model'" if trainer == BUILT_IN else f"it is {trainer}"
        raise ValueError(
            f"checkpoint of {checkpoint.run}: its trainer is not the one of this package ({who}), so its weights "
            "cannot be loaded here"
        )
    model = make_model(checkpoint.config, list(checkpoint.modalities.values()), len(checkpoint.glosses))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint of {checkpoint.run}: its weights do not fit its own config ({reason})") from error
    return model.eval()
