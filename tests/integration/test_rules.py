"""A rule is one file: a new one, written here, runs through the protocol without another change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from acme_fleet.config.fleet import Fleet
from acme_fleet.config.personalization import Personalization, Privacy
from acme_fleet.messages.edge_device import ImportanceUpload
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.personalization.base import Mixture, sets_of
from acme_fleet.personalization.by_class import ByClassRule
from acme_fleet.personalization.disclosure import what_leaves
from acme_fleet.personalization.importance import ImportanceRule
from acme_fleet.personalization.masked import MaskedRule
from acme_fleet.personalization.rules import RULES, rule_of
from acme_fleet.personalization.weights import WeightsRule
from acme_fleet.pipeline import customize


class LoudestRule(ImportanceRule):
    """Everybody gets the largest of all devices' numbers."""

    rounds = 0

    def disclosed(self) -> str:
        return "one number for each neuron, the loudest of which everybody hears"

    def mix(
        self,
        uploads: Mapping[str, ImportanceUpload],
        plan: HeaderPlan,
        coarse: Mapping[str, Tensor],
        weights: np.ndarray,
    ) -> Mixture[ImportanceSet]:
        LoudestRule.rounds += 1
        sets = [own.normalized() for own in sets_of(uploads, plan).values()]
        loudest = torch.stack([own.flat() for own in sets]).amax(dim=0)
        return Mixture(dict.fromkeys(uploads, sets[0].unflatten(loudest)))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (Personalization(), ImportanceRule),
        (Personalization(mix="weights"), WeightsRule),
        (Personalization(mix="both"), WeightsRule),
        (Personalization(mix="both", classifier="holders"), ByClassRule),
        (Personalization(privacy=Privacy(masking=True)), MaskedRule),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.mix,
)
def test_settings_decide_the_rule(settings: Personalization, kind: type) -> None:
    rule = rule_of(settings)
    assert type(rule) is kind
    upload = next(one for one in what_leaves(settings) if one.kind.endswith("Upload"))
    assert upload.kind == rule.upload_type.__name__
    assert upload.holds == rule.disclosed()
    assert ("header's weights" in upload.holds) == settings.mixes_weights


def test_most_numbers_are_what_each_rule_sends() -> None:
    most = {
        (settings.mix, settings.privacy.masking): rule_of(settings).most_numbers(10, 500, 4)
        for settings in (
            Personalization(),
            Personalization(mix="both"),
            Personalization(privacy=Privacy(masking=True)),
        )
    }
    assert most == {("importance", False): 10, ("both", False): 510, ("importance", True): 40}


def test_a_new_rule_is_one_class_and_one_entry(
    tiny: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "loudest", LoudestRule)
    monkeypatch.setattr(LoudestRule, "rounds", 0)
    fleet = tiny(**{"personalization.mix": "loudest"})
    customize(fleet, tmp_path / "run")
    assert LoudestRule.rounds == fleet.personalization.rounds * len(fleet.clusters)
    assert "the loudest of which everybody hears" in (tmp_path / "run/report.html").read_text()
