"""What a model is, from the headers of its files. Nothing of the model is run or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from homelab_llm.core.errors import BadModelFile, UnsafeModel
from homelab_llm.core.facts import ADAPTERS, ModelFacts
from homelab_llm.store.inspect.folder_facts import folder_facts, refuse_code_in
from homelab_llm.store.inspect.gguf_facts import gguf_facts
from homelab_llm.store.inspect.regular import open_regular

__all__ = ["inspect_model", "refuse_code_in", "refuse_unsafe_name"]

MAX_FILES = 10_000
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
CODE = (".py", ".pyc", ".so", ".dll", ".dylib")


def inspect_model(files: Mapping[str, Path]) -> ModelFacts:
    """The facts of the model made of ``files``.

    Args:
        files: path inside the model (``config.json``, ``1_Pooling/config.json``) to the plain file with its
            content, which may have any name (a blob has). Links must have been resolved. A lone file with any
            name is taken for GGUF when it begins like one. Adapters are looked at by ``store/build/adapters.py``.

    Raises:
        BadModelFile: a file contradicts itself or its name, or a part is missing.
        UnsafeModel: pickled weights or code among the files, or a configuration that asks for it.
        NotRegularFile: one of them is not a plain file.
    """
    if not files or len(files) > MAX_FILES:
        raise BadModelFile(f"a model has 1 to {MAX_FILES} files, not {len(files)}")
    for name, path in files.items():
        refuse_unsafe_name(name)
        open_regular(path).close()
    files = {name: path for name, path in files.items() if not name.startswith(ADAPTERS)}
    gguf = {name: path for name, path in files.items() if name.lower().endswith(".gguf")}
    if not gguf and len(files) == 1 and _begins_like_gguf(next(iter(files.values()))):
        gguf = dict(files)
    has_safetensors = any(name.endswith(".safetensors") for name in files)
    if gguf and has_safetensors:
        raise BadModelFile("GGUF and safetensors together: choose one of them", hint="import the .gguf file alone")
    if gguf:
        return gguf_facts(gguf, sum(path.stat().st_size for path in files.values()))
    if has_safetensors:
        return folder_facts(files)
    raise BadModelFile("no model weights among the files: a .gguf file, or .safetensors with config.json, is needed")


def refuse_unsafe_name(name: str) -> None:
    """Refuse files that would run code when loaded; their names are enough.

    Raises:
        UnsafeModel: pickled weights, Python or native code.
    """
    lower = name.lower()
    if lower.endswith(PICKLES):
        raise UnsafeModel(
            f"{name[:80]} holds pickled weights, which run code when loaded",
            hint="use a copy of the model in safetensors or GGUF format",
            file=name[:80],
        )
    if lower.endswith(CODE):
        raise UnsafeModel(
            f"{name[:80]} is code; models with code of their own are not run here",
            hint="use a copy of the model without custom code, for example in GGUF format",
            file=name[:80],
        )


def _begins_like_gguf(path: Path) -> bool:
    with open_regular(path) as stream:
        return stream.read(4) == b"GGUF"
