"""The teacher answers labelled questions; its replies are kept, so that it can go on later."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from acme_fleet.data.checkpoint_files import config_content, located, tokenizer_content
from acme_fleet.data.text import json_object
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.checkpoints import quiet, read_checkpoint
from acme_fleet.outside import read_regular, reading
from acme_fleet.runs.atomic import make_folder, writing
from acme_fleet.stratos.pairs import Teacher
from acme_fleet.stratos.questions import Question, normalised
from acme_fleet.stratos.replies import EXPLAINED
from acme_fleet.stratos.request import Request

Progress = Callable[[int, int], None]
_COMPARED = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "vocab_size"),
)


@dataclass(frozen=True)
class Asked:
    """Questions that a teacher answered just now.

    Attributes:
        replies: new ones. before: those that the file had.
        seconds: of generation. written: tokens of the new replies.
        prompt_tokens, answer_tokens: 95th percentiles of the new ones; 0 without any.
        cut: new replies that reached ``workload.answer_tokens`` and were cut there.
    """

    replies: int
    before: int
    seconds: float
    written: int
    prompt_tokens: int
    answer_tokens: int
    cut: int


class Writer:
    """A checkpoint that writes the most probable continuation of prompts."""

    def __init__(self, weights: str | Path, place: str, device: torch.device) -> None:
        """Load it; none of its own code runs, and no pickle is opened.

        Args:
            weights: a folder, or a name on the hub. place: begins errors. device: runs on it.

        Raises:
            FleetError: if the checkpoint is missing or damaged, or has no tokenizer.
        """
        folder = located(weights)
        config = read_checkpoint(folder).config
        content = config_content(weights, folder)
        config.tie_word_embeddings = bool(content.get("tie_word_embeddings", False))
        tokenizer_content(weights, folder)
        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        with reading(f"{place}: cannot use {folder}"), quiet():
            self._tokenizer = AutoTokenizer.from_pretrained(folder, config=config, **options)
            loader: Any = AutoModelForCausalLM  # it returns two things if it is asked to
            model, info = loader.from_pretrained(
                folder,
                config=config,
                dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        missing = set(info["missing_keys"])
        if missing and not (config.tie_word_embeddings and missing == {"lm_head.weight"}):
            raise FleetError(f"{place}: {folder} lacks the tensor {min(missing)}")
        self.model = model.to(device).eval()
        self._tokenizer.padding_side = "left"
        self._device = device
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.bos_token

    @property
    def end(self) -> int | None:
        """Number of the token that ends an answer."""
        return self._tokenizer.eos_token_id

    @property
    def chats(self) -> bool:
        """True if the checkpoint has a chat template."""
        return self._tokenizer.chat_template is not None

    def tokens(self, prompt: str) -> list[int]:
        """Tokens of a prompt, as a user's message where the checkpoint has a chat template."""
        if not self.chats:
            return self._tokenizer(prompt)["input_ids"]
        messages = [{"role": "user", "content": prompt}]
        return self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )

    @torch.no_grad()
    def write(self, prompts: Sequence[list[int]], most: int) -> list[list[int]]:
        """Tokens of the answers, up to the first that ends one, and ``most`` at most."""
        pad, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        batch = self._tokenizer.pad({"input_ids": list(prompts)}, return_tensors="pt")
        settings = GenerationConfig(
            max_new_tokens=most, do_sample=False, pad_token_id=pad, eos_token_id=end
        )
        written = self.model.generate(**batch.to(self._device), generation_config=settings)
        answers = written[:, batch["input_ids"].shape[1] :].tolist()
        return [answer[: answer.index(end)] if end in answer else answer for answer in answers]

    def text(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


class LanguageTeacher(Writer):
    """A teacher of the table of pairs."""

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        """See the base class.

        Raises:
            FleetError: also if it has another shape than the table says.
        """
        check_shape(teacher)
        super().__init__(teacher.weights, f"teacher {teacher.name}", device)


def check_shape(teacher: Teacher) -> None:
    """Refuse a checkpoint of another size than the plan was made for; weights are not loaded.

    Raises:
        FleetError: naming the key of the shape.
    """
    place = f"teacher {teacher.name}"
    config, wanted = read_checkpoint(located(teacher.weights)).config, teacher.shape.config()
    if config.model_type != teacher.shape.family:
        raise FleetError(
            f"{place}: shape.family: its checkpoint is a {config.model_type}, the table of pairs "
            f"says {teacher.shape.family}"
        )
    for key in _COMPARED:
        if getattr(config, key) != getattr(wanted, key):
            raise FleetError(
                f"{place}: its checkpoint has {key} {getattr(config, key)}, the shape in the table "
                f"of pairs {getattr(wanted, key)}; correct the table"
            )


def drawn_questions(
    request: Request, train: Sequence[Question], count: int | None = None
) -> list[Question]:
    """Labelled questions that a teacher is asked: drawn from all by the seed.

    Args:
        request: the task. train: all. count: ``coverage.questions`` by default.

    Raises:
        FleetError: if there are fewer.
    """
    wanted, setting = (count, "--count") if count else (request.coverage.questions, "")
    if len(train) < wanted:
        raise FleetError(
            f"{setting or 'coverage.questions'} is {wanted}, data.train has {len(train)} "
            f"questions; lower it"
        )
    order = np.random.default_rng(request.seed).permutation(len(train))
    return [train[number] for number in sorted(order[:wanted].tolist())]


def ask(
    request: Request,
    teacher: Writer,
    questions: Sequence[Question],
    out: Path,
    progress: Progress = lambda done, total: None,
    *,
    explain: bool = False,
) -> Asked:
    """Ask the questions that the file has no reply to, and append each batch to it.

    Args:
        request: the task. teacher: answers. questions: what is asked.
        out: JSON Lines of question and reply; a line that was cut off is removed.
        explain: show the answer, and ask for the steps to it.
        progress: called with answered and all questions.

    Raises:
        FleetError: if the file is none of replies.
        WriteError: if it cannot be written; what was answered is in it.
    """
    data = request.data
    known = _kept(out, data.question, explain=explain)
    left = [question for question in questions if normalised(question.text) not in known]
    most, size = request.workload.answer_tokens, request.workload.label_batch
    prompts, lengths, seconds, cut = list[int](), list[int](), 0.0, 0
    for start in range(0, len(left), size):
        batch = left[start : start + size]
        progress(len(known) + start, len(known) + len(left))
        shown = [
            data.explanation_of(each.text, each.answer) if explain else data.prompt_of(each.text)
            for each in batch
        ]
        tokens = [teacher.tokens(prompt) for prompt in shown]
        began = time.perf_counter()
        answers = teacher.write(tokens, most)
        seconds += time.perf_counter() - began
        lines = [
            {data.question: question.text, "reply": teacher.text(answer)}
            | ({EXPLAINED: True} if explain else {})
            for question, answer in zip(batch, answers, strict=True)
        ]
        with writing(out):
            make_folder(out.parent)
            with out.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        prompts += map(len, tokens)
        lengths += map(len, answers)
        cut += sum(len(answer) >= most for answer in answers)
    progress(len(known) + len(left), len(known) + len(left))
    return Asked(
        replies=len(left),
        before=len(known),
        seconds=seconds,
        written=sum(lengths),
        prompt_tokens=_percentile(prompts),
        answer_tokens=_percentile(lengths),
        cut=cut,
    )


def _percentile(values: Sequence[int]) -> int:
    """The smallest number that 95 of 100 values do not exceed."""
    return int(np.percentile(values, 95, method="inverted_cdf")) if values else 0


def _kept(path: Path, key: str, *, explain: bool) -> set[str]:
    """Questions that the file has replies to; a last line without an end is cut off."""
    if not path.exists():
        return set()
    with reading(f"--out: cannot read {path}"):
        content = read_regular(path)
        whole = content.rfind(b"\n") + 1
        cut = _is_cut(content[whole:])
        lines = (content[:whole] if cut else content).decode("utf-8-sig").split("\n")
    found = set[str]()
    for number, line in enumerate(lines, 1):
        place = f"--out: {path}, line {number}"
        if not line.strip():
            continue
        row = json_object(line, place)
        if not isinstance(row.get(key), str) or not isinstance(row.get("reply"), str):
            raise FleetError(f"{place} is no reply: it needs {key!r} and 'reply'; take a new file")
        if bool(row.get(EXPLAINED)) != explain:
            raise FleetError(
                f"{place}: replies with and without the answer shown belong in files of their own"
            )
        found.add(normalised(row[key]))
    if whole != len(content):  # nothing is changed in a file that is none of replies
        with writing(path), path.open("r+b") as file:
            if cut:
                file.truncate(whole)
            else:
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
    return found


def _is_cut(line: bytes) -> bool:
    """True of the beginning of an object, false of one that is complete or of anything else."""
    try:
        json.loads(line)
    except ValueError:
        return line.startswith(b"{")
    return False
