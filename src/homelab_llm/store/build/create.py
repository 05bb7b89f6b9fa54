"""Create: a model from a spec. Weights are never copied: the new model names the same blobs as its base.

base → adapters, licence → check → one manifest. Until the last step the model does not exist; killed anywhere, what
was written is freed by the next prune.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import BadModelFile, InvalidInput, InvalidName, ModelNotFound, UnsupportedRequest
from homelab_llm.core.facts import ADAPTERS, ModelDefaults, ModelFacts, Provenance, StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.names import DEFAULT_TAG, ModelRef
from homelab_llm.store.build.adapters import AdapterFiles, check_adapter, find_adapter
from homelab_llm.store.build.spec import MAX_LONG_CHARACTERS, ModelSpec, check_length, fault, shown
from homelab_llm.store.build.templates import TemplateText, template_of
from homelab_llm.store.progress import JobProgress, Progress

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore
    from homelab_llm.store.settings import PullSettings

FAILPOINTS = ("create.base", "create.adapter", "create.licence", "create.checked", "create.added")
"""Every failpoint of a create; those of the store and of a pull are passed as well."""

Quantize = Callable[["ModelStore", str, str, "Callable[[JobProgress], None] | None"], StoredModel]
"""Store, name of the base, the wanted quantization, progress → a stored model with these weights."""

LICENCE_FILE = "LICENSE"
_PATHS = ("./", "../", "/", "~", "file:")
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


@dataclass(frozen=True, slots=True)
class _Base:
    """What a model is made from: files by name, and what is known of them."""

    name: str
    digest: str
    source: str
    files: Mapping[str, Digest]
    facts: ModelFacts
    defaults: ModelDefaults = field(default_factory=ModelDefaults)


def create(
    store: ModelStore,
    spec: ModelSpec,
    ref: ModelRef,
    *,
    settings: PullSettings | None = None,
    progress: Callable[[JobProgress], None] | None = None,
    base_folder: Path | None = None,
    ollama_names: bool = False,
    quantize: Quantize | None = None,
) -> StoredModel:
    """Make a model from a spec; blocks. A base that is not in the store is pulled, a path is imported.

    Args:
        ref: the new name; one that exists is moved to the new model.
        settings: for pulls; None = the defaults.
        progress: called often, from this thread; what it raises ends the work, and nothing is half made.
        base_folder: where relative paths in the spec begin; None = none are taken.
        ollama_names: a name that is neither stored nor in the catalogue is one of the Ollama library.
        quantize: makes a stored model with the weights a spec asks for; without it such a spec is refused.

    Raises:
        InvalidName: ``ref`` has a digest.
        ModelNotFound: there is no such base; and all that ``pull`` and ``import_path`` raise for it.
        InvalidModelSpec, InvalidTemplate, BadModelFile, UnsafeModel: the spec, or something it names, cannot be used.
        UnsupportedRequest: it asks for weights that ``quantize`` cannot make, or there is no ``quantize``.
    """
    if ref.digest is not None or ref.repository == "sha256":
        raise InvalidName("a new name is repository:tag, without a digest", hint=f"use {DEFAULT_TAG} or another tag")
    report = Progress(progress or (lambda _: None))
    report.stage("resolving")
    _refuse_other_versions(spec)
    template = template_of(spec.template, lambda path: _read_text(path, base_folder, "template"))
    making = _Making(store, spec, settings, progress, report, base_folder, ollama_names, quantize)
    try:
        model = making.run(ref, template)
    except BaseException:
        store.blobs.release(making.held)
        raise
    if unused := set(making.held) - {Digest.parse(f"sha256:{path.name}") for path in model.files.values()}:
        store.blobs.release(unused)
    return model


@dataclass(slots=True)
class _Making:
    """One model while it is made; ``held`` are blobs that no prune may free until the model has them."""

    store: ModelStore
    spec: ModelSpec
    settings: PullSettings | None
    progress: Callable[[JobProgress], None] | None
    report: Progress
    base_folder: Path | None
    ollama_names: bool
    quantize: Quantize | None
    held: list[Digest] = field(default_factory=list)

    def run(self, ref: ModelRef, template: TemplateText) -> StoredModel:
        base = self._base()
        failpoint("create.base")
        source, measured = base, dict[str, float]()
        if (wanted := self.spec.quantization) and wanted.lower() != base.facts.quantization.lower():
            made = self._quantized(base, wanted)
            base, measured = self._of(made, made.name), dict(made.provenance.measured)
        files = dict(base.files)
        adapters = self._adapters(base, files)
        facts = self._licence(files, base.facts)
        defaults = _merged(base.defaults, self.spec, template, adapters)
        self.report.stage("storing")
        failpoint("create.checked")
        provenance = Provenance(source.name, source.digest, "create", _tool(), time.time(), measured)
        model = self.store.add(ref, files, facts, source=source.source, defaults=defaults, provenance=provenance)
        failpoint("create.added")
        self.report.stage("done")
        return model

    def _quantized(self, base: _Base, wanted: str) -> StoredModel:
        """The base with other weights, as a model of its own whose blobs this one then shares."""
        if self.quantize is None or not base.digest:
            raise UnsupportedRequest(
                f"{base.name} is stored as {base.facts.quantization or 'something else'}, and not as {wanted}",
                hint="name a base of the store: mlxctl import PATH NAME"
                if not base.digest
                else f"mlxctl quantize {base.name} NEW-NAME {wanted.lower()}    # then base: NEW-NAME",
                field="quantization",
            )
        return self.quantize(self.store, base.name, wanted, self.progress)

    # --- the base -----------------------------------------------------------------------------------------------

    def _base(self) -> _Base:
        name = self.spec.base
        if (path := _path(name, self.base_folder, (".gguf",))) is not None:
            return self._imported(path)
        model = _stored(self.store, name) if not self.spec.revision else None
        return self._of(model or self._pulled(name), name)

    def _imported(self, path: Path) -> _Base:
        from homelab_llm.store.imports import import_files

        files, facts = import_files(self.store.blobs, path, partial(self._hashed, path.name))
        self.held += files.values()
        return _Base(f"file:{path.name}", "", f"file:{path.name}", files, facts)

    def _hashed(self, name: str, done_bytes: int, total_bytes: int) -> None:
        if self.progress is not None:
            self.progress(JobProgress("hashing", name, done_bytes, total_bytes))

    def _pulled(self, name: str) -> StoredModel:
        from homelab_llm.store.pull import pull

        try:
            return pull(self.store, self._revised(name), settings=self.settings, progress=self.progress)
        except ModelNotFound:
            if not self.ollama_names or not _is_name(name):
                raise
        return pull(self.store, f"ollama:{name}", settings=self.settings, progress=self.progress)

    def _revised(self, name: str) -> str:
        """The base with the revision that the spec names."""
        from homelab_llm.store.references import DEFAULT_REVISION, HubReference, parse

        if not self.spec.revision:
            return name
        reference = parse(name)
        if not isinstance(reference, HubReference) or reference.revision not in ("", DEFAULT_REVISION):
            raise fault("revision belongs to a base hf:ORG/NAME without one", name="revision")
        return str(replace(reference, revision=self.spec.revision))

    def _of(self, model: StoredModel, asked: str) -> _Base:
        """A stored model as base, held against a prune."""
        from homelab_llm.store.inspect.model import inspect_model

        files = {name: Digest.parse(f"sha256:{path.name}") for name, path in model.files.items()}
        for name, digest in files.items():
            if not self.store.blobs.hold(digest):
                raise ModelNotFound(
                    f"{model.name} was removed meanwhile ({name[:80]})", hint="run it again", model=asked
                )
            self.held.append(digest)
        facts = replace(inspect_model(model.files), licence=model.facts.licence)
        return _Base(model.name, str(model.digest), model.source, files, facts, model.defaults)

    # --- what is added ------------------------------------------------------------------------------------------

    def _adapters(self, base: _Base, files: dict[str, Digest]) -> tuple[str, ...]:
        """Take the adapters of the spec among the files, after those of the base; the same one is taken once."""
        taken = list(base.defaults.adapters)
        own = {name: self.store.blobs.path(digest) for name, digest in base.files.items()}
        own = {name: path for name, path in own.items() if not name.startswith(ADAPTERS)}
        for reference in self.spec.adapters:
            for adapter in self._found(reference):
                check_adapter(adapter, base.facts, own)
                digests = {name: self._brought(path) for name, path in adapter.files.items()}
                failpoint("create.adapter")
                if any(set(digests.values()) <= set(_below(files, place).values()) for place in taken):
                    continue
                folder = f"{ADAPTERS}{_free_number(files)}"
                files |= {f"{folder}/{name}": digest for name, digest in digests.items()}
                taken.append(f"{folder}/{next(iter(digests))}" if adapter.kind == "gguf" else folder)
        return tuple(taken)

    def _found(self, reference: str) -> list[AdapterFiles]:
        """The adapters that a reference names: at a path, or those of a model of the store."""
        path = _path(reference, self.base_folder, (".gguf", ".safetensors"))
        if path is not None:
            return [find_adapter(path)]
        model = _stored(self.store, reference)
        if model is None and self.base_folder is not None and (self.base_folder / reference).exists():
            return [find_adapter(self.base_folder / reference)]
        model = model or self._pulled(reference)
        found = [model.adapter_files(name) for name in model.defaults.adapters]
        if not found:
            raise BadModelFile(
                f"{model.name} has no adapters", hint="adapters are files, folders, or models that have some"
            )
        return [AdapterFiles("gguf" if all(n.endswith(".gguf") for n in files) else "peft", files) for files in found]

    def _brought(self, path: Path) -> Digest:
        """The blob of a file, which is one already or becomes one."""
        from homelab_llm.store.imports import import_file

        size = path.lstat().st_size
        digest = import_file(self.store.blobs, path, lambda done: self._hashed(path.name, done, size))
        self.held.append(digest)
        return digest

    def _licence(self, files: dict[str, Digest], facts: ModelFacts) -> ModelFacts:
        """A short licence becomes a fact, a text becomes a file."""
        told = self.spec.licence.strip()
        if not told:
            return facts
        if _SPDX.fullmatch(told):
            return replace(facts, licence=told)
        text = self.spec.licence
        if "\n" not in told and told.startswith(_PATHS):
            text = _read_text(told, self.base_folder, "licence")
        check_length(text, MAX_LONG_CHARACTERS, name="licence")
        content = text.encode()
        digest = Digest.of(content)
        with self.store.blobs.open_writer(f"text:{digest}", expected=digest, size_bytes=len(content)) as writer:
            if not writer.complete:
                writer.write(content)
            writer.commit()
        self.held.append(digest)
        failpoint("create.licence")
        for name in [name for name in files if name.casefold() == LICENCE_FILE.casefold()]:
            del files[name]
        files[LICENCE_FILE] = digest
        title = next(line.strip() for line in text.splitlines() if line.strip())
        return replace(facts, licence="".join(filter(str.isprintable, title))[:80])


def _merged(base: ModelDefaults, spec: ModelSpec, template: TemplateText, adapters: tuple[str, ...]) -> ModelDefaults:
    """What the base says, and above it what the spec says."""
    parameters = {**base.parameters, **spec.parameters}
    if spec.stop:
        parameters["stop"] = list(spec.stop)
    return ModelDefaults(
        parameters=parameters,
        system=spec.system or base.system,
        template=template.jinja or base.template,
        messages=spec.messages or base.messages,
        adapters=adapters,
        tool_call_parser=spec.tool_call_parser or base.tool_call_parser,
        reasoning_parser=spec.reasoning_parser or base.reasoning_parser,
        go_template=template.go if template.jinja else base.go_template,
        metadata={**base.metadata, **spec.metadata},
        requires=spec.requires or base.requires,
    )


def _refuse_other_versions(spec: ModelSpec) -> None:
    program, _, least = spec.requires.partition(">=")
    if program != "homelab-llm":
        return
    from homelab_llm import __version__

    if _numbers(least) > _numbers(__version__):
        raise fault(
            f"it requires homelab-llm {least}, this is {__version__}", name="requires", hint="upgrade homelab-llm"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _tool() -> str:
    from homelab_llm import __version__

    return f"homelab-llm {__version__}"


def _is_name(text: str) -> bool:
    try:
        return ModelRef.parse(text).digest is None
    except InvalidInput:
        return False


def _stored(store: ModelStore, name: str) -> StoredModel | None:
    """The stored model of that name; None for what is no name, or not stored."""
    try:
        return store.resolve(name)
    except (ModelNotFound, InvalidInput):
        return None


def _path(text: str, base_folder: Path | None, endings: tuple[str, ...]) -> Path | None:
    """The path that a spec means, or None when it means a name.

    Raises:
        InvalidModelSpec: a relative path, and there is no folder it could begin in.
    """
    if not text.startswith(_PATHS) and ("://" in text or ":" in text or not text.lower().endswith(endings)):
        return None
    path = Path(text.removeprefix("file://").removeprefix("file:")).expanduser()
    if not path.is_absolute():
        if base_folder is None:
            raise fault(f"{shown(text)!r} is relative to a file, and there is none", hint="give an absolute path")
        path = base_folder / path
    return path


def _read_text(text: str, base_folder: Path | None, name: str) -> str:
    """The text of a file that a spec names, within bounds."""
    from homelab_llm.store.inspect.documents import read_bounded

    path = _path(text, base_folder, ("",)) or Path(text)
    if base_folder is None or not path.resolve().is_relative_to(base_folder.resolve()):
        raise fault(f"{shown(text)!r} lies outside the folder of the spec", name=name, hint="copy it beside the spec")
    try:
        return read_bounded(path, MAX_LONG_CHARACTERS, path.name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise fault(f"{path.name} is not text in UTF-8", name=name) from error


def _below(files: Mapping[str, Digest], place: str) -> dict[str, Digest]:
    return {name: digest for name, digest in files.items() if name == place or name.startswith(f"{place}/")}


def _free_number(files: Mapping[str, Digest]) -> int:
    return next(n for n in range(len(files) + 1) if not any(name.startswith(f"{ADAPTERS}{n}/") for name in files))


def spec_of(model: StoredModel) -> ModelSpec:
    """How a stored model could be made again: from its base where that is recorded, else from itself."""
    defaults = model.defaults
    parameters = dict(defaults.parameters)
    stop = parameters.pop("stop", ())
    return ModelSpec(
        base=model.provenance.base
        if model.provenance.action == "create" and model.provenance.base_digest
        else model.name,
        template=defaults.template,
        parameters=parameters,
        system=defaults.system,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        messages=defaults.messages,
        tool_call_parser=defaults.tool_call_parser,
        reasoning_parser=defaults.reasoning_parser,
        adapters=(model.name,) if defaults.adapters else (),
        licence=_licence_of(model),
        metadata=defaults.metadata,
        requires=defaults.requires,
    )


def _licence_of(model: StoredModel) -> str:
    """The licence as a spec says it: the text of its file, else the short name."""
    from homelab_llm.store.inspect.documents import read_bounded

    if (path := model.files.get(LICENCE_FILE)) is None:
        return model.facts.licence
    return read_bounded(path, 4 * MAX_LONG_CHARACTERS, LICENCE_FILE).decode("utf-8", "replace")
