"""On-policy distillation by TRL: the student writes, and learns the teacher's probabilities of it.

Generalised Jensen-Shannon divergence (Agarwal et al., *On-Policy Distillation of Language Models*,
2024) between the teacher's and the student's next tokens, on the student's own answers.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.checkpoints import quiet
from acme_fleet.outside import reading
from acme_fleet.stratos.budget import Meter
from acme_fleet.stratos.request import OnPolicy

_MARGIN = 1.5  # the next step may take so many times as long as the longest before


def check_trl() -> None:
    """Refuse before any work.

    Raises:
        FleetError: if TRL is missing.
    """
    if find_spec("trl") is None:
        raise FleetError(
            'learning.on_policy needs TRL: pip install "acme-fleet[distill]", or leave it out'
        )


class _Metered(TrainerCallback):
    """Ends training before the budget is overdrawn; a validation must still fit."""

    def __init__(self, meter: Meter, reserve_s: float, progress: Callable[[int, int], None]):
        self._meter, self._reserve_s, self._progress = meter, reserve_s, progress
        self._last, self._longest_s = meter.spent().training, 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """See the base class."""
        spent = self._meter.spent().training
        self._longest_s, self._last = max(self._longest_s, spent - self._last), spent
        self._progress(state.global_step, state.max_steps)
        if self._meter.left < _MARGIN * (self._longest_s + self._reserve_s):
            control.should_training_stop = True


def learn_on_policy(
    student: Path,
    teacher: str,
    prompts: Sequence[str],
    settings: OnPolicy,
    most: int,
    seed: int,
    device: torch.device,
    meter: Meter,
    reserve_s: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Train the student in a Hugging Face folder, in place.

    Args:
        student: its folder, with the tokenizer. teacher: place of the weights; of one vocabulary.
        prompts: texts of questions; a user's messages where there is a chat template.
        settings: steps, batches, learning rate, divergence. most: tokens of an answer.
        seed: decides order and answers. device: of both models.
        meter: counts, with the budget. reserve_s: seconds that must be left behind training.
        progress: called with finished and all steps.

    Returns:
        Steps that were made.

    Raises:
        FleetError: if TRL is missing or cannot train these models.
    """
    check_trl()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset

    trl: Any = import_module("trl")

    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with (
        reading("learning.on_policy: TRL cannot train the student"),
        quiet(),
        warnings.catch_warnings(category=FutureWarning, action="ignore"),  # of TRL's own code
    ):
        tokenizer = AutoTokenizer.from_pretrained(student, padding_side="left", **options)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        models = [
            AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
            for place in (student, teacher)
        ]
        rows: list[Any] = list(prompts)
        if tokenizer.chat_template is not None:
            rows = [[{"role": "user", "content": prompt}] for prompt in prompts]
        trainer = trl.DistillationTrainer(
            model=models[0],
            teacher_model=models[1],
            args=trl.DistillationConfig(
                output_dir=str(student),
                max_steps=settings.steps,
                per_device_train_batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                beta=settings.beta,
                max_completion_length=most,
                seed=seed,
                use_cpu=device.type == "cpu",
                bf16=False,
                activation_checkpointing=False,
                dataloader_pin_memory=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=tokenizer,
            callbacks=[_Metered(meter, reserve_s, progress)],
        )
        trainer.train()
        models[0].cpu().save_pretrained(student)
    return trainer.state.global_step
