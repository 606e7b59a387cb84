"""Writes the tiny tokenizer: python -m launch.build_tokenizer --out=checkpoints/inkling_tiny/tokenizer.json."""

import pathlib

from launch import cli
from tml_jax.streams import vocabulary

_OUT = cli.out_file("out", "checkpoints/inkling_tiny/tokenizer.json", "Where to write the tokenizer.")


def main(argv: list[str]) -> None:
    del argv
    path = pathlib.Path(_OUT.value)
    path.write_text(vocabulary.build_json(), encoding="utf-8")
    print(f"{path}: {vocabulary.NUM_ROWS} rows, {len(vocabulary.words())} words.")


if __name__ == "__main__":
    cli.run(main)
