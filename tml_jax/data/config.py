"""What to train on, in numbers: the mix of scenarios, the ranges of the acoustics and the shape of a window."""

import dataclasses

from tml_jax.streams.packed import Room

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Shares:
    """Relative frequency of each scenario; they need not sum to one."""

    command: float = 4.0  # "repeat five two please", "count to seven", with hesitations inside the request
    greeting: float = 0.6
    timer: float = 3.0  # "tell me when five seconds have passed"
    beeper: float = 1.6  # "say beep every three seconds", until "stop"
    barge_in: float = 1.8  # the user speaks while the model does
    count: float = 3.0  # repetitions in a video, counted aloud
    watch: float = 0.5  # a video that nobody asked about
    delegate: float = 1.6  # arithmetic and the time, by the background model
    quiet: float = 0.8  # silence, noise, fillers, backchannels
    talk: float = 0.8  # people talk, but not to the model
    two_timers: float = 0.8  # a second one is set while the first runs
    redirect: float = 0.6  # "stop", and another request at once
    side_talk: float = 0.4  # people talk while the model speaks
    cue: float = 0.8  # "say beep when something moves"
    shadow: float = 0.8  # "say every digit as i say it", until "stop"
    translate: float = 0.6  # the same in Spanish
    elapsed: float = 0.5  # "how long has it been?", while a timer runs
    repair: float = 0.6  # a request that is begun, broken off and begun anew
    instructed: float = 0.8  # the operator's instructions: in Spanish, in silence, "yes" for "okay"

    def items(self) -> list[tuple[str, float]]:
        """Names and shares, in the order of declaration."""
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]


@dataclasses.dataclass(frozen=True)
class Acoustics:
    """How the user's sound is changed. Probabilities are per conversation; levels in dBFS, ratios in dB.

    The defaults are what models are measured with; training may go further, as `configs/inkling_tiny.py` does.
    """

    pitch: Range = (0.85, 1.18)  # resampling: pitch, vocal tract and pace together
    pitch_share: float = 0.7
    formants: Range = (0.85, 1.18)  # the vocal tract alone: > 1 is shorter
    formants_share: float = 0.0
    pace: Range = (0.85, 1.2)  # pace alone
    pace_share: float = 0.4
    level: Range = (-30.0, -12.0)  # of the speech
    swell: float = 5.0  # standard deviation of the level within a clip, dB
    swell_share: float = 0.0
    noise_share: float = 0.8
    snr: Range = (8.0, 40.0)
    room_share: float = 0.5
    reverberation_s: Range = (0.1, 0.6)  # RT60
    num_rooms: int = 48
    telephone_share: float = 0.08
    microphone_share: float = 0.0  # a laptop's or a headset's: uneven, without the lows
    num_microphones: int = 48


QUIET_ROOM = Acoustics(
    pitch_share=0.0, pace_share=0.0, level=(-22.0, -18.0), noise_share=0.0, room_share=0.0, telephone_share=0.0
)
"""The user's own voice, close to the microphone."""


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """When things happen in simulated conversations, in seconds."""

    duration: Range = (26.0, 32.0)
    filmed_duration: Range = (17.0, 21.5)  # a micro-turn with a frame holds more trunk tokens
    reaction: float = 0.15  # what the model waits for after the user's last word
    yielding: float = 0.0  # the same before it is silent, after "stop": nothing else sounds like it
    gap: Range = (0.5, 2.2)  # between the end of an exchange and the next request
    hesitation: Range = (0.5, 2.0)
    hesitation_share: float = 0.4  # of the requests that can be broken
    filler_share: float = 0.4  # of the hesitations
    splice_share: float = 0.6  # of the requests in training whose numbers come from other clips of the voice
    background_latency: Range = (0.2, 3.0)
    aloud_share: float = 0.0  # of the requests for cues, shadowing and Spanish, where the voice can; others are typed
    backchannel_share: float = 0.25  # of the times at which the user speaks while the model does
    own_talk_share: float = 0.3  # of the talk: by the user, and not by somebody else
    timer: Range = (2.0, 15.0)
    repetition: Range = (0.8, 2.5)
    repetitions: tuple[int, int] = (2, 10)
    quiet_sounds: tuple[int, int] = (0, 2)  # fillers and the like in a while in which nothing is asked
    video_fps: float = 10.0
    late_start_share: float = 0.5  # windows whose clock does not begin at zero
    latest_start: int = 6000  # micro-turns


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of an experiment.

    Attributes:
      bank: folder of the speech bank; its clips say to which split (train or heldout) their voice belongs.
      seed: of everything that is drawn.
      shares: the mix of scenarios.
      engines: share of the conversations by the user's speech engine; engines not named weigh 0.05.
      talkers: the same of talk that is not meant for the model.
      acoustics: changes to the user's sound.
      behaviour: times.
      stores: conversation stores (`launch.prepare_corpus`), each with its share of the windows; the rest is simulated.
      window_turns: micro-turns in a training row.
      window_tokens: trunk tokens that a row may hold; a conversation is cut at the last whole micro-turn that fits.
      window_patches, window_speech: patches and mel patches that a row has room for, on average: the rows of a group
        share it, and those that find none left are cut, too.
      group: conversations that are packed together; the unit that a worker process makes and a device gets.
      replay: share of a training batch that was in an earlier one, drawn from the newest `replay_pool` groups.
    """

    bank: str = "checkpoints/speech_bank"
    seed: int = 0
    shares: Shares = Shares()
    engines: tuple[tuple[str, float], ...] = (
        *(("kokoro", 0.55), ("flite", 0.2), ("festival", 0.13), ("espeak", 0.06)),
        *(("rhvoice", 0.25), ("pico", 0.1)),
    )
    talkers: tuple[tuple[str, float], ...] = (
        *(("recorded", 0.4), ("kokoro", 0.35), ("flite", 0.1), ("festival", 0.1), ("rhvoice", 0.1), ("pico", 0.05)),
    )
    acoustics: Acoustics = Acoustics()
    behaviour: Behaviour = Behaviour()
    stores: tuple[tuple[str, float], ...] = ()
    window_turns: int = 160
    window_tokens: int = 448
    window_patches: int = 64
    window_speech: int = 72
    group: int = 8
    replay: float = 0.0
    replay_pool: int = 500

    def __post_init__(self) -> None:
        if self.window_turns < 1 or self.window_tokens < 1:
            raise ValueError(
                f"A window needs micro-turns and tokens, not {self.window_turns} and {self.window_tokens}."
            )
        if self.group < 1 or self.replay_pool < 1 or not 0.0 <= self.replay < 1.0:
            raise ValueError(
                f"A group and the replay pool need a member, and replay must be a share below 1; got {self.group}, "
                f"{self.replay_pool} and {self.replay}."
            )
        if (
            min((share for _, share in self.stores), default=0.0) < 0
            or sum(share for _, share in self.stores) > 1 + 1e-9
        ):
            raise ValueError(
                f"The stores' shares of the windows must not be negative, nor exceed 1 in all: {self.stores}."
            )
        if min(share for _, share in self.shares.items()) < 0 or not sum(share for _, share in self.shares.items()):
            raise ValueError("The scenario shares must not be negative, and one must be positive.")

    @property
    def room(self) -> Room:
        """What a conversation of a batch may hold."""
        return Room(self.window_turns, self.window_tokens, self.window_patches, self.window_speech)
