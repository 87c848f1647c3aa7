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
"""More faults than this are counted but not printed: they are the same fault by then."""


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
    parser.add_argument("--json", action="store_true", help="the last line on stdout is the result as one JSON object")
    parser.set_defaults(run=run, goes_on=True)


def run(arguments: argparse.Namespace) -> int:
    files = _inputs(arguments.inputs, arguments.out)
    arguments.out.mkdir(parents=True, exist_ok=True)
    progress = progress_lines()
    sequences: list[dict[str, Any]] = []
    faults: list[str] = []
    for done, file in enumerate(files, start=1):
        try:
            sequences.append(_convert(file, arguments.out / file.name, arguments.force))
        except ValueError as error:
            faults.append(str(error))
            if len(faults) <= MOST_FAULTS:
                print(f"error: {error}", file=sys.stderr, flush=True)
        progress("landmarks", done, len(files))
    written = sum(s["outcome"] == "written" for s in sequences)
    frames = sum(s["frames"] for s in sequences)
    shares = {name: sum(s["detected"][name] for s in sequences) / max(frames, 1) for name in PARTS}
    print(
        f"{arguments.out}: {written} sequences written, {len(sequences) - written} were there already, "
        f"{len(faults)} faults; {frames} frames"
    )
    if frames:
        print(f"detected: {', '.join(f'{name} in {share:.1%}' for name, share in shares.items())} of the frames")
    if sequences and not all(s["confidence"] for s in sequences):
        print("not all files hold a confidence; there, landmarks of zeros or NaN are the ones not detected")
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), "sequences": sequences, "detected": shares, "faults": faults}))
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
            if "landmarks" not in stored:
                raise ValueError(
                    f"has no array 'landmarks' (it has {', '.join(stored) or 'none'}); "
                    "save it with np.savez(file, landmarks=..., confidence=...)"
                )
            confidence = stored.get("confidence")
            features, masks = from_holistic(stored["landmarks"], confidence)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: {reason}") from error
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
