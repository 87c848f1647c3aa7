"""The records that cross the trainer's boundary: what to train, and what one epoch showed.

Nothing here imports torch, so that a process which only reads results (the CLI, the mirror) starts fast.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, field_validator

Value: TypeAlias = float | int | str | bool
Hyperparameters: TypeAlias = Mapping[str, Value]
"""What one trial tries: names of `TrainingConfig` fields and their values."""

METRICS: Mapping[str, str] = {
    "train/loss": "CTC loss on the training batches of this epoch, dropout on (nats per gloss)",
    "train/wer": "word error rate on a fixed sample of train, eval mode (fraction); with the probes, after takeoff",
    "train/infeasible": "training sequences left out because no alignment fits their target (count)",
    "dev/loss": "CTC loss on dev, eval mode (nats per gloss)",
    "dev/wer": "word error rate of greedy decoding on dev (fraction)",
    "dev/sub": "substitutions / reference words (fraction)",
    "dev/del": "deletions / reference words (fraction)",
    "dev/ins": "insertions / reference words (fraction)",
    "optim/lr": "learning rate at the last step of this epoch",
    "optim/grad_norm": "gradient norm before clipping, mean over the epoch's finite steps",
    "optim/clipped": "share of the epoch's finite updates whose gradient was clipped (fraction)",
    "optim/skipped": "batches of the epoch whose loss or gradient was not finite (count)",
    "optim/step_ratio": "effective step: RMS of an update's weight change over its learning rate, "
    "mean over some updates of the epoch; 0.2 to 1 for Adam at a small eps",
    "spread/min": "smallest log-probability over all classes and unpadded dev frames (nats)",
    "spread/max": "largest log-probability over all classes and unpadded dev frames (nats)",
    "spread/range": "spread/max - spread/min (nats)",
    "spread/time": "standard deviation over time of each class's log-prob within a sequence, "
    "averaged over classes and dev sequences (nats)",
    "decode/glosses": "distinct glosses in the dev hypotheses",
    "decode/hypotheses": "distinct dev hypotheses",
    "decode/blank": "share of unpadded dev frames whose best class is blank (fraction)",
    "decode/length": "words of the dev hypotheses / reference words (fraction)",
    "decode/top_gloss": "share of the most frequent gloss among the words of the dev hypotheses (fraction)",
    "probe/sequences": "dev sequences that the probes compare (count)",
    "probe/swap_gap": "dev loss with the features of another sequence minus that with its own (nats per gloss)",
    "probe/swap_t": "paired t of the swap gap over sequences",
    "probe/permuted_gap": "dev loss with a sequence's own frames in random order minus that in order (nats per gloss)",
    "probe/permuted_t": "paired t of the permuted-time gap over sequences",
}
"""Every key a run reports, with its unit. The keys are fixed: dashboards and rules are built on them."""

NOT_EVERY_EPOCH = frozenset({"train/wer", *(key for key in METRICS if key.startswith("probe/"))})
"""Absent from epochs without probes (they come in every epoch of the plateau, and in some after takeoff), and where
there are too few sequences to say anything."""

MOST_SEED = 2**63 - 1
"""What a database and torch can hold."""

BUILT_IN = "built-in"
"""What runs and sweeps of the trainer of this package are remembered by; those of one's own have another name."""

FEWEST_SEQUENCES = 100
"""With fewer dev sequences the swap gap has no paired t: there is not enough evidence."""


