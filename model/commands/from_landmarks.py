"""`python -m model from-landmarks`: MediaPipe Holistic landmarks to the features of a corpus."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.commands.progress import progress_lines
from model.corpus.features import UNREADABLE, open_npz
from model.corpus.landmarks import PARTS, from_holistic, write_sequence

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

MOST_FAULTS = 20
"""More faults or warnings than this are counted but not printed: they are the same one by then."""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "from-landmarks",
        help="turn MediaPipe Holistic landmarks into 6516-wide features",
        description="Turn landmarks (T, 543, 3 or more) of npz files into features (T, 6516) and detection_masks "
        "(T, 543), one OUT/ID.npz for each ID.npz. Run again, it goes on where it was. One call a split: OUT is "
        "CORPUS/features/train and so on.",
    )
    parser.add_argument(
        "inputs", metavar="INPUT", type=Path, nargs="+", help="npz files with landmarks, or folders of them"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder the features go to")
    parser.add_argument("--force", action="store_true", help="replace files of OUT that say something else")
    parser.add_argument("--json", action="store_true", help="print one JSON object; all else goes to stderr")
    parser.set_defaults(run=run, goes_on=True)


def run(arguments: argparse.Namespace) -> int:
    out = sys.stderr if arguments.json else sys.stdout
    files = _inputs(arguments.inputs, arguments.out)
    arguments.out.mkdir(parents=True, exist_ok=True)
    progress = progress_lines()
    sequences: list[dict[str, Any]] = []
    faults: list[str] = []
    warnings: list[str] = []

    def say(kind: str, said: list[str], text: str) -> None:
        said.append(text)
        if len(said) <= MOST_FAULTS:
            print(f"{kind}: {text}", file=sys.stderr, flush=True)

    for done, file in enumerate(files, start=1):
        try:
            sequences.append(_convert(file, arguments.out / file.name, arguments.force))
            if not any(sequences[-1]["detected"].values()):
                text = f"{file}: no landmark is detected in any frame; its features are zeros, so extract it again"
                say("warning", warnings, text)
        except ValueError as error:
            say("error", faults, str(error))
        progress("landmarks", done, len(files))
    written = sum(s["outcome"] == "written" for s in sequences)
    frames = sum(s["frames"] for s in sequences)
    shares = {name: sum(s["detected"][name] for s in sequences) / max(frames, 1) for name in PARTS}
    print(
        f"{arguments.out}: {written} sequences written, {len(sequences) - written} were there already, "
        f"{len(faults)} faults, {len(warnings)} warnings; {frames} frames",
        file=out,
    )
    if frames:
        print(
            f"detected: {', '.join(f'{name} in {share:.1%}' for name, share in shares.items())} of the frames", file=out
        )
    if sequences and not all(s["confidence"] for s in sequences):
        print("not all files hold a confidence; there, landmarks of zeros or NaN are the ones not detected", file=out)
    if arguments.json:
        result = {"out": str(arguments.out), "sequences": sequences, "detected": shares}
        print(json.dumps({**result, "faults": faults, "warnings": warnings}))
    return 2 if faults else 0


def _inputs(given: Iterable[Path], out: Path) -> list[Path]:
    """The npz files, each name once.

    Raises:
        ValueError: an input is not there or holds no npz, two have one name, or the result would lie among them.
    """
    files: dict[str, Path] = {}
    for path in given:
        if path.is_dir():
            found = sorted(p for p in path.glob("*.npz") if not p.name.startswith("."))
        elif path.is_file() and path.suffix == ".npz":
            found = [path]
        else:
            raise ValueError(f"{path}: is neither an npz file nor a folder; name files with landmarks, or their folder")
        if not found:
            raise ValueError(f"{path}: holds no npz file; name the folder the files lie in, one call a split")
        for file in found:
            if file.resolve().parent == out.resolve():
                raise ValueError(f"{file}: lies in {out}, where the features would go; name another folder for them")
            other = files.setdefault(file.name, file)
            if other.resolve() != file.resolve():
                raise ValueError(f"{file}: has the name of {other}; a name is one sequence, so rename one of them")
    return list(files.values())


def _convert(file: Path, target: Path, force: bool) -> dict[str, Any]:
    """
    Raises:
        ValueError: the file cannot be read or holds no landmarks, or `target` says something else.
    """
    try:
        with open_npz(file) as stored:
            names = ", ".join(stored) or "none"
            landmarks, confidence = stored.get("landmarks"), stored.get("confidence")
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: cannot be read as npz ({reason}); write it again, or leave it out") from error
    if landmarks is None:
        raise ValueError(
            f"{file}: has no array 'landmarks' (it has {names}); save it with np.savez(file, landmarks=..., "
            "confidence=...)"
        )
    try:
        features, masks = from_holistic(landmarks, confidence)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    outcome: Literal["written", "unchanged"] = "written"
    if target.exists():
        if _same(target, features, masks):
            outcome = "unchanged"
        elif not force:
            raise ValueError(f"{target}: holds something else than {file} gives; --force replaces it")
    if outcome == "written":
        write_sequence(target, features, masks)
    return {
        "id": file.stem,
        "outcome": outcome,
        "frames": len(features),
        "detected": {name: int(masks[:, part].any(axis=1).sum()) for name, part in PARTS.items()},
        "confidence": confidence is not None,
    }


def _same(file: Path, features: NDArray[np.float32], masks: NDArray[np.bool_]) -> bool:
    try:
        with open_npz(file) as stored:
            return np.array_equal(stored["features"], features) and np.array_equal(stored["detection_masks"], masks)
    except UNREADABLE:  # torn, or no features: not the same
        return False
