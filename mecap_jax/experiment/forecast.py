"""About how long a run will take on this machine: its work in floating-point operations, over the rate that the machine
reaches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from mecap_jax.config import Bucket, Config, GrpoConfig, SftConfig, chosen_rows, row_config
from mecap_jax.data.fitting import bucket_for
from mecap_jax.data.synthetic.corpus import SPLIT_SHARES
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.sharding import make_mesh
from mecap_jax.throughput import product_seconds
from mecap_jax.train_state import abstract_model
from mecap_jax.training.checkpointing import latest_step

# Of the rate of that product, what training reaches: `configs/grpo.py` on two cores.
_UTILISATION = 0.2
_BACKWARD = 2  # a gradient costs twice what its loss does
_DECODING = 8  # a token that is decoded alone waits for memory: it costs what so many do that are read together
_ROWS = 2048  # of the product that is timed
_TELLING_S = 10.0  # a part of this length says how fast the machine is
_CLIP_CPU_S = 0.09  # processor time of a synthetic clip: to speak, draw and encode it, and its captions for the anchors
_CLIP_SECONDS = 4.0  # what most synthetic clips last at most


class Forecast:
    """What is left of a run's work. The first estimate rests on a product of matrices; every part that is done
    corrects the next ones."""

    def __init__(self, work: Mapping[str, float], rate: float):
        """`work` are floating-point operations by part, of which `rate` are done a second."""
        self._left, self._rate = dict(work), rate

    def seconds(self) -> float:
        """What is left."""
        return sum(self._left.values()) / self._rate

    def done(self, part: str, seconds: float) -> None:
        """Takes note of how long a part took without compilation; of a few seconds nothing is concluded."""
        work = self._left.pop(part, 0.0)
        if work and seconds >= _TELLING_S:
            self._rate = work / seconds

    def __str__(self) -> str:
        return about(self.seconds())


def about(seconds: float) -> str:
    """A time in words, to the minute."""
    minutes = round(seconds / 60)
    return f"about {minutes} minutes" if minutes > 1 else "about a minute"


def forecast(config: Config, workdir: Path, mesh: jax.sharding.Mesh, shape: Bucket, clips: int) -> Forecast:
    """What is left of a run of which the corpus is there.

    Args:
      shape: of the batches, the largest.
      clips: how many are evaluated.
    """
    return Forecast(run_work(config, workdir, mesh, shape, clips), _UTILISATION * _matmul_rate(config.model))


def first_forecast(config: Config, workdir: Path, mesh: jax.sharding.Mesh) -> str:
    """What a run will take whose synthetic corpus is to be made first: the corpus, and all that follows."""
    whole, corpus = first_seconds(config, workdir, mesh)
    return f"{about(whole)} on this machine, {about(corpus)} of it for the corpus"


def first_seconds(config: Config, workdir: Path, mesh: jax.sharding.Mesh) -> tuple[float, float]:
    """What a run of which only the configuration is known will take, and how much of it its synthetic corpus."""
    clips = config.data.synthetic.clips
    corpus = _CLIP_CPU_S * clips / _processors()
    shape = bucket_for(config.data.max_seconds or _CLIP_SECONDS, config.data, config.model)
    rest = forecast(config, workdir, mesh, shape, round(SPLIT_SHARES["test"] * clips))
    return corpus + rest.seconds(), corpus


def seconds_of_runs(runs: Sequence[tuple[Config, Path]]) -> list[float]:
    """What each of several runs on one machine will take; the corpus is theirs together, and the first one makes it."""
    mesh = make_mesh(runs[0][0].mesh)
    whole, corpus = zip(*(first_seconds(config, workdir, mesh) for config, workdir in runs))
    return [whole[0], *(seconds - of_corpus for seconds, of_corpus in zip(whole[1:], corpus[1:]))]


def _processors() -> int:
    """How many this process may run on, as far as the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_work(config: Config, workdir: Path, mesh: jax.sharding.Mesh, shape: Bucket, clips: int) -> dict[str, float]:
    """Floating-point operations by stage and for the evaluation; what checkpoints hold is done."""
    if config.data.tower_cache:  # media are encoded once, before the stages
        shape = Bucket(shape.prompt_tokens)
    cost = Cost(config.model, shape, mesh)

    def left(stage: str, steps: int) -> int:
        return max(0, steps - (latest_step(workdir / "checkpoints" / stage) or 0))

    work = {}
    if config.sft is not None:
        work["sft"] = left("sft", config.sft.steps) * cost.sft_step(config.sft)
    if config.grpo is not None:
        work["grpo"] = left("grpo", config.grpo.steps) * cost.grpo_step(config.grpo)
    for row in chosen_rows(config):
        stage, changed = row.time_of or row.stage, row_config(config, row)
        settings = getattr(changed, stage)
        own = cost if changed.model == config.model else Cost(changed.model, shape, mesh)
        whole = settings.steps * (own.sft_step(settings) if stage == "sft" else own.grpo_step(settings))
        done = latest_step(workdir / "checkpoints" / row.name) or 0
        # Of a row that takes the time of another stage it is not known how far it is.
        left_over = float(not done) if row.time_of else max(0, settings.steps - done) / settings.steps
        work[row.name] = left_over * whole
    ablated = len(config.data.modalities) if config.evaluation.ablation and len(config.data.modalities) > 1 else 0
    captioned = sum(1 + (ablated if name in ("sft", "grpo") else 0) for name in work)
    return work | {"evaluation": captioned * clips * (cost.prompt + config.longest_answer * _DECODING * cost.token)}


