"""A checkpoint as one ONNX file for other programs and devices, held against the checkpoint before it is written.

The file takes normalised features (B, T, D) and lengths (B,), any number of both, and gives log-probabilities
(B, T // stride, V) and their lengths. What else is needed to use it stands in its metadata, see `metadata`.

The models lay sequences end to end, which has as many rows as the data says; an exported graph takes them padded, with
masks. And ONNX has an operator for two-way LSTMs over sequences of unequal lengths, while torch's exporter fixes the
number of frames of two one-way ones at that of the example (pytorch issue 191855). For the same reasons there is no
`torch.export` file beside it.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from model.checkpoint import Checkpoint
from model.corpus.data import Corpus
from model.corpus.features import MODALITIES, Part, parts_of
from model.corpus.packed import PackedReader
from model.encoder import BiLSTMControl, InvertedResidual, ModalityEncoder, Student
from model.files import written_aside
from model.jagged import BatchNorm, BiLSTM, same_padding
from model.trained import trained_model

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

LARGEST_MEGABYTES = 100
LEAST_FRAMES_PER_SECOND = 30
"""What a device of the users can hold, and how fast its camera is."""

TOLERANCE = 1e-4
"""How far log-probabilities may lie from the checkpoint's, in nats: rounding, in another order of sums."""

SENTENCE = 137
"""Frames of the sentence whose time is taken: the median of PHOENIX 2014 SI5."""
RUNS = 9
RECORDINGS = 8
"""Of dev, evenly spread, that are compared where there is a corpus."""

Recording = NDArray[np.float32]


@dataclass(frozen=True)
class Export:
    """What was written, and what was measured of it."""

    megabytes: float
    """Of 1,000,000 bytes."""
    parameters: int
    frames_per_second: float
    """Frames of features that one thread of this CPU takes a second, whole sentences at a time."""
    milliseconds: float
    """For one sentence of SENTENCE frames."""
    largest_difference: float
    """Between log-probabilities of the file and of the checkpoint (nats), over all sequences compared."""
    sequences: int
    """That were compared, each alone and all in one padded batch."""
    compared_on: str
    """What they were."""

    @property
    def faults(self) -> list[str]:
        """Limits that it does not keep, a sentence each."""
        faults = []
        if self.megabytes > LARGEST_MEGABYTES:
            faults.append(f"{self.megabytes:.1f} MB is more than {LARGEST_MEGABYTES} MB.")
        if self.frames_per_second < LEAST_FRAMES_PER_SECOND:
            faults.append(f"{self.frames_per_second:.1f} frames a second is less than {LEAST_FRAMES_PER_SECOND}.")
        return faults


