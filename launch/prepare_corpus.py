"""Makes a conversation store of recorded conversations, with Apache Beam.

    python -m launch.prepare_corpus --corpus=recordings --out=store --config=configs/inkling_tiny.py

What a corpus looks like is said in `tml_jax/data/corpora.py`; an experiment trains on the store where its
`DataConfig.stores` names it. Run it again to go on after an interruption or to take in what is new: shards of the same
files stay. It runs in this process; --beam='--runner=FlinkRunner --flink_master=...' is how Beam is told to run it
elsewhere, on workers that have this project and see both folders. Beam needs its own environment: docs/corpora.md.
"""

import importlib.util
import pathlib
import shlex
import shutil
import sys

from absl import flags, logging

from launch import cli
from tml_jax.checkpoint.store import open_tokenizer
from tml_jax.data import corpora
from tml_jax.train.config import load_experiment

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of recordings and their transcripts.", required=True)
_OUT = cli.out_folder("out", None, "Folder of the store.", required=True)
_CONFIG = cli.config("configs/inkling_tiny.py")
_TOKENIZER = flags.DEFINE_string("tokenizer", "checkpoints/inkling_tiny/tokenizer.json", "The model's tokenizer.json.")
_SHARDS = flags.DEFINE_integer("shards", 16, "Parts of a split, each made by one worker.", lower_bound=1)
_HELDOUT = flags.DEFINE_float("heldout", 0.05, "Share of the recordings to hold out.", lower_bound=0, upper_bound=1)
_FPS = flags.DEFINE_float("fps", 10.0, "Frames a second that are taken of a video.", lower_bound=0.1)
_BEAM = flags.DEFINE_string(
    "beam", "--runner=FnApiRunner", "Beam's own pipeline options; the default runs in this process."
)


def main(argv: list[str]) -> None:
    """Makes the store, and says what became of the recordings."""
    del argv
    if importlib.util.find_spec("apache_beam") is None:
        raise ValueError("apache-beam is missing; it needs an environment of its own: make beam, see docs/corpora.md.")
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    experiment, out, tokenizer = load_experiment(_CONFIG.value), _OUT.value, _TOKENIZER.value
    open_tokenizer(tokenizer, experiment.model.text)
    spec, fps = experiment.model.stream, _FPS.value
    work = corpora.shards(corpora.find(_CORPUS.value), _HELDOUT.value, _SHARDS.value)
    options = PipelineOptions(shlex.split(_BEAM.value), save_main_session=False)
    # Names travel, no sound: a worker reads the recordings of its shard and writes the shard.
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | beam.Create(work)
            | beam.Reshuffle()
            | beam.MapTuple(
                lambda split, number, sources: corpora.write_shard(out, split, number, sources, spec, tokenizer, fps)
            )
        )
    # Shards of recordings that are gone, or of another number of shards.
    wanted = {corpora.place_of(out, split, number) for split, number, _ in work}
    for stale in {place for split in corpora.SPLITS for place in (pathlib.Path(out) / split).glob("*")} - wanted:
        shutil.rmtree(stale)
    reports = [corpora.read_report(place) for place in sorted(wanted)]
    for name, reason in (refusal for report in reports for refusal in report.refused):
        logging.warning("%s is left out: %s", name, reason)
    count = sum(report.conversations for report in reports)
    seconds = spec.micro_turn_s * sum(report.micro_turns for report in reports)
    refused = sum(len(report.refused) for report in reports)
    print(f"{out}: {count} conversations, {seconds / 3600:.2f} hours, in {len(wanted)} shards; {refused} left out")
    if not count:
        sys.exit("launch.prepare_corpus: no recording could be used; the reasons are above.")


if __name__ == "__main__":
    cli.run(main)
