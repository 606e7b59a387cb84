"""Log lines and the progress bar of one terminal."""

import io
import logging
import sys

from absl import logging as absl_logging
from tqdm import tqdm

from tml_jax.train.bar import log_above_bar


def test_our_lines_stand_above_the_bar_and_libraries_chatter_nowhere(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    ours, root = logging.getLogger("tml_jax.train.loop"), logging.getLogger()
    handler = absl_logging.get_absl_handler()
    level, before = absl_logging.get_verbosity(), handler.python_handler.stream
    root.addHandler(handler)
    absl_logging.set_verbosity(absl_logging.INFO)
    ours.setLevel(logging.INFO)
    absl_level = absl_logging.get_absl_logger().level
    absl_logging.FLAGS.mark_as_parsed()
    try:
        with log_above_bar(), tqdm(total=10, file=terminal, mininterval=0) as bar:
            bar.update(3)
            absl_logging.info("[process=0] Saving checkpoint at step 2")
            absl_logging.warning("No Save Finalize thread")
            ours.info("going on from step 7")
            absl_logging.error("the disk is full")
            bar.update(1)
        assert handler.python_handler.stream is before
        assert absl_logging.get_absl_logger().level == absl_level
    finally:
        root.removeHandler(handler)
        ours.setLevel(logging.NOTSET)
        absl_logging.set_verbosity(level)
    shown = terminal.getvalue()
    assert "Saving checkpoint" not in shown and "Finalize" not in shown
    for text in ("going on from step 7", "the disk is full"):
        line = shown.split(text)[0].rpartition("\r")[2].rpartition("\n")[2]
        assert "/10" not in line, line  # the bar was cleared before it
        assert shown.split(text)[1].startswith("\n")
    assert shown.rstrip().rpartition("\r")[2].startswith(" 40%")
