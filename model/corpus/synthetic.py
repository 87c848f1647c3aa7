"""The generated signing corpus: the embedded default, in the folder layout that users have.

A gloss is a short path of both wrists with hand shapes along it. A sentence strings the paths of its glosses into one
smooth curve, so that neighbours blend into each other (coarticulation). A signer is a body, a speed and a habit.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model.corpus.landmarks import POINTS, WIDTH, with_motion, write_sequence
from model.types import MOST_SEED

Array: TypeAlias = NDArray[np.float64]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as (split, sentences done, sentences in the split)."""

_VERSION = 3  # part of the folder's name: raise it when a config generates anything else than before
_GLOSSES, _SIGNERS, _LANGUAGE, _SENTENCES = range(4)  # one random stream each, so that no size changes the others
_RIGHT, _LEFT, _MOUTH = slice(0, 12), slice(12, 24), 24  # articulators: wrist 3, orientation 3, flexion 5, spread 1
_ARTICULATORS = 25
_REST = np.array([0.45, 1.75, 0.0, 0.6, 0.0, 0.0, *[0.35] * 5, 0.2])  # a hand hanging down, outside the picture's focus
_HANDSHAPES = 12


class GeneratedConfig(BaseModel):
    """What to generate. `noise`, `signer_variation` and `missing_hands` make it harder.

    Raises:
        pydantic.ValidationError: an unknown field or a value outside its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train: int = Field(240, ge=1, le=1_000_000, description="training sentences")
    dev: int = Field(100, ge=1, le=1_000_000, description="dev sentences, by a signer whom training never shows")
    test: int = Field(0, ge=0, le=1_000_000, description="test sentences, by yet another signer (0: no test split)")
    glosses: int = Field(40, ge=2, le=2000, description="size of the vocabulary without the blank")
    signers: int = Field(4, ge=1, le=1_000, description="signers of the training sentences")
    width: Literal[225, 6516] = Field(225, description="225: pose and hands; 6516: face, velocity and so on as well")
    missing_hands: float = Field(0.1, ge=0, le=0.5, description="share of frames where a signing hand is not detected")
    noise: float = Field(0.006, ge=0, le=100, description="landmark jitter (standard deviation, picture heights)")
    token_variation: float = Field(1.0, ge=0, le=100, description="how much one gloss differs from time to time")
    signer_variation: float = Field(
        1.0, ge=0, le=100, description="how much signers differ in body, speed and hand shape"
    )
    seed: int = Field(0, ge=0, le=MOST_SEED, description="everything random follows from it")


def generate(config: GeneratedConfig, folder: Path, progress: Progress | None = None) -> Path:
    """Write the corpus below `folder` once, or find it there; returns its own folder.

    Several processes may call this at once.
    """
    identity = identity_of(config.model_dump())
    corpus = folder / f"generated-{sha256(identity.encode()).hexdigest()[:12]}"
    if _whole(corpus, identity):
        return corpus
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".generating-"))
    try:
        written = aside / "corpus"
        _write(config, written, progress)
        sizes = {p.relative_to(written).as_posix(): p.stat().st_size for p in written.rglob("*") if p.is_file()}
        manifest = {"identity": identity, "sizes": sizes}
        (written / "generated.json").write_text(json.dumps(manifest), encoding="utf-8")
        if corpus.exists() and not _whole(corpus, identity):
            with contextlib.suppress(FileNotFoundError):  # another process has moved it away already
                corpus.replace(aside / "torn")
        try:
            written.replace(corpus)
        except OSError:  # another process was first
            if not _whole(corpus, identity):
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return corpus


def _whole(corpus: Path, identity: str) -> bool:
    try:
        manifest = json.loads((corpus / "generated.json").read_text(encoding="utf-8"))
        sizes = manifest["sizes"].items()
        return bool(manifest["identity"] == identity and all((corpus / p).stat().st_size == n for p, n in sizes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def identity_of(settings: Mapping[str, object]) -> str:
    """The settings a generated corpus follows from as one line of JSON: equal lines, equal corpora."""
    return json.dumps({"version": _VERSION, **settings}, sort_keys=True)


def generate_at(config: GeneratedConfig, corpus: Path, progress: Progress | None = None) -> None:
    """Write the corpus into this very folder; sequences that an interrupted call left there are kept.

    Raises:
        ValueError: the folder holds something else.
    """
    claim(corpus, identity_of(config.model_dump()))
    _write(config, corpus, progress)


def claim(folder: Path, identity: str) -> None:
    """Make sure that a folder may be written to: it is not there, or empty, or an earlier call claimed it alike.

    Raises:
        ValueError: it holds something else.
    """
    manifest = folder / "generated.json"
    if manifest.is_file():
        try:
            there, here = json.loads(json.loads(manifest.read_text(encoding="utf-8"))["identity"]), json.loads(identity)
            differing = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{manifest}: does not say what was generated here; name another folder") from error
        if differing:
            raise ValueError(
                f"{folder}: holds a corpus that was generated with other options ({', '.join(differing)}); "
                "delete it or name another folder"
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder}: holds other files; name a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"identity": identity}), encoding="utf-8", newline="\n")


class Sentence(NamedTuple):
    """What to record."""

    name: str
    glosses: list[int]
    signer: int
    rng: np.random.Generator
    frames: int | None = None  # None: as long as signing it takes


def write_split(
    folder: Path,
    sentences: Sequence[Sentence],
    glosses: list[Gloss],
    signers: list[Signer],
    config: GeneratedConfig,
    progress: Progress | None,
) -> None:
    """Record each sentence into `folder/NAME.npz`, but for those that are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    for done, sentence in enumerate(sentences, start=1):
        file = folder / f"{sentence.name}.npz"
        if not file.exists():
            performed = [glosses[g] for g in sentence.glosses]
            write_sequence(file, *record(performed, signers[sentence.signer], config, sentence.rng, sentence.frames))
        if progress is not None:
            progress(folder.name, done, len(sentences))


