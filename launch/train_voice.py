"""Trains the voice of a model's vocoder: ``python -m launch.train_voice --out=runs/tiny/model``.

It writes ``vocoder.safetensors`` to the model's folder, which every command then plays the model with. It learns from
the assistant's clips in a speech bank, but for one take in four, and takes about 0.11 s a step on one core.
"""

import pathlib

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from launch import cli
from tml_jax.checkpoint.store import read_config
from tml_jax.checkpoint.voice import write_voice
from tml_jax.data.speech_bank import SpeechBank
from tml_jax.train import voice

OUT = cli.out_folder("out", None, "Folder of the saved model.", required=True)
BANK = cli.bank()
STEPS = flags.DEFINE_integer("steps", 8000, "Steps, each of 16 pieces of 1.3 s.", lower_bound=2)
SEED = cli.seed(0, "Seed of the weights and of what is heard.")


def main(argv: list[str]) -> None:
    """Runs the command."""
    del argv
    spec = read_config(pathlib.Path(OUT.value)).stream
    sounds, trainer = voice.Sounds(SpeechBank.load(BANK.value), spec, SEED.value), voice.Trainer(spec, STEPS.value)
    key = jax.random.key(SEED.value)
    weights = voice.init(spec, key)
    state, parts = trainer.start(weights), {}
    for step in (bar := tqdm(range(STEPS.value), unit="step")):
        weights, state, parts = trainer.step(weights, state, sounds.batch(), jax.random.fold_in(key, step))
        if step % 100 == 0:
            bar.set_postfix({name: f"{float(part):.3f}" for name, part in parts.items()})
    print(write_voice(OUT.value, {name: np.asarray(x) for name, x in weights.items()}))


if __name__ == "__main__":
    cli.run(main)
