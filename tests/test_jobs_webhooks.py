"""Webhooks: signatures that others can check, and deliveries that survive receivers, restarts and new secrets."""

import asyncio
import json
from datetime import UTC, datetime

import pytest
from failing_sqlite import Trouble
from hypothesis import given
from hypothesis import strategies as st
from jobs_server import delivery_of, open_manager
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from wall_clock import machine_now, now

from wme_async.errors import IntegrityError
from wme_async.jobs import BatchManager, new_secret, sign_webhook, verify_webhook
from wme_async.jobs.webhooks import DELAYS, retry_delay

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"type":"batch.completed","timestamp":"2025-11-06T10:02:30Z","data":{"batch_id":"batch_1"}}'


def signed(body, *, at=None, message_id="msg_1", secrets=(SECRET,)):
    stamp = int(now() if at is None else at)
    return {
        "Webhook-Id": message_id,
        "Webhook-Timestamp": str(stamp),
        "Webhook-Signature": sign_webhook(message_id, stamp, body, secrets=secrets),
    }


@given(st.text(max_size=200), st.from_regex(r"msg_[a-z0-9]{1,20}", fullmatch=True))
def test_the_reference_package_signs_as_we_do_and_takes_what_we_sign(text, message_id):
    body = json.dumps({"text": text})
    moment = machine_now()
    secret = new_secret()
    signature = sign_webhook(message_id, int(moment.timestamp()), body.encode(), secrets=[secret])
    assert signature == Webhook(secret).sign(message_id, moment, body)
    headers = signed(body.encode(), at=moment.timestamp(), message_id=message_id, secrets=[new_secret(), secret])
    assert Webhook(secret).verify(body, {key.lower(): value for key, value in headers.items()}) == {"text": text}
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, {key.lower(): value for key, value in headers.items()})


def test_a_good_message_is_read():
    message = verify_webhook(BODY, signed(BODY), SECRET)
    assert (message.type, message.data) == ("batch.completed", {"batch_id": "batch_1"})
    old_and_new = [new_secret(), SECRET]
    assert verify_webhook(BODY, signed(BODY, secrets=old_and_new), SECRET) == message
    assert verify_webhook(BODY, signed(BODY), old_and_new) == message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body, head: (body + b" ", head), "no signature"),
        (lambda body, head: (body, head | {"Webhook-Id": "msg_2"}), "no signature"),
        (
            lambda body, head: (body, head | {"Webhook-Timestamp": str(int(head["Webhook-Timestamp"]) - 1)}),
            "no signature",
        ),
        (lambda body, head: (body, head | {"Webhook-Timestamp": "0"}), "old"),
        (lambda body, head: (body, head | {"Webhook-Timestamp": "9" * 12}), "ahead"),
        (lambda body, head: (body, head | {"Webhook-Timestamp": "now"}), "not a number"),
        (lambda body, head: (body, head | {"Webhook-Timestamp": "9" * 99}), "not a number"),
        (lambda body, head: (body, head | {"Webhook-Timestamp": "²"}), "not a number"),
        (lambda body, head: (body, head | {"Webhook-Signature": ""}), "no signature"),
        (lambda body, head: (body, head | {"Webhook-Signature": "v1,"}), "no signature"),
        (lambda body, head: (body, head | {"Webhook-Signature": "v1,ü"}), "no signature"),
        (lambda body, head: (body, head | {"Webhook-Signature": "v2" + head["Webhook-Signature"][2:]}), "no signature"),
        (lambda body, head: (body, {key: value for key, value in head.items() if "Id" not in key}), "webhook-id"),
        (lambda body, head: (body, {}), "webhook-id"),
    ],
)
def test_a_changed_old_or_forged_message_is_refused(change, words):
    body, headers = change(BODY, signed(BODY))
    with pytest.raises(IntegrityError, match=words):
        verify_webhook(body, headers, SECRET)


