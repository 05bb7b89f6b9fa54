"""Couriers: large blobs are sent by a process of their own, which ends the chunk under way when its caller dies.

The reference registry throws a whole upload away when a chunk arrives in part, so whoever is killed while sending
loses all of it. A courier is not killed with its caller: it notices that its standard input has ended, lets the
registry have the rest of the chunk, writes down where to go on, and ends. It sends one blob after another and is told
everything on standard input, secrets too; nothing is on its command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import Cancelled, HomelabError, InternalError, SourceUnavailable, error_of
from homelab_llm.store.layout import Layout
from homelab_llm.store.oci.client import RegistryClient, open_registry
from homelab_llm.store.oci.credentials import Credentials
from homelab_llm.store.oci.sending import Blob, Sender, Watch
from homelab_llm.store.settings import PullSettings
from homelab_llm.store.upload_records import UploadRecord

Event = Mapping[str, Any]


class Courier:
    """A courier process, from the side of who sends it; for one thread, except ``stop``.

    Args:
        errand: what ``errand_of`` made.
    """

    def __init__(self, errand: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "homelab_llm.store.oci.courier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the caller
        )
        self._tell(errand)

    def send(self, blob: Blob, watch: Watch) -> int:
        """Have a blob sent; blocks.

        Returns:
            The bytes that went out.

        Raises:
            Cancelled: it was stopped. SourceUnavailable, also: the courier was killed. All that sending can raise.
        """
        self._tell({"digest": str(blob.digest), "size_bytes": blob.size_bytes, "names": blob.names})
        assert self._process.stdout is not None  # noqa: S101
        for line in self._process.stdout:
            event = json.loads(line)
            if "error" in event:
                raise error_of(event["error"])
            if "sent_bytes" not in event:
                (watch.waiting if event.get("stage") == "waiting" else watch.retrying)()
                continue
            watch.sent(event["done_bytes"], event["sent_bytes"])
            if event.get("complete"):
                return int(event["sent_bytes"])
        self._process.wait()
        raise SourceUnavailable(
            "the process that sent a blob ended before it was done", hint="run the same command again", ended=True
        )

    def stop(self) -> None:
        """Let it end after the chunk under way; does not wait."""
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.close()

    def end(self) -> None:
        """Let it end, and wait for that."""
        self.stop()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _tell(self, what: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101
        with contextlib.suppress(OSError, ValueError):  # it has ended: reading from it tells
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()


def errand_of(
    root: Path, host: str, repository: str, settings: PullSettings, credentials: Credentials | None
) -> dict[str, Any]:
    """What a courier is told first: store, registry and repository, settings, credentials."""
    proxies = {name: value for name, value in settings.environ.items() if name.lower().endswith("_proxy")}
    return {
        "root": str(root),
        "host": host,
        "repository": repository,
        "registries": list(settings.registries),
        "allow_private_hosts": settings.allow_private_hosts,
        "limits": asdict(settings.limits),
        "environ": proxies,
        "credentials": asdict(credentials) if credentials else None,
    }


class _Errands:
    """What the courier itself does."""

    def __init__(self, say: Callable[[Event], None], stopping: threading.Event) -> None:
        self._say, self._stopping = say, stopping
        self._client: RegistryClient | None = None

    def take(self, told: Mapping[str, Any]) -> None:
        """The first line: where to."""
        from homelab_llm.core.http import HttpLimits

        settings = PullSettings(
            registries=tuple(told["registries"]),
            allow_private_hosts=told["allow_private_hosts"],
            environ=told["environ"],
            limits=HttpLimits(**told["limits"]),
        )
        credentials = Credentials(**told["credentials"]) if told["credentials"] else None
        self._client = open_registry(told["host"], settings, push=True, credentials=credentials)
        self._layout, self._repository = Layout(Path(told["root"])), told["repository"]

    def carry(self, told: Mapping[str, Any]) -> None:
        """A further line: a blob."""
        assert self._client is not None  # noqa: S101 — the first line came first
        digest = Digest.parse(told["digest"])
        blob = Blob(digest, told["size_bytes"], self._layout.blob(digest), tuple(told["names"]))
        record = UploadRecord(self._layout, self._client.host.name, self._repository, digest)
        watch = Watch(
            self._sent,
            lambda: self._say({"stage": "waiting"}),
            lambda: self._say({"stage": "retrying"}),
            self._stopping.is_set,
        )
        sender = Sender(self._client, self._repository, blob, watch)
        record.hold(watch.waiting, watch.stopping)
        try:
            if self._client.has_blob(self._repository, digest):  # another push, or a killed courier, was done with it
                record.forget()
            else:
                sender.send_in_chunks(record)
        finally:
            record.let_go()
        self._say({"done_bytes": blob.size_bytes, "sent_bytes": sender.sent_bytes, "complete": True})

    def _sent(self, done_bytes: int, sent_bytes: int) -> None:
        self._say({"done_bytes": done_bytes, "sent_bytes": sent_bytes})


def main() -> int:
    """Read an errand and then blobs, one JSON object a line; say what happens in the same way."""
    stopping = threading.Event()
    lines: list[str] = []
    came = threading.Condition()

    def listen() -> None:
        for line in sys.stdin:
            with came:
                lines.append(line)
                came.notify()
        with came:
            stopping.set()
            came.notify()

    threading.Thread(target=listen, daemon=True).start()
    errands, first = _Errands(_say, stopping), True
    while True:
        with came:
            came.wait_for(lambda: lines or stopping.is_set())
            if not lines or (stopping.is_set() and not first):
                return 0
            told = json.loads(lines.pop(0))
        try:
            (errands.take if first else errands.carry)(told)
            first = False
        except Cancelled as error:
            _say({"error": error.as_dict()})
            return 0
        except HomelabError as error:
            _say({"error": error.as_dict()})
        except Exception as error:  # noqa: BLE001 — the outermost loop of this process
            _say({"error": InternalError(f"sending failed: {type(error).__name__}").as_dict()})


def _say(event: Event) -> None:
    """Tell the caller; when it is gone, the work goes on to its next safe end."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    code = main()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 — a caller that is gone is no error
    sys.exit(code)
