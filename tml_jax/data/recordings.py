"""Recordings of people, with their transcripts: talk for the bank, and the part that only tests may hear.

A folder of recordings is one speaker, who gets the folder's name. It holds `transcripts.txt`, a line `NAME: what is
said` for each sound file NAME (below the folder, any format that FFmpeg knows, raw G.722 too), and `licence.txt`,
one line. For the telephone prompts of Debian's `asterisk-core-sounds-en-g722`:

    mkdir allison; cp -r /usr/share/asterisk/sounds/en_US_f_Allison/* allison/
    zcat /usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz > allison/transcripts.txt
    echo "CC BY-SA 3.0 (creativecommons.org/licenses/by-sa/3.0), Allison Smith, theivrvoice.com" > allison/licence.txt
"""

import dataclasses
import hashlib
import pathlib
import re
import string

from tml_jax.data import phrases
from tml_jax.streams import number_words

TRANSCRIPTS, LICENCE = "transcripts.txt", "licence.txt"
# A quarter of what is said: never trained on, nor tuned on.
_TEST_ONLY = tuple("0123")
NOT_SPEECH = tuple("[(<;")
"""What a line of a transcript begins with that tells of a sound and no words."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """One sound file: its name, its transcript as it is written and as the bank writes it, and where it lies.

    It is `test_only`, must never be trained on, by the SHA-1 of its transcript, or where one that is says the same.
    """

    name: str
    transcript: str
    text: str
    path: pathlib.Path
    test_only: bool


def is_test_only(transcript: str) -> bool:
    """Whether what is said must never be trained on."""
    return hashlib.sha1(transcript.encode()).hexdigest().startswith(_TEST_ONLY)


def spoken_text(transcript: str) -> str:
    """Lower case without punctuation, digits as English words."""
    spelled = re.sub(r"[0-9]", lambda digit: f" {number_words.to_words(int(digit[0]))} ", transcript.lower())
    return " ".join("".join(c if c.isalpha() or c == "'" else " " for c in spelled).split())


_OWN_WORDS = {word for text in (*phrases.ASSISTANT_WORDS, *phrases.FILLERS) for word in text.split()}
_OWN_WORDS |= set(number_words.UNITS) | set(number_words.TENS) | set(string.ascii_lowercase)
_OWN_TEXTS = {phrases.transcript(line) for line in (*phrases.STOPS, *phrases.GREETINGS, *phrases.ASSISTANT_LINES)}


def is_talk(text: str) -> bool:
    """Whether a model should leave it alone: a phrase, not of numbers or letters alone, and no command or reply."""
    words = text.split()
    return len(words) > 1 and not _OWN_WORDS.issuperset(words) and text not in _OWN_TEXTS


def read_folder(folder: pathlib.Path) -> tuple[str, list[Recording]]:
    """The licence of the recordings in `folder`, and every recording that has a transcript, by name.

    Raises:
      FileNotFoundError: there are no transcripts, no licence, or no sound of any transcript.
    """
    for needed in (TRANSCRIPTS, LICENCE):
        if not (folder / needed).exists():
            raise FileNotFoundError(f"{folder} holds no {needed}; recordings need their transcripts and licence.")
    sounds = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.*"))}
    lines = []
    for line in (folder / TRANSCRIPTS).read_text().splitlines():
        name, _, transcript = (part.strip() for part in line.partition(":"))
        if name in sounds and transcript and not transcript.startswith(NOT_SPEECH):
            lines.append((name, transcript, spoken_text(transcript)))
    if not lines:
        raise FileNotFoundError(f"{folder / TRANSCRIPTS} names no sound file in {folder}; lines are `NAME: text`.")
    tested = {text for _, transcript, text in lines if is_test_only(transcript)}
    found = [
        Recording(name, transcript, text, sounds[name], text in tested) for name, transcript, text in sorted(lines)
    ]
    return (folder / LICENCE).read_text().strip(), found