def sentence_rng(config: GeneratedConfig, split: int, row: int) -> np.random.Generator:
    """The randomness of one sentence, however many others there are."""
    return np.random.default_rng([config.seed, _SENTENCES, split, row])


def _write(config: GeneratedConfig, corpus: Path, progress: Progress | None) -> None:
    glosses = make_glosses(config.glosses, config)
    starts, follows = _language(config)
    signers = [make_signer(config, i) for i in range(config.signers + 2)]
    (corpus / "annotations").mkdir(parents=True, exist_ok=True)
    sizes = {"train": config.train, "dev": config.dev, "test": config.test}
    for number, (split, size) in enumerate(sizes.items()):
        if not size:
            continue
        sentences, lines = [], ["id|folder|signer|annotation"]
        for i in range(size):
            rng = sentence_rng(config, number, i)
            who = int(rng.integers(config.signers)) if split == "train" else config.signers + number - 1
            name = f"{split}-{i:05d}"
            sentences.append(Sentence(name, _sentence(starts, follows, rng), who, rng))
            words = " ".join(f"GLOSS-{g + 1:02d}" for g in sentences[-1].glosses)
            lines.append(f"{name}|{name}.npz|Signer{who + 1:02d}|{words}")
        write_split(corpus / "features" / split, sentences, glosses, signers, config, progress)
        text = "\n".join(lines) + "\n"
        (corpus / "annotations" / f"{split}.corpus.csv").write_text(text, encoding="utf-8", newline="\n")


# Language


def _language(config: GeneratedConfig) -> tuple[Array, Array]:
    """Probabilities of the first gloss (V,), Zipf, and of the next one by the last (V, V)."""
    rng = np.random.default_rng([config.seed, _LANGUAGE])
    zipf = 1 / (np.arange(config.glosses) + 9.0)  # Mandelbrot's offset: as on SI5, no gloss is above a tenth of all
    follows = zipf * np.exp(rng.normal(0, 0.7, (config.glosses, config.glosses)))
    follows[np.diag_indices(config.glosses)] *= 0.3  # a repeat is rare but happens
    return zipf / zipf.sum(), follows / follows.sum(axis=1, keepdims=True)


def _sentence(starts: Array, follows: Array, rng: np.random.Generator) -> list[int]:
    sentence = [int(rng.choice(len(starts), p=starts))]
    for _ in range(int(rng.integers(1, 8))):
        sentence.append(int(rng.choice(len(starts), p=follows[sentence[-1]])))
    return sentence


# Glosses and signers


