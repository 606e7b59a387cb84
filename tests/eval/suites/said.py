"""Recorded behaviour by hand."""

from tml_jax.wire.behaviour import Behaviour


def said(*phrases: tuple[float, str]) -> Behaviour:
    """Each phrase from its time on, a word every 0.3 s, heard for as long."""
    words = [(round(at + 0.3 * i, 3), word) for at, text in phrases for i, word in enumerate(text.split())]
    return Behaviour(tuple((t, t + 0.3) for t, _ in words), tuple(words), ())
