"""What a run would cost: by domain, for a person in k domains, and who would refuse it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from server.commands.run import price_lines
from server.price import price
from server.schedule import solved
from shared.config import RunConfig
from shared.enrolment import Ranges
from shared.privacy.accountant import epsilon_pld
from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt
from shared.privacy.signing import SigningPair
from tests.shared.cards import RANGES, partner_card

CONFIG = solved(
    RunConfig.from_mapping({"name": "tiny", "privacy": {"epsilon": 4.0, "rounds": 5, "reserve_rounds": 2, "steps_per_round": 4}})
)


def receipt(signer: SigningPair, domain: str, intents: int, spent: float) -> SignedReceipt:
    mechanism = Mechanism(
        kind="poisson_gaussian", sampling_rate=0.1, noise_multiplier=1.0, clip_norm=0.5, grid=0.0, dimension=1, steps=4
    ).to_record()
    said = {"head_hash": "a" * 64, "payload_sha256": "c" * 64, "mechanism": json.dumps(mechanism, sort_keys=True, separators=(",", ":"))}
    return SignedReceipt.signed(signer, domain=domain, count_of_intents=intents, epsilon_spent=spent, **said)


def test_a_first_run_costs_what_its_whole_schedule_costs() -> None:
    found = price(CONFIG, [partner_card()], {})
    (books,) = found.domains
    assert (books.spent, books.after, books.against) == (0.0, found.reserved, ())
    assert found.reserved == pytest.approx(4.0, abs=0.01)  # that is what the noise was solved for
    assert found.alone < found.reserved


def test_a_person_in_two_domains_costs_twice_the_steps_and_not_the_maximum() -> None:
    found = price(CONFIG, [partner_card(), partner_card(domain="films")], {})
    privacy = CONFIG.privacy
    steps = Mechanism(
        kind="poisson_gaussian",
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.clip_norm,
        grid=privacy.grid,
        dimension=1,
        steps=2 * (5 + 2) * 4,
    )
    assert found.for_k_domains == (found.reserved, epsilon_pld([steps], privacy.delta))
    assert found.for_k_domains[1] > found.reserved


def test_what_earlier_runs_and_this_one_cost_together_is_said_as_far_as_receipts_know() -> None:
    signer = SigningPair.generate()
    earlier = Mechanism(kind="poisson_gaussian", sampling_rate=0.1, noise_multiplier=1.0, clip_norm=0.5, grid=0.0, dimension=1, steps=12)
    spent = epsilon_pld([earlier], CONFIG.privacy.delta)  # 3 rounds of 4 steps, as the receipt says

    (known,) = price(CONFIG, [partner_card(signer)], {"books": receipt(signer, "books", 3, spent)}).domains
    (unknown,) = price(CONFIG, [partner_card(signer)], {"books": receipt(signer, "books", 3, 6.5)}).domains
    (restarted,) = price(CONFIG, [partner_card(signer)], {"books": receipt(signer, "books", 0, 0.0)}).domains

    alone = price(CONFIG, [partner_card(signer)], {}).reserved
    assert max(alone, spent) + 0.1 < known.after < alone + spent  # a composition, and no plain sum
    assert (known.at_least, known.against) == (True, ())
    assert (unknown.spent, unknown.after, unknown.at_least) == (6.5, 6.5, True)
    assert (restarted.after, restarted.at_least) == (alone, False)
    words = price_lines(price(CONFIG, [partner_card(signer)], {"books": receipt(signer, "books", 3, 6.5)}))
    assert words[1].split() == ["books", "6.50", ">=", "6.50", "8.00"]


def test_a_run_that_passes_a_ceiling_only_together_with_earlier_ones_is_known_beforehand() -> None:
    signer = SigningPair.generate()
    earlier = Mechanism(kind="poisson_gaussian", sampling_rate=0.1, noise_multiplier=1.0, clip_norm=0.5, grid=0.0, dimension=1, steps=12)
    before = receipt(signer, "books", 3, epsilon_pld([earlier], CONFIG.privacy.delta))

    found = price(CONFIG, [partner_card(signer, ceiling_epsilon=4.2)], {"books": before})

    assert found.willing() == []
    assert "would pass the ceiling 4.2" in found.domains[0].against[0]


@pytest.mark.parametrize(
    ("changed", "against"),
    [
        ({"ceiling_epsilon": 3.0}, "would pass the ceiling 3"),
        ({"delta": 1e-5}, "privacy.delta"),
        ({"ranges": Ranges(max_sampling_rate=0.01, max_clip_norm=10.0, max_steps=10_000)}, "sampling_rate"),
        ({"ranges": Ranges(max_sampling_rate=0.5, max_clip_norm=10.0, max_steps=27)}, "more steps than the agreed 27"),  # (5 + 2) * 4 = 28
        ({"ranges": dataclasses.replace(RANGES, min_noise_multiplier=50.0)}, "noise_multiplier is below the agreed 50"),
        ({"ranges": dataclasses.replace(RANGES, methods="shared")}, "model.sharing"),
        ({"ranges": dataclasses.replace(RANGES, min_history_decay=1.0)}, "history_decay"),
        ({"ranges": dataclasses.replace(RANGES, max_grid_exponent=8)}, "grid_exponent"),
    ],
)
def test_a_partner_who_did_not_agree_is_known_beforehand(changed: dict[str, object], against: str) -> None:
    found = price(CONFIG, [partner_card(**changed), partner_card(domain="films")], {})
    assert len(found.domains[0].against) == 1
    assert against in found.domains[0].against[0]
    assert found.willing() == ["films"]


def test_a_run_without_privacy_passes_every_ceiling() -> None:
    config = dataclasses.replace(CONFIG, privacy=dataclasses.replace(CONFIG.privacy, epsilon=float("inf"), noise_multiplier=0.0))
    found = price(config, [partner_card()], {})
    assert found.willing() == []
    assert found.to_json()["reserved"] is None
    json.dumps(found.to_json(), allow_nan=False)
