"""Full-Duplex-Bench v1 and v1.5, by their published rules and in their published folders.

Lin et al. 2025, arXiv:2503.04721 (v1) and arXiv:2507.23159 (v1.5), github.com/DanielLin94144/Full-Duplex-Bench. A task
is a folder, a sample a folder in it with ``input.wav``, ``output.wav``, ``output.json`` (the system's words with their
times) and one annotation, which tells the task:

====================  ================================================================================================
``pause.json``        pause handling: a good system does not take over
``turn_taking.json``  smooth turn-taking: it takes over, soon after the first time given
``interrupt.json``    user interruption: it takes over, soon after the last time given; ``rating.json`` is a judge's
``metadata.json``     v1.5, where ``clean_input.wav`` lacks what is said over it; ``content_tag.json`` is a judge's
none                  backchannels, in a folder with "backchannel" in its name
====================  ================================================================================================

Two things are ours. Where the originals ask Silero's detector for speech we go by loudness (`recorded.stretches`).
Where they ask a paid judge for a v1.5 behaviour and there is no ``content_tag.json``, `behaviour_offline` goes by the
words alone, and its figures are named so.
"""

import difflib
import math
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon

from tml_jax.data.timeline import Conversation, UserSpeech
from tml_jax.eval.recorded import PAUSE_S, RATE, Chunk, Recorded, annotations_in, stretches, words_after
from tml_jax.eval.targets import Case
from tml_jax.streams.sound import read_sound

SUITE = "full_duplex_bench"
TURN_S, TURN_WORDS = 1.0, 3
"""Speech of at least so many seconds, or of more than so many words, takes over."""
_FORMAL_S = 3.0  # a longer stretch is a turn, whatever its words
_SHORT_WORDS = 2  # a stretch under `TURN_S` with more words than that takes over among backchannels
_SHORTEST_S, _MARGIN_S = 0.25, 0.03  # of a stretch, and put around it: Silero's defaults
_WINDOW_S, _EPSILON = 0.2, 1e-10  # of the histogram of backchannels
_USER_PAUSE_S, _SYSTEM_PAUSE_S = 0.6, 0.5  # that part nothing, in v1.5's timing

Span = tuple[float, float]
RESPOND, RESUME, UNCERTAIN, UNKNOWN = "C_RESPOND", "C_RESUME", "C_UNCERTAIN_HANDLING", "C_UNKNOWN"
_DID_NOT_HEAR = re.compile(
    r"\b(sorry|pardon|repeat that|say (that|it) again|say again|did ?n.?t (catch|hear|understand|get))\b"
)

_FUNCTION_WORDS = re.compile(
    r"an?|and|are|at|be|but|can|could|do|does|for|from|have|i|in|is|it|me|my|of|on|or|so|th(at|e|ere|is)|to|us|was|we|what"
    r"|will|with|would|you|your"
)


def takes_over(chunks: Sequence[Chunk]) -> bool:
    """Whether words are a turn: from the first to the last at least 1 s, or more than 3 of them."""
    if not chunks:
        return False
    last = chunks[-1].start_s if chunks[-1].end_s is None else chunks[-1].end_s
    return last - chunks[0].start_s >= TURN_S or len(chunks) > TURN_WORDS


def latency_s(chunks: Sequence[Chunk], end_s: float) -> float | None:
    """Seconds from the user's end to the first word of a turn, at least 0; None where nothing takes over."""
    return max(0.0, chunks[0].start_s - end_s) if takes_over(chunks) else None


def backchannels(spoken: Sequence[Span], chunks: Sequence[Chunk]) -> tuple[bool, list[Span]]:
    """Whether a system takes over where it should acknowledge, and its acknowledgements.

    As published, the last stretch decides, or the first that is longer than 3 s, which is no acknowledgement and ends
    the count; every other one is counted, also where its words would be a turn.

    Args:
      spoken: stretches of the system's speech.
      chunks: its words.
    """
    taken = False
    found: list[Span] = []
    for start, end in spoken:
        if end - start > _FORMAL_S:
            return True, found
        words = sum(c.start_s <= end and (c.end_s > start or c.start_s >= start) for c in chunks if c.end_s is not None)
        taken = words > TURN_WORDS or end - start >= TURN_S or words > _SHORT_WORDS
        found.append((start, end))
    return taken, found


