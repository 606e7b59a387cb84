"""Pictures are decoded in processes of their own.

A decoder of large files holds Python's lock for up to a second, in which no step would begin and no sound be told; and
what makes it crash takes nothing else along. This module is both sides: `python -m tml_jax.serve.picture_decoder` reads
requests from its input and answers on its output, one after the other, until its input ends. It does not import JAX.
"""

import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
from typing import IO

import numpy as np

from tml_jax.streams import pictures

NICE = 5  # sound and the model's steps go first
# Bytes that follow; width and height of raw RGB (0: it is a file); width and height to make; most pixels of a file.
_REQUEST = struct.Struct("<6I")
_REPLY = struct.Struct("<cI")  # what follows, in how many bytes
_PIXELS, _HEAVY, _WRONG = b"p", b"h", b"w"


class PictureDecoder:
    """Decodes pictures, each thread's in a process of its own, which starts with its first one."""

    def __init__(self) -> None:
        self._own, self._all, self._closed = threading.local(), set[subprocess.Popen[bytes]](), False
        self._changing = threading.Lock()

    def decode(
        self, data: bytes, width: int, height: int, to_width: int, to_height: int, most_pixels: int
    ) -> np.ndarray:
        """One picture -> uint8 [to_height, to_width, 3]: of a file, or of `width` x `height` raw pixels (0: a file).

        Raises:
          HeavyError, ValueError: as `pictures.read`.
        """
        request = _REQUEST.pack(len(data), width, height, to_width, to_height, most_pixels)
        process = self._process()
        try:
            kind, body = _ask(process, request, data)
        except (OSError, struct.error):  # it crashed
            self._end(process)
            raise ValueError(f"A video frame of {len(data)} bytes cannot be decoded.") from None
        if kind == _HEAVY:
            raise pictures.HeavyError
        if kind == _WRONG:
            raise ValueError(body.decode())
        return np.frombuffer(body, np.uint8).reshape(to_height, to_width, 3)

    def start(self) -> None:
        """Starts this thread's process, so that its first picture need not wait for that."""
        self._process()

    def close(self) -> None:
        """Ends the processes; nothing is decoded after it."""
        with self._changing:
            self._closed, processes = True, tuple(self._all)
        for process in processes:
            self._end(process)

    def _process(self) -> subprocess.Popen[bytes]:
        process = getattr(self._own, "process", None)
        if process is None or process not in self._all:
            with self._changing:
                if self._closed:
                    raise ValueError("The server is going down and looks at no more pictures.")
                command = [sys.executable, "-m", __name__]
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self._all.add(process)
            self._own.process = process
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._changing:
            self._all.discard(process)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError, ValueError):
                pipe and pipe.close()


def _ask(process: subprocess.Popen[bytes], request: bytes, data: bytes) -> tuple[bytes, bytes]:
    assert process.stdin and process.stdout
    process.stdin.write(request)
    process.stdin.write(data)
    process.stdin.flush()
    kind, size = _REPLY.unpack(process.stdout.read(_REPLY.size))
    body = process.stdout.read(size)
    if len(body) < size:
        raise BrokenPipeError
    return kind, body


def _answer(source: IO[bytes], request: bytes) -> tuple[bytes, bytes]:
    size, width, height, to_width, to_height, most_pixels = _REQUEST.unpack(request)
    data = source.read(size)
    try:
        if width:
            frame = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            return _PIXELS, pictures.resize(frame, to_width, to_height).tobytes()
        return _PIXELS, pictures.read(data, to_width, to_height, most_pixels).tobytes()
    except pictures.HeavyError:
        return _HEAVY, b""
    except ValueError as error:
        return _WRONG, str(error).encode()


def main() -> None:
    """Answers until nobody asks any more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server's, which may still need this process
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(BrokenPipeError):
        while len(request := source.read(_REQUEST.size)) == _REQUEST.size:
            kind, body = _answer(source, request)
            sink.write(_REPLY.pack(kind, len(body)) + body)
            sink.flush()


if __name__ == "__main__":
    main()