def mixed_seed(*parts: int | str) -> int:
    """One 32-bit seed from several parts; a change of any part changes it completely."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


class TrainingConfig(BaseModel):
    """One training run, fully described but for its corpus.

    Raises:
        pydantic.ValidationError: an unknown field or a value outside its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(24, ge=1, le=1_000_000, description="epochs at most")
    batch_size: int = Field(4, ge=1, le=1_000_000, description="sequences a step")
    length_buckets: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="so many batches' sequences are sorted by length together: less padding, another order; 0: none",
    )
    accumulate: int = Field(1, ge=1, le=1_000_000, description="steps whose gradients are summed before one update")
    eval_batch_size: int = Field(32, ge=1, le=1_000_000, description="sequences a forward pass on dev")
    learning_rate: float = Field(5e-4, gt=0, le=10, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay of AdamW")
    adam_eps: float = Field(1e-8, gt=0, description="eps of AdamW; 1e-3 makes steps about twelve times smaller")
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    schedule: Literal["cosine_restarts", "plateau", "step", "constant"] = Field(
        "plateau", description="what the learning rate does after the warm-up"
    )
    warmup_start_factor: float = Field(1.0, gt=0, le=1, description="the warm-up starts at this share of the peak")
    warmup_epochs: float = Field(
        5, ge=0, le=1_000_000, description="epochs of linear warm-up (no effect at start factor 1)"
    )
    restart_epochs: int = Field(10, ge=1, le=1_000_000, description="cosine_restarts: epochs of one cosine (T_0)")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="plateau: the rate is multiplied by this")
    plateau_patience: int = Field(
        10, ge=0, le=1_000_000, description="plateau: epochs without a better dev loss before that"
    )
    step_epochs: int = Field(50, ge=1, le=1_000_000, description="step: epochs between two cuts")
    step_factor: float = Field(0.5, gt=0, lt=1, description="step: the rate is multiplied by this")
    min_learning_rate: float = Field(1e-6, ge=0, description="plateau and cosine_restarts never go below")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout before and after the BiLSTM")
    patience: int = Field(30, ge=1, le=1_000_000, description="early stopping: epochs without a better dev WER")
    patience_starts: Literal["takeoff", "epoch1"] = Field(
        "takeoff", description="patience counts from takeoff, or from epoch 1 as the original script did"
    )
    architecture: Literal["student", "bilstm"] = Field(
        "student", description="student: MobileNetV3-1D encoders and BiLSTM; bilstm: the plain BiLSTM control"
    )
    output_stride: Literal[1, 2, 4, 8, 16] = Field(
        4, description="input frames per output frame; 1 upsamples back to the full frame rate"
    )
    output_bias: Literal["random", "floor"] = Field(
        "random", description="floor: the head begins at the best constant posterior, past the first fall of the loss"
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        "float32", description="bf16: autocast, for CUDA; log-softmax and CTC stay in float32; fp16 is refused"
    )
    probe_interval: int = Field(
        4,
        ge=0,
        le=1_000_000,
        description="epochs between two rounds of probes after takeoff (each epoch before it); 0: no probes",
    )
    hidden: int = Field(128, ge=8, le=65_536, description="width of the BiLSTM, each direction")
    channels: int = Field(
        128, ge=8, le=65_536, description="width of the convolutional encoder's output, over all modalities"
    )
    lstm_layers: int = Field(1, ge=1, le=100, description="BiLSTM layers")
    seed: int = Field(0, ge=0, le=MOST_SEED, description="initialisation and dropout")
    data_seed: int = Field(
        0, ge=0, le=MOST_SEED, description="order of the training sequences; the same for all trials of a sweep"
    )
    threads: int = Field(1, ge=1, le=1_024, description="CPU threads of torch")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is one")

    @field_validator("precision")
    @classmethod
    def _no_float16(cls, precision: str) -> str:
        if precision == "fp16":
            raise ValueError(
                "fp16: float16 ends at 6e-8, and once the loss is small a tenth to a third of its gradients lie below; "
                "scaled up, steps overflow and look like divergence. Use bf16, which has the range of float32"
            )
        return precision

    def with_values(self, values: Hyperparameters) -> TrainingConfig:
        """This config with some fields replaced, checked again."""
        return type(self).model_validate({**self.model_dump(), **values})

    def changed(self) -> dict[str, Value]:
        """The fields that differ from their defaults."""
        return {k: v for k, v in self.model_dump().items() if v != type(self).model_fields[k].default}


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of one run showed.

    `metrics` has the keys of `METRICS`, where measured (see NOT_EVERY_EPOCH); a value may be NaN or infinite.
    """

    epoch: int
    """1 for the first."""
    step: int
    """Optimizer updates since the run began, skipped ones included: the place in the schedule."""
    metrics: Mapping[str, float]
    steps_in_epoch: int = 0
    """Training batches of this epoch."""
    skipped_steps: int = 0
    """Batches of this epoch whose loss or gradient was not finite: skipped, never applied."""
    lr_time: float = 0.0
    """Learning rate summed over all updates so far."""
    seconds: float = 0.0
    not_finite: str = ""
    """Where the epoch's first value that is not finite appeared: module and batch; empty where all were finite."""
    examples: Mapping[str, Any] | None = None
    """What it read into some sentences, at some epochs: see `model.examples`. JSON types only."""

    @property
    def wer(self) -> float:
        return self.metrics["dev/wer"]

    def value(self, key: str) -> float:
        """A metric, or NaN where it was not measured."""
        return self.metrics.get(key, math.nan)

    def finite(self) -> dict[str, float]:
        """The metrics that are numbers; the others are absent, as JSON and MLflow have no word for them."""
        return {k: float(v) for k, v in self.metrics.items() if math.isfinite(v)}


class Stopped(Exception):
    """`should_stop` said so in the middle of an epoch; the epoch in hand is dropped."""


@runtime_checkable
class Trainer(Protocol):
    """Trains one trial, one epoch a call.

    After `load_state_dict(other.state_dict())` the next epoch equals the one `other` would have trained.
    """

    @property
    def epoch(self) -> int:
        """Epochs finished."""

    @property
    def step(self) -> int:
        """Counts batches; moves while training moves (a lease is renewed only while it does)."""

    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        """Train one epoch and evaluate on dev. `should_stop` is read once a step.

        Raises:
            Stopped: `should_stop()` was true.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything the next epoch depends on, loadable with `weights_only=True`."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
