"""What tests of simulated conversations share."""

from tml_jax.data.config import DataConfig
from tml_jax.streams.micro_turn import StreamSpec

SPEC = StreamSpec(audio_tokens=1, max_patches=1, max_text=8, max_output=1, frame_height=40, frame_width=40)
CONFIG = DataConfig(window_turns=150, window_tokens=310)


def expectations_of(simulators, scenario, kind, conversations=8):
    """What is expected in each of a scenario's conversations, of this kind, by time."""
    played = [simulators["heldout"].conversation(index, scenario) for index in range(conversations)]
    return [(one, [e for e in one.expectations if e["kind"] == kind]) for one in played]
