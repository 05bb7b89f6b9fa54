"""What the fake hub answers to pushes: new repositories, LFS uploads and commits, as the hub's own client sends them.

Kept in memory with the hub's other files, so what was pushed can be pulled. ``part_bytes`` makes uploads multipart.
Source: huggingface_hub 2.4 (``_commit_api.py``, ``lfs.py``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, Mapping[str, str], bytes]

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_PREUPLOAD = re.compile(rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)")
_COMMIT = re.compile(rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)")
_BATCH = re.compile(rf"/{_REPO}\.git/info/lfs/objects/batch")
_UPLOAD = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?")
_COMPLETE = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})/complete")
LARGE = (".gguf", ".safetensors", ".bin")


@dataclass(slots=True)
class HubPushes:
    """The state of pushes; ``uploaded`` holds LFS objects by SHA-256, ``received_bytes`` counts what came in.

    ``refuse``: a status with which every upload is answered; 0 takes them.
    """

    repos: dict[str, dict[str, bytes]]
    part_bytes: int = 0
    refuse: int = 0
    private: dict[str, bool] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    received_bytes: int = 0

    def answer(self, method: str, base: str, path: str, body: bytes) -> Answer | None:
        """The reply, or None for what is not part of a push."""
        if method == "PUT" and (found := _UPLOAD.fullmatch(path)):
            return self._upload(found["oid"], found["part"], body)
        if method != "POST":
            return None
        if path == "/api/repos/create":
            return self._create(json.loads(body), base)
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if found := _PREUPLOAD.fullmatch(path):
            return self._preupload(found["repo"], json.loads(body))
        if found := _BATCH.fullmatch(path):
            return self._batch(base, json.loads(body))
        if found := _COMPLETE.fullmatch(path):
            parts = self.parts.pop(found["oid"])
            return self._keep(found["oid"], b"".join(parts[number] for number in sorted(parts)))
        if found := _COMMIT.fullmatch(path):
            return self._commit(found["repo"], body, base)
        return None

    def _create(self, wanted: Mapping[str, Any], base: str) -> Answer:
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        known = repo in self.repos
        self.repos.setdefault(repo, {})
        self.private.setdefault(repo, wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return _json({"url": f"{base}/{repo}", "id": repo}, 409 if known else 200)

    def _preupload(self, repo: str, wanted: Mapping[str, Any]) -> Answer:
        if repo not in self.repos:
            return 404, {"x-error-code": "RepoNotFound"}, b""
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in wanted["files"]
        ]
        return _json({"files": files})

    def _batch(self, base: str, wanted: Mapping[str, Any]) -> Answer:
        objects = [self._object(base, found["oid"], found["size"]) for found in wanted["objects"]]
        transfer = "multipart" if self.part_bytes else "basic"
        return _json({"transfer": transfer, "objects": objects})

    def _object(self, base: str, oid: str, size: int) -> dict[str, Any]:
        if oid in self.uploaded:
            return {"oid": oid, "size": size}
        upload: dict[str, Any] = {"href": f"{base}/lfs/{oid}", "header": {}}
        if self.part_bytes:
            count = -(-size // self.part_bytes)
            parts = {str(number): f"{base}/lfs/{oid}/{number}" for number in range(1, count + 1)}
            upload = {"href": f"{base}/lfs/{oid}/complete", "header": {"chunk_size": str(self.part_bytes), **parts}}
        return {"oid": oid, "size": size, "actions": {"upload": upload}}

    def _upload(self, oid: str, part: str | None, body: bytes) -> Answer:
        if self.refuse:
            return self.refuse, {}, b""
        self.received_bytes += len(body)
        if part is None:
            return self._keep(oid, body)
        self.parts.setdefault(oid, {})[int(part)] = body
        return 200, {"etag": f'"{part}"'}, b""

    def _keep(self, oid: str, content: bytes) -> Answer:
        if hashlib.sha256(content).hexdigest() != oid:
            return 422, {}, b"not the content of this oid"
        self.uploaded[oid] = content
        return _json({})

    def _commit(self, repo: str, body: bytes, base: str) -> Answer:
        files = self.repos[repo]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.uploaded[value["oid"]]
        oid = hashlib.sha1(body, usedforsecurity=False).hexdigest()
        return _json({"success": True, "commitUrl": f"{base}/{repo}/commit/{oid}", "commitOid": oid, "hookOutput": ""})


def _json(document: Mapping[str, Any], status: int = 200) -> Answer:
    return status, {"content-type": "application/json"}, json.dumps(document).encode()
