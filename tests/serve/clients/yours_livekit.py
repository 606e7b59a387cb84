"""The same for LiveKit."""

import asyncio
import time

import yours
from livekit import rtc
from livekit.agents.voice import io

RATE = 24_000


class Microphone(io.AudioInput):
    def __init__(self) -> None:
        super().__init__(label="wav")
        self._pieces = yours.microphone()
        self.over = asyncio.Event()

    async def __anext__(self) -> rtc.AudioFrame:
        try:
            pcm = await anext(self._pieces)
        except StopAsyncIteration:
            self.over.set()
            await asyncio.sleep(3600)
            raise
        return rtc.AudioFrame(pcm, RATE, 1, len(pcm) // 2)


class Speaker(io.AudioOutput):
    """Plays at real-time pace, in its head."""

    def __init__(self) -> None:
        super().__init__(label="file", capabilities=io.AudioOutputCapabilities(pause=False), sample_rate=RATE)
        self._played_s = 0.0
        self._start_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._start_s:
            self._start_s, self._played_s = time.time(), 0.0
            self.on_playback_started(created_at=self._start_s)
        self._played_s += frame.duration
        yours.play(bytes(frame.data))

    def flush(self) -> None:
        super().flush()
        if self._start_s:
            left_s = max(0.0, self._start_s + self._played_s - time.time())
            self._timer = asyncio.get_running_loop().call_later(left_s, self._done, False)

    def clear_buffer(self) -> None:
        if self._start_s:
            self._done(True)

    def _done(self, interrupted: bool) -> None:
        if self._timer:
            self._timer.cancel()
        self._start_s = 0.0
        self.on_playback_finished(playback_position=self._played_s, interrupted=interrupted)
