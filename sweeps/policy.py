"""What may be named from outside: which corpora, and which trainers, on a machine that is not the asker's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from model.corpus.annotations import CorpusError, locate
from model.corpus.packed import is_packed
from sweeps.errors import SpecError
from sweeps.spec import CorpusSpec, SweepSpec

PLACES = ("path", "annotations", "vocabulary")
LONGEST_PATH = 4_096
"""Each of its parts is looked at."""


@dataclass(frozen=True)
class Policy:
    """What a server was configured with."""

    corpus_roots: tuple[Path, ...] = ()
    """Folders below which every corpus must lie, with all that belongs to it."""
    trainers: Mapping[str, str] = field(default_factory=dict)
    """Trainers beside the built-in one by the names that a request may use: `FILE.py:NAME` or `package.module:NAME`."""
    most_generated: int = 5_000 * 225
    """Sentences of a generated corpus, times its width: half a gigabyte."""

    def admitted(self, spec: SweepSpec) -> SweepSpec:
        """The spec with every path in full.

        Raises:
            SpecError: a path leaves the roots, or the corpus that is to be generated is too large.
        """
        return spec.model_copy(update={"corpus": self._corpus(spec.corpus)})

    def trainer(self, name: str | None) -> str | None:
        """Where the trainer of that name is; None is the built-in one.

        Raises:
            SpecError: the server knows none of that name.
        """
        if name is None:
            return None
        if name not in self.trainers:
            near = get_close_matches(name, self.trainers, n=1)
            known = ", ".join(sorted(self.trainers)) or "none beside the built-in one"
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {known}"
            raise SpecError(f"trainer: {name!r}: is not configured on this server; {hint}")
        return self.trainers[name]

    def _corpus(self, corpus: CorpusSpec) -> CorpusSpec:
        made = corpus.generated
        if made is not None and (made.train + made.dev + made.test) * made.width > self.most_generated:
            raise SpecError(
                f"corpus.generated: {made.train + made.dev + made.test} sentences of width {made.width} are more than "
                f"this server generates ({self.most_generated // made.width}); ask for fewer, or put the corpus below "
                "one of its roots"
            )
        given = {name: getattr(corpus, name) for name in PLACES}
        found = {name: self._below_a_root(path, name) for name, path in given.items() if path is not None}
        if "path" in found and found["path"].is_dir() and not is_packed(found["path"]) and "annotations" not in found:
            root = next(root for root in self._roots() if found["path"].is_relative_to(root))
            try:  # here, as the loader would look above the root as well
                found["annotations"] = locate(found["path"], None, within=root)[1]
            except CorpusError as error:
                raise SpecError(f"corpus: {error}") from None
        for place in found.values():
            self._check_links(place)
        return corpus.model_copy(update=found)

    def _roots(self) -> list[Path]:
        return [root.resolve() for root in self.corpus_roots]

    def _check_links(self, place: Path) -> None:
        """
        Raises:
            SpecError: something in it is a link that leads out of the roots.
        """
        roots = self._roots()
        for folder, folders, files in os.walk(place):
            for name in (*folders, *files):
                path = Path(folder, name)
                if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots):
                    raise SpecError(
                        f"corpus: {name!r} in it is a link that leads out of the corpus roots of this server"
                    )

    def _below_a_root(self, path: Path, name: str) -> Path:
        """A relative path is meant below a root. Links are followed: what counts is where the files are."""
        for home in self._roots() if len(str(path)) <= LONGEST_PATH else ():
            try:
                found = (home / path).resolve()
                if found.is_relative_to(home) and found.exists():
                    return found
            except (OSError, RuntimeError, ValueError):  # a name that no file can have, links in a ring
                continue
        # The same words for a place that is not there and for one that is not to be seen.
        raise SpecError(
            f"corpus.{name}: {str(path)[:200]!r}: is not below a corpus root of this server; name it relative to one, "
            "or have its folder added with --corpus-root"
        )
