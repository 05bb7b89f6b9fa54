"""References: where a model comes from, as one line of text. One strict grammar for every source; pure, asks nobody.

| form | means |
|---|---|
| `NAME:TAG` | a short name of the catalogue |
| `hf:ORG/NAME[:QUANTIZATION][@REVISION][#FILE.gguf]` | a model of the Hugging Face hub |
| `oci://HOST[:PORT]/NAME[:TAG]`, `oci://HOST[:PORT]/NAME@sha256:…` | an artifact of an OCI registry |
| `ollama:[[HOST/]NAMESPACE/]NAME[:TAG][@sha256:…]` | a model of the Ollama library |
| `https://HOST/PATH.gguf[#sha256=…]` | a file at a web address |
| `file:PATH[#ITEM]` | a file, a folder or an OCI layout of this machine |
| `packages:NAME==VERSION#MEMBER` | a file, or `FOLDER/`, in a Python package |

What people copy from pages and other tools is rewritten into these forms first (``pasted.py``). ``str()`` of a
reference is its canonical text, and parsing that gives the same reference.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, InvalidInput
from homelab_llm.core.urls import origin_of
from homelab_llm.store.pasted import canonical_text

MAX_CHARACTERS = 2048
DEFAULT_REVISION = "main"
DEFAULT_TAG = "latest"
DEFAULT_NAMESPACE = "library"
GRAMMAR = (
    ("catalogue", "NAME:TAG", "a short name of the catalogue"),
    ("hf", "hf:ORG/NAME[:QUANTIZATION][@REVISION][#FILE.gguf]", "a model of the Hugging Face hub"),
    ("oci", "oci://HOST[:PORT]/NAME[:TAG] or oci://HOST[:PORT]/NAME@sha256:…", "an artifact of an OCI registry"),
    ("ollama", "ollama:[[HOST/]NAMESPACE/]NAME[:TAG][@sha256:…]", "a model of the Ollama library"),
    ("https", "https://HOST/PATH.gguf[#sha256=…]", "a file at a web address"),
    ("file", "file:PATH[#ITEM]", "a file, a folder or an OCI layout of this machine"),
    ("packages", "packages:NAME==VERSION#MEMBER", "a file, or FOLDER/, in a Python package"),
)
"""Scheme, form, meaning; what the guide and the help show."""

_HUB_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_HUB = re.compile(
    rf"hf:(?P<repo>{_HUB_PART}(?:/{_HUB_PART})?)(?::(?P<quantization>[A-Za-z0-9](?:[\w.-]{{0,62}}[A-Za-z0-9_])?))?"
    r"(?:@(?P<revision>[A-Za-z0-9_](?:[\w./-]{0,198}[\w.-])?))?(?:#(?P<file>[^#\\]{1,1000}))?",
    re.ASCII,
)
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]{{2,45}}\])(?::[1-9][0-9]{{0,4}})?"
_NAME_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_SHA256 = r"sha256:[0-9a-f]{64}"
_OCI = re.compile(
    rf"oci://(?P<host>(?i:{_HOST}))/(?P<name>{_NAME_PART}(?:/{_NAME_PART})*)"
    rf"(?::(?P<tag>{_TAG})|@(?P<digest>{_SHA256}))?"
)
_OLLAMA_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_OLLAMA = re.compile(
    rf"ollama:(?:(?:(?P<host>(?i:{_HOST}))/)?(?P<namespace>{_OLLAMA_PART})/)?(?P<name>{_OLLAMA_PART})"
    rf"(?::(?P<tag>{_OLLAMA_PART}))?(?:@(?P<digest>{_SHA256}))?"
)
_WEB = re.compile(r"(?P<url>https?://[^#]+)(?:#sha256=(?P<hex>[0-9a-f]{64}))?")
_FILE = re.compile(r"file:(?P<path>[^#]{1,2000})(?:#(?P<item>[^#]{1,200}))?")
_PACKAGE = re.compile(
    r"packages:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,99}))==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]{0,50})"
    r"#(?P<member>[^#]{1,500})"
)
_SHORT = re.compile(rf"{_NAME_PART}(?::[A-Za-z0-9_][A-Za-z0-9._-]{{0,63}})?")
_SECRET = re.compile(r"[^/@\s]*:[^/@\s]*@(?!sha256:)")  # a name and a password before a host
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class CatalogueReference:
    """A short name of the catalogue."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class HubReference:
    """``revision`` is a branch, tag or commit; ``file`` a GGUF file, ``quantization`` a word in its name, or empty."""

    repo: str
    revision: str = DEFAULT_REVISION
    file: str = ""
    quantization: str = ""

    def __str__(self) -> str:
        quantization = f":{self.quantization}" if self.quantization else ""
        revision = "" if self.revision == DEFAULT_REVISION else f"@{self.revision}"
        return f"hf:{self.repo}{quantization}{revision}" + (f"#{self.file}" if self.file else "")

    @property
    def whole(self) -> HubReference:
        """The same repository and revision without a choice of file."""
        return replace(self, file="", quantization="")


