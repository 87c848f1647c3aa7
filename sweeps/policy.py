"""What may be named from outside: which corpora, and which trainers, on a machine that is not the asker's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from sweeps.spec import CorpusSpec, SpecError, SweepSpec

PLACES = ("path", "annotations", "vocabulary")


@dataclass(frozen=True)
class Policy:
    """What a server was configured with."""

    corpus_roots: tuple[Path, ...] = ()
    """Folders below which every corpus must lie, with all that belongs to it."""
    trainers: Mapping[str, str] = field(default_factory=dict)
    """Trainers beside the built-in one by the names that a request may use: `FILE.py:NAME` or `package.module:NAME`."""
    most_generated: int = 5_000
    """Sentences of a generated corpus."""

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
        if made is not None and made.train + made.dev + made.test > self.most_generated:
            raise SpecError(
                f"corpus.generated: {made.train + made.dev + made.test} sentences are more than this server generates "
                f"({self.most_generated}); ask for fewer, or put the corpus below one of its roots"
            )
        given = {name: getattr(corpus, name) for name in PLACES}
        return corpus.model_copy(update={k: self._below_a_root(p, k) for k, p in given.items() if p is not None})

    def _below_a_root(self, path: Path, name: str) -> Path:
        """A relative path is meant below a root. Links are followed: what counts is where the files are."""
        for root in self.corpus_roots:
            home = root.resolve()
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
