"""Swapping the model behind an alias while clients ask it: nobody notices but by the model's name."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest

from homelab_llm.testing.slotted import ONE_MODEL_BYTES, Clients, rows, slotted, steps

Note = Callable[..., None]


@pytest.mark.requirement("B-4")
@pytest.mark.requirement("R-F1")
@pytest.mark.parametrize("fits", [True, False], ids=["both fit", "one fits"])
def test_swaps_under_load_fail_no_request(figure: Note, full: bool, fits: bool) -> None:
    swaps, clients = (100, 16) if full else (4, 6)
    environ = {} if fits else {"HOMELAB_FLEET__MEMORY_BUDGET_BYTES": str(ONE_MODEL_BYTES)}
    mode = "both_fit" if fits else "one_fits"
    with slotted(environ=environ) as daemon:
        port, alias = rows(daemon)[0]["port"], rows(daemon)[0]["alias"]
        steps(daemon.call("POST", "/admin/slots/load", {"model": "a", "slot": str(port)}))
        with Clients(daemon.port, port, alias, clients) as asking:
            taken = []
            for number in range(swaps):
                wanted = "ba"[number % 2]
                started = time.perf_counter()
                steps(daemon.call("POST", "/admin/slots/swap", {"slot": alias, "model": wanted}))
                taken.append(time.perf_counter() - started)
        row = rows(daemon)[0]
    assert asking.failures == []
    assert asking.models == {"a:latest", "b:latest"}
    assert (row["desired"], row["actual"], row["drift"]) == ("a-latest", "a-latest", "")
    waits = sorted(asking.taken_s)
    told = ", ".join(f"p{p} {waits[int(len(waits) * p / 100)] * 1000:.0f} ms" for p in (50, 90, 99))
    figure(f"swap.{mode}.failed_requests", float(len(asking.failures)), "requests", "= 0", f"of {len(waits)}")
    figure(f"swap.{mode}.duration_p50", statistics.median(taken), "s", "", f"longest {max(taken):.2f} s")
    figure(f"swap.{mode}.longest_request", waits[-1], "s", "", told)
