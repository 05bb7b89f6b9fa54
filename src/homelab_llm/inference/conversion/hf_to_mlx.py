"""The program that turns a folder in Hugging Face's format into an MLX folder, quantized or not.

    python -m homelab_llm.inference.conversion.hf_to_mlx --file config.json=PATH --file … --type 4bit --target FOLDER

Any architecture mlx-lm knows. Types: f16 (16-bit weights as they are), 3bit to 8bit in groups of 64, and mlx-lm's mixed
recipes, which give the layers that matter most more bits. Weights are read, quantized and written shard by shard.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from homelab_llm.core.errors import BadModelFile, DiskFull, EngineUnavailable, UnsupportedRequest
from homelab_llm.core.failpoints import failpoint
from homelab_llm.inference.conversion import program
from homelab_llm.inference.conversion.documents import read_object
from homelab_llm.inference.conversion.folder_output import appearing_folder, shards_of, write_document
from homelab_llm.inference.conversion.safetensors import SafetensorsFiles

FAILPOINTS = ("conversion.mlx.shard", "conversion.before_publish")
GROUP_SIZE = 64
BITS = {"8bit": 8, "6bit": 6, "5bit": 5, "4bit": 4, "3bit": 3}
RECIPES = ("mixed_4_6", "mixed_3_6", "mixed_3_4", "mixed_2_6")
TYPES = ("f16", *BITS, *RECIPES)
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf")


def convert(files: Mapping[str, Path], target: Path, kind: str) -> None:
    """Make the folder ``target``; does nothing when it is there.

    Raises:
        UnsupportedRequest: an architecture mlx-lm does not know, or weights that are quantized already.
        BadModelFile: files that contradict each other.
        EngineUnavailable: mlx-lm is not installed.
    """
    config = read_object(files, "config.json")
    if config.get("quantization") or config.get("quantization_config"):
        hint = "start from the original model"
        raise UnsupportedRequest("the model is quantized already: what was lost does not come back", hint=hint)
    SafetensorsFiles(files)  # holds every tensor against its file before mlx does
    with appearing_folder(target, lambda: program.progress("quantizing", 0)) as folder:
        if folder is not None:
            _fill(files, folder, kind)


def _fill(files: Mapping[str, Path], folder: Path, kind: str) -> None:
    with _linked(files, folder.parent) as source, _told():
        model, config = _loaded(source)
        _cast(model, config)
        if kind != "f16":
            config = _quantized(model, config, kind)
        config.pop("vision_config", None)
        _write_shards(model, folder)
    if "quantization" in config:
        config["quantization_config"] = config["quantization"]
    write_document(folder / "config.json", dict(sorted(config.items())))
    for name, path in files.items():
        if name != "config.json" and not name.endswith(_WEIGHTS):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)


@contextlib.contextmanager
def _linked(files: Mapping[str, Path], beside: Path) -> Iterator[Path]:
    """The files under their own names; mlx-lm finds them by these."""
    with TemporaryDirectory(dir=beside, prefix=".links-") as name:
        for file, path in files.items():
            link = Path(name) / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        yield Path(name)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """mlx's errors as ours."""
    try:
        yield
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        words = str(error)[:300]
        if "not supported" in words:
            raise UnsupportedRequest(f"mlx-lm does not know this model: {words}") from error
        if "write" in words:
            raise DiskFull(f"the converted weights could not be written: {words}") from error
        raise BadModelFile(f"mlx-lm cannot read the model: {words}") from error


def _loaded(source: Path) -> tuple[Any, dict[str, Any]]:
    try:
        from mlx_lm.utils import load_model
    except ImportError as error:
        raise EngineUnavailable(
            "making MLX models needs mlx-lm", hint="pip install 'homelab-llm[mlx]', or [mlx-cpu] on Linux"
        ) from error
    model, config = load_model(source, lazy=True)
    return model, dict(config)


def _cast(model: Any, config: dict[str, Any]) -> None:
    """32-bit weights become 16-bit ones: bfloat16 for Gemma, whose values are large, else float16."""
    import mlx.core as mx
    from mlx.utils import tree_map

    narrow = mx.bfloat16 if str(config.get("model_type", "")).startswith("gemma") else mx.float16
    model.update(tree_map(lambda v: v.astype(narrow) if v.dtype == mx.float32 else v, model.parameters()))
    config["torch_dtype"] = "bfloat16" if narrow == mx.bfloat16 else config.get("torch_dtype", "float16")
    if config["torch_dtype"] == "float32":
        config["torch_dtype"] = "float16"


def _quantized(model: Any, config: dict[str, Any], kind: str) -> dict[str, Any]:
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import quantize_model

    predicate: Callable[..., Any] | None = None
    if kind in RECIPES:
        predicate = mixed_quant_predicate_builder(kind, model, GROUP_SIZE)
    bits = BITS.get(kind) or int(kind.split("_")[1])
    with contextlib.redirect_stdout(sys.stderr):  # mlx-lm prints there what people should know
        _, made = quantize_model(model, config, GROUP_SIZE, bits, quant_predicate=predicate)
    return dict(made)


def _write_shards(model: Any, folder: Path) -> None:
    """Evaluate and write at most 5 GB at a time."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map

    weights = dict(tree_flatten(model.parameters()))
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    sizes = {name: value.nbytes for name, value in weights.items()}
    shards = shards_of(sizes)
    total, done = sum(sizes.values()) or 1, 0
    index: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        held = {name: weights.pop(name) for name in names}
        for name, value in held.items():
            mx.eval(value)
            done += sizes[name]
            program.progress("quantizing", done / total)
        mx.save_safetensors(str(folder / file), held, {"format": "mlx"})
        failpoint("conversion.mlx.shard")
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        write_document(folder / "model.safetensors.index.json", content)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = program.parser("hf_to_mlx", "Turn a folder in Hugging Face's format into an MLX folder.")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--type", choices=TYPES, default="4bit")
    given = parser.parse_args(argv)
    files = program.files_of(given.file)
    return program.run(given, lambda: convert(files, given.target, given.type))


if __name__ == "__main__":
    sys.exit(main())