class Cost:
    """Floating-point operations of one clip's prompt, media included, and of one token of a completion: two for every
    parameter that a position is multiplied with."""

    def __init__(self, model: ModelConfig, bucket: Bucket, mesh: jax.sharding.Mesh):
        matrices = {path: x.size for path, x in flatten(abstract_model(model, mesh)[1]).items() if len(x.shape) > 1}

        def of(part: str) -> int:
            return sum(size for path, size in matrices.items() if path.startswith(part))

        embedding = model.decoder.vocab_size * model.decoder.hidden_size
        layers = of("language_model.layers")
        self.token = 2.0 * (layers + embedding)
        # Of the last layer, a prompt needs keys and values at all positions, and the rest at one.
        top = f"language_model.layers.{model.decoder.num_hidden_layers - 1}."
        at_the_end = of(top) - of(f"{top}self_attn.k_proj") - of(f"{top}self_attn.v_proj")
        self.prompt = 2.0 * ((layers - at_the_end) * bucket.prompt_tokens + at_the_end)
        if model.decoder.encoder is not None:
            self.prompt = 2.0 * of("language_model.encoder.layers") * bucket.prompt_tokens
        if model.audio is not None:
            self.prompt += 2.0 * of("audio_tower") * bucket.audio_chunks * model.audio.n_window
        if model.vision is not None:
            self.prompt += 2.0 * of("visual") * bucket.frames * bucket.cells * model.vision.cell_patches
        self.prompt += 2.0 * of("feature_projector") * bucket.feature_frames

    def sft_step(self, config: SftConfig) -> float:
        clip = self.prompt + config.references * config.max_target_tokens * self.token
        return config.batch_clips * (1 + _BACKWARD) * clip

    def grpo_step(self, config: GrpoConfig) -> float:
        tokens = config.group_size * config.max_new_tokens * self.token
        references = config.loss.references if config.loss.reference_likelihood else 0
        sampled = self.prompt + _DECODING * tokens
        reference = self.prompt + tokens if config.loss.beta else 0.0
        draws = (1 + config.draws) / 2  # of one to so many batches
        update = (1 + _BACKWARD) * (self.prompt + tokens + references * config.max_new_tokens * self.token)
        return config.prompts * draws * (sampled + reference + config.updates * update)


def _matmul_rate(model: ModelConfig) -> float:
    """Floating-point operations a second, of all devices of a run, in a product of the decoder's own shape and dtype:
    small matrices are multiplied at a fraction of the rate of large ones."""
    inner, columns = model.decoder.hidden_size, model.decoder.intermediate_size
    seconds = product_seconds(_ROWS, inner, columns, model.dtype)
    shared = 1 if jax.devices()[0].platform == "cpu" else jax.device_count()  # simulated devices share the cores
    return 2 * _ROWS * inner * columns * len(seconds) / sum(seconds) * shared