def divergence(found: Sequence[Span], duration_s: float, wanted: Sequence[float]) -> float:
    """How far the times of acknowledgements lie from people's: the Jensen-Shannon distance (natural logarithm).

    Both are histograms over windows of 0.2 s; people's is drawn to the other's length by linear interpolation.

    Args:
      found: acknowledgements; none of them: 1.
      duration_s: of the sound.
      wanted: people's histogram, of any length.
    """
    if not found:
        return 1.0
    counts = np.zeros(int(duration_s / _WINDOW_S) + 1)
    for start, end in found:
        counts[int(start / _WINDOW_S) : int(end / _WINDOW_S) + 1] += 1
    places = np.linspace(0, 1, len(counts))
    people = np.interp(places, np.linspace(0, 1, len(wanted)), wanted)
    return float(jensenshannon((counts + _EPSILON) / (counts + _EPSILON).sum(), people))


def overlaps(user: Sequence[Span], system: Sequence[Span]) -> list[Span]:
    """Stretches in which both speak, by their ends; the length of one is a stop latency.

    Of those that end in the same millisecond the shortest counts.
    """
    best: dict[int, Span] = {}
    for user_start, user_end in user:
        for start, end in system:
            both = max(user_start, start), min(user_end, end)
            key = round(both[1] * 1000)
            if both[1] > both[0] and (key not in best or both[1] - both[0] < best[key][1] - best[key][0]):
                best[key] = both
    return sorted(best.values(), key=lambda span: span[1])


def response_gaps(user: Sequence[Span], system: Sequence[Span]) -> list[Span]:
    """From the ends of the user's speech to the next start of the system's; the length of one is a response latency.

    Of the user's ends before the same start the last counts.
    """
    found: dict[int, Span] = {}
    for _, end in sorted(user):
        start = next((start for start, _ in system if start > end), None)
        if start is not None:
            found[round(start * 1000)] = (end, start)
    return sorted(found.values(), key=lambda span: span[1])


def behaviour_offline(said: Sequence[Chunk], clean: Sequence[Chunk], asked: str, start_s: float) -> str:
    """What a system does about speech over its own, by its words alone: no judge, and no meaning.

    No word that begins after the overlap does is unknown, and "sorry" or "say that again" uncertain. Otherwise two
    shares of its words are compared: those that it says without the overlap, too, in that order and not before, and
    those of the overlap that are no function words. The larger decides: it resumes, from a half on, or responds.

    Args:
      said: its words under the overlap.
      clean: its words without.
      asked: what was said over it.
      start_s: when that began.
    """
    before, after = ([c for c in said if (c.start_s < start_s) is early] for early in (True, False))
    words = [word for chunk in after for word in _words(chunk.text)]
    if not words:
        return UNKNOWN
    if _DID_NOT_HEAR.search(" ".join(words[:12])):
        return UNCERTAIN
    whole = [word for chunk in clean for word in _words(chunk.text)]
    rest = whole[sum(len(_words(chunk.text)) for chunk in before) :]
    matching = difflib.SequenceMatcher(None, rest, words, autojunk=False).get_matching_blocks()
    resumed = sum(block.size for block in matching)
    told = {word for word in _words(asked) if not _FUNCTION_WORDS.fullmatch(word)}
    taken_up = sum(word in told for word in words)
    if 2 * resumed >= len(words) and resumed >= taken_up:
        return RESUME
    return RESPOND if taken_up else UNKNOWN


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def speech(samples: np.ndarray | None) -> list[Span]:
    """Stretches of speech, told by loudness with the lengths and margins that the published scripts' detector has."""
    total = 0.0 if samples is None else len(samples) / RATE
    found = [one for one in stretches(samples, PAUSE_S) if one[1] - one[0] >= _SHORTEST_S]
    return [(max(0.0, start - _MARGIN_S), min(total, end + _MARGIN_S)) for start, end in found]


