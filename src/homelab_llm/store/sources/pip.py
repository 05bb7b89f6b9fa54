"""pip, as a program: it knows the operator's indexes, logins and certificates; we only ask it questions.

No package is installed, no build runs (wheels only) and dependencies are left alone. No index is named here: which
one is asked is the operator's pip configuration.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, SourceDenied, SourceNotFound, SourceUnavailable

_TIMEOUT_S = 180.0
_DOWNLOAD_TIMEOUT_S = 6 * 3600.0
_LOGIN = re.compile(r"//[^/@\s]+@")
_COMMON = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "-q")


@dataclass(frozen=True, slots=True)
class Wheel:
    """Where a wheel is (``https://…`` or ``file://…``) and the SHA-256 the index gives for it, if it gives one."""

    url: str
    digest: Digest | None


class Pip:
    """The pip of this interpreter, with ``environ`` as its environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = {**environ, "PYTHONDONTWRITEBYTECODE": "1"}

    def resolve(self, requirement: str) -> Wheel:
        """Where ``NAME==VERSION`` is; blocks for about a second.

        Raises:
            SourceNotFound: no such package, version or wheel. SourceDenied: the index wants a login.
            SourceUnavailable: pip is missing, fails otherwise, or takes too long.
        """
        asked = ("install", "--dry-run", "--ignore-installed", "--report", "-", *_COMMON, requirement)
        try:
            info = json.loads(self._run(asked, requirement, _TIMEOUT_S))["install"][0]["download_info"]
            url = info["url"]
            hashes = info.get("archive_info", {}).get("hashes", {})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise SourceUnavailable(f"pip's report about {requirement} cannot be read") from error
        hexadecimal = hashes.get("sha256")
        return Wheel(str(url), Digest.parse(f"sha256:{hexadecimal}") if hexadecimal else None)

    def download(self, requirement: str, folder: Path) -> Path:
        """Let pip fetch the whole wheel into ``folder``, with its own logins, proxies and certificates; blocks.

        Raises:
            As ``resolve``.
        """
        self._run(("download", "--dest", str(folder), *_COMMON, requirement), requirement, _DOWNLOAD_TIMEOUT_S)
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise SourceUnavailable(f"pip fetched {len(wheels)} wheels for {requirement}")
        return wheels[0]

    def _run(self, arguments: tuple[str, ...], requirement: str, timeout_s: float) -> str:
        command = [sys.executable, "-m", "pip", *arguments]
        try:
            done = subprocess.run(
                command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SourceUnavailable(f"pip took longer than {timeout_s:.0f} s for {requirement}") from error
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace")
        raise _failure(done.stderr.decode("utf-8", "replace"), requirement)


def _failure(said: str, requirement: str) -> HomelabError:
    errors = [line[len("ERROR: ") :] for line in said.splitlines() if line.startswith("ERROR: ")]
    reason = _LOGIN.sub("//", errors[-1] if errors else (said.strip().splitlines() or ["no reason given"])[-1])[:200]
    if "No module named pip" in said:
        return SourceUnavailable("pip is missing from this environment", hint="python -m ensurepip")
    if re.search(r"\b(401|403)\b", said):
        return SourceDenied(f"the package index refuses access to {requirement}: {reason}", hint="pip config list")
    if "No matching distribution" in said and "Retrying" not in said and "Connection" not in said:
        return SourceNotFound(
            f"no package index has a wheel of {requirement}", hint="pip config list shows the indexes"
        )
    return SourceUnavailable(f"pip cannot find {requirement}: {reason}", hint="pip config list shows the indexes")
