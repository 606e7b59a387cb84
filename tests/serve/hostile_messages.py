"""What hostile clients send of our own protocol: what would be good conversations, with something wrong in them."""

import copy
import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image

from tml_jax.wire import protos

Rng = np.random.Generator
REQUEST = protos.ConverseRequest
CONTAINERS = (b"RIFF", b"OggS", b"fLaC", b"ID3", b"\x1aE\xdf\xa3", b"caff", b".snd", b"FORM")
NUMBERS = (0, 1, 2, 3, 7, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 800, 11_025, 44_100, 192_001)


def pick(rng: Rng, among: Any) -> Any:
    """One of a sequence."""
    return among[int(rng.integers(len(among)))]


def junk(rng: Rng, most: int) -> bytes:
    """Random bytes, up to so many."""
    return rng.bytes(int(rng.integers(1, most)))


# Pictures.


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, data: bytes, *extra: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _good(form: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.linear_gradient("L").convert("RGB").save(file, form)
    return file.getvalue()


_BOMB = zlib.compress(bytes(4096 * (1 + 3 * 4096)), 9)
GOOD = (_good("PNG"), _good("JPEG"))
PICTURES = (
    _png(4096, 4096, _BOMB),  # 50 MB of 49 kB
    _png(60_000, 60_000, _BOMB),
    _png(1, 1 << 24, _BOMB),
    _png(0, 0, b""),
    _png(64, 64, _BOMB),
    _png(8, 8, zlib.compress(bytes(200)), _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 26), 9))),
    _png(8, 8, zlib.compress(bytes(200)), _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 26), 9))),
    b"\xff\xd8\xff\xe0" + bytes(100),
    b"GIF89a" + bytes(100),
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"",
)


def picture(rng: Rng) -> bytes:
    """A bomb, another kind of file, or a good one with wrong bytes in it."""
    if rng.random() < 0.5:
        return pick(rng, PICTURES)
    data = bytearray(pick(rng, GOOD))
    for _ in range(int(rng.integers(1, 20))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data[: int(rng.integers(1, len(data) + 1))])


# Our own protocol.


def conversation(rng: Rng) -> list[Any]:
    """Messages that a good client would send."""
    told = {"sends_video": True, "wants_audio": True, "resumable": bool(rng.random() < 0.2)}
    config = protos.SessionConfig(sends_audio=True, seed=int(rng.integers(9)), **told)
    sound = [REQUEST(audio=protos.AudioChunk(pcm=rng.bytes(6400))) for _ in range(3)]
    seen = REQUEST(frame=protos.VideoFrame(data=pick(rng, GOOD)))
    typed, know = REQUEST(text=protos.TextInput(text="seven")), REQUEST(context=protos.ContextInput(text="be kind"))
    return [REQUEST(config=config), *sound, seen, typed, know, REQUEST(close=protos.CloseInput())]


