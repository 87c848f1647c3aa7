"""What knowing nothing scores: the floors against which every curve is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def constant_sentence(train: Sequence[str], dev: Sequence[str], candidates: int = 60) -> tuple[str, float]:
    """The best sentence to answer every input with, chosen on train, and its WER on dev (fraction).

    A local search: from the empty sentence, take the insertion, replacement or deletion of one word that lowers the
    word errors on train most, until none does. A run whose dev WER is not clearly below this has used nothing of its
    input. On RWTH-PHOENIX-Weather 2014 SI5 it is 92.8 %.

    Args:
        train, dev: sentences, words separated by one space.
        candidates: how many words to try, those in most training sentences first.
    """
    sentences = [reference.split() for reference in train]
    counts = Counter(word for sentence in sentences for word in set(sentence))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:candidates]  # ties: never by the order of a set

    best: tuple[str, ...] = ()
    fewest = _errors(best, sentences)
    while True:
        neighbours = {best[:i] + best[i + 1 :] for i in range(len(best))}
        neighbours |= {(*best[:i], word, *best[i:]) for i in range(len(best) + 1) for word in words}
        neighbours |= {(*best[:i], word, *best[i + 1 :]) for i in range(len(best)) for word in words}
        count, guess = min((_errors(guess, sentences), guess) for guess in neighbours)
        if count >= fewest:
            break
        best, fewest = guess, count
    answers = [reference.split() for reference in dev]
    return " ".join(best), _errors(best, answers) / sum(map(len, answers))


def _errors(guess: Sequence[str], sentences: Sequence[Sequence[str]]) -> int:
    return sum(Levenshtein.distance(guess, sentence) for sentence in sentences)
