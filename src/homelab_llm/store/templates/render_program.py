"""The program that renders a stranger's template: one job as JSON on standard input, the outcome on standard output.

It has little memory, little time, no files and no network to speak of: what a template breaks, ends here. Run by
``rendering.py``; ``python -m homelab_llm.store.templates.render_program``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from homelab_llm.core.chat_template import ChatTemplate
from homelab_llm.core.errors import HomelabError, InvalidInput, InvalidTemplate


def main() -> int:
    """Read a job, bind ourselves, do it; the exit code is 0 also when the template is refused."""
    job = json.load(sys.stdin)
    _bind(job["memory_bytes"], job["limit_s"])
    json.dump(_done(job), sys.stdout)
    return 0


def _done(job: dict[str, Any]) -> dict[str, Any]:
    try:
        template = ChatTemplate(job["source"], limit_s=job["limit_s"])
        return {"rendered": [_rendered(template, one) for one in job["conversations"]]}
    except HomelabError as error:
        return {"error": error.as_dict()}


def _rendered(template: ChatTemplate, one: dict[str, Any]) -> dict[str, Any]:
    """Raises InvalidTemplate: out of bounds; then the others are not tried."""
    try:
        prompt = template.render(one["messages"], one["values"], add_generation_prompt=one["add_generation_prompt"])
    except InvalidTemplate:
        raise
    except InvalidInput as error:
        return {"error": error.as_dict()}
    return {"prompt": prompt}


def _bind(memory_bytes: int, limit_s: float) -> None:
    """Limits of the system, where it has them (macOS takes no bound on memory); they cannot be raised again."""
    import resource

    bounds = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: int(limit_s) + 5,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (bound, bound))


if __name__ == "__main__":
    sys.exit(main())
