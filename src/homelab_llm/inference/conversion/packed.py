"""MLX's packed weights as floats: affine groups of 2 to 8 bits.

Layout (mlx ``quantize``): a row's values lie one after the other as a little-endian stream of bits in 32-bit words;
each group of ``group_size`` has a scale and a bias: value = packed * scale + bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion.safetensors import SafetensorsFiles


class MlxTensors:
    """The tensors of an MLX folder, unpacked as they are read.

    Raises:
        UnsupportedRequest: quantized otherwise than by affine groups.
    """

    def __init__(self, files: SafetensorsFiles, quantization: Mapping[str, Any]) -> None:
        self._files, self._usual = files, quantization
        if quantization.get("mode", "affine") != "affine":
            raise UnsupportedRequest(f"weights packed as {str(quantization['mode'])[:40]!r} are not read")

    def names(self) -> frozenset[str]:
        return frozenset(name for name in self._files.names() if not name.endswith((".scales", ".biases")))

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._files.shape(name)
        return (shape[0], self._columns(name)) if self._is_packed(name) else shape

    def rows(self, name: str, begin: int, end: int) -> Any:
        if not self._is_packed(name):
            return self._files.rows(name, begin, end)
        stem = name.removesuffix(".weight")
        bits, group = self._how(stem)
        values = unpack(self._files.stored(name, begin, end), bits).astype("<f4")
        scales, biases = (self._files.rows(f"{stem}.{leaf}", begin, end) for leaf in ("scales", "biases"))
        grouped = values.reshape(end - begin, -1, group)
        if grouped.shape[1] != scales.shape[-1] or scales.shape != biases.shape:
            raise BadModelFile(f"the scales of {stem} do not fit its weights", tensor=stem)
        return (grouped * scales[..., None] + biases[..., None]).reshape(end - begin, -1)

    def _is_packed(self, name: str) -> bool:
        return name.endswith(".weight") and f"{name.removesuffix('.weight')}.scales" in self._files.names()

    def _how(self, stem: str) -> tuple[int, int]:
        own = self._usual.get(stem)
        given: Mapping[str, Any] = own if isinstance(own, dict) else self._usual
        bits, group = given.get("bits", self._usual.get("bits")), given.get("group_size", self._usual.get("group_size"))
        if bits not in (2, 3, 4, 5, 6, 8) or group not in (16, 32, 64, 128):
            raise BadModelFile(f"config.json does not say how {stem[:80]} is packed")
        return bits, group

    def _columns(self, name: str) -> int:
        bits, group = self._how(name.removesuffix(".weight"))
        columns = self._files.shape(name)[1] * 32 // bits
        if columns % group:
            raise BadModelFile(f"the rows of {name[:80]} are not whole groups", tensor=name[:80])
        return columns


def unpack(words: Any, bits: int) -> Any:
    """Rows of 32-bit words → rows of numbers below ``2**bits``."""
    import numpy

    raw = numpy.ascontiguousarray(words).view("u1")
    if bits == 8:
        return raw
    if bits == 4:
        return numpy.stack((raw & 15, raw >> 4), axis=-1).reshape(raw.shape[0], -1)
    single = numpy.unpackbits(raw, axis=1, bitorder="little").reshape(raw.shape[0], -1, bits)
    return single @ (1 << numpy.arange(bits, dtype="u1"))