@dataclass(frozen=True, slots=True)
class OciReference:
    """``host`` may carry a port; ``digest`` pins a manifest and then ``tag`` is empty."""

    host: str
    name: str
    tag: str = DEFAULT_TAG
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.name}" + (f"@{self.digest}" if self.digest else f":{self.tag}")

    @property
    def version(self) -> str:
        """What the registry's interface calls it: the digest, else the tag."""
        return str(self.digest) if self.digest else self.tag


@dataclass(frozen=True, slots=True)
class OllamaReference:
    """``host`` is empty for the library of the settings; ``digest`` is the manifest's, where it is pinned."""

    name: str
    namespace: str = DEFAULT_NAMESPACE
    tag: str = DEFAULT_TAG
    host: str = ""
    digest: Digest | None = None

    def __str__(self) -> str:
        place = f"{self.host}/{self.namespace}/" if self.host else f"{self.namespace}/"
        shown = "" if not self.host and self.namespace == DEFAULT_NAMESPACE else place
        return f"ollama:{shown}{self.name}:{self.tag}" + (f"@{self.digest}" if self.digest else "")


@dataclass(frozen=True, slots=True)
class WebReference:
    """One file at a web address; ``digest`` is what its bytes must have."""

    url: str
    digest: Digest | None = None

    def __str__(self) -> str:
        return self.url + (f"#sha256={self.digest.hex}" if self.digest else "")


@dataclass(frozen=True, slots=True)
class FileReference:
    """A path as it was written, also with ``~``. ``item``: a file in the folder, or a tag in the layout."""

    path: str
    item: str = ""

    def __str__(self) -> str:
        return f"file:{self.path}" + (f"#{self.item}" if self.item else "")


@dataclass(frozen=True, slots=True)
class PackageReference:
    """``member`` ends with a slash when it means all model files in that folder."""

    name: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"packages:{self.requirement}#{self.member}"

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"


Reference = (
    CatalogueReference | HubReference | OciReference | OllamaReference | WebReference | FileReference | PackageReference
)


def parse(text: str) -> Reference:
    """Read a reference as a person wrote or pasted it.

    Raises:
        InvalidInput: outside the grammar; the hint shows the right form.
    """
    for form in (canonical_text, str):  # what is unquoted is looked at again
        if not 0 < len(text) <= MAX_CHARACTERS or not text.isprintable():
            raise _invalid(f"a reference has 1 to {MAX_CHARACTERS} printable characters", f"known are {_known()}")
        text = form(text)
    scheme = text.partition(":")[0].lower() if ":" in text else ""
    if scheme in _PARSERS and (scheme not in {"oci", "http", "https"} or "://" in text):
        return _PARSERS[scheme](scheme + text[len(scheme) :])
    if "://" in text:
        raise _invalid(f"nothing is pulled from {scheme[:20]!r} addresses", f"known are {_known()}")
    return _short(text)


def parse_hub(text: str) -> HubReference:
    """Read ``hf:ORG/NAME[:QUANTIZATION][@REVISION][#FILE]``.

    Raises:
        InvalidInput: outside the grammar of repository names and revisions.
    """
    match = _HUB.fullmatch(text)
    if (
        not match
        or "--" in match["repo"]
        or any(".." in (match[part] or "") for part in ("repo", "quantization", "revision"))
        or match["repo"].endswith(".git")
        or (match["file"] and (match["quantization"] or not _is_plain_path(match["file"])))
    ):
        raise _invalid(
            "not a model of the hub",
            "write hf:org/name, hf:org/name:Q4_K_M, hf:org/name@revision or hf:org/name#file.gguf",
        )
    quantization = match["quantization"] or ""
    if quantization == DEFAULT_TAG:  # how Ollama writes "the usual one"
        quantization = ""
    return HubReference(match["repo"], match["revision"] or DEFAULT_REVISION, match["file"] or "", quantization)


