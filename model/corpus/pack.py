"""Packing a corpus folder into what `model.corpus.packed` reads: one pass, restartable, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.corpus.annotations import CorpusError, check_coverage, some
from model.corpus.data import CorpusConfig, read_annotation
from model.corpus.features import UNREADABLE, Recording, dimension_name, open_npz, parts_of
from model.corpus.folder import Folder, open_folder
from model.corpus.landmarks import STILL_WIDTH, WIDTH, first_difference
from model.corpus.normalised import check_normalised
from model.corpus.packed import (
    DETECTED,
    FEATURES,
    MANIFEST,
    SCAN,
    VOCABULARY,
    Manifest,
    Packed,
    Stored,
    is_packed,
    open_packed,
    read_manifest,
)
from model.corpus.scan import (
    FileScan,
    Progress,
    Scan,
    Statistics,
    constant_dimensions,
    content_hash,
    file_scan,
    in_order,
    own_statistics,
    recording_digest,
    scan_arrays,
    scan_of,
    write_arrays,
)
from model.corpus.vocabulary import Vocabulary
from model.files import written_aside

Dtype: TypeAlias = Literal["auto", "float16", "float32"]
Derive: TypeAlias = Literal["auto", "yes", "no"]
Stamps: TypeAlias = dict[str, dict[str, list[int]]]
Say = Callable[[str], None]

BATCH_BYTES = 64 << 20
"""Features written between two records of how far packing has come: a kill costs a second or two of work."""

_VERSION = 1  # part of what a pack is made from: raise it when the same source and options give other files
_STATE = "state.npz"
_LOCK = ".packing"  # the first file there is
_HEADER_BYTES = 128  # of features.npy; written last, as only then it is known how many frames there are


@dataclass(frozen=True, eq=False)
class _Job:
    """What is to be packed, and where to."""

    source: Folder
    part: Path
    dtype: Dtype
    derive: Derive
    scan: Scan | None
    """Of the source, where constant dimensions are to be dropped."""
    first: Recording
    recipe: str
    """Of the annotations and the options."""
    key: str
    """Of the recipe and the source files as they are now."""
    stamps: Stamps
    """Size and time of every file when packing began."""
    progress: Progress | None
    say: Say

    @property
    def width(self) -> int:
        return int(self.first.x.shape[1])


@dataclass(frozen=True, eq=False)
class _Plan:
    """How recordings are stored."""

    dtype: Literal["<f2", "<f4"]
    derived: bool
    not_derived: str | None = None
    """Why not, where it was tried."""


@dataclass(eq=False)
class _State:
    """How far packing has come: everything but the features."""

    plan: _Plan
    scan: Scan
    detected: list[NDArray[np.bool_]]
    source_digests: dict[str, dict[str, str]]
    rounding: tuple[float, float]
    """Largest relative change of a value in the dtype's normal range, and absolute one below."""


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A recording, ready to be appended."""

    stored: NDArray[Any]
    detected: NDArray[np.bool_]
    found: FileScan  # of what the pack will give
    own: Statistics
    source_digest: str
    rounding: tuple[float, float]


class _Misfit(Exception):
    """A recording cannot be stored as planned."""

    def __init__(self, what: Literal["dtype", "derived"], reason: str) -> None:
        super().__init__(reason)
        self.what = what


def pack(
    config: CorpusConfig,
    out: Path,
    *,
    dtype: Dtype = "auto",
    derive: Derive = "auto",
    drop_constant: bool = False,
    progress: Progress | None = None,
    say: Say = lambda text: None,
) -> Packed:
    """Pack a corpus folder into the folder `out`, or go on where an earlier call was stopped.

    Everything is written into `out`.part, which becomes `out` at the end.

    Args:
        config: where the corpus lies; its filter, vocabulary and modalities become the pack's own.
        dtype: `auto` changes no value: float16 stays float16, all else must fit float32 exactly. The others round
            where they must; the pack then has another hash than the folder.
        derive: store the landmarks of 6516-wide features alone, where the rest follows from them to the bit in the
            stored dtype: `auto` if it does, `yes` or else refuse, `no` never.
        drop_constant: leave out dimensions that are constant over train.
        progress: called after each file.
        say: told in a sentence what was decided on the way.

    Raises:
        CorpusError: the corpus breaks a rule or cannot be stored so, or `out` cannot be written.
        ValueError: the vocabulary file is malformed.
    """
    if is_packed(config.path):
        raise CorpusError(f"{config.path}: is packed already; name the folder that it was made from")
    source = open_folder(config.path, config.annotations)
    for listing in source.listings:
        check_coverage(listing)
    annotation = read_annotation(source, config)
    source.modalities(config.modalities)
    first = source.read(source.listings[0].name, next(iter(source.listings[0].files)))
    if derive == "yes" and first.x.shape[1] != WIDTH:
        raise CorpusError(
            f"{source.listings[0].first}: features are {first.x.shape[1]} wide; motion is derived for {WIDTH} only, "
            "so leave derive at auto"
        )
    stamps = _stamps(source)
    recipe = content_hash(
        _VERSION,
        [dtype, derive, drop_constant, annotation.filter, annotation.vocabulary.hash, config.modalities],
        [[list(row) for row in listing.rows] for listing in source.listings],
    )
    key = content_hash(recipe, stamps)
    if not _is_free(out, config.path, source, recipe, key):
        say(f"{out} is packed from this corpus already, with these options.")
        return open_packed(out)

    place = out.resolve()
    part = place.with_name(f"{place.name}.part")
    if _is_foreign(part):
        raise CorpusError(f"{part}: is needed to pack into, but holds something else; choose another place for {out}")
    try:
        part.mkdir(parents=True, exist_ok=True)
        with _locked(part / _LOCK):
            if not _is_whole(part, key):
                scan = source.scan(part, progress) if drop_constant else None
                job = _Job(source, part, dtype, derive, scan, first, recipe, key, stamps, progress, say)
                state = _pack_recordings(job)
                _finish(job, state, annotation.filter, annotation.vocabulary, config.modalities)
        (part / _LOCK).unlink(missing_ok=True)
        if place.is_dir():
            place.rmdir()  # empty, or this is an error
        part.rename(place)
    except OSError as error:
        raise CorpusError(
            f"{error.filename or part}: cannot be written ({error.strerror or error}); once that is mended, the same "
            "command goes on where it was"
        ) from error
    return open_packed(out)


def verify(path: Path, progress: Progress | None = None) -> Packed:
    """Read all of a pack and hold it against the digests in it.

    Raises:
        CorpusError: it is no pack, or something is not as it was packed; says what.
    """
    if path.is_dir() and not is_packed(path):
        raise CorpusError(f"{path}: is not packed, so there is nothing to hold it against; name a packed corpus")
    packed = open_packed(path)
    items = [(split, name) for split, files in packed.stored.files.items() for name in files]
    done = dict.fromkeys(packed.stored.files, 0)

    def work(item: tuple[str, str]) -> bool:
        return file_scan(packed.read(*item), packed.parts) == packed.stored.files[item[0]][item[1]]

    wrong = []
    for (split, name), same in zip(items, in_order(work, items), strict=True):
        if not same:
            wrong.append(name)
        done[split] += 1
        if progress is not None:
            progress(split, done[split], len(packed.stored.files[split]))
    if wrong:
        raise CorpusError(
            f"{path / FEATURES}: {len(wrong)} of {len(items)} recordings are not what was packed ({some(wrong)}); "
            "pack the corpus again"
        )
    check_normalised(packed, progress)
    return packed


def _is_free(out: Path, corpus: Path, source: Folder, recipe: str, key: str) -> bool:
    """Whether `out` can be written; false where it holds this very pack."""
    place = out.resolve()
    for taken in (corpus.resolve(), source.path):
        if place.is_relative_to(taken) or taken.is_relative_to(place):
            raise CorpusError(f"{out}: lies in the corpus {corpus}, or around it; choose a place beside it")
    if is_packed(out):
        manifest = read_manifest(out)
        if manifest.source == key:
            return False
        if manifest.recipe == recipe:
            raise CorpusError(
                f"{out}: is packed from these sentences with these options, but a file of {source.path} has changed "
                "since, in size or time; delete it to pack anew, or choose another place"
            )
        raise CorpusError(f"{out}: holds another pack, or one of other options; delete it, or choose another place")
    if out.exists() and not _is_empty(out):
        raise CorpusError(f"{out}: is there already and is no packed corpus; choose another place")
    return True


def _is_foreign(part: Path) -> bool:
    """Whether there is something that no call of `pack` has left."""
    return part.exists() and not _is_empty(part) and not ((part / _LOCK).exists() or (part / MANIFEST).exists())


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _is_whole(part: Path, key: str) -> bool:
    """Whether an earlier call was killed between its last file and giving the folder its name."""
    if not is_packed(part):
        return False
    try:
        return read_manifest(part).source == key
    except CorpusError:  # such as an older version's
        return False


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Nobody else has the file open like this. The system takes the lock back when a process ends, however it ends."""
    with file.open("ab") as opened:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(opened.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CorpusError(f"{file.parent}: another process is packing into it; wait for its end") from error
        yield


def _stamps(source: Folder) -> Stamps:
    stamps: Stamps = {}
    for listing in source.listings:
        stamps[listing.name] = {name: _stamp(file) for name, file in listing.files.items()}
    return stamps


def _stamp(file: Path) -> list[int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return []  # gone: a change like any other
    return [found.st_size, found.st_mtime_ns]


def _changed(job: _Job, since: Stamps, now: Stamps) -> Path | None:
    """The first source file that is not what it was."""
    for listing in job.source.listings:
        for name, file in listing.files.items():
            if since.get(listing.name, {}).get(name) != now[listing.name][name]:
                return file
    return None


# One recording


def _kept(job: _Job, derived: bool) -> NDArray[np.bool_] | None:
    """The columns to keep (D,). Where motion is derived, a landmark goes only if all that follows is constant too."""
    if job.scan is None:
        return None
    constant = constant_dimensions(job.scan.statistics["train"])
    if derived:
        constant = np.tile(constant.reshape(-1, STILL_WIDTH).all(axis=0), WIDTH // STILL_WIDTH)
    if constant.all():
        raise CorpusError(f"{job.source.path}: all dimensions are constant over train, so nothing would be left")
    return ~constant if constant.any() else None


def _prepare(job: _Job, plan: _Plan, kept: NDArray[np.bool_] | None, item: tuple[str, str, Path]) -> _Prepared:
    split, name, file = item
    recording = job.source.read(split, name)
    x = recording.x
    if x.shape[1] != job.width:
        raise CorpusError(
            f"{file}: features are {x.shape[1]} wide, those of {job.source.listings[0].first} {job.width}; "
            "a corpus has one width, so extract them alike"
        )
    stored, rounding = _converted(x, plan.dtype, may_round=job.dtype != "auto", file=file)
    given = x if rounding is None else stored
    if plan.derived:
        _check_derived(stored, file)
        stored = stored[:, :STILL_WIDTH]
    if kept is not None:
        given = given.compress(kept, axis=1)
        stored = stored.compress(kept[: stored.shape[1]], axis=1)
    parts = parts_of(job.width, kept)
    gives = Recording(given, recording.detected)
    found = file_scan(gives, parts)
    return _Prepared(
        stored=np.ascontiguousarray(stored),
        detected=recording.detected,
        found=found,
        own=own_statistics(gives, parts),
        source_digest=found.digest if given is x else recording_digest(recording),
        rounding=rounding or (0.0, 0.0),
    )


def _converted(
    x: NDArray[Any], dtype: str, *, may_round: bool, file: Path
) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """Features in the stored dtype, and how far values moved; None where converting back gives each one again."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = x.astype(dtype, copy=False)
        if stored is x or np.array_equal(stored.astype(x.dtype), x):
            return stored, None
    name = np.dtype(dtype).name
    if not may_round:
        raise _Misfit("dtype", f"{file}: features are {x.dtype}, and {name} does not hold all their values exactly")
    if not np.isfinite(stored).all():
        t, d = (int(i) for i in np.argwhere(~np.isfinite(stored))[0])
        raise CorpusError(
            f"{file}: features hold {x[t, d]} at frame {t}, dimension {d}, which is beyond {name}; pack as float32"
        )
    exact = x.astype(np.float64)
    moved, size = np.abs(stored - exact), np.abs(exact)
    normal = size >= np.finfo(name).smallest_normal
    relative = np.divide(moved, size, out=np.zeros_like(moved), where=normal)
    return stored, (float(relative.max()), float(moved[~normal].max(initial=0)))


def _check_derived(x: NDArray[Any], file: Path) -> None:
    """Hold features (T, 6516) against what follows from their landmarks, to the bit: a zero has a sign as well."""
    difference = first_difference(x)
    if difference is not None:
        t, d, found, expected = difference
        raise _Misfit(
            "derived",
            f"{file}: {dimension_name(WIDTH, d)} (dimension {d}) is {found} at frame {t}, but {expected} follows from "
            f"the landmarks in {x.dtype} (difference {found - expected:.2g})",
        )


# All recordings


def _pack_recordings(job: _Job) -> _State:
    state = _load_state(job) or _begun(job, _first_plan(job))
    while True:
        try:
            _append_all(job, state)
            return state
        except _Misfit as misfit:
            state = _begun(job, _next_plan(job, state.plan, misfit))


def _first_plan(job: _Job) -> _Plan:
    # By itself, float16 is stored as such and nothing else is.
    dtype = job.first.x.dtype.name if job.dtype == "auto" else job.dtype
    return _Plan("<f2" if dtype == "float16" else "<f4", derived=job.derive != "no" and job.width == WIDTH)


def _next_plan(job: _Job, plan: _Plan, misfit: _Misfit) -> _Plan:
    """How to begin anew.

    Raises:
        CorpusError: there is no other way.
    """
    if misfit.what == "dtype" and plan.dtype == "<f2":
        job.say(f"{misfit}; packing as float32 from the beginning.")
        return _Plan("<f4", plan.derived, plan.not_derived)
    if misfit.what == "dtype":
        raise CorpusError(f"{misfit}; choose dtype float32 to round them") from misfit
    if job.derive == "yes":
        raise CorpusError(f"{misfit}; leave derive at auto to store all dimensions") from misfit
    job.say(f"{misfit}; storing all dimensions, from the beginning.")
    return _Plan(plan.dtype, False, str(misfit))


def _begun(job: _Job, plan: _Plan) -> _State:
    (job.part / _STATE).unlink(missing_ok=True)
    (job.part / MANIFEST).unlink(missing_ok=True)
    with (job.part / FEATURES).open("wb") as file:
        file.write(bytes(_HEADER_BYTES))
    names = [listing.name for listing in job.source.listings]
    parts = parts_of(job.width, _kept(job, plan.derived))
    scan = Scan({name: {} for name in names}, {name: Statistics.empty(parts) for name in names})
    return _State(plan, scan, [], {name: {} for name in names}, (0.0, 0.0))


def _append_all(job: _Job, state: _State) -> None:
    """Prepare what is not yet packed and append it, in order.

    Raises:
        _Misfit: a recording cannot be stored as planned.
        CorpusError: a recording cannot be read, or has changed meanwhile.
    """
    plan = state.plan
    kept = _kept(job, plan.derived)
    frames = sum(len(detected) for detected in state.detected)
    items = [
        (listing.name, name, file)
        for listing in job.source.listings
        for name, file in listing.files.items()
        if name not in state.scan.files[listing.name]
    ]
    with (job.part / FEATURES).open("r+b") as file:
        file.truncate(_stored_bytes(job, plan, frames))
        file.seek(0, os.SEEK_END)
        unsaved = 0
        for (split, name, _), ready in zip(items, in_order(partial(_prepare, job, plan, kept), items), strict=True):
            file.write(ready.stored.data)
            state.detected.append(ready.detected)
            state.scan.files[split][name] = ready.found
            state.scan.statistics[split].add(ready.own)
            state.source_digests[split][name] = ready.source_digest
            state.rounding = (max(state.rounding[0], ready.rounding[0]), max(state.rounding[1], ready.rounding[1]))
            unsaved += ready.stored.nbytes
            frames += len(ready.stored)
            if unsaved >= BATCH_BYTES:
                _save_state(job, state, file)
                unsaved = 0
            if job.progress is not None:
                job.progress(split, len(state.scan.files[split]), len(job.stamps[split]))
        if (changed := _changed(job, job.stamps, _stamps(job.source))) is not None:
            raise CorpusError(f"{changed}: changed while it was packed; run the same command again")
        _save_state(job, state, file)
        file.seek(0)
        header = {"descr": plan.dtype, "fortran_order": False, "shape": (frames, _stored_columns(job, plan))}
        np.lib.format.write_array_header_1_0(file, header)
        assert file.tell() == _HEADER_BYTES
        _flush(file)


def _save_state(job: _Job, state: _State, features: BinaryIO) -> None:
    _flush(features)
    detected = np.concatenate(state.detected)
    meta = {
        "key": job.key,
        "stamps": job.stamps,
        "plan": [state.plan.dtype, state.plan.derived, state.plan.not_derived],
        "source_digests": state.source_digests,
        "rounding": state.rounding,
    }
    write_arrays(job.part / _STATE, meta=json.dumps(meta), detected=detected, **scan_arrays(state.scan))


def _stored_bytes(job: _Job, plan: _Plan, frames: int) -> int:
    """Size of the file of features with so many frames."""
    return _HEADER_BYTES + frames * _stored_columns(job, plan) * np.dtype(plan.dtype).itemsize


def _stored_columns(job: _Job, plan: _Plan) -> int:
    kept, columns = _kept(job, plan.derived), STILL_WIDTH if plan.derived else job.width
    return columns if kept is None else int(kept[:columns].sum())


def _load_state(job: _Job) -> _State | None:
    """How far an earlier call came; None where there was none, or what it packed is not what is to be packed now."""
    file = job.part / _STATE
    if not file.exists():
        return None
    try:
        with open_npz(file) as stored:
            meta, detected = json.loads(str(stored["meta"])), stored["detected"]
            if meta["key"] != job.key:
                changed = _changed(job, meta["stamps"], job.stamps)
                job.say(f"{changed or 'An option or a table'} has changed since; packing from the beginning.")
                return None
            plan = _Plan(*meta["plan"])
            scan = scan_of(stored, parts_of(job.width, _kept(job, plan.derived)))
    except (*UNREADABLE, TypeError) as error:
        job.say(f"{file} cannot be read ({error}); packing from the beginning.")
        return None
    lengths = [found.frames for files in scan.files.values() for found in files.values()]
    features = job.part / FEATURES
    if not features.is_file() or features.stat().st_size < _stored_bytes(job, plan, sum(lengths)):
        job.say(f"{features} is shorter than it was; packing from the beginning.")
        return None
    each = np.split(detected, np.cumsum(lengths)[:-1])
    return _State(plan, scan, each, meta["source_digests"], tuple(meta["rounding"]))


def _finish(
    job: _Job, state: _State, filter_name: str, vocabulary: Vocabulary, modalities: dict[str, int] | None
) -> None:
    """Write everything but the features, the manifest last, and remove what only packing needed."""
    part, plan = job.part, state.plan
    write_arrays(part / SCAN, **scan_arrays(state.scan))
    with (part / DETECTED).open("wb") as file:
        np.save(file, np.concatenate(state.detected))
        _flush(file)
    vocabulary.to_file(part / VOCABULARY)
    (part / "annotations").mkdir(exist_ok=True)
    tables = {f"annotations/{listing.name}.corpus.csv": listing.csv for listing in job.source.listings}
    for name, table in tables.items():
        shutil.copyfile(table, part / name)

    names = [FEATURES, DETECTED, SCAN, VOCABULARY, *tables]
    kept = _kept(job, plan.derived)
    dropped = [] if kept is None else np.flatnonzero(~kept).tolist()
    given = {split: {name: found.digest for name, found in files.items()} for split, files in state.scan.files.items()}
    manifest = Manifest(
        dtype=plan.dtype,
        width=job.width,
        derived=plan.derived,
        not_derived=plan.not_derived,
        dropped={d: dimension_name(job.width, d) for d in dropped},
        filter=filter_name,
        modalities=modalities,
        unannotated={listing.name: listing.unannotated for listing in job.source.listings},
        lost=_loss(plan.dtype, *state.rounding),
        source=job.key,
        recipe=job.recipe,
        source_digests={} if state.source_digests == given else state.source_digests,
        files={name: _described(part / name, hashed=name != FEATURES) for name in names},
    )
    with written_aside(part / MANIFEST) as file:
        file.write(manifest.model_dump_json(indent=1).encode())
    for file_or_folder in part.iterdir():
        if file_or_folder.name not in (*names, MANIFEST, "annotations", _LOCK):
            file_or_folder.unlink()
    if [table.rows for table in open_packed(part).listings] != [table.rows for table in job.source.listings]:
        (part / MANIFEST).unlink()
        raise CorpusError(f"{job.source.annotations}: changed while it was packed; run the same command again")


def _loss(dtype: str, relative: float, absolute: float) -> str | None:
    if not relative and not absolute:
        return None
    name = np.dtype(dtype).name
    return (
        f"Features were rounded to {name} when packed: a value changed by {relative:.3%} of itself at most (one below "
        f"{float(np.finfo(name).smallest_normal):.1e} by {absolute:.1e} at most)."
    )


def _described(file: Path, *, hashed: bool) -> Stored:
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if hashed else None
    with file.open("rb+") as opened:
        _flush(opened)
    return Stored(bytes=file.stat().st_size, sha256=digest)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
