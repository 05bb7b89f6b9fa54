"""The one module that knows mlx-lm (0.32): loading a folder, and its ``BatchGenerator`` behind four verbs.

Everything here must be called on one thread: mlx-lm's stream belongs to the thread that made it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.workers.mlx.events import Job, Progress, Token
from homelab_llm.inference.workers.mlx.sampling import make_processors, make_sampler

_PREFILL_BATCH = 8


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave, by sequence: tokens of running ones, progress of those whose prompt is being read."""

    tokens: list[tuple[int, Token]]
    progress: list[tuple[int, Progress]]


@dataclass(slots=True)
class Generator:
    """A loaded model and its running batch of at most ``parallel`` sequences.

    ``vocabulary`` is the number of rows of the embedding: an id beyond it would crash the process.
    """

    model: Any
    vocabulary: int
    end_ids: tuple[int, ...]
    parallel: int
    _batch: Any = None
    _ends: Any = None
    _never: Any = None
    _asked: dict[int, int] = field(default_factory=dict)  # uid -> likeliest tokens to report

    @classmethod
    def load(cls, folder: Path, *, parallel: int, adapters: Sequence[tuple[Path, Path]] = ()) -> Generator:
        """Load the model folder; blocks for as long as the weights take to read.

        Args:
            adapters: configuration and weights of each LoRA adapter, in PEFT's format.

        Raises:
            UnsupportedRequest: mlx-lm does not know this kind of model.
            BadModelFile: the files contradict each other.
        """
        import mlx.core as mx
        from mlx_lm.generate import StopSequences
        from mlx_lm.utils import load_model

        try:
            model, config = load_model(folder, lazy=True)
            if adapters:
                from homelab_llm.inference.workers.mlx.adapters import apply_adapters

                apply_adapters(model, adapters)
            if mx.default_device() == mx.cpu:
                # The CPU backend computes in 16 bits without vector code: 0.26 tokens/s for a model of 135 M
                # parameters, 7.5 with scales and activations in 32 bits. The packed weights stay as they are.
                model.set_dtype(mx.float32)
            mx.eval(model.parameters())
        except FileNotFoundError as error:
            raise BadModelFile(f"a file of the model is missing: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if "not supported" in str(error):
                raise UnsupportedRequest(f"mlx-lm cannot run this model: {error}") from error
            raise BadModelFile(f"mlx-lm cannot load this model: {error}") from error
        end_ids = read_end_ids(folder, config)
        generator = cls(model, _vocabulary(config), end_ids, parallel)
        generator._ends, generator._never = StopSequences([(i,) for i in end_ids]), StopSequences()
        generator.reset()
        return generator

    def reset(self) -> None:
        """Forget every sequence and start with an empty batch."""
        import mlx.core as mx
        from mlx_lm.generate import BatchGenerator

        if self._batch is not None:
            self._batch.close()
        self._asked.clear()
        self._batch = BatchGenerator(
            self.model, completion_batch_size=self.parallel, prefill_batch_size=min(self.parallel, _PREFILL_BATCH)
        )
        mx.clear_cache()

    def insert(self, job: Job) -> int:
        """Add a sequence; its prompt is read from the next step on. Returns its number."""
        (uid,) = self._batch.insert(
            [list(job.prompt)],
            max_tokens=[job.max_tokens],
            samplers=[make_sampler(job.sampling)],
            logits_processors=[make_processors(job.sampling)],
            stop_sequences=[self._never if job.ignore_end else self._ends],
        )
        if job.logprobs is not None:
            self._asked[uid] = job.logprobs
        return int(uid)

    def remove(self, uid: int) -> None:
        """Take a sequence out, whatever it is doing."""
        self._asked.pop(uid, None)
        self._batch.remove([uid])

    def step(self, prefill_tokens: int) -> StepResult:
        """One token for every running sequence, then at most ``prefill_tokens`` of each waiting prompt."""
        self._batch.prefill_step_size = prefill_tokens
        read, made = self._batch.next()
        progress = [(p.uid, Progress(*p.progress)) for p in read]
        return StepResult([(r.uid, self._token(r)) for r in made], progress)

    def rest(self) -> None:
        """Give memory back while there is nothing to do."""
        import mlx.core as mx

        mx.clear_cache()

    def _token(self, response: Any) -> Token:
        asked = self._asked.get(response.uid)
        if response.finish_reason is not None:
            self._asked.pop(response.uid, None)
        if asked is None:
            return Token(response.token, response.finish_reason)
        import mlx.core as mx

        logprobs = response.logprobs.astype(mx.float32)
        likeliest: tuple[tuple[int, float], ...] = ()
        if asked:
            best = mx.argpartition(-logprobs, kth=asked - 1)[:asked]
            ids, values = _listed(best), _listed(logprobs[best])
            likeliest = tuple(sorted(zip(ids, values, strict=True), key=lambda pair: -pair[1]))
        return Token(response.token, response.finish_reason, logprobs[response.token].item(), likeliest)


def _listed(array: Any) -> Any:
    return array.tolist()


def read_end_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Ids that end a text: those of config.json and of generation_config.json, which models forget in turns."""
    found = [config.get("eos_token_id"), config.get("text_config", {}).get("eos_token_id")]
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
        except (ValueError, AttributeError) as error:
            raise BadModelFile("generation_config.json is not a JSON object") from error
    flat = [i for value in found for i in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(i for i in flat if type(i) is int and i >= 0))


def _vocabulary(config: dict[str, Any]) -> int:
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if type(size) is not int or size < 1:
        raise BadModelFile("config.json gives no vocab_size")
    return size
