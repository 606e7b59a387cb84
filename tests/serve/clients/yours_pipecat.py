"""The same for Pipecat."""

import asyncio

import yours
from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame, StartFrame
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams

RATE = 24_000
PARAMS = TransportParams(
    audio_in_enabled=True, audio_out_enabled=True, audio_in_sample_rate=RATE, audio_out_sample_rate=RATE
)


class Microphone(BaseInputTransport):
    def __init__(self) -> None:
        super().__init__(PARAMS)
        self.over = asyncio.Event()

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        self._speaking = asyncio.create_task(self._speak())

    async def _speak(self) -> None:
        async for pcm in yours.microphone():
            await self.push_audio_frame(InputAudioRawFrame(audio=pcm, sample_rate=RATE, num_channels=1))
        self.over.set()


class Speaker(BaseOutputTransport):
    def __init__(self) -> None:
        super().__init__(PARAMS)

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        yours.play(frame.audio)
        await asyncio.sleep(len(frame.audio) / 2 / RATE)
        return True
