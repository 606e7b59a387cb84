"""Instructions stay in a model's view: among its first tokens, or read again in time."""

import numpy as np
import pytest

from tests.serve.fakes import SPEC
from tml_jax.serve.inbox import Block, Inbox, Note
from tml_jax.serve.standing import Standing, View
from tml_jax.streams.micro_turn import empty_input

VIEW = View(sinks=64, window=1024)
TURNS = 2000


def _inbox(cut: int | None = None) -> Inbox:
    return Inbox(SPEC, 0, lambda: None, lambda turn, block: turn == cut, VIEW)


def _read(inbox: Inbox, turns: int, block: Block) -> tuple[list[list[int]], Block]:
    """The texts of so many micro-turns, and the last block as it was kept."""
    texts, taken = [], block
    for _ in range(turns):
        inbox.put(block)
        inputs = empty_input(SPEC, (1,))
        taken = inbox.take(inputs, 0)
        texts.append(inputs.text[0, : inputs.num_text[0]].tolist())
    return texts, taken


def _places(texts: list[list[int]], tokens: list[int]) -> list[int]:
    """At which trunk token each reading of these begins."""
    size = SPEC.audio_tokens + SPEC.max_output
    at = np.cumsum([0, *(size + len(text) for text in texts)])
    return [int(at[turn]) for turn, text in enumerate(texts) if text and text[0] == tokens[0]]


SOUND = Block(levels=np.zeros((SPEC.dmel_frames, SPEC.dmel_bins), np.int32))


@pytest.mark.parametrize("before", [0, 30])
def test_instructions_come_again_before_they_go_out_of_view(before: int) -> None:
    inbox, tokens = _inbox(), list(range(100, 120))
    first, _ = _read(inbox, before, SOUND)
    inbox.put_text(tokens, Note("instructions", "be kind"), standing=True)
    texts, _ = _read(inbox, TURNS, SOUND)
    places = _places(first + texts, tokens)
    if not before:
        assert places == [0], "the first tokens are always seen"
        return
    assert len(places) > 5
    assert max(np.diff([*places, sum(len(t) + 2 for t in first + texts)])) < VIEW.window
    again = [token for text in texts for token in text]
    assert again[:20] == again[20:40] == tokens, "whole, and in their order"
    assert len(again) < (TURNS * 2) / 16, "and cost little"


def test_of_many_instructions_the_latest_come_again_and_what_is_too_long_does_not() -> None:
    standing = Standing(VIEW)
    standing.read(100)
    messages = [tuple(range(k, k + 15)) for k in (100, 200, 300)]
    for message in messages:
        standing.add(message)
    assert standing.read(512) == [*messages[1], *messages[2]]
    assert standing.read(511) == []
    assert standing.read(1) == [*messages[1], *messages[2]]
    standing.add(range(400, 433))
    assert standing.read(2000) == []


def test_who_goes_on_reads_the_same_again() -> None:
    inbox, tokens = _inbox(cut=399), list(range(100, 120))
    _read(inbox, 40, SOUND)
    inbox.put_text(tokens, Note("instructions", "be kind"), standing=True)
    _, kept = _read(inbox, 360, SOUND)
    whole, _ = _read(inbox, 600, SOUND)
    other = _inbox()
    other.go_on(400, kept.waiting, 0)
    again, _ = _read(other, 600, SOUND)
    assert again == whole
    assert len(_places(whole, tokens)) > 1


def test_typed_text_is_read_once() -> None:
    inbox = _inbox()
    _read(inbox, 40, SOUND)
    inbox.put_text([7, 8, 9], Note("user_text", "hello"))
    texts, _ = _read(inbox, TURNS, SOUND)
    assert sum(7 in text for text in texts) == 1
