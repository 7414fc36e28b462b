"""The model card of an artifact, in Hugging Face's format."""

from __future__ import annotations

from acme_fleet.report.words import bytes_text
from acme_fleet_runtime.manifest import CHAT_TEMPLATE, Accuracy, Latency, Manifest, TokenAccuracy

_MOST_LABELS = 20


def card(manifest: Manifest, needs: str, *, student: bool = False) -> str:
    """``README.md``: a header that the hub reads, and the model in words.

    Args:
        manifest: of the artifact.
        needs: packages that ``run.py`` needs.
        student: it is of a distillation, not of a device.
    """
    images, runs = manifest.takes_images, manifest.program.name == "onnxruntime"
    if images or runs or not manifest.writes:
        needs += " pillow" if images else " tokenizers"
    example = "photo.jpg" if images else '"a text"'
    flag = "photo.jpg" if images else '--text "a text"'
    if CHAT_TEMPLATE in manifest.files:
        needs += " jinja2"
        example = f'--chat "what a user says"\npython run.py {example}   # to go on with'
        flag = '--chat --text "what a user says"'
    parts = [
        _header(manifest),
        f"# {manifest.name}",
        _about(manifest, student),
        "## Use",
        f"```\npip install {needs}\npython run.py {example}\n```",
        f"With acme-fleet's runner, which checks the files and can serve them:\n\n"
        f"```\nacme-runtime predict . {flag}\nacme-runtime serve .\n```"
        if runs
        else "",
        "## Accuracy",
        _accuracy(manifest),
        "## Data",
        _data(manifest, student),
        "## Limits",
        _limits(manifest, student),
        "## Measured at the export",
        _measured(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(manifest: Manifest) -> str:
    task = "image-classification" if manifest.takes_images else "text-classification"
    task = "text-generation" if manifest.writes else task
    reference = manifest.reference
    lines = ["---", f"pipeline_tag: {task}", f"library_name: {manifest.program.name}"]
    if reference is not None and reference.license is not None:
        lines.append(f"license: {reference.license}")
    lines += ["tags:", "- acme-fleet", f"- {manifest.precision}", "---"]
    return "\n".join(lines)


def _about(manifest: Manifest, student: bool) -> str:
    what = "A classifier of images" if manifest.takes_images else "A classifier of texts"
    what = "A language model" if manifest.writes else what
    size = next(e.size_bytes for n, e in manifest.files.items() if n.startswith("model."))
    origin = "a reference model that the fleet trained itself, or that is not recorded"
    if manifest.reference is not None:
        known = manifest.reference.license or "unknown here"
        origin = f"`{manifest.reference.name}` (licence: {known})"
    limit = ""
    if manifest.limit is not None:
        fits = "fits" if manifest.limit.fits else "does **not** fit"
        limit = f" It {fits} the device's limit of {bytes_text(manifest.limit.storage_bytes)}."
    made = f"for the device `{manifest.name}`, customised by acme-fleet from {origin}"
    if student:
        made = f"for the task `{manifest.name}`, distilled by acme-fleet: {origin}"
    return (
        f"{what} {made}. Its weights are in {manifest.precision}; the model's file has "
        f"{bytes_text(size)}.{limit}"
    )


def _accuracy(manifest: Manifest) -> str:
    if not manifest.accuracy:
        return "Not measured: the device's data were not there at the export."
    if manifest.writes:
        rows = [
            "| data | tokens | loss per token | of the model in PyTorch | most probable tokens "
            "that are right | of the model in PyTorch |",
            "|---|---:|---:|---:|---:|---:|",
            *(_token_row(one) for one in manifest.accuracy if isinstance(one, TokenAccuracy)),
        ]
        return "\n".join(rows)
    rows = [
        "| data of the device | samples | this artifact | 95 % interval | PyTorch |",
        "|---|---:|---:|---|---:|",
        *(_row(one) for one in manifest.accuracy if isinstance(one, Accuracy)),
    ]
    told = "The interval is Wilson's, for the samples alone; validation data also chose the model."
    return "\n".join(rows) + f"\n\n{told}"


def _row(one: Accuracy) -> str:
    low, high = one.interval
    return (
        f"| {one.data} | {one.samples} | {one.artifact:.3f} | {low:.3f} to {high:.3f} "
        f"| {one.pytorch:.3f} |"
    )


def _token_row(one: TokenAccuracy) -> str:
    return (
        f"| {one.data} | {one.tokens} | {one.artifact_loss:.4f} | {one.pytorch_loss:.4f} "
        f"| {one.artifact:.3f} | {one.pytorch:.3f} |"
    )


def _data(manifest: Manifest, student: bool) -> str:
    if student:
        return "It learned from the task's questions with replies, which are not in this folder."
    if manifest.writes:
        return (
            "The header was trained on the device's private texts, which are not in this folder, "
            "and the backbone on the fleet's public ones."
        )
    trained, labels = manifest.trained_labels, manifest.labels
    shown = ", ".join(f"`{name}`" for name in trained[:_MOST_LABELS])
    more = f" and {len(trained) - _MOST_LABELS} more" if len(trained) > _MOST_LABELS else ""
    return (
        f"The header was trained on the device's private data, which are not in this folder, and "
        f"the backbone on the fleet's public data. The device had samples of {len(trained)} of "
        f"{len(labels)} classes: {shown}{more}."
    )


def _limits(manifest: Manifest, student: bool) -> str:
    notes = [f"- {note[0].upper()}{note[1:]}." for note in manifest.notes]
    if student:
        lines = [
            "- It was made for the questions of one task; at others it may be much worse.",
            "- What it writes may be wrong.",
        ]
        return "\n".join([*lines, *notes])
    if manifest.writes:
        lines = [
            "- It was made for the texts of one device; on others it may be much worse.",
            "- It was trained on private texts and may write parts of them.",
            "- What it writes may be wrong.",
        ]
        return "\n".join([*lines, *notes])
    lines = [
        "- It was made for the data of one device; on others it may be much worse.",
        "- Probabilities are not calibrated. Every input gets one of the classes, also one that "
        "is of none of them.",
    ]
    if len(manifest.trained_labels) < len(manifest.labels):
        lines.append(
            "- Classes that the device had no samples of are known from the reference alone."
        )
    if manifest.takes_images:
        lines.append("- Images have 8 bits a channel; `manifest.json` says how they are resized.")
    else:
        lines.append("- Texts are cut as `manifest.json` says; padding stands behind a text.")
    return "\n".join([*lines, *notes])


def _measured(manifest: Manifest) -> str:
    check, took = manifest.verification, manifest.latency
    forced = " It was **refused, and written by force**." if check.forced else ""
    same = "tokens get the same next one" if manifest.writes else "which get the same class"
    told = (
        f"Logits differ from PyTorch's by at most {check.largest_difference:.2g} of their spread "
        f"(at most {check.tolerance:g} is accepted) on {check.samples} {check.data} inputs, "
        f"{check.same_class:.1%} of {same}.{forced}"
    )
    if isinstance(took, Latency):
        return (
            f"{told} One input takes {took.median_ms:.3g} ms, in PyTorch {took.pytorch_ms:.3g} ms "
            f"(medians, {took.threads} thread, {took.machine})."
        )
    if took is None:
        return told
    return (
        f"{told} It writes {took.tokens_per_s:.3g} tokens a second, PyTorch "
        f"{took.pytorch_tokens_per_s:.3g}; the first behind a prompt of {took.prompt} tokens takes "
        f"{took.first_token_ms:.3g} ms, in PyTorch {took.pytorch_first_token_ms:.3g} ms (medians, "
        f"{took.threads} thread, {took.machine})."
    )
