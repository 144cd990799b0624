"""Tenants' limits: set one by one, and the bucket of requests."""

from __future__ import annotations

import pytest

from pressrun.jobs.backend import Backend
from pressrun.jobs.errors import UserError
from pressrun.jobs.records import Tenant
from pressrun.jobs.tenants import LIMITS


def test_a_tenant_of_whom_nothing_was_set_has_weight_one_and_no_limits(backend: Backend) -> None:
    assert backend.store.tenant("acme") == Tenant(name="acme", weight=1.0)
    assert backend.store.tenants.list() == []


def test_each_limit_is_set_and_taken_away_by_itself(backend: Backend) -> None:
    tenants = backend.store.tenants
    tenants.set("acme", weight=2.5, max_enqueued_tokens=10**12)
    tenants.set("other", max_active_batches=3)
    assert tenants.set("acme", requests_per_minute=7) == Tenant(
        name="acme", weight=2.5, max_enqueued_tokens=10**12, requests_per_minute=7
    )
    assert tenants.set("acme", max_enqueued_tokens=None).max_enqueued_tokens is None
    assert [tenant.name for tenant in tenants.list()] == ["acme", "other"]
    assert tenants.list()[0] == backend.store.tenant("acme")
    assert tenants.weights() == {"acme": 2.5, "other": 1.0}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 2**60])
def test_a_limit_that_is_none_is_refused_by_name(backend: Backend, limit: str, value: float) -> None:
    with pytest.raises(UserError) as caught:
        backend.store.tenants.set("acme", **{limit: value})
    assert caught.value.param == limit
    assert backend.store.tenants.list() == []


def spend(backend: Backend, number: int) -> list[bool]:
    allowances = [backend.store.tenants.spend_request("acme") for _ in range(number)]
    return [allowance.granted for allowance in allowances if allowance is not None]


def set_back(backend: Backend, seconds: float) -> None:
    """Let the bucket believe that its last request was so much earlier."""
    key = "pressrun:requests:acme"
    at = float(backend.redis.hget(key, "at") or 0)
    backend.redis.hset(key, "at", f"{at - seconds:.6f}")


def test_a_bucket_holds_a_minutes_requests_and_fills_evenly(backend: Backend) -> None:
    backend.store.tenants.set("acme", requests_per_minute=6)
    assert spend(backend, 8) == [True] * 6 + [False] * 2
    set_back(backend, 21)
    assert spend(backend, 3) == [True, True, False]
    set_back(backend, 600)
    assert spend(backend, 8) == [True] * 6 + [False] * 2
    set_back(backend, -600)
    assert spend(backend, 1) == [False]


def test_a_refusal_says_how_long_to_wait_and_costs_nothing(backend: Backend) -> None:
    backend.store.tenants.set("acme", requests_per_minute=6)
    spend(backend, 6)
    waits = []
    for _ in range(20):
        allowance = backend.store.tenants.spend_request("acme")
        assert allowance is not None
        waits.append(allowance.wait_s)
    assert 9 < waits[-1] <= waits[0] <= 10


def test_a_bucket_that_is_full_again_is_gone_and_a_lower_limit_holds_at_once(backend: Backend) -> None:
    backend.store.tenants.set("acme", requests_per_minute=100)
    spend(backend, 1)
    assert 0 < backend.redis.ttl("pressrun:requests:acme") <= 60
    backend.store.tenants.set("acme", requests_per_minute=2)
    assert spend(backend, 3) == [True, True, False]
    backend.store.tenants.set("acme", requests_per_minute=None)
    assert backend.store.tenants.spend_request("acme") is None
