"""The report's tables of devices: what is not known of any device has no column."""

from __future__ import annotations

from pathlib import Path

from test_report import make_summary, write

from acme_fleet.messages.results import LanguageResult
from acme_fleet.report.page.device_tables import device_table, language_table
from acme_fleet.runs.summary import DeviceSummary, Summary

_WRITES = LanguageResult(
    tokens=140, loss_coarse=0.7, loss=0.5, loss_linear=0.6, first_token_s=0.05, tokens_per_s=90
)


def _writing(**changes: object) -> Summary:
    summary = make_summary(2)
    own = _WRITES.model_copy(update=changes)
    devices = [device.model_copy(update={"language": own}) for device in summary.devices]
    return summary.model_copy(update={"devices": devices})


def test_columns_without_a_value_are_left_out():
    summary = make_summary(2)
    table = device_table(summary.devices, summary)
    assert not {"classes", "ten lines %", "reference %", "training samples"} & set(table.columns)
    first = summary.devices[0]
    assert table.rows[0][:4] == ["dev-0-0", "site-0", "yes", f"{first.size_bytes / 1000:.1f}"]
    large = first.model_copy(update={"size_bytes": 22_100_000, "capacity_bytes": 256_000_000})
    table = device_table([large, *summary.devices[1:]], summary)
    assert table.columns[3:5] == ["size MB", "limit MB"]
    assert table.rows[0][3:5] == ["22.1", "256"]
    known: list[DeviceSummary] = [
        first.model_copy(update={"accuracy_probe": 0.5, "train_samples": 9}),
        *summary.devices[1:],
    ]
    table = device_table(known, summary)
    place = table.columns.index("ten lines %")
    assert [row[place] for row in table.rows] == ["50.0", "–"]


def test_a_language_model_has_answers_and_a_lora_only_where_there_are_some():
    assert language_table(make_summary(2).devices) is None
    plain = language_table(_writing().devices)
    assert plain is not None
    assert plain.columns == [
        *("device", "coarse", "linear", "final", "loss per token", "tokens", "first token"),
        "tokens/s",
    ]
    known = _writing(loss_lora=0.4, answers=8, exact=0.5, exact_coarse=0.25)
    answered = language_table(known.devices)
    assert answered is not None
    assert {"LoRA", "answers", "right, coarse", "right, final"} <= set(answered.columns)


def test_a_page_of_language_models_speaks_of_no_classes(tmp_path: Path):
    summary = _writing()
    sent = {device.name: {"DeviceReport": [9]} for device in summary.devices}
    html = write(tmp_path / "r.html", summary.model_copy(update={"sent": sent}), [])
    assert ">classes<" not in html
    assert ">LoRA<" not in html
    assert "three accuracies" not in html
    assert "shares of right tokens and answers" in html


def test_small_shares_are_not_rounded_to_nothing(tmp_path: Path):
    summary = make_summary(1)
    (device,) = summary.devices
    loose = device.model_copy(update={"size_bytes": 223_000, "capacity_bytes": 256_000_000})
    html = write(tmp_path / "r.html", summary.model_copy(update={"devices": [loose]}), [])
    assert "(0.087\u00a0%)" in html
    assert "0.087 %" in html  # in the figure
    assert ">0 %<" not in html