@dataclass(frozen=True, eq=False)
class Gloss:
    """How a gloss is signed, before any signer signs it."""

    path: Array  # control points (K, 25)
    frames: float  # at ordinary speed


def make_glosses(count: int, config: GeneratedConfig) -> list[Gloss]:
    """The motions of so many glosses; a larger count begins with those of a smaller one."""
    rng = np.random.default_rng([config.seed, _GLOSSES])
    shapes = np.concatenate([rng.uniform(-0.2, 1.6, (_HANDSHAPES, 5)), rng.uniform(0, 1, (_HANDSHAPES, 1))], axis=1)
    return [_make_gloss(shapes, rng) for _ in range(count)]


def _make_gloss(shapes: Array, rng: np.random.Generator) -> Gloss:
    points = int(rng.integers(3, 6))
    path = np.tile(np.concatenate([_REST, _REST, [0.0]]), (points, 1))
    path[:, _RIGHT] = _hand_path(points, shapes, rng)
    kind = rng.random()
    if kind < 0.25:  # both hands, mirrored
        path[:, _LEFT] = path[:, _RIGHT]
    elif kind < 0.5:  # the left hand holds while the right one moves
        path[:, _LEFT] = _hand_path(1, shapes, rng)
    path[:, _MOUTH] = rng.uniform(0, 1, points)
    return Gloss(path, float(rng.uniform(8, 16)))


def _hand_path(points: int, shapes: Array, rng: np.random.Generator) -> Array:
    """Control points (K, 12) of one hand in signing space, in shoulder widths: x outward, y down, z from the body."""
    centre = rng.uniform([-0.3, -0.5, -0.8], [0.8, 0.9, -0.3])
    wrist = centre + rng.normal(0, [0.25, 0.25, 0.12], (points, 3))
    orientation = rng.uniform(-0.9, 0.9, 3) + rng.normal(0, 0.25, (points, 3))
    first, last = shapes[rng.integers(len(shapes), size=2)]
    blend = np.linspace(0, 1, points)[:, None]
    shape = first + (last - first) * blend if rng.random() < 0.4 else np.tile(first, (points, 1))
    return np.concatenate([wrist, orientation, shape], axis=1)


@dataclass(frozen=True, eq=False)
class Signer:
    """A body and its habits."""

    scale: float  # shoulder width over that of the template
    aspect: float  # height over width
    offset: Array  # of the body in the picture (2,)
    speed: float
    space: Array  # linear map of signing space (3, 3)
    habit: Array  # added to every control point (25,)
    face: Array  # landmarks around the head's centre, in shoulder widths (468, 3)


def make_signer(config: GeneratedConfig, number: int) -> Signer:
    """The signer of that number, from 0."""
    rng = np.random.default_rng([config.seed, _SIGNERS, number])
    v = config.signer_variation
    hand = np.array([*[0.06] * 3, *[0.15] * 3, *[0.15] * 5, 0.15])
    angle, height = rng.uniform(0, 2 * np.pi, 468), rng.uniform(-1, 1, 468)
    ring = np.sqrt(1 - height**2)
    face = np.stack([0.28 * ring * np.cos(angle), 0.38 * height, -0.2 * np.abs(ring * np.sin(angle))], axis=1)
    return Signer(
        scale=float(np.exp(0.08 * v * rng.normal())),
        aspect=float(np.exp(0.04 * v * rng.normal())),
        offset=0.03 * v * rng.normal(size=2),
        speed=float(np.exp(0.1 * v * rng.normal())),
        space=np.eye(3) + 0.08 * v * rng.normal(size=(3, 3)),
        habit=np.concatenate([hand, hand, [0.1]]) * v * rng.normal(size=_ARTICULATORS),
        face=face * np.exp(0.05 * v * rng.normal(size=3)),
    )


# Recording


