"""Measurements on the machine at hand that calibrate the predictors."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from acme_fleet.errors import FleetError
from acme_fleet.profiling.fit import machine_text
from acme_fleet.profiling.measure import Progress, peak_memory_bytes
from acme_fleet.seeding import seeded
from acme_fleet.stratos.calibration import (
    Calibration,
    Footprint,
    Kind,
    Timing,
    fit_memory,
    fit_rate,
)
from acme_fleet.stratos.cuts import Shape, model_size
from acme_fleet.stratos.predictors.memory import cache_bytes, training_bytes
from acme_fleet.stratos.predictors.size import ModelSize
from acme_fleet.stratos.predictors.speeds import KINDS
from acme_fleet.training.memory import added_at_peak, resident_bytes
from acme_fleet.training.precision import mixed_precision


@dataclass(frozen=True)
class ProbeSettings:
    """Sizes of what is measured.

    Attributes:
        shapes: layers, hidden size, neurons and vocabulary of each model.
        sequences: of a training step and a pass over prompts, several. tokens: of each.
        decoded: tokens that are generated, one after the other.
        turns: times that every configuration is measured; the median counts.
        matrix: side of the square matrices. copied: numbers of the copied tensor.
        clock: in seconds; where others use the machine, ``time.process_time`` of one thread.
    """

    shapes: tuple[tuple[int, int, int, int], ...]
    sequences: tuple[int, ...]
    tokens: int
    decoded: int
    turns: int
    matrix: int
    copied: int
    clock: Callable[[], float] = time.perf_counter


ON_PROCESSOR = ProbeSettings(
    shapes=(
        (4, 192, 512, 4096),
        (10, 192, 512, 2048),
        (4, 384, 1024, 2048),
        (6, 320, 832, 4096),
        (3, 512, 1408, 4096),
    ),
    sequences=(1, 4),
    tokens=64,
    decoded=8,
    turns=3,
    matrix=1024,
    copied=2**24,
)
"""Less than a minute on two free cores; models of 3 to 12 million parameters."""
ON_ACCELERATOR = ProbeSettings(
    shapes=(
        (8, 1024, 2816, 32000),
        (24, 1024, 2816, 16000),
        (8, 2048, 5632, 16000),
        (16, 1536, 4096, 32000),
        (6, 2560, 6912, 32000),
    ),
    sequences=(1, 8),
    tokens=512,
    decoded=64,
    turns=5,
    matrix=8192,
    copied=2**28,
)
"""Models of 150 to 550 million parameters."""


def probe(
    accelerator: str | None = None,
    settings: ProbeSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Calibration:
    """Time training steps, prompts and generated tokens of small models, and fit the constants.

    Args:
        accelerator: name as in price lists, to measure the first GPU; none measures the processor.
        settings: sizes; those for the machine by default.
        progress: called with a stage, and finished and total parts of it.

    Raises:
        FleetError: if there is no GPU, or the system does not tell peaks of memory.
    """
    on_gpu = accelerator is not None
    if on_gpu and not torch.cuda.is_available():
        raise FleetError("torch finds no NVIDIA GPU on this machine; measure without --accelerator")
    place = torch.device("cuda:0" if on_gpu else "cpu")
    settings = settings or (ON_ACCELERATOR if on_gpu else ON_PROCESSOR)
    start_bytes = _used_bytes(place)
    with seeded(0, place):
        timings, footprints = measure_models(place, settings, progress)
        rates = {}
        for kind, of in timings.items():
            rates[kind], timings[kind] = fit_rate(of, by_parameters=kind == "training")
        return Calibration(
            machine=machine_text(on_gpu),
            accelerator=accelerator,
            date=datetime.datetime.now(datetime.UTC).date(),
            numbers="bfloat16" if on_gpu else "float32",
            matmul_flops=_matmul_flops(place, settings),
            copy_bytes=_copy_bytes(place, settings),
            memory=fit_memory(footprints, start_bytes),
            timings=[each for part in timings.values() for each in part],
            footprints=footprints,
            **rates,
        )


Measured = dict[Kind, list[Timing]]


def measure_models(
    place: torch.device, settings: ProbeSettings, progress: Progress
) -> tuple[Measured, list[Footprint]]:
    """Timings and peaks of every model with every number of sequences.

    They take turns, so that a machine that is slow for a while is so for all.

    Raises:
        FleetError: if the system does not tell peaks of memory.
    """
    works = [
        _Work.of(shape, sequences, place, settings)
        for shape in settings.shapes
        for sequences in settings.sequences
    ]
    works[0].train(works[0].build())  # libraries allocate what they keep
    seconds: dict[tuple[int, Kind], list[float]] = {}
    peaks: dict[int, float] = {}
    steps = [(turn, number) for turn in range(settings.turns) for number in range(len(works))]
    for done, (_, number) in enumerate(steps):
        progress("models", done, len(steps))
        model = works[number].build()
        step, peak = works[number].train(model)
        prompt, token = works[number].answer(model)
        del model
        peaks.setdefault(number, peak)
        for kind, found in zip(KINDS, (step, prompt, token), strict=True):
            seconds.setdefault((number, kind), []).append(found)
    progress("models", len(steps), len(steps))
    timings: Measured = {
        kind: [
            work.timing(kind, statistics.median(seconds[number, kind]))
            for number, work in enumerate(works)
        ]
        for kind in KINDS
    }
    return timings, [works[number].footprint(peak) for number, peak in peaks.items()]


@dataclass(frozen=True)
class _Work:
    """One model shape, and what is done with it."""

    size: ModelSize
    config: LlamaConfig
    sequences: int
    place: torch.device
    settings: ProbeSettings

    @staticmethod
    def of(
        shape: tuple[int, int, int, int],
        sequences: int,
        place: torch.device,
        settings: ProbeSettings,
    ) -> _Work:
        layers, hidden, neurons, vocabulary = shape
        described = Shape(
            family="llama",
            layers=layers,
            hidden=hidden,
            heads=hidden // 64 or 1,
            key_heads=hidden // 64 or 1,
            neurons=neurons,
            vocabulary=vocabulary,
            context=settings.tokens + settings.decoded,
            tied=True,
        )
        config = described.config()
        assert isinstance(config, LlamaConfig)
        return _Work(model_size(described, "probe"), config, sequences, place, settings)

    def build(self) -> LlamaForCausalLM:
        with self.place:
            return LlamaForCausalLM(self.config)

    def _ids(self) -> Tensor:
        shape = self.sequences, self.settings.tokens
        return torch.randint(self.config.vocab_size, shape, device=self.place)

    def train(self, model: LlamaForCausalLM) -> tuple[float, float]:
        """Seconds of a warm training step, and the peak of bytes that the training adds."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        ids = self._ids()
        weights = sum(p.nbytes for p in model.parameters())

        def step() -> None:
            with mixed_precision(self.place):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        with added_at_peak(self.place) as peak:
            step()  # makes the moments
            step()
            seconds = self._timed(step)
        return seconds, weights + peak()

    @torch.no_grad()
    def answer(self, model: LlamaForCausalLM) -> tuple[float, float]:
        """Seconds of a pass over prompts, and the median of passes for one more token of one."""
        model.eval()
        ids = self._ids()
        with mixed_precision(self.place):
            model(input_ids=ids)
            prompt = self._timed(lambda: model(input_ids=ids))
            cache = DynamicCache(config=self.config)
            model(input_ids=ids[:1], past_key_values=cache)
            passes = [
                self._timed(lambda: model(input_ids=ids[:1, :1], past_key_values=cache))
                for _ in range(self.settings.decoded)
            ]
        return prompt, statistics.median(passes)

    def _timed(self, work: Callable[[], object]) -> float:
        return _timed(work, self.place, self.settings)

    def timing(self, kind: Kind, seconds: float) -> Timing:
        """The measured seconds, with the work by the predictors' formulas."""
        products, tokens = self.size.products, self.sequences * self.settings.tokens
        read = 4.0 * products + 2 * cache_bytes(self.size, 1, self.settings.tokens)
        work = {"training": 6.0 * products * tokens, "prefill": 2.0 * products * tokens}
        return Timing(
            kind=kind,
            model=self.name,
            work=work.get(kind, read),
            layers=self.size.layers,
            parameters=self.size.parameters,
            seconds=seconds,
            left_out_s=seconds,
        )

    def footprint(self, peak: float) -> Footprint:
        of = self.size, self.sequences, self.settings.tokens
        return Footprint(model=self.name, predicted_bytes=training_bytes(*of), bytes=peak)

    @property
    def name(self) -> str:
        """For tables."""
        size = self.size
        return (
            f"{size.parameters / 1e6:.1f} M: {size.layers} layers, hidden {size.hidden}, "
            f"{size.neurons} neurons, {size.vocabulary} words; {self.sequences} × "
            f"{self.settings.tokens} tokens"
        )


