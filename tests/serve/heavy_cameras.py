"""Clients with cameras of 8 megapixels, ten pictures a second each. As a program, in a process of their own."""

import asyncio
import io
import json
import sys
import time
from typing import Any

import grpc
import numpy as np
import PIL.Image

from tests.serve.hostile_clients import KEY
from tml_jax import client
from tml_jax.wire import protos

SIZE, FPS = (3840, 2160), 10
REQUEST = protos.ConverseRequest
SOUND = REQUEST(audio=protos.AudioChunk(pcm=bytes(2 * 16_000 // FPS)))


def picture(form: str) -> Any:
    """A view: of little detail as a PNG, which would be too large otherwise."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    width, height = (480, 270) if form == "JPEG" else (4, 3)
    small = PIL.Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
    small.resize(SIZE, PIL.Image.Resampling.BILINEAR).save(file, form)
    return REQUEST(frame=protos.VideoFrame(data=file.getvalue()))


async def _hear(call: Any) -> None:
    async for _ in call:
        pass


async def _watch_on(address: str, count: int) -> dict[str, Any]:
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    views = [picture(form) for form in ("JPEG", "PNG")]
    sent, told = [0] * count, list[str]()

    async def one(number: int) -> None:
        view, began = views[number % len(views)], time.monotonic()
        async with client.connect(client.Address(address, KEY)) as channel:
            call = protos.converse_method(channel)()
            hearing = asyncio.create_task(_hear(call))
            try:
                await call.write(REQUEST(config=protos.SessionConfig(sends_audio=True, sends_video=True)))
                while not over.done():
                    await asyncio.sleep(began + sent[number] / FPS - time.monotonic())
                    await call.write(SOUND)
                    await call.write(view)
                    sent[number] += 1
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                told.append(f"{await call.code()} {await call.details()}")
            finally:
                hearing.cancel()
                call.cancel()

    watching = asyncio.gather(*map(one, range(count)))
    began = time.monotonic()
    await over
    seconds = time.monotonic() - began
    watching.cancel()  # who is slowed down waits in a write
    await asyncio.gather(watching, return_exceptions=True)
    return {"fps": [round(number / seconds, 2) for number in sent], "told": told}


def main() -> None:
    """So many send to the server at an address until the input ends; then tells, as JSON, what became of it."""
    address, count = sys.argv[1:]
    print(json.dumps(asyncio.run(_watch_on(address, int(count)))))


if __name__ == "__main__":
    main()
