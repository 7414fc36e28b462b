"""Masked importance sets: exact for the receiver, noise for everybody else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from acme_fleet.errors import ProtocolError
from acme_fleet.messages.edge_device import MaskedUpload
from acme_fleet.messages.importance_set import ImportanceSet
from acme_fleet.personalization.importance import aggregate
from acme_fleet.personalization.masked import add_up, outgoing_weights
from acme_fleet.privacy.masking import Masker, pad, public_key, unmask

pytest.importorskip("cryptography")

OCCASION = "0/abc"
NAMES = ["cam-1", "cam-2", "badge-1"]
SECRETS = {name: name.encode() * 4 for name in NAMES}


def _maskers(occasion: str = OCCASION, names: list[str] = NAMES) -> dict[str, Masker]:
    keys = {name: public_key(SECRETS[name]) for name in names}
    return {name: Masker(name, SECRETS[name], keys, occasion) for name in names}


def _sets(seed: int, neurons: int = 40) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    return {n: torch.from_numpy(random.dirichlet(np.ones(neurons))).float() for n in NAMES}


def _weights(seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(count), size=count)


def _uploads(
    maskers: dict[str, Masker], sets: dict[str, Tensor], weights: np.ndarray
) -> dict[str, MaskedUpload]:
    told = outgoing_weights(weights, list(maskers))
    return {
        n: MaskedUpload(round=0, shares=masker.shares(sets[n], told[n]))
        for n, masker in maskers.items()
    }


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_each_device_gets_its_mixture_exactly(seed: int, count: int):
    maskers, weights = _maskers(names=NAMES[:count]), _weights(seed, count)
    sets = {name: _sets(seed)[name] for name in maskers}
    sums = add_up(_uploads(maskers, sets, weights))
    open_sets = {name: ImportanceSet.of({"layer": values}) for name, values in sets.items()}
    plain = aggregate(open_sets, weights)
    for name in maskers:
        # Half of 2^-30 from rounding each share, and what single precision rounds.
        torch.testing.assert_close(
            unmask(sums[name], SECRETS[name], OCCASION), plain[name]["layer"], atol=5e-9, rtol=1e-6
        )


def test_masks_cancel_to_the_last_bit():
    """With no weight at all the shares are masks alone, and their sum is the receiver's pad."""
    maskers = _maskers()
    sums = add_up(_uploads(maskers, _sets(0), np.zeros((3, 3))))
    for name, total in sums.items():
        own = torch.from_numpy(pad(SECRETS[name], OCCASION, 40))
        assert torch.equal(total.long() % 2**32, own)


def test_a_single_upload_and_every_sum_look_uniform_to_the_edge():
    sets = {name: torch.full((20_000,), 1 / 20_000) for name in NAMES}
    uploads = _uploads(_maskers(), sets, _weights(1))
    seen = [share for upload in uploads.values() for share in upload.shares.values()]
    for numbers in seen + list(add_up(uploads).values()):
        assert numbers.dtype == torch.int32
        uniform = (numbers.double().numpy() + 2**31) / 2**32
        assert stats.kstest(uniform, "uniform").pvalue > 1e-4
        assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.05


def test_neither_the_edge_nor_another_device_can_read_a_sum():
    """Ŵ is known to the edge and invertible: without pads it could solve for every set."""
    maskers, weights = _maskers(), _weights(2)
    sums = add_up(_uploads(maskers, _sets(2), weights))
    with pytest.raises(ProtocolError, match="sum to"):
        unmask(sums["cam-1"], SECRETS["cam-2"], OCCASION)


def test_a_sum_that_lacks_a_sender_is_of_no_use():
    uploads = _uploads(_maskers(), _sets(3), _weights(3))
    del uploads["badge-1"]
    with pytest.raises(ProtocolError, match="sum to"):
        unmask(add_up(uploads)["cam-1"], SECRETS["cam-1"], OCCASION)


def test_no_mask_is_used_twice():
    """Another occasion, another mask: or the difference of two uploads would be in the clear."""
    sets, weights = _sets(4), _weights(4)
    one = _uploads(_maskers("0/abc"), sets, weights)["cam-1"].shares
    two = _uploads(_maskers("0/abd"), sets, weights)["cam-1"].shares
    shares = [*one.values(), *two.values()]
    for i, share in enumerate(shares):
        for other in shares[:i]:
            assert not bool((share == other).any())


def test_a_set_that_is_not_of_sum_one_is_noticed_by_the_receivers():
    maskers, sets = _maskers(), _sets(5)
    sets["cam-2"] = 100 * sets["cam-2"]
    sums = add_up(_uploads(maskers, sets, _weights(5)))
    with pytest.raises(ProtocolError, match="sum to"):
        unmask(sums["cam-1"], SECRETS["cam-1"], OCCASION)


def test_keys_that_do_not_fit_are_refused():
    keys = {name: public_key(SECRETS[name]) for name in NAMES}
    weights = dict.fromkeys(NAMES, 1 / 3)
    with pytest.raises(ProtocolError, match="lack that of cam-1"):
        Masker("cam-1", SECRETS["cam-1"], keys | {"cam-1": keys["cam-2"]}, "0")
    for wrong in ("", "zz" * 32, "00" * 32):  # no key, no digits, a point of small order
        masker = Masker("cam-1", SECRETS["cam-1"], keys | {"cam-2": wrong}, "0")
        with pytest.raises(ProtocolError, match="public key"):
            masker.shares(_sets(0)["cam-1"], weights)
    with pytest.raises(ProtocolError, match="other receivers"):
        Masker("cam-1", SECRETS["cam-1"], keys, "0").shares(_sets(0)["cam-1"], {"cam-1": 1.0})
