"""A TCP proxy that misbehaves when asked to: it delays, holds back and cuts what passes. For tests of networks."""

import asyncio
from contextlib import suppress
from threading import Thread
from typing import Self


class Proxy:
    """Passes connections on to a port of this machine. Its attributes may be set from any thread, at any time."""

    def __init__(self, target: int) -> None:
        self.delay = 0.0
        """Seconds that every piece waits."""
        self.holding = False
        """Nothing passes, and nobody is told: a black hole. What it holds is delivered afterwards, or cut."""
        self._target = target
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name=f"proxy of {target}", daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.port = int(self._server.sockets[0].getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> int:
        """Break every connection; returns how many ends were open."""
        ends = list(self._open)
        for end in ends:
            self._loop.call_soon_threadsafe(end.transport.abort)
        return len(ends)

    async def _end(self) -> None:
        self._server.close()
        self.holding = False
        for end in self._open:
            end.transport.abort()
        while self._open:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._open |= ends
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        self._open -= ends

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                await asyncio.sleep(self.delay)
                while self.holding:
                    await asyncio.sleep(0.05)
                writer.write(piece)
                await writer.drain()
        writer.close()