def export(checkpoint: Checkpoint, out: Path, corpus: Corpus | None = None) -> Export:
    """Write the model of a checkpoint as ONNX.

    Args:
        corpus: the one of the training, as `model.diagnose.fitting` gives it: recordings of dev are then compared.

    Raises:
        ValueError: a package is missing, the weights cannot be loaded, what the features are made of is not known
            without the corpus, or the file would not compute what the checkpoint does: then nothing is written.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ValueError(f"export needs the package {missing[0]}; pip install 'ctc-sweeps[export]'")
    model, width = trained_model(checkpoint), features_width(checkpoint)
    data = to_onnx(model, width, metadata(checkpoint, model, corpus))
    session = open_session(data)
    recordings, what = _to_compare(model, checkpoint, corpus)
    difference = largest_difference(session, model, recordings)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{out}: was not written: its log-probabilities lie up to {difference:.2g} nats from those of the "
            f"checkpoint, and at most {TOLERANCE:g} is rounding; please report this, with the version of torch"
        )
    seconds = seconds_a_sentence(session, width)
    with written_aside(out) as file:
        file.write(data)
    return Export(
        megabytes=len(data) / 1e6,
        parameters=sum(p.numel() for p in model.parameters()),
        frames_per_second=SENTENCE / seconds,
        milliseconds=1e3 * seconds,
        largest_difference=difference,
        sequences=len(recordings),
        compared_on=what,
    )


def features_width(checkpoint: Checkpoint) -> int:
    """Columns of the features that the model takes (D)."""
    return sum(checkpoint.modalities.values())


def fewest_frames(model: Student | BiLSTMControl) -> int:
    """Frames that a batch must be padded to at least, with zeros."""
    return model.rates[-1] if isinstance(model, Student) else model.stride


def metadata(checkpoint: Checkpoint, model: Student | BiLSTMControl, corpus: Corpus | None) -> dict[str, Any]:
    """What a program must know to use the model, as JSON types; docs/how-to/export.md explains each key.

    Raises:
        ValueError: see `landmark_parts`.
    """
    reports = checkpoint.reports
    parts, columns = landmark_parts(checkpoint, corpus)
    return {
        "glosses": list(checkpoint.glosses),
        "stride": model.stride,
        "minimum_frames": fewest_frames(model),
        "modalities": dict(checkpoint.modalities),
        "mean": checkpoint.mean.tolist(),
        "scale": checkpoint.scale.tolist(),
        "parts": parts,
        "columns": columns,
        "run": checkpoint.run,
        "epoch": reports[-1].epoch if reports else None,
        "step": reports[-1].step if reports else None,
        "corpus_hash": checkpoint.corpus_hash,
    }


def landmark_parts(checkpoint: Checkpoint, corpus: Corpus | None) -> tuple[list[dict[str, Any]], list[int] | None]:
    """The parts of the features that can be missing in a frame, and which columns of the features the model takes.

    Returns: for each part its `name`, its `columns` (first, last + 1) among those that the model takes, the columns of
        the whole features that it is `made_of`, in how many `frames`, this one and those before it. And the columns
        that the model takes; None: all.

    Raises:
        ValueError: dimensions were left out when the corpus was packed, and there is no corpus to ask which.
    """
    width = features_width(checkpoint)
    stored = not checkpoint.mean.any() and bool((checkpoint.scale == 1).all())
    if corpus is not None and isinstance(corpus.train.read, PackedReader):
        kept = corpus.train.read.arrays.kept
    elif corpus is None and width not in MODALITIES and set(checkpoint.modalities) & {"pose", "hands", "face"}:
        raise ValueError(
            f"checkpoint of {checkpoint.run}: its features are landmarks of which only {width} dimensions are left, "
            "and only the corpus knows which; name it with --data"
        )
    else:
        kept = None
    columns = None if kept is None else np.flatnonzero(kept).tolist()
    if stored:  # then what is missing enters the model as it is
        return [], columns
    whole = width if kept is None else len(kept)
    named = parts_of(whole)

    def entry(part: Part) -> dict[str, Any]:
        source = named[part.base].columns
        return {
            "name": part.name,
            "columns": [part.columns.start, part.columns.stop],
            "made_of": [source.start, source.stop],
            "frames": part.frames,
        }

    return [entry(part) for part in parts_of(whole, kept) if part.mask is not None], columns


class Padded(nn.Module):
    """A model in eval mode, computed over padded sequences. It can be exported, not run: see `OnnxBiLSTM`."""

    def __init__(self, model: Student | BiLSTMControl) -> None:
        super().__init__()
        self.model, self.lstm = model, OnnxBiLSTM(model.lstm)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As of the model, but for what comes behind a sequence's own length."""
        model, out_lengths = self.model, lengths // self.model.stride
        if isinstance(model, Student):
            x = encoded(model, features, lengths)
        else:
            x = features.unfold(1, model.stride, model.stride).mean(3)
        return model.head(self.lstm(x, out_lengths)).log_softmax(-1), out_lengths


