"""Pushes in processes that may be killed; started by ``test_push_kills.py``.

Reads one job a line, ``{"store", "target", "failpoints"}``, and forks for each: the imports are paid once. Says first
``{"pid"}``, then ``{"signal", "sent_bytes", "error"}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from homelab_llm.core import failpoints
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.http import HttpClient, HttpLimits
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.push import PullSettings, push


def carry_out(job: dict[str, Any], told: int) -> None:
    os.environ["HOMELAB_FAILPOINTS"] = job["failpoints"]  # for couriers
    failpoints.arm(job["failpoints"])
    settings = PullSettings(environ={}, limits=HttpLimits(read_s=10, backoff_s=0.001))
    try:
        report = push(ModelStore(Path(job["store"])), "killed:1", job["target"], settings=settings)
        os.write(told, json.dumps({"sent_bytes": report.sent_bytes}).encode())
    except HomelabError as error:
        os.write(told, json.dumps({"error": error.code}).encode())
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        hear, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(hear)
            carry_out(json.loads(line), told)
        os.close(told)
        say({"pid": child})
        _, status = os.waitpid(child, 0)
        said = os.read(hear, 4096)
        os.close(hear)
        say({"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, **json.loads(said or b"{}")})


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    HttpClient().close()
    main()
