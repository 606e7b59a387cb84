"""Converts between the published Inkling layout (Hugging Face safetensors) and this project's saved models.

    python -m launch.convert --from=inkling_small_hf --to=inkling_small
    python -m launch.convert --from=checkpoints/inkling_tiny --to=inkling_tiny_hf
    python -m launch.convert --from=runs/tiny/model --to=tiny_int8 --weights=int8

The direction follows from what ``--from`` holds. Every value keeps its bits, and every field of a published config is
there again in what is exported. With ``--weights`` a saved model stays one, its weights rounded to that dtype. A layer
at a time is in memory.
"""

from collections.abc import Sequence

from absl import flags

from launch import cli
from tml_jax.checkpoint import convert

_FROM = flags.DEFINE_string("from", None, "Directory of the checkpoint to read.", required=True)
_TO = cli.out_folder("to", None, "Directory to write; new or empty.", required=True)
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["int8", "bfloat16", "float32"], "Save a saved model again, its weights in this dtype."
)
_SEED = cli.seed(0, "Of the interaction heads, where a published checkpoint has none.")
_SHARD = flags.DEFINE_float("max_shard_gb", 5.0, "Size of a weights file, in 10^9 bytes.", lower_bound=1e-6)


def main(argv: Sequence[str]) -> None:
    """Converts, and says what was found."""
    del argv
    max_shard_bytes = int(_SHARD.value * 1e9)
    try:
        if _WEIGHTS.value:
            convert.to_dtype(_FROM.value, _TO.value, _WEIGHTS.value, max_shard_bytes=max_shard_bytes)
        elif convert.is_published(_FROM.value):
            report = convert.to_saved_model(_FROM.value, _TO.value, seed=_SEED.value, max_shard_bytes=max_shard_bytes)
            print(report)
        else:
            convert.to_published(_FROM.value, _TO.value, max_shard_bytes=max_shard_bytes)
    except (ValueError, OSError) as error:
        raise SystemExit(f"convert: {error}") from error
    print(f"wrote {_TO.value}")


if __name__ == "__main__":
    cli.run(main)
