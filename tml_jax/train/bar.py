"""What a training run says on a terminal: a progress bar with log lines above it, and only those meant for the user."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from absl import logging as absl_logging
from tqdm.contrib import DummyTqdmFile

# Orbax and Grain speak through absl's logger: every file and thread at INFO, and as warnings what a single host or a
# synchronous save is; what fails comes back as an exception.
_CHATTY = ("absl",)


@contextlib.contextmanager
def log_above_bar() -> Iterator[None]:
    """Within it, log lines appear above a tqdm bar instead of in it, and libraries tell errors alone."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    handler = absl_logging.get_absl_handler().python_handler
    stream = handler.setStream(DummyTqdmFile(sys.stderr))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        handler.setStream(stream)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