def parse_oci(text: str) -> OciReference:
    """Read ``oci://HOST[:PORT]/NAME[:TAG]`` or ``…@sha256:…``.

    Raises:
        InvalidInput: outside the grammar of registries.
    """
    match = _OCI.fullmatch(text)
    if not match or len(match["name"]) > _MAX_NAME or not _is_host(match["host"]):
        raise _invalid(
            "not an artifact of an OCI registry",
            "write oci://host/name:tag or oci://host/name@sha256:<64 hex digits>; names are lower case",
        )
    host, digest = match["host"].lower(), match["digest"]
    if digest:
        return OciReference(host, match["name"], "", Digest.parse(digest))
    return OciReference(host, match["name"], match["tag"] or DEFAULT_TAG)


def parse_package(text: str) -> PackageReference:
    """Read ``packages:NAME==VERSION#MEMBER``.

    Raises:
        InvalidInput: no exact version, no member, or characters a requirement cannot have.
    """
    match = _PACKAGE.fullmatch(text)
    if not match:
        raise _invalid(
            "not a file in a package",
            "write packages:NAME==VERSION#path/in/the/wheel.gguf, or #folder/ for a whole folder",
        )
    return PackageReference(match["name"], match["version"], match["member"])


def parse_ollama(text: str) -> OllamaReference:
    """Read ``ollama:[[HOST/]NAMESPACE/]NAME[:TAG][@sha256:…]``.

    Raises:
        InvalidInput: outside the grammar of the library.
    """
    match = _OLLAMA.fullmatch(text)
    if not match or ".." in text or (match["host"] and not _is_host(match["host"])):
        raise _invalid("not a model of the Ollama library", "write ollama:name:tag or ollama:namespace/name:tag")
    digest = Digest.parse(match["digest"]) if match["digest"] else None
    host, namespace = (match["host"] or "").lower(), match["namespace"] or DEFAULT_NAMESPACE
    return OllamaReference(match["name"], namespace, match["tag"] or DEFAULT_TAG, host, digest)


def parse_web(text: str) -> WebReference:
    """Read ``https://HOST/PATH[#sha256=…]``.

    Raises:
        InvalidInput: not an address, one with a password, or another mark than ``sha256``.
    """
    match = _WEB.fullmatch(text)
    if match:
        try:
            origin_of(match["url"])
        except HomelabError as error:
            raise _invalid(error.message, error.hint or "write https://host/path/model.gguf") from None
        return WebReference(match["url"], Digest(match["hex"]) if match["hex"] else None)
    raise _invalid(
        "not the address of a file", "write https://host/path/model.gguf, if you know it with #sha256=<64 hex digits>"
    )


def parse_file(text: str) -> FileReference:
    """Read ``file:PATH[#ITEM]``; nothing is looked up and ``~`` stays as it is.

    Raises:
        InvalidInput: no path, or one with ``#`` in it.
    """
    match = _FILE.fullmatch(text)
    if not match or match["path"].startswith("//"):
        raise _invalid(
            "not a file of this machine", "write file:./model.gguf, file:/models/folder or file:~/model.gguf"
        )
    return FileReference(match["path"], match["item"] or "")


def _short(text: str) -> CatalogueReference:
    if _SHORT.fullmatch(text.lower()):
        return CatalogueReference(text.lower())
    shown = _SECRET.sub("…@", text)[:60]
    if text.startswith((".", "/", "~")) or text.lower().endswith((".gguf", ".safetensors")):
        raise _invalid(f"not a reference: {shown!r}", f"a file of this machine is file:{shown}")
    if re.fullmatch(rf"{_HUB_PART}/{_HUB_PART}(?:[:@#].*)?", text, re.ASCII):
        raise _invalid(f"it is not said where {shown!r} is", f"a model of the hub is hf:{shown}")
    raise _invalid(f"not a reference: {shown!r}", f"known are {_known()}")


_PARSERS: dict[str, Callable[[str], Reference]] = {
    "hf": parse_hub,
    "oci": parse_oci,
    "ollama": parse_ollama,
    "https": parse_web,
    "http": parse_web,
    "file": parse_file,
    "packages": parse_package,
}


def _is_host(host: str) -> bool:
    """Whether brackets hold an IPv6 address, and the port is one."""
    name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
    if port and int(port) > 65_535:
        return False
    if len(name) > 253 or not name.startswith("["):
        return len(name) <= 253
    try:
        ipaddress.IPv6Address(name[1:-1])
    except ValueError:
        return False
    return True


def _is_plain_path(path: str) -> bool:
    return not any(part in ("", ".", "..") for part in path.split("/"))


def _known() -> str:
    return "hf:org/name, oci://host/name:tag, ollama:name:tag, https://…, file:PATH and the names of the catalogue"


def _invalid(message: str, hint: str) -> InvalidInput:
    return InvalidInput(message, hint=hint, field="reference")