def encoded(model: Student, features: Tensor, lengths: Tensor) -> Tensor:
    """Features (B, T, D) to what the student's BiLSTM is given, (B, T // stride, C)."""
    masks = [time_mask((lengths // r).clamp(min=1), features.shape[1] // r) for r in model.rates]
    encodings = []
    for encoder, part in zip(model.encoders, torch.split(features.transpose(1, 2), model.widths, 1), strict=True):
        assert isinstance(encoder, ModalityEncoder)
        x = F.hardswish(normalised(encoder.stem_norm, convolved(encoder.stem, part)))
        for block, mask, out_mask in zip(encoder.blocks, masks[:-1], masks[1:], strict=True):
            assert isinstance(block, InvertedResidual)
            wide = F.hardswish(normalised(block.expand_norm, convolved(block.expand, x)))
            wide = F.hardswish(normalised(block.depthwise_norm, convolved(block.depthwise, wide * mask)))
            gate, mean = block.gate, (wide * out_mask).sum(2) / out_mask.sum(2)
            gates = F.hardsigmoid(gate.excite(F.relu(gate.squeeze(mean))))
            y = normalised(block.project_norm, convolved(block.project, wide * gates[:, :, None]))
            x = x + y if block.residual else y
        encodings.append(x)
    x, rate = torch.cat(encodings, 1), model.rates[-1]
    if model.stride < rate:
        x = upsampled(x, (lengths // rate).clamp(min=1), rate // model.stride, features.shape[1] // model.stride)
    return x.transpose(1, 2)


def time_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B, 1, frames) with 1 at valid frames."""
    return (torch.arange(frames, device=lengths.device) < lengths[:, None]).to(torch.float32)[:, None]


def convolved(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """(B, C, T) to (B, C', T // stride), whatever the layer itself takes."""
    padding = same_padding(conv.kernel_size[0], conv.stride[0])
    return F.conv1d(F.pad(x, padding), conv.weight, stride=conv.stride, groups=conv.groups)


def normalised(norm: BatchNorm, x: Tensor) -> Tensor:
    """Batch normalisation of (B, C, T) by running statistics."""
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)


def upsampled(x: Tensor, lengths: Tensor, factor: int, frames: int) -> Tensor:
    """`model.encoder.upsample` of (B, C, T) to (B, C, frames)."""
    last = x.gather(2, (lengths - 1)[:, None, None].expand(-1, x.shape[1], 1))  # (B, C, 1)
    x = torch.where(time_mask(lengths, x.shape[2]) > 0, x, last)
    return F.interpolate(torch.cat([x, last], 2), scale_factor=factor, mode="linear")[:, :, :frames]


class OnnxBiLSTM(nn.Module):
    """`BiLSTM` in the words of ONNX: an LSTM operator of two directions a layer. It can be exported, not run."""

    def __init__(self, lstm: BiLSTM) -> None:
        super().__init__()
        self.hidden = lstm.ahead[0].get_parameter("weight_hh_l0").shape[1]
        self.inputs = nn.ParameterList()
        self.recurrent = nn.ParameterList()
        self.biases = nn.ParameterList()
        for ahead, back in zip(lstm.ahead, lstm.back, strict=True):
            for into, names in (
                (self.inputs, ("weight_ih_l0",)),
                (self.recurrent, ("weight_hh_l0",)),
                (self.biases, ("bias_ih_l0", "bias_hh_l0")),
            ):
                each = [torch.cat([onnx_gates(one.get_parameter(n)) for n in names]) for one in (ahead, back)]
                into.append(nn.Parameter(torch.stack(each).detach()))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, C) to (B, T, 2 * hidden), zeros behind a sequence's own length."""
        x = x.transpose(0, 1)  # (T, B, C)
        for weights in zip(self.inputs, self.recurrent, self.biases, strict=True):
            y = torch.onnx.ops.symbolic(
                "LSTM",
                (x, *weights, lengths.to(torch.int32)),
                {"hidden_size": self.hidden, "direction": "bidirectional"},
                dtype=x.dtype,
                shape=(x.shape[0], 2, x.shape[1], self.hidden),
            )
            x = y.transpose(1, 2).flatten(2)  # (T, B, 2 * hidden)
        return x.transpose(0, 1)


def onnx_gates(weights: Tensor) -> Tensor:
    """Torch has an LSTM's gates as input, forget, cell, output; ONNX as input, output, forget, cell."""
    i, f, g, o = weights.chunk(4)
    return torch.cat([i, o, f, g])


def to_onnx(model: Student | BiLSTMControl, width: int, about: dict[str, Any]) -> bytes:
    """The model as an ONNX file, with each entry of `about` as JSON in its metadata.

    Args:
        model: in eval mode, on the CPU.
        width: columns of the features (D).
    """
    import onnx

    assert not model.training
    traced = Padded(model).eval()
    least = fewest_frames(model)
    frames = 3 * least + 2  # nothing that a guard could take for a rule
    batch, time_ = Dim("batch"), Dim("time", min=least)
    with _quiet():
        program = torch.onnx.export(
            traced,
            (torch.zeros(2, frames, width), torch.tensor([frames, frames - 1])),
            dynamo=True,
            dynamic_shapes=({0: batch, 1: time_}, {0: batch}),
            input_names=["features", "lengths"],
            output_names=["log_probs", "frames"],
            verbose=False,
        )
    assert program is not None
    file = program.model_proto
    graph = file.graph
    # The exporter notes where in which file of this machine each node comes from.
    for noted in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del noted.metadata_props[:]
    onnx.helper.set_model_props(file, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(file)
    data: bytes = file.SerializeToString()
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter warns of its own code, and of packages that are not needed: nobody could act on it. Whether the
    file is right is found out afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def open_session(data: bytes) -> InferenceSession:
    """The file in onnxruntime, on one thread of the CPU."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run_session(session: InferenceSession, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """As the model's own forward pass."""
    log_probs, frames = session.run(None, {"features": features.numpy(), "lengths": lengths.numpy()})
    return torch.from_numpy(log_probs), torch.from_numpy(frames)


def _to_compare(
    model: Student | BiLSTMControl, checkpoint: Checkpoint, corpus: Corpus | None
) -> tuple[list[Recording], str]:
    """Recordings (T, D) of different lengths, and what they are."""
    least = fewest_frames(model)
    if corpus is not None:
        dev = corpus.dev
        long = np.flatnonzero(dev.lengths >= least)
        if len(long):
            rows = np.unique(long[np.linspace(0, len(long) - 1, RECORDINGS).round().astype(int)])
            return [dev.features(int(row)) for row in rows], "recordings of dev"
    rng = np.random.default_rng(0)
    width = features_width(checkpoint)
    lengths = (least, least + 1, 2 * least + 3, 50, SENTENCE)
    return [rng.standard_normal((n, width), dtype=np.float32) for n in lengths], "random features"


@torch.no_grad()
def largest_difference(
    session: InferenceSession, model: Student | BiLSTMControl, recordings: Sequence[Recording]
) -> float:
    """How far the session's log-probabilities lie from the model's: each recording alone, and all in one batch.

    Returns: the largest difference (nats) over all frames of the outputs; infinite where their number differs.
    """
    lengths = torch.tensor([len(each) for each in recordings])
    together = nn.utils.rnn.pad_sequence([torch.tensor(each) for each in recordings], batch_first=True)
    batches = [(together, lengths)]
    batches += [(together[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths.tolist())]
    worst = 0.0
    for features, n in batches:
        expected, frames = model(features, n)
        got, got_frames = run_session(session, features, n)
        if not torch.equal(frames, got_frames):
            return float("inf")
        for a, b, count in zip(got, expected, frames.tolist(), strict=True):
            # Unlike max this keeps a NaN.
            worst = float(np.maximum(worst, (a[:count] - b[:count]).abs().max().item()))
    return worst


def seconds_a_sentence(session: InferenceSession, width: int) -> float:
    """Median time of one sentence of SENTENCE frames on the session's one thread."""
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((1, SENTENCE, width), dtype=np.float32))
    lengths = torch.tensor([SENTENCE])
    seconds = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        run_session(session, features, lengths)
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])  # the first one makes its buffers
