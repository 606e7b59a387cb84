"""Converts between the published Inkling layout (Hugging Face safetensors) and this project's saved models.

    python -m launch.convert --from=inkling_small_hf --to=inkling_small
    python -m launch.convert --from=checkpoints/inkling_tiny --to=inkling_tiny_hf

The direction follows from what ``--from`` holds. A layer at a time is in memory, and every value keeps its bits.
"""

from collections.abc import Sequence

from absl import app, flags

from tml_jax.checkpoint import convert

_FROM = flags.DEFINE_string("from", None, "Directory of the checkpoint to read.", required=True)
_TO = flags.DEFINE_string("to", None, "Directory to write; new or empty.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of the interaction heads, where a published checkpoint has none.")
_SHARD = flags.DEFINE_float("max_shard_gb", 5.0, "Size of a weights file, in 10^9 bytes.", lower_bound=1e-6)


def main(argv: Sequence[str]) -> None:
    """Converts, and says what was found."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}; every option is a flag.")
    max_shard_bytes = int(_SHARD.value * 1e9)
    try:
        if convert.is_published(_FROM.value):
            report = convert.to_saved_model(_FROM.value, _TO.value, seed=_SEED.value, max_shard_bytes=max_shard_bytes)
            print(report)
        else:
            convert.to_published(_FROM.value, _TO.value, max_shard_bytes=max_shard_bytes)
    except (ValueError, OSError) as error:
        raise SystemExit(f"convert: {error}") from error
    print(f"wrote {_TO.value}")


if __name__ == "__main__":
    app.run(main)
