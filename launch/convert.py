"""Converts models between the published Inkling layout, saved models and Orbax checkpoints.

    python -m launch.convert --from=inkling_small_hf --to=inkling_small
    python -m launch.convert --from=inkling_small_hf --to=inkling_small --layout=orbax
    python -m launch.convert --from=runs/small --to=taught_hf --layout=published
    python -m launch.convert --from=runs/tiny/model --to=tiny_int8 --weights=int8
    python -m launch.convert --from=runs/tiny_lora/model --to=tiny_adapter --peft

``--from`` is any of these, or the folder of a training run, of whose newest checkpoint it takes the averaged weights.
Every value keeps its bits, unless ``--weights`` asks for another dtype, and every field of a published config is there
again in what is exported. What a LoRA run saved is converted as the whole model that it stands for (merged), or with
``--peft`` as an adapter for the published model. A block at a time is in memory. The processes of a pod share the work;
where it was cut short, the same command goes on.
"""

from collections.abc import Sequence

from absl import flags

from launch import cli
from tml_jax.checkpoint import convert
from tml_jax.checkpoint.source import open_source

_FROM = flags.DEFINE_string("from", None, "Directory of the checkpoint to read.", required=True)
_TO = cli.out_folder("to", None, "Directory to write; new or empty.", required=True)
_LAYOUT = flags.DEFINE_enum(
    "layout",
    None,
    ["published", "saved", "orbax"],
    "Of what is written; a published model is saved and any other one published where this and --weights say nothing.",
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["int8", "bfloat16", "float32"], "Dtype of what is written, a saved model if nothing else is said."
)
_PEFT = flags.DEFINE_bool("peft", False, "Write what a LoRA run added alone, as PEFT reads it.")
_SEED = cli.seed(0, "Of the interaction heads, where a published checkpoint has none.")
_POD = cli.pod()
_SHARD = flags.DEFINE_float("max_shard_gb", 5.0, "Size of a weights file, in 10^9 bytes.", lower_bound=1e-6)


def main(argv: Sequence[str]) -> None:
    """Converts, and says what was found."""
    del argv
    cli.join_pod(_POD)
    try:
        if _PEFT.value:
            if _WEIGHTS.value or _LAYOUT.value:
                raise ValueError(
                    "--peft writes the additions as they were trained; it goes with no --weights or --layout."
                )
            convert.to_peft(_FROM.value, _TO.value)
            print(f"wrote {_TO.value}")
            return
        layout = _LAYOUT.value or _default_layout()
        options = {"dtype": _WEIGHTS.value, "seed": _SEED.value}
        if layout == "orbax":
            source = convert.to_orbax(_FROM.value, _TO.value, **options)
        else:
            write = convert.to_published if layout == "published" else convert.to_saved_model
            source = write(_FROM.value, _TO.value, **options, max_shard_bytes=int(_SHARD.value * 1e9))
    except (ValueError, OSError) as error:
        raise SystemExit(f"convert: {error}") from error
    if source.report:
        print(source.report)
    print(f"wrote {_TO.value}")


def _default_layout() -> str:
    return "saved" if _WEIGHTS.value or open_source(_FROM.value).layout == "published" else "published"


if __name__ == "__main__":
    cli.run(main)
