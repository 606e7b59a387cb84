"""The tokenizer, the control tokens and streaming decoding."""

import pathlib
import pickle

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tml_jax.data import phrases
from tml_jax.streams import vocabulary
from tml_jax.streams.text import ControlTokens, TextDecoder, Tokenizer

SHIPPED = pathlib.Path(__file__).parents[2] / "checkpoints" / "inkling_tiny" / "tokenizer.json"
TOKENIZER = Tokenizer(SHIPPED)


def test_shipped_file_is_what_the_word_list_builds():
    assert SHIPPED.read_text(encoding="utf-8") == vocabulary.build_json()


def test_every_word_of_the_small_world_is_one_token():
    lines = [u.text for seed in range(10) for u in phrases.user_phrases(seed, 80)]
    lines += [u.text for u in phrases.assistant_phrases()]
    spoken = {word for line in lines for word in line.split()}
    assert len(spoken) > 80
    assert [word for word in spoken if len(TOKENIZER.encode(f" {word}")) != 1] == []
    assert len(TOKENIZER.encode(" 7")) == 1
    assert len(TOKENIZER.encode(" 17")) == 2


def test_a_sentence_takes_one_token_a_word():
    ids = TOKENIZER.encode(" repeat five two eight please")
    assert len(ids) == 5
    assert [TOKENIZER.decode([i]) for i in ids] == [" repeat", " five", " two", " eight", " please"]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_any_text_comes_back(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(TOKENIZER.is_word(i) for i in ids)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=20), st.lists(st.integers(0, 511), max_size=20))
def test_streaming_decoding_never_gives_half_a_character(text, ids):
    decoder = TextDecoder(TOKENIZER)
    pieces = [decoder.push(i) for i in TOKENIZER.encode(text)]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    # Whatever the model writes, the pieces add up to the whole.
    decoder = TextDecoder(TOKENIZER)
    assert "".join(map(decoder.push, ids)) + decoder.flush() == TOKENIZER.decode(ids)


def test_control_tokens_follow_the_tokenizers_rows():
    control = TOKENIZER.control
    assert TOKENIZER.vocab_size == vocabulary.NUM_ROWS == 480
    order = ("listen", "speak", "end", "delegate", "background", "user", "instructions", "tick", "nothing")
    assert [getattr(control, name) for name in order] == list(range(480, 489))
    assert control == ControlTokens(480)
    assert control.stop == 489 <= 512
    assert control.name(481) == "<|speak|>"
    assert control.name(479) is None
    assert control.name(489) is None


def test_control_tokens_are_no_text():
    control = TOKENIZER.control
    seven = TOKENIZER.encode(" seven")
    assert TOKENIZER.decode([control.user, *seven, control.listen, 511]) == " seven"
    assert not any(TOKENIZER.is_word(i) for i in range(480, 512))
    # Typed text that spells a control token stays text.
    assert all(TOKENIZER.is_word(i) for i in TOKENIZER.encode("<|listen|>"))


@pytest.fixture
def with_specials(tmp_path):
    """Like Inkling's file: special tokens of its own among the used rows."""
    tokenizer = tokenizers.Tokenizer.from_file(str(SHIPPED))
    tokenizer.add_special_tokens(["<|content_image|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_special_tokens_of_the_file_cannot_be_typed(with_specials):
    tokenizer = Tokenizer(with_specials)
    assert tokenizer.vocab_size == 481
    assert tokenizer.control.listen == 481
    assert not tokenizer.is_word(480)
    ids = tokenizer.encode(" see <|content_image|>")
    assert 480 not in ids
    assert tokenizer.decode([*ids, 480]) == " see <|content_image|>"


def test_base_can_be_set(with_specials):
    assert Tokenizer(with_specials, base=490).control.listen == 490
    with pytest.raises(ValueError, match="would overwrite the tokenizer's 481 rows"):
        Tokenizer(with_specials, base=480)


def test_tokenizer_can_be_sent_to_a_worker():
    assert pickle.loads(pickle.dumps(TOKENIZER)).encode(" seven") == TOKENIZER.encode(" seven")


def test_unreadable_files_are_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"there is no such file\.$"):
        Tokenizer(tmp_path / "none.json")
    cut_off = tmp_path / "cut.json"
    cut_off.write_text(SHIPPED.read_text(encoding="utf-8")[:5000], encoding="utf-8")
    with pytest.raises(ValueError, match="cut off"):
        Tokenizer(cut_off)
    with pytest.raises(ValueError, match="cannot be read"):
        Tokenizer(tmp_path)
