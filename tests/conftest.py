"""Tests run on the CPU, whatever else the machine has, and may be begun in the background."""

import os
import signal

os.environ["JAX_PLATFORMS"] = "cpu"
# A shell that begins them in the background has Ctrl-C ignored, by the commands that they start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
