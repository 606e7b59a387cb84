"""Writes the tiny tokenizer: python -m launch.build_tokenizer --output=checkpoints/inkling_tiny/tokenizer.json."""

import pathlib

from absl import app, flags

from tml_jax.streams import vocabulary

_OUTPUT = flags.DEFINE_string("output", "checkpoints/inkling_tiny/tokenizer.json", "Where to write the tokenizer.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}; the only one is --output.")
    path = pathlib.Path(_OUTPUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(vocabulary.build_json(), encoding="utf-8")
    print(f"{path}: {vocabulary.NUM_ROWS} rows, {len(vocabulary.words())} words.")


if __name__ == "__main__":
    app.run(main)