def test_a_signed_message_of_another_kind_is_refused():
    with pytest.raises(IntegrityError, match="not one of ours"):
        verify_webhook(b"[]", signed(b"[]"), SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!!", "whsec_" + "A" * 200])
def test_a_weak_or_malformed_secret_is_refused(secret, tmp_path):
    with pytest.raises(ValueError, match="secret"):
        sign_webhook("msg_1", 0, b"", secrets=[secret])


def test_signing_needs_a_secret_and_an_unambiguous_id():
    with pytest.raises(ValueError, match="without a secret"):
        sign_webhook("msg_1", 0, b"", secrets=[])
    with pytest.raises(ValueError, match="full stop"):
        sign_webhook("msg.1", 0, b"", secrets=[SECRET])


def test_waits_grow_for_three_days_and_then_end():
    waits = [retry_delay(attempts, random=lambda: 0.0) for attempts in range(1, len(DELAYS) + 2)]
    assert waits == [*DELAYS, None]
    assert retry_delay(1, random=lambda: 0.5, retry_after=100.0) == 100.0
    assert retry_delay(1, random=lambda: 0.5, retry_after=1e9) == 86_400.0
    assert retry_delay(1, random=lambda: 0.5) == 5.5


# Delivery


async def test_the_end_of_a_batch_is_told_with_its_status_and_a_good_signature(tmp_path, server):
    async with open_manager(tmp_path, file_url="https://files.example/get/") as manager:
        urls = [server.add("ä b.txt"), server.add("bad", rule=404)]
        batch = await manager.submit(urls, ignore_errors=False, webhook_url=f"{server.url}/hook")
        finished = await manager.wait(batch.batch_id, timeout=10)
        delivery = await delivery_of(manager, batch.batch_id)
        secrets = await manager.webhook_secrets()
    assert (delivery.state, delivery.attempts) == ("delivered", 1)
    [(headers, body)] = server.hooks
    message = verify_webhook(body, headers, secrets)
    lowered = {key.lower(): value for key, value in headers.items()}
    stamp = datetime.fromtimestamp(int(lowered["webhook-timestamp"]), UTC)
    assert lowered["webhook-signature"] == Webhook(secrets[0]).sign(lowered["webhook-id"], stamp, body.decode())
    assert message.type == "batch.failed"
    assert message.data["jobs"][1]["error"] == finished.jobs[1].error
    url = message.data["jobs"][0]["file_info"]["download_url"]
    assert url == f"https://files.example/get/batch/{batch.batch_id}/%C3%A4%20b.txt"
    assert headers["Content-Type"] == "application/json"


async def test_a_receiver_that_fails_three_times_gets_one_message_with_one_id(tmp_path, server):
    server.answers = [500, 302, 429, 200]
    async with open_manager(tmp_path) as manager:
        batch = await manager.submit([server.add("a")], webhook_url=f"{server.url}/hook")
        delivery = await delivery_of(manager, batch.batch_id)
    assert (delivery.state, delivery.attempts) == ("delivered", 4)
    assert len({headers["webhook-id"] for headers, _ in server.hooks}) == 1
    assert len({body for _, body in server.hooks}) == 1
    assert len(server.hooks) == 4


@pytest.mark.parametrize(("answers", "attempts"), [([500], 4), ([410], 1)])
async def test_a_receiver_that_never_takes_it_is_given_up(tmp_path, server, answers, attempts):
    server.answers = answers
    async with open_manager(tmp_path) as manager:
        batch = await manager.submit([server.add("a")], webhook_url=f"{server.url}/hook")
        delivery = await delivery_of(manager, batch.batch_id)
    assert (delivery.state, delivery.attempts, delivery.error) == ("given up", attempts, f"HTTP {answers[0]}")


async def test_a_webhook_that_waits_is_sent_after_a_restart(tmp_path, server):
    server.answers = [503]
    async with open_manager(tmp_path, webhook_delays=(0.1, 0.1)) as manager:
        batch = await manager.submit([server.add("a")], webhook_url=f"{server.url}/hook")
        async with asyncio.timeout(5):
            await server.hooked.wait()
        secrets = await manager.webhook_secrets()
    server.answers = [200]
    async with open_manager(tmp_path, webhook_delays=(0.1, 0.1)) as manager:
        delivery = await delivery_of(manager, batch.batch_id)
        assert await manager.webhook_secrets() == secrets
    assert delivery.state == "delivered"
    assert len({headers["webhook-id"] for headers, _ in server.hooks}) == 1


async def test_a_new_secret_signs_beside_the_old_one_for_a_while(tmp_path, server):
    async with open_manager(tmp_path) as manager:
        [old] = await manager.webhook_secrets()
        new = await manager.rotate_webhook_secret(keep=60)
        assert await manager.webhook_secrets() == (new, old)
        batch = await manager.submit([server.add("a")], webhook_url=f"{server.url}/hook")
        await delivery_of(manager, batch.batch_id)
        await manager.rotate_webhook_secret(keep=0)
        assert len(await manager.webhook_secrets()) == 1
    [(headers, body)] = server.hooks
    assert verify_webhook(body, headers, old) == verify_webhook(body, headers, new)


async def test_given_secrets_are_used_and_not_changed_here(tmp_path, server):
    async with open_manager(tmp_path, webhook_secrets=[SECRET]) as manager:
        batch = await manager.submit([server.add("a")], webhook_url=f"{server.url}/hook")
        await delivery_of(manager, batch.batch_id)
        with pytest.raises(RuntimeError, match="change them there"):
            await manager.rotate_webhook_secret()
    [(headers, body)] = server.hooks
    verify_webhook(body, headers, SECRET)
    with pytest.raises(ValueError, match="secret"):
        await BatchManager(tmp_path, webhook_secrets=["weak"]).start()


async def test_a_webhook_to_a_private_address_is_never_sent(tmp_path, server, names):
    names["hooks.example"] = "127.0.0.1"
    async with open_manager(tmp_path) as manager:
        url = server.url.replace("127.0.0.1", "hooks.example") + "/hook"
        batch = await manager.submit([server.add("a")], webhook_url=url)
        delivery = await delivery_of(manager, batch.batch_id)
    assert (delivery.state, delivery.attempts) == ("given up", 1)
    assert "hooks.example is refused" in delivery.error
    assert "127.0.0.1" not in delivery.error
    assert server.hooks == []


async def test_a_cancelled_batch_is_told_too(tmp_path, server):
    async with open_manager(tmp_path) as manager:
        batch = await manager.submit([server.add("a", 100_000, "hang")], webhook_url=f"{server.url}/hook")
        await manager.cancel(batch.batch_id)
        await delivery_of(manager, batch.batch_id)
    assert json.loads(server.hooks[0][1])["type"] == "batch.cancelled"


@pytest.mark.parametrize("statement", ["AND next_at <= :due", "SET state = ?", "MIN(next_at)"])
async def test_a_database_that_fails_for_a_moment_delays_a_webhook_and_ends_no_job(
    tmp_path, server, monkeypatch, statement
):
    trouble = Trouble(monkeypatch, statement)
    async with open_manager(tmp_path) as manager:
        batch = await manager.submit([server.add("a")], webhook_url=f"{server.url}/hook")
        delivery = await delivery_of(manager, batch.batch_id)
        assert (delivery.state, delivery.attempts, len(server.hooks)) == ("delivered", 1, 1)
        later = await manager.submit([server.add("b")])
        assert (await manager.wait(later.batch_id, timeout=10)).status == "completed"
    assert trouble.count > 1
