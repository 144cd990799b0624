"""API keys in Redis: what is kept of them, and how they end."""

from __future__ import annotations

import time

import pytest

from pressrun.jobs.backend import Backend
from pressrun.jobs.errors import NotFound, UserError
from pressrun.jobs.keys import PREFIX


def test_a_key_is_found_by_itself_and_by_nothing_else(backend: Backend) -> None:
    secret, key = backend.keys.create(tenant="acme", name="ci")
    assert backend.keys.find(secret) == key
    assert (key.tenant, key.name, key.expires_at, key.revoked_at) == ("acme", "ci", None, None)
    for other in (secret[:-1], secret + "x", key.id, key.hint, "", "\udcff"):
        assert backend.keys.find(other) is None


def test_no_key_is_made_twice_and_each_has_256_random_bits(backend: Backend) -> None:
    secrets = {backend.keys.create()[0] for _ in range(50)}
    assert len(secrets) == 50
    assert {len(secret.removeprefix(PREFIX)) for secret in secrets} == {43}


def test_a_key_is_revoked_by_its_id_its_beginning_or_itself(backend: Backend) -> None:
    made = [backend.keys.create() for _ in range(3)]
    names = [made[0][1].id, made[1][1].hint, made[2][0]]
    for (secret, key), name in zip(made, names, strict=True):
        assert key.is_good(time.time())
        revoked = backend.keys.revoke(name)
        assert revoked.id == key.id
        assert backend.keys.find(secret) == revoked
        assert not revoked.is_good(time.time())
        assert backend.keys.revoke(name) == revoked
    assert backend.keys.any()


@pytest.mark.parametrize("name", ["key_none", "sk-pressrun-", "sk", "", "key_"])
def test_what_names_no_key_revokes_none(backend: Backend, name: str) -> None:
    secret, key = backend.keys.create()
    with pytest.raises(NotFound, match="No API key"):
        backend.keys.revoke(name)
    assert backend.keys.find(secret) == key


def test_an_expired_key_is_no_longer_good(backend: Backend) -> None:
    _, key = backend.keys.create(expires_in_s=60)
    assert key.expires_at == key.created_at + 60
    assert key.is_good(key.expires_at - 1)
    assert not key.is_good(key.expires_at)


def test_keys_are_listed_in_the_order_in_which_they_were_made(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    made = []
    for second in range(3):
        monkeypatch.setattr(time, "time", lambda second=second: now + second)
        made.append(backend.keys.create()[1])
    assert backend.keys.list() == made


@pytest.mark.parametrize("tenant", ["", "Acme", "a b", "a:b", "-a", "a" * 64, "ä", "a\n"])
def test_a_name_that_no_tenant_can_have_is_refused(backend: Backend, tenant: str) -> None:
    with pytest.raises(UserError, match="cannot be a tenant's name"):
        backend.keys.create(tenant=tenant)
    assert not backend.keys.any()
