"""The tiny tokenizer: 256 bytes, and the words of the small world that the tiny model lives in.

Every word below, with its leading space, is one token, so that a spoken word is one step of the model; any other
text falls back to pairs of letters and bytes. Built from the lists alone: the same file every time.
"""

import json

import tokenizers

from tml_jax.streams import text

NUM_ROWS = 480
"""Rows of the tiny tokenizer; the tiny model's embedding has 512, of which the next 9 are the control tokens."""

_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"
)
_USER = (
    "repeat please count to down from tell me when second seconds have passed say beep every what is times plus minus "
    "time it the repetition repetitions hello good morning how are you stop be quiet that enough um uh er hmm mm mhm "
    "ah erm yeah okay right"
)
_ASSISTANT = (
    "now fine thanks yes no stopped o clock i do not know can help am will for welcome sorry point and minute minutes "
    "hour hours equals"
)
_GENERAL = (
    "a of in on at as by or if so but with this there then we he she they them my your his her our its was were has "
    "had did done does could would should may must said see look looks hear here where why who which more less "
    "much many some any all none first last next again back up out over after before until while still"
)
_SPANISH = "cero uno dos tres cuatro cinco seis siete ocho nueve diez"
_PAIRS = "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha ou io le ve"


def words() -> tuple[str, ...]:
    """The words that are one token with a leading space, in the order of their rows."""
    digits = " ".join("0123456789")
    needed = " ".join((_NUMBERS, digits, _USER, _ASSISTANT))
    return tuple(dict.fromkeys(f"{needed} {_GENERAL} {_SPANISH}".split()))


def build() -> tokenizers.Tokenizer:
    """The tiny tokenizer."""
    byte_pieces = sorted(text.BYTE_OF, key=text.BYTE_OF.__getitem__)
    space = byte_pieces[ord(" ")]
    # Pairs of letters and " 7" are merges; whole words are found before merging starts (`ignore_merges`), so
    # that a word needs no row for each of its beginnings.
    merges = [(space, digit) for digit in "0123456789"] + [(pair[0], pair[1]) for pair in _PAIRS.split()]
    rows = [*byte_pieces, *(space + word for word in words()), *_PAIRS.split()]
    assert len(rows) == len(set(rows)) == NUM_ROWS, f"the lists make {len(set(rows))} rows, not {NUM_ROWS}"
    model = tokenizers.models.BPE(vocab={row: i for i, row in enumerate(rows)}, merges=merges, ignore_merges=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def build_json() -> str:
    """The tiny tokenizer's file."""
    return json.dumps(json.loads(build().to_str()), ensure_ascii=False, indent=1) + "\n"
