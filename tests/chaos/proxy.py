"""A worker's line to the server: a TCP port here, the server's socket there, and harm in between when it is wished."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Coroutine
from typing import Any

#: What a line may suffer:
#: cut: connections end and no new one is made; silent: nothing comes through, nor does anything end;
#: slow: each answer takes a while; torn: an answer ends in its middle, and the connection with it; unanswered: the
#: server hears a command and the connection ends before its answer; garbled: an answer is not of the protocol.
MODES = ("cut", "silent", "slow", "torn", "unanswered", "garbled")


class Line:
    """One worker's line; its harm is set from another thread."""

    def __init__(self, server: str, seed: int) -> None:
        self._server, self._random = server, random.Random(seed)
        self.mode: str | None = None
        #: How many answers are still to be harmed, for those modes that harm answers one by one.
        self.answers = 0
        self.port = 0
        self._connections: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None

    async def open(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def harm(self, mode: str | None, answers: int = 0) -> None:
        """Begins harm, or ends it (None). Called in the loop's thread."""
        self.mode, self.answers = mode, answers
        if mode == "cut":
            for each in list(self._connections):
                each.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "cut":
            writer.transport.abort()
            return
        try:
            there, to_server = await asyncio.open_unix_connection(self._server)
        except OSError:
            writer.transport.abort()
            return
        self._connections |= {writer, to_server}
        both = [
            asyncio.ensure_future(self._carry(reader, to_server)),
            asyncio.ensure_future(self._carry_answers(there, writer)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in both:
                each.cancel()
            for end in (writer, to_server):
                self._connections.discard(end)
                end.transport.abort()
            await asyncio.gather(*both, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._while_silent()
                writer.write(data)
                await writer.drain()

    async def _carry_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._while_silent()
                if self.mode == "slow":
                    await asyncio.sleep(self._random.uniform(0.02, 0.4))
                elif self.mode in ("torn", "unanswered", "garbled") and self.answers > 0:
                    self.answers -= 1
                    if self.mode == "unanswered":
                        return
                    if self.mode == "torn":
                        writer.write(data[: len(data) // 2])
                        await writer.drain()
                        return
                    data = self._random.choice([b"\x00\xff?!\r\n", b":not a number\r\n", b"$x\r\n"]) + data
                writer.write(data)
                await writer.drain()

    async def _while_silent(self) -> None:
        while self.mode == "silent":
            await asyncio.sleep(0.02)


class Lines:
    """The lines of a fleet, in a thread of their own.

    Args:
        server: the server's unix socket.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._lines: list[Line] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lines", daemon=True)
        self._thread.start()

    def open(self, seed: int) -> Line:
        line = Line(self._server, seed)
        self._do(line.open())
        self._lines.append(line)
        return line

    def harm(self, line: Line, mode: str | None, answers: int = 0) -> None:
        self._loop.call_soon_threadsafe(line.harm, mode, answers)

    def close(self) -> None:
        async def end() -> None:
            for line in self._lines:
                line.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)