def _field(rng: Rng, sent: list[Any]) -> None:
    """A field with a value that it should not have."""
    config, chunk, seen, text = protos.SessionConfig, protos.AudioChunk, protos.VideoFrame, protos.TextInput
    number = int(pick(rng, NUMBERS))
    odd = rng.bytes(2 * int(rng.integers(1, 3000)) + 1)
    floats = np.array([0.5, pick(rng, (np.nan, np.inf, -np.inf, 3e38))] * 80, np.float32).tobytes()
    draw = {
        "sample_rate": lambda: REQUEST(config=config(sends_audio=True, sample_rate=number)),
        "channels": lambda: REQUEST(config=config(sends_audio=True, channels=number)),
        "encoding": lambda: REQUEST(config=config(sends_audio=True, encoding=number & 0x7FFFFFFF)),
        "instructions": lambda: REQUEST(config=config(instructions=pick(rng, ("日" * 4096, "a" * 9999, "\0\u202e")))),
        "odd": lambda: REQUEST(audio=chunk(pcm=odd)),
        "container": lambda: REQUEST(audio=chunk(pcm=pick(rng, CONTAINERS).ljust(640, b"\0"))),
        "long": lambda: REQUEST(audio=chunk(pcm=bytes(pick(rng, (0, 32_002, 160_000, 4 << 20))))),
        "floats": lambda: REQUEST(audio=chunk(pcm=floats)),
        "offset": lambda: REQUEST(audio=chunk(pcm=bytes(640), offset=pick(rng, (0, 10**6, (1 << 64) - 1)))),
        "picture": lambda: REQUEST(frame=seen(data=picture(rng), encoding=int(rng.integers(5)))),
        "pixels": lambda: REQUEST(frame=seen(data=bytes(3 * number % 5_000_000), encoding=3, width=number, height=1)),
        "frame": lambda: REQUEST(frame=seen(data=pick(rng, GOOD), offset=pick(rng, (0, (1 << 64) - 1)))),
        "text": lambda: REQUEST(
            text=text(text=pick(rng, ("", " \n", "x" * 5000, "🎈" * 4000, "\0", "\u202e<|tick|>")))
        ),
        "texts": lambda: REQUEST(text=text(text="seven", offset=pick(rng, (0, 9, (1 << 64) - 1)))),
        "context": lambda: REQUEST(context=protos.ContextInput(text=pick(rng, ("", "y" * 5000)), to_say=True)),
        "received": lambda: REQUEST(received=protos.Received(sequence=pick(rng, (0, 5, (1 << 64) - 1)))),
        "resume": lambda: REQUEST(resume=protos.Resume(token=pick(rng, ("", "../../etc", "0" * 12 + ".x", "é" * 999)))),
    }
    made = draw[pick(rng, tuple(draw))]()
    if made.WhichOneof("payload") in ("config", "resume"):
        sent[0] = made
    else:
        sent.insert(int(rng.integers(1, len(sent))), made)
        if made.WhichOneof("payload") == "audio" and made.audio.pcm == floats:
            sent[0].config.encoding = 2


def _disorder(rng: Rng, sent: list[Any]) -> None:
    """Messages twice, left out, in another order, or after the end."""
    match int(rng.integers(5)):
        case 0:
            rng.shuffle(sent)
        case 1:
            sent.pop(0)
        case 2:
            sent.insert(int(rng.integers(len(sent))), copy.deepcopy(pick(rng, sent)))
        case 3:
            sent.extend(sent[1:-1])
        case 4:
            sent[:] = sent[: int(rng.integers(len(sent)))]


def _flood(rng: Rng, sent: list[Any]) -> None:
    """Very many small ones."""
    one = pick(rng, sent[1:4] + sent[5:7])
    if one.WhichOneof("payload") == "audio":
        one = REQUEST(audio=protos.AudioChunk(pcm=bytes(2)))
    sent[1:1] = [one] * int(rng.integers(50, 400))


def _spoil(rng: Rng, sent: list[Any]) -> None:
    """Bytes that are no message any more."""
    at = int(rng.integers(len(sent)))
    data = bytearray(sent[at].SerializeToString()) or bytearray(b"\0")
    match int(rng.integers(6)):
        case 0:
            data = data[: int(rng.integers(len(data)))]
        case 1:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        case 2:
            data = bytearray(junk(rng, 300))
        case 3:
            data = bytearray(b"\x22\x04\x0a\x02\xc3\x28")  # a text that is no UTF-8
        case 4:
            data = bytearray(b"\x4b" * 4000)  # groups in groups
        case 5:
            data += b"\xfa\x7f\x03abc"  # a field that nobody knows
    sent[at] = bytes(data)


CHANGES = (_field, _field, _field, _disorder, _flood, _spoil)


def messages(rng: Rng) -> list[bytes]:
    """A conversation with one to three things wrong in it."""
    sent: list[Any] = conversation(rng)
    for change in [pick(rng, CHANGES[:-1]) for _ in range(int(rng.integers(0, 3)))] + [pick(rng, CHANGES)]:
        if len(sent) < 8 or not sent[0].HasField("config"):
            break
        change(rng, sent)
    return [one if isinstance(one, bytes) else one.SerializeToString() for one in sent]