def _timed(work: Callable[[], object], place: torch.device, settings: ProbeSettings) -> float:
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    started = settings.clock()
    work()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return settings.clock() - started


def _fastest(work: Callable[[], object], place: torch.device, settings: ProbeSettings) -> float:
    return min(_timed(work, place, settings) for _ in range(settings.turns + 2))


def _matmul_flops(place: torch.device, settings: ProbeSettings) -> float:
    """Operations a second of a square matrix product, the fastest of several."""
    side = settings.matrix
    matrix = torch.randn(side, side, device=place)
    with mixed_precision(place):
        passes = [
            _timed(lambda: matrix @ matrix, place, settings) for _ in range(settings.turns + 2)
        ]
    return 2.0 * side**3 / min(passes)


def _copy_bytes(place: torch.device, settings: ProbeSettings) -> float:
    """Bytes a second that a copy reads and writes, the fastest of several."""
    source = torch.ones(settings.copied, device=place)
    target = torch.empty_like(source)
    passes = [
        _timed(lambda: target.copy_(source), place, settings) for _ in range(settings.turns + 2)
    ]
    return 2.0 * source.nbytes / min(passes)


# --- memory -----------------------------------------------------------------------------------


def _used_bytes(place: torch.device) -> float:
    """In use before there is a model."""
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        return float(total - free)
    used = resident_bytes()
    return float(peak_memory_bytes(place)) if used is None else used
