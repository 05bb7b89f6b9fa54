"""Exchange: one request at the front door, from its first byte to the record of how it ended.

It is the only writer of the reply, it notices when the client leaves, and it ends the request's task with a typed
reason (``abort``). Deadlines are checked by one sweep over all exchanges, not by a timer for each.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from homelab_llm.core.errors import Cancelled, DaemonUnavailable, DeadlineExceeded, HomelabError, WorkerStalled
from homelab_llm.gateway.errors import body_of, headers_of, status_of
from homelab_llm.gateway.limits import Receive
from homelab_llm.gateway.link import Headers, Link
from homelab_llm.gateway.seams import RequestRow
from homelab_llm.gateway.sse import comment

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Scope = MutableMapping[str, Any]

COMMENT_AFTER_S = 5.0
NDJSON = b"application/x-ndjson"
EVENTS = b"text/event-stream"
_JSON_HEADER = (b"content-type", b"application/json")
_ids = itertools.count(1)
_run = f"{os.getpid():x}{int(time.time()):x}"


class Exchange:
    """One request and its reply.

    ``headers``: extra reply headers, CORS among them. ``slot``: the slot whose port it came in on, 0 = none.
    ``trusted``: it came over the daemon's own socket, and nobody passed it on. ``batch``: others may go first.
    ``content``: the body as it came, kept until the request has a worker.
    ``waiting_for`` says in words what a streaming client waits for; it becomes a comment in the stream after
    ``COMMENT_AFTER_S``.
    """

    __slots__ = (
        "_aborted",
        "_comment",
        "_commented_s",
        "_format",
        "_link",
        "_receive",
        "_request_deadline_s",
        "_send",
        "_started_s",
        "_task",
        "_watcher",
        "batch",
        "comments",
        "content",
        "headers",
        "heard_s",
        "path",
        "recorded",
        "request_id",
        "row",
        "scope",
        "slot",
        "stall_s",
        "trusted",
        "waiting_for",
        "writing_s",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, request_deadline_s: float) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self.request_id = f"req-{_run}-{next(_ids):x}"
        self.headers: Headers = [(b"x-request-id", self.request_id.encode())]
        self.row = RequestRow(self.request_id, time.time(), self.path)
        self.batch = False
        self.content = b""
        self.comments = False
        self.waiting_for: Callable[[], str] | None = None
        self.recorded = False
        self.heard_s = 0.0
        self.writing_s = 0.0
        self.slot = 0
        self.stall_s = 0.0
        self.trusted = False
        self._receive = receive
        self._send = send
        self._started_s = time.monotonic()
        self._request_deadline_s = request_deadline_s
        self._commented_s = self._started_s
        self._format = b""
        self._task = asyncio.current_task()
        self._aborted: HomelabError | None = None
        self._link: Link | None = (scope.get("state") or {}).get("link")
        self._watcher: asyncio.Task[None] | None = None
        self._comment: asyncio.Task[None] | None = None

    @property
    def receive(self) -> Receive:
        """ASGI's receive; only before ``watch``."""
        return self._receive

    @property
    def started(self) -> bool:
        """Whether the status has been sent."""
        return bool(self.row.status)

    @property
    def elapsed_ms(self) -> float:
        return (time.monotonic() - self._started_s) * 1000

    def arrived_body(self, limit_bytes: int) -> bytes | None:
        """The whole body when it is here already and within the limit; None: ``receive`` it."""
        return self._link.arrived_body(limit_bytes) if self._link is not None else None

    def came_from(self, request_id: str, slot: int) -> None:
        """Another daemon passed it on, which gave it this id and got it on this slot's port."""
        self.request_id = self.row.request_id = request_id
        self.headers[0] = (b"x-request-id", request_id.encode())
        self.slot = slot

    def has_no_deadline(self) -> None:
        """It lasts as long as it lasts: a stream of events, or an operator's work."""
        self._request_deadline_s = math.inf

    # --- ending early ---

    def watch(self) -> None:
        """From now on end the task when the client leaves. The body must have been read."""
        if self._link is not None:
            self._link.departed = self._departed
        else:
            self._watcher = asyncio.get_running_loop().create_task(self._notice_departure())

    async def _notice_departure(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._departed()

    def _departed(self) -> None:
        self.abort(Cancelled("the client went away"))

    def abort(self, reason: HomelabError) -> None:
        """End the request's task with ``reason``; the first reason counts."""
        if self._aborted is None and self._task is not None:
            self._aborted = reason
            self._task.cancel()

    @property
    def stalled(self) -> bool:
        """Whether it was ended because its worker fell silent."""
        return isinstance(self._aborted, WorkerStalled)

    def reason(self) -> HomelabError:
        """Why the task was cancelled: what ``abort`` said, else the server is stopping."""
        if self._task is not None:
            self._task.uncancel()
        return self._aborted or DaemonUnavailable("the server is stopping", hint="send the request again")

    def close(self) -> None:
        """The task is ending by itself: nothing may cancel it any more."""
        self._task = None
        if self._link is not None:
            self._link.departed = None
        if self._watcher is not None:
            self._watcher.cancel()
        if self._comment is not None:
            self._comment.cancel()

    def tick(self, now_s: float) -> None:
        """End the request when it is over its time, or its worker is silent; tell a waiting stream what it waits for.

        ``heard_s`` is when the worker last gave a sign of life (0 = it is not being waited for), ``writing_s``
        when the client was last given something that it has not taken (0 = nothing).
        """
        if now_s - self._started_s > self._request_deadline_s:
            limit = self._request_deadline_s
            self.abort(DeadlineExceeded(f"the request took longer than {limit:g} s", limit_s=limit))
        elif self.heard_s and self.stall_s and now_s - self.heard_s > self.stall_s:
            self.abort(WorkerStalled(f"the worker sent nothing for {self.stall_s:g} s", waited_s=self.stall_s))
        elif self.writing_s and self.stall_s and now_s - self.writing_s > self.stall_s:
            self.abort(Cancelled("the client stopped reading"))
        elif self.comments and now_s - self._commented_s > COMMENT_AFTER_S and self._aborted is None:
            self._commented_s = now_s
            if self._comment is None or self._comment.done():
                text = self.waiting_for() if self.waiting_for else "waiting"
                self._comment = asyncio.get_running_loop().create_task(self._write_comment(text))

    async def _write_comment(self, text: str) -> None:
        if not self.started:
            await self._start(200, [(b"content-type", EVENTS), (b"cache-control", b"no-cache")])
            self._format = EVENTS
        await self._send({"type": "http.response.body", "body": comment(text), "more_body": True})

    async def _comments_end(self) -> None:
        self.comments = False
        if self._comment is not None and not self._comment.done():
            await self._comment

    # --- replying ---

    async def _start(self, status: int, headers: Headers) -> None:
        self.row.status = status
        if self._link is not None and self.scope["method"] != "HEAD":
            self._link.hold_head()  # every caller sends a part of the body next
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self.headers})

    async def whole(self, status: int, content: bytes, headers: Headers | None = None) -> None:
        """The complete reply, JSON unless ``headers`` name a content type."""
        chosen = headers if headers is not None else [_JSON_HEADER]
        length = [] if status == 204 else [(b"content-length", b"%d" % len(content))]
        if self._link is not None and self._link.reply(status, [*chosen, *length, *self.headers], content):
            self.row.status = status
            return
        await self._start(status, [*chosen, *length])
        await self._send({"type": "http.response.body", "body": content})

    async def json(self, value: Any, status: int = 200) -> None:
        """The complete reply from a JSON value."""
        await self.whole(status, orjson.dumps(value))

    async def write(self, block: bytes, kind: bytes = EVENTS) -> None:
        """A part of a streamed reply; the first one also sends status 200."""
        if self.comments:
            await self._comments_end()
        if not self.row.status:
            self.row.first_token_ms = self.elapsed_ms
            await self._start(200, [(b"content-type", kind), (b"cache-control", b"no-cache")])
            self._format = kind
        elif not self.row.first_token_ms:
            self.row.first_token_ms = self.elapsed_ms
        await self._send({"type": "http.response.body", "body": block, "more_body": True})

    def close_connection(self) -> None:
        """Close the connection after this reply."""
        if self._link is not None:
            self._link.close_after_reply()

    async def relay(self, status: int, headers: Headers, blocks: AsyncIterator[bytes]) -> None:
        """Another daemon's reply. A stream that has begun, with comments or steps, goes on with it."""
        if self.comments:
            await self._comments_end()
        if self.started and status != 200:
            await self._tell_error(b"".join([block async for block in blocks]))
            return
        async for block in blocks:
            if not self.started:
                self.row.first_token_ms = self.elapsed_ms
                await self._start(status, headers)
            await self._send({"type": "http.response.body", "body": block, "more_body": True})
        if not self.started:
            await self.whole(status, b"", [pair for pair in headers if pair[0] != b"content-length"])
        else:
            await self.end()

    async def end(self) -> None:
        """The end of a streamed reply."""
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: HomelabError) -> None:
        """Tell the client: by status while none is sent, else by an event or line of its own, and the end.

        A client that left is told nothing.
        """
        self.row.error = error.code
        if isinstance(error, Cancelled):
            self.row.status = self.row.status or status_of(error)
            return
        if self.comments:
            await self._comments_end()
        if not self.row.status:
            await self.whole(status_of(error), orjson.dumps(body_of(error)), [_JSON_HEADER, *headers_of(error)])
            return
        await self._tell_error(orjson.dumps(body_of(error)))

    async def _tell_error(self, told: bytes) -> None:
        """End a stream with an error, given as JSON."""
        self.close_connection()  # nobody shall take the broken answer for a whole one
        line = b"data: " + told + b"\n\n" if self._format == EVENTS else told + b"\n"
        await self._send({"type": "http.response.body", "body": line, "more_body": True})
        await self.end()
