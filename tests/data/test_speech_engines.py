"""Who speaks the bank: new speakers are a function of the seed, and no held-out voice is part of one."""

import sys

import numpy as np
import pytest

from tml_jax.data import phrases, speech_engines, synthesis
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.data.speech_engines import ASSISTANT_VOICE, HELD_OUT_VOICES, VOICES, kokoro_styles, mix, mixed_voices


def test_a_mix_is_a_function_of_seed_and_number() -> None:
    assert [mix(3, i) for i in range(50)] == [mix(3, i) for i in range(50)]
    assert mix(3, 7) != mix(4, 7)
    assert [v.name for v in mixed_voices(3, 50)][:20] == [v.name for v in mixed_voices(3, 20)]
    pairs = {frozenset((m.first, m.second)) for m in (mix(3, i) for i in range(50))}
    assert len(pairs) > 40


def test_no_mix_holds_a_held_out_voice_or_the_assistant() -> None:
    allowed = {v.name for v in VOICES if v.engine == "kokoro" and not v.name.startswith(ASSISTANT_VOICE)}
    allowed -= {*HELD_OUT_VOICES}
    used = set()
    for seed in range(5):
        for number in range(200):
            new = mix(seed, number)
            assert new.first != new.second and 0.35 <= new.weight <= 0.65
            assert new.name.startswith("b" if new.first.startswith("b") else "a")
            used |= {f"kokoro/{new.first}", f"kokoro/{new.second}"}
    assert used == allowed
    assert all(v.split == "train" for v in mixed_voices(0, 100))


def test_the_styles_of_a_mix_lie_between_its_voices(tmp_path) -> None:
    new = mix(0, 2)
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((510, 256)).astype(np.float32) for _ in range(2))
    first.tofile(tmp_path / f"{new.first}.bin")
    with pytest.raises(RuntimeError, match=f"no Kokoro style file .*{new.second}"):
        kokoro_styles(tmp_path, new.name, 0)
    second.tofile(tmp_path / f"{new.second}.bin")
    mixed = kokoro_styles(tmp_path, new.name, 0)
    np.testing.assert_allclose(mixed, new.weight * first + (1 - new.weight) * second, rtol=1e-6)
    np.testing.assert_array_equal(kokoro_styles(tmp_path, new.first, 0), first)


def test_a_bank_is_made_in_turns_and_talk_never_fails(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(synthesis, "load_aligner", lambda: lambda samples, words: None)
    builder = synthesis.BankBuilder(tmp_path, seed=5, minutes_per_voice=10.0)
    specs = [speech_engines.VoiceSpec(name, 14, 3, "CC0") for name in ("kokoro/af_sarah", "kokoro/af_bella")]
    turns = list(builder.rounds(specs))
    assert [spec.split for spec, _ in turns] == ["heldout", "train"] * 2
    for spec in specs:
        said = [utterance for of, part in turns if of == spec for utterance in part.items()]
        assert dict(said) == builder.plan(spec) and len(said) == 14 + 3 + len(phrases.REQUESTS)
    spec, part = turns[1]

    def engine(voice: str, utterance: phrases.Utterance) -> tuple[np.ndarray, int]:
        assert voice == "af_sarah"
        return np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.1, 24_000

    builder.say(spec, engine, part)
    clips = SpeechBank.load(tmp_path).clips
    assert [c.text for c in clips] == [u.text for u in part.values() if u.kind == "talk"] != []
    assert all(c.kind == "talk" and c.words == () for c in clips)


@pytest.mark.parametrize(
    ("engine", "program", "package"),
    [
        (speech_engines.flite, "flite", "flite"),
        (speech_engines.rhvoice, "RHVoice-test", "rhvoice rhvoice-english"),
        (speech_engines.pico, "pico2wave", "libttspico-utils"),
    ],
)
def test_a_missing_program_is_told_with_its_package(monkeypatch, tmp_path, engine, program, package) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=rf"^The program '{program}' isn't installed; .*`apt-get install {package}`"):
        engine("x", phrases.Utterance("stop", "Stop.", "command"))


def test_programs_are_given_voice_pace_and_words(monkeypatch, tmp_path) -> None:
    """Programs that write down what they were given, and a second of silence."""
    for program, out in (("RHVoice-test", "-o"), ("pico2wave", "-w")):
        script = f"""#!{sys.executable}
import sys, wave
path = sys.argv[sys.argv.index("{out}") + 1]
given = [a for a in sys.argv[1:] if a != path]
open({str(tmp_path / "given")!r}, "w").write("|".join([*given, sys.stdin.read()]))
with wave.open(path, "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000), file.writeframes(bytes(32000))
"""
        (tmp_path / program).write_text(script)
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    utterance = phrases.Utterance("stop", "Stop.", "command", 1.25)
    sound, rate = speech_engines.rhvoice("bdl", utterance)
    assert (len(sound), rate) == (16000, 16000)
    assert (tmp_path / "given").read_text() == "-p|bdl|-r|125|-o|Stop."
    speech_engines.pico("en-GB", utterance)
    assert (tmp_path / "given").read_text() == '-l|en-GB|-w|<speed level="125">Stop.</speed>|'
