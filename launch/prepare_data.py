"""Makes the speech bank that conversations are simulated from.

    python -m launch.prepare_data --out=bank --kokoro_voices=package/voices

Run it again to go on after an interruption or to add engines: clips that are there are kept. What to install is
said in `tml_jax/data/speech_engines.py`.
"""

import pathlib
from collections.abc import Sequence

from absl import flags, logging

from launch import cli
from tml_jax.data import speech_bank, speech_engines, synthesis

_OUT = cli.out_folder("out", None, "Folder of the bank.", required=True)
_ENGINES = flags.DEFINE_list(
    "engines", ["flite", "espeak", "festival", "piper", "rhvoice", "pico", "kokoro"], "Engines to use."
)
_VOICES = flags.DEFINE_list(
    "voices", [], "Only these voices, for example kokoro/af_heart; all of the engines' if empty."
)
_MINUTES = flags.DEFINE_float("minutes_per_voice", 10.0, "A voice stops once it has this much speech.", lower_bound=0.0)
_KOKORO_VOICES = flags.DEFINE_string(
    "kokoro_voices", "package/voices", "Kokoro's style vectors, from `npm pack kokoro-js`."
)
_MIXES = flags.DEFINE_integer(
    "mixes", 40, "New speakers to make, each from the style vectors of two Kokoro voices.", lower_bound=0
)
_SPEAKERS = flags.DEFINE_list(
    "speakers", [], "Folders of recorded talk, one speaker each; see tml_jax/data/recordings.py."
)
_FSDD = flags.DEFINE_string("fsdd", None, "Optional folder of recorded digits, SPEAKER/DIGIT_TAKE.flac.")
_EXPORT = cli.out_folder("export", None, "Optional folder for a copy of the bank's most useful voices.")
_EXPORT_MIB = flags.DEFINE_float("export_mib", 14.0, "Size of that copy at the most.", lower_bound=0.0)
_SEED = cli.seed(0, "Seed of what each voice says and of the mixed speakers.")


def main(argv: Sequence[str]) -> None:
    """Builds or continues the bank."""
    del argv
    try:
        _build()
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise SystemExit(f"prepare_data: {error}") from error


def _build() -> None:
    engines = {
        name: speech_engines.load_engine(name, pathlib.Path(_KOKORO_VOICES.value), _SEED.value)
        for name in dict.fromkeys(_ENGINES.value)
    }
    known = (*speech_engines.VOICES, *speech_engines.mixed_voices(_SEED.value, _MIXES.value))
    specs = [s for s in known if s.engine in engines and (not _VOICES.value or s.name in _VOICES.value)]
    if not specs and not _FSDD.value and not _SPEAKERS.value:
        raise ValueError(f"No voice matches --engines={','.join(engines)} --voices={','.join(_VOICES.value)}.")
    out = pathlib.Path(_OUT.value)
    builder = synthesis.BankBuilder(out, seed=_SEED.value, minutes_per_voice=_MINUTES.value, report=logging.info)
    if _FSDD.value:
        builder.add_digit_recordings(pathlib.Path(_FSDD.value))
    for folder in _SPEAKERS.value:
        builder.add_recordings(pathlib.Path(folder))
    for spec, utterances in builder.rounds(specs):
        builder.say(spec, engines[spec.engine], utterances)
    if _EXPORT.value:
        voices = speech_bank.export(out, pathlib.Path(_EXPORT.value), round(_EXPORT_MIB.value * 2**20))
        logging.info("%s: %d voices", _EXPORT.value, len(voices))


if __name__ == "__main__":
    cli.run(main)