def merged(spans: Sequence[Span], pause_s: float) -> list[Span]:
    """Sorted stretches, with those that lie at most `pause_s` apart as one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start - found[-1][1] <= pause_s:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def task_of(case: Recorded) -> str:
    """Which rule a sample is scored by.

    Raises:
      ValueError: it is no sample of the bench.
    """
    tasks = {
        "interrupt": "user_interruption",
        "turn_taking": "smooth_turn_taking",
        "pause": "pause_handling",
        "metadata": "overlap",
    }
    task = next((task for name, task in tasks.items() if name in case.annotations), None)
    if task is None and "backchannel" not in case.category:
        raise ValueError(f"{case.name} is no sample of Full-Duplex-Bench: none of {', '.join(tasks)}.json is there.")
    return task or "backchannel"


def summarise(cases: Iterable[Recorded], people: Mapping[str, Sequence[float]] | None = None) -> dict[str, float]:
    """The bench's figures, flat, each named by the task's folder.

    Args:
      cases: the samples, and those of ``clean_`` files beside them.
      people: when people acknowledge, by a sample's folder (the published ``icc_gt_distribution.json``); where it has
        none, ``distribution.json`` of the sample; without either there is no divergence.

    Raises:
      ValueError: a sample has no transcript, or is none of the bench.
    """
    cases = list(cases)
    clean = {case.name: case for case in cases if case.prefix}
    of: dict[str, list[dict[str, Any]]] = {}
    for case in (case for case in cases if not case.prefix):
        of.setdefault(case.category, []).append(_score(case, clean.get(case.name), people or {}))
    figures: dict[str, float] = {}
    for category, scored in sorted(of.items()):
        figures[f"{category}_cases"] = len(scored)
        for name in dict.fromkeys(name for one in scored for name in one):
            values = [value for one in scored for value in _listed(one.get(name))]
            if name in ("behaviour_judged", "behaviour_offline"):
                counts = Counter(values)
                figures |= {f"{category}_{name}_{tag}": n / len(values) for tag, n in sorted(counts.items())}
            elif values:
                figures[f"{category}_{name}"] = math.fsum(values) / len(values)
    return figures


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _score(case: Recorded, clean: Recorded | None, people: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    task, notes = task_of(case), case.annotations
    if case.chunks is None:
        raise ValueError(f"{case.name} has no output.json: Full-Duplex-Bench counts the words that a system says.")
    chunks = list(case.chunks)
    try:
        match task:
            case "pause_handling":
                return {"take_over": takes_over(chunks)}
            case "smooth_turn_taking":
                return _turn(chunks, notes["turn_taking"][0]["timestamp"][0])
            case "user_interruption":
                end = transcript_from(notes)
                return _turn(words_after(chunks, end), end) | {"rating": notes.get("rating", {}).get("rating")}
            case "backchannel":
                return _acknowledging(case, chunks, people)
            case _:
                return _overlap(case, chunks, clean)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"An annotation of {case.name} is not as Full-Duplex-Bench has it ({error!r}).") from error


def _turn(chunks: Sequence[Chunk], end_s: float) -> dict[str, Any]:
    return {"take_over": takes_over(chunks), "latency_s": latency_s(chunks, end_s)}


def _acknowledging(case: Recorded, chunks: Sequence[Chunk], people: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    assert case.output is not None
    duration_s = len(case.output) / RATE
    taken, found = backchannels(speech(case.output), chunks)
    wanted = people.get(pathlib.PurePath(case.name).name, case.annotations.get("distribution"))
    told = {"take_over": taken, "a_second": len(found) / duration_s}
    return told if wanted is None else told | {"divergence": divergence(found, duration_s, wanted)}


def _overlap(case: Recorded, chunks: Sequence[Chunk], clean: Recorded | None) -> dict[str, Any]:
    user, system = merged(speech(case.input), _USER_PAUSE_S), merged(speech(case.output), _SYSTEM_PAUSE_S)
    scored: dict[str, Any] = {
        "stop_latency_s": [end - start for start, end in overlaps(user, system)],
        "response_latency_s": [start - end for end, start in response_gaps(user, system)],
    }
    metadata = case.annotations["metadata"]
    if "content_tag" in case.annotations:
        scored["behaviour_judged"] = list(case.annotations["content_tag"]["behaviour"])
    elif clean is not None and clean.chunks is not None:
        scored["behaviour_offline"] = behaviour_offline(
            chunks, clean.chunks, metadata["current_turn_text"], metadata["timestamps"][0]
        )
    return scored


def transcript_from(annotations: Mapping[str, Any]) -> float:
    """From when on a sample's ``output.json`` has what the system says, seconds: from the end of an interruption.

    Raises:
      ValueError: ``interrupt.json`` is not as published.
    """
    try:
        return float(annotations["interrupt"][0]["timestamp"][1]) if "interrupt" in annotations else 0.0
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"An interrupt.json is not as Full-Duplex-Bench has it ({error!r}).") from error


def read_cases(root: pathlib.Path) -> list[Case]:
    """The bench's published data, as users to be played: each for as long as its input lasts.

    Raises:
      ValueError: there is no sample, or one cannot be read.
    """
    found = sorted(root.rglob("*input.wav"))
    if not found:
        raise ValueError(f"{root} holds no sample of Full-Duplex-Bench: a folder with input.wav.")
    cases = []
    for path in found:
        audio, folder = read_sound(path, RATE), path.parent
        conversation = Conversation(len(audio) / RATE, (UserSpeech(0.0, audio),))
        name, prefix = folder.relative_to(root).as_posix(), path.name.removesuffix("input.wav")
        notes, category = annotations_in(folder), folder.resolve().parent.name
        cases.append(Case(name, SUITE, category, conversation, 0, notes, prefix, transcript_from(notes)))
    return cases