def record(
    glosses: list[Gloss],
    signer: Signer,
    config: GeneratedConfig,
    rng: np.random.Generator,
    length: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One sentence as a camera and MediaPipe see it: features (T, width) and detection_masks (T, 543).

    A `length` stretches the signing to so many frames; without glosses the signer rests.
    """
    curve = _perform(glosses, signer, config, rng, length)
    frames = len(curve)
    beats = np.linspace(0, max(frames - 1, 1), 5)
    sway = _smooth(beats, rng.normal(0, 0.02, (5, 3)), frames)  # the body is never still

    def project(points: Array) -> Array:
        """Shoulder widths around the chest (T, N, 3) to picture coordinates, where x and y run from 0 to 1."""
        unit = 0.22 * signer.scale
        at = points + sway[:, None, :]
        centre = np.array([0.5, 0.5]) + signer.offset
        return np.concatenate([centre + at[..., :2] * [unit, unit * signer.aspect], at[..., 2:] * unit], axis=-1)

    right, left = (_hand(curve[:, side], mirror) for side, mirror in ((_RIGHT, -1.0), (_LEFT, 1.0)))
    pose = _pose(right, left)
    jitter = np.array([1.0, 1.0, 3.0]) * config.noise  # depth is a guess, as MediaPipe's is
    seen = np.stack([_detected(curve[:, side], config, rng) for side in (_LEFT, _RIGHT)], axis=1)
    blocks = [project(pose) + jitter * rng.normal(size=pose.shape)]
    for hand, visible in ((left, seen[:, 0]), (right, seen[:, 1])):
        points = project(hand) + 0.5 * jitter * rng.normal(size=hand.shape)
        points[..., 2] -= points[:, :1, 2]  # depth is relative to the wrist
        blocks.append(points * visible[:, None, None])
    if config.width == WIDTH:
        face = signer.face + pose[:, :1] + [0, 0.05, 0.1]
        mouth = np.clip(signer.face[:, 1] / 0.38 - 0.3, 0, 1)  # the lower face follows the mouthing
        face[..., 1] += 0.12 * curve[:, [_MOUTH]] * mouth
        blocks.append(project(face) + 0.3 * jitter * rng.normal(size=face.shape))
    features = np.concatenate([b.reshape(frames, -1) for b in blocks], axis=1).astype(np.float32)
    if config.width == WIDTH:  # derived from what is stored, as an extractor does: it follows to the last bit
        features = with_motion(features)
    masks = np.ones((frames, POINTS), dtype=bool)
    masks[:, 501:522] = seen[:, :1]
    masks[:, 522:543] = seen[:, 1:]
    return features, masks


def _perform(
    glosses: list[Gloss], signer: Signer, config: GeneratedConfig, rng: np.random.Generator, length: int | None
) -> Array:
    """The articulators over a sentence (T, 25): one smooth curve from rest through all glosses to rest."""
    rest = np.concatenate([_REST, _REST, [0.0]])[None]
    hand = np.array([*[0.06] * 3, *[0.12] * 3, *[0.12] * 5, 0.1])
    spread = config.token_variation * np.concatenate([hand, hand, [0.1]])
    times, points, now = [np.zeros(1)], [rest], 0.0
    for number, gloss in enumerate(glosses):
        now += rng.uniform(2, 5) if number else rng.uniform(4, 7)  # from the last gloss, or up from rest
        frames = float(np.clip(gloss.frames * signer.speed * np.exp(rng.normal(0, 0.08)), 8, 16))
        path = gloss.path + signer.habit
        for side in (_RIGHT, _LEFT):
            path[:, side][:, :3] = path[:, side][:, :3] @ signer.space.T
        # A token differs as a whole and, less, from point to point.
        path += spread * (rng.normal(size=_ARTICULATORS) + 0.5 * rng.normal(size=path.shape)) / np.sqrt(1.25)
        resting = (gloss.path[:, _LEFT] == _REST).all()
        if resting:
            path[:, _LEFT] = _REST
        times.append(now + np.linspace(0, frames, len(path)))
        points.append(path)
        now += frames
    times.append(np.array([now + rng.uniform(4, 7)]))
    points.append(rest)
    at = np.concatenate(times)
    if length is None:
        length = int(np.ceil(at[-1])) + 1
    else:
        at *= max(length - 1, 1) / at[-1]
    return _smooth(at, np.concatenate(points), length)


def _smooth(times: Array, points: Array, frames: int) -> Array:
    """A cubic Hermite curve through points (K, N) at times (K,), read at frames 0, 1, ... (frames, N)."""
    slopes = np.gradient(points, times, axis=0)
    slopes[[0, -1]] = 0  # from standstill to standstill
    t = np.minimum(np.arange(frames, dtype=np.float64), times[-1])
    k = np.clip(np.searchsorted(times, t, side="right") - 1, 0, len(times) - 2)
    span = (times[k + 1] - times[k])[:, None]
    u = (t - times[k])[:, None] / span
    return np.asarray(
        (1 + 2 * u) * (1 - u) ** 2 * points[k]
        + u * (1 - u) ** 2 * span * slopes[k]
        + u**2 * (3 - 2 * u) * points[k + 1]
        - u**2 * (1 - u) * span * slopes[k + 1]
    )


def _hand(articulators: Array, side: float) -> Array:
    """MediaPipe's 21 hand landmarks (T, 21, 3) in shoulder widths: the wrist, then four joints a finger."""
    wrist, turn, flexion, spread = np.split(articulators, [3, 6, 11], axis=1)
    fan = (np.arange(5) - 2) * (0.15 + 0.2 * spread)  # (T, 5), sideways angle of each finger
    base = np.array([0.06, 0.2, 0.21, 0.2, 0.18])
    bone = np.array([0.08, 0.07, 0.08, 0.07, 0.055])
    sideways, ahead = np.sin(fan), np.cos(fan)
    joints = [np.stack([base * sideways, -base * ahead, np.zeros_like(fan)], axis=-1)]
    for number in range(1, 4):
        bend = flexion * number / 2
        step = np.stack([sideways * np.cos(bend), -ahead * np.cos(bend), -np.sin(bend)], axis=-1)
        joints.append(joints[-1] + bone[:, None] * step)
    fingers = np.stack(joints, axis=2).reshape(len(wrist), 20, 3)  # (T, 5, 4, 3): finger by finger
    points = np.concatenate([np.zeros((len(wrist), 1, 3)), fingers], axis=1) @ _rotation(turn)
    points += wrist[:, None, :]
    points[..., 0] *= side  # the signer's right hand is on the picture's left
    return np.asarray(points)


def _rotation(turn: Array) -> Array:
    """Rotations (T, 3, 3) by angles (T, 3) about x, y and z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(turn).T, np.sin(turn).T
    rows = [
        [cy * cz, cz * sx * sy - cx * sz, sx * sz + cx * cz * sy],
        [cy * sz, cx * cz + sx * sy * sz, cx * sy * sz - cz * sx],
        [-sy, cy * sx, cx * cy],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _pose(right: Array, left: Array) -> Array:
    """MediaPipe's 33 pose landmarks (T, 33, 3) in shoulder widths around the chest."""
    head = [[0, -1.0, -0.5], *[[x, -1.1, -0.45] for x in (0.05, 0.09, 0.13, -0.05, -0.09, -0.13)]]
    head += [[0.22, -1.05, -0.2], [-0.22, -1.05, -0.2], [0.07, -0.88, -0.45], [-0.07, -0.88, -0.45]]
    pose = np.zeros((len(right), 33, 3))
    pose[:, :11] = head
    for hand, shoulder, outward in ((left, 11, 1.0), (right, 12, -1.0)):
        pose[:, shoulder] = [0.5 * outward, 0, 0]
        wrist = hand[:, 0]
        pose[:, shoulder + 2] = (pose[:, shoulder] + wrist) / 2 + [0.15 * outward, 0.25, 0.1]  # the elbow hangs
        pose[:, shoulder + 4] = wrist
        for landmark, joint in ((6, 17), (8, 5), (10, 2)):  # little finger, index, thumb
            pose[:, shoulder + landmark] = hand[:, joint]
        pose[:, shoulder + 12] = [0.3 * outward, 1.6, 0]  # hip, knee, ankle, heel, toes
        for step in range(1, 5):
            pose[:, shoulder + 12 + 2 * step] = [0.3 * outward, 1.6 + 0.5 * step, 0]
    return pose


def _detected(hand: Array, config: GeneratedConfig, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether the hand is found in each frame (T,). It is lost for about four frames at a time, at rest mostly so."""
    resting = 1 / (1 + np.exp(-8 * (hand[:, 1] - 1.2)))  # low in the picture
    missing = np.minimum(config.missing_hands * (1 + 6 * resting), 0.9)
    back = 0.25
    lost = rng.random() < missing[0]
    seen = np.empty(len(hand), dtype=bool)
    for t, (draw, share) in enumerate(zip(rng.random(len(hand)), missing, strict=True)):
        lost = draw >= back * (1 - share) if lost else draw < back * share
        seen[t] = not lost
    return seen
