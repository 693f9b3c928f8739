"""The small pure parts: settings, retries, tokens, error answers, quotas."""

import base64
import json
import pickle
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transports import error_responses, retry, token_policy

from wme_async import errors
from wme_async._client.quota import Allowances, Cost, month_of, quota_of  # private: pure
from wme_async.settings import Hosts, Limits, Retry, Timeouts

LEAVES = [
    getattr(errors, name)
    for name in errors.__all__
    if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), errors.WMEError)
]


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_survives_pickling_with_its_facts(kind):
    error = kind("what happened")
    error.url = "http://a/b"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "what happened"
    assert again.__dict__ == error.__dict__


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_is_drawn_in_the_tree_and_stands_under_its_root(kind):
    assert kind.__name__ in (errors.__doc__ or "")
    assert issubclass(kind, errors.WMEError)


def test_a_repr_shows_facts_but_not_the_raw_record():
    error = errors.DecodeError("bad", member="m.ndjson", line=3, record=b"secret")
    assert "line=3" in repr(error)
    assert "secret" not in repr(error)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hosts(auth="ftp://x"),
        lambda: Hosts(api="https://x/v2"),
        lambda: Hosts(api="https://user:pw@x"),
        lambda: Hosts(realtime="nowhere"),
        lambda: Hosts(api="http://host:99999"),
        lambda: Hosts(api="http://host:port"),
        lambda: Hosts(api="http://[::1"),
        lambda: Hosts(api=" http://host"),
        lambda: Hosts(api="http://host\n"),
        lambda: Hosts(api="http://ho st"),
        lambda: Hosts(api="http://@host"),
        lambda: Hosts.of({"auht": "https://x"}),
        lambda: Timeouts(read=0),
        lambda: Timeouts(connect=float("nan")),
        lambda: Timeouts(lookup=float("inf")),
        lambda: Retry(attempts=0),
        lambda: Retry(base=-1),
        lambda: Limits(connections=0),
        lambda: Limits(requests_per_second=0),
    ],
)
def test_settings_that_cannot_work_are_refused_when_made(make):
    with pytest.raises(ValueError, match=r"Hosts|Timeouts|Retry|Limits|unknown host"):
        make()


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("Retry.attempts", "5", "whole number, not '5'"),
        ("Retry.attempts", 2.5, "whole number"),
        ("Retry.total", None, "number of seconds, not None"),
        ("Timeouts.read", "60", "number of seconds, not '60'"),
        ("Timeouts.connect", None, "number"),
        ("Limits.connections", "100", "whole number"),
        ("Limits.connections", True, "whole number"),
        ("Limits.requests_per_second", "10", "number"),
        ("Hosts.api", 8080, "text such as https://host"),
    ],
)
def test_settings_that_are_no_numbers_are_refused_in_one_sentence(setting: str, value: object, words: str):
    owner, _, name = setting.partition(".")
    kinds: dict[str, Any] = {"Retry": Retry, "Timeouts": Timeouts, "Limits": Limits, "Hosts": Hosts}
    with pytest.raises(TypeError, match=rf"^{setting} must be (a )?{words}"):
        kinds[owner](**{name: value})


def test_one_address_for_all_hosts_is_no_mapping():
    with pytest.raises(TypeError, match="hosts must be"):
        Hosts.of("https://user:hunter2@x")  # type: ignore[arg-type]


def test_a_password_in_a_host_is_not_repeated_in_the_refusal():
    with pytest.raises(ValueError, match="without path, query or user") as caught:
        Hosts(api="https://user:hunter2@x")
    assert "hunter2" not in str(caught.value)


def test_hosts_are_made_of_mappings_and_lose_a_slash_at_the_end():
    assert Hosts.of({"api": "http://127.0.0.1:8080/"}).api == "http://127.0.0.1:8080"
    assert Hosts(api="HTTP://Host?", auth="http://[::1]:80/#").api == "http://host"
    assert Hosts(auth="http://[::1]:80/#").auth == "http://[::1]:80"
    assert Hosts.of(None) == Hosts()
    assert Hosts.of(Hosts()) == Hosts()
    assert Timeouts(pool=None).pool is None


@given(
    st.builds(
        Retry,
        attempts=st.integers(1, 12),
        base=st.floats(0, 10),
        cap=st.floats(0, 100),
        total=st.floats(0, 1000),
    ),
    st.lists(st.floats(0, 0.999), min_size=12, max_size=12),
)
def test_waits_stay_below_their_bound_and_attempts_and_time_are_bounded(settings, numbers):
    source = iter(numbers)
    backoff = retry.Backoff(settings, lambda: next(source))
    elapsed, n = 0.0, 0
    while (wait := backoff.failed(elapsed=elapsed)) is not None:
        assert 0 <= wait <= min(settings.cap, settings.base * 2**n)
        elapsed += wait
        n += 1
        assert elapsed <= settings.total
    assert n < settings.attempts


def test_progress_starts_the_series_again():
    backoff = retry.Backoff(Retry(attempts=2, base=1), lambda: 0.5)
    assert backoff.failed(elapsed=0) == 0.5
    assert backoff.failed(elapsed=0) is None
    backoff.reset()
    assert backoff.failed(elapsed=0) == 0.5


def rejection(retry_after: float | None) -> errors.ServerError:
    return errors.ServerError("HTTP 503", status=503, retry_after=retry_after)


@given(
    st.builds(Retry, base=st.floats(0, 10), cap=st.floats(0, 100), attempts=st.just(10), total=st.just(1e9)),
    st.floats(0, 120),
    st.floats(0, 0.999),
    st.integers(1, 9),
)
def test_the_server_lengthens_a_wait_and_never_shortens_it(settings, retry_after, number, attempts):
    own = retry.Backoff(settings, lambda: number)
    asked = retry.Backoff(settings, lambda: number)
    for _ in range(attempts):
        planned = own.failed(elapsed=0)
        wait = asked.failed(rejection(retry_after), elapsed=0)
        assert planned is not None
        assert wait == max(planned, retry_after)
        assert planned is not None
        assert wait == retry.next_delay(planned, retry_after, cap=settings.retry_after_cap)


@pytest.mark.parametrize("header", ["0", "-1", "0.001", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_of_now_is_answered_by_the_usual_wait(header):
    backoff = retry.Backoff(Retry(base=1, cap=10), lambda: 0.5)
    seconds = retry.parse_retry_after(header, now=2e9)
    assert [backoff.failed(rejection(seconds), elapsed=0) for _ in range(3)] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("header", ["9" * 11, "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_retry_after_of_centuries_is_a_long_one_and_not_none(header):
    seconds = retry.parse_retry_after(header, now=0)
    assert seconds == 100 * 365.25 * 86_400
    assert retry.Backoff(Retry(), lambda: 0.5).failed(rejection(seconds), elapsed=0) is None
    assert retry.next_delay(5.0, seconds, cap=60.0) == 60.0


def test_retry_after_wins_up_to_a_ceiling():
    settings = Retry(retry_after_cap=60, total=100)
    assert retry.Backoff(settings, lambda: 0.0).failed(rejection(59), elapsed=0) == 59
    assert retry.Backoff(settings, lambda: 0.0).failed(rejection(61), elapsed=0) is None
    assert retry.Backoff(settings, lambda: 0.0).failed(rejection(59), elapsed=50) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        (" 0.5 ", 0.5),
        ("-4", 0.0),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("1_0", None),
        ("soon", None),
    ],
)
def test_retry_after_is_seconds_or_nothing(value, seconds):
    assert retry.parse_retry_after(value, now=0) == seconds


def test_retry_after_may_be_a_date():
    assert retry.parse_retry_after(formatdate(1_000_030, usegmt=True), now=1_000_000) == 30
    assert retry.parse_retry_after(formatdate(1_000_000, usegmt=True), now=1_000_030) == 0


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        ("Sun, 06 Nov 1994 08:49:37 UTC", 784111777),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 784111777),
        ("Sun, 06 Nov 1994 08:49:37", 784111777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        ("Sun Nov  6 08:49:37 1994", 784111777),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_dates_of_http_do_not_depend_on_the_zone_of_the_machine(monkeypatch, zone, text, expected):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        moment = retry.http_date(text)
        assert (None if moment is None else moment.timestamp()) == expected
        assert retry.parse_retry_after(text, now=784111770) == (None if expected is None else 7)
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (errors.ConnectFailed(), True),
        (errors.TimedOut(), True),
        (errors.Interrupted(), True),
        (errors.ServerError(status=500), True),
        (errors.RateLimited(status=429), True),
        (errors.StatusError(status=408), True),
        (errors.QuotaExceeded(status=429), False),
        (errors.NotFound(status=404), False),
        (errors.Unauthorized(status=401), False),
        (errors.Forbidden(status=403), False),
        (errors.DecodeError(), False),
    ],
)
def test_only_trouble_that_may_pass_is_worth_another_attempt(error, transient):
    assert retry.is_transient(error) is transient


NOW = 1_700_000_000.0


def tokens(**changes):
    return token_policy.Tokens(
        **{
            "access_token": "a",
            "access_expires": NOW + 86400,
            "access_lifetime": 86400.0,
            "refresh_token": "r",
            "refresh_expires": NOW + 90 * 86400,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("have", "step"),
    [
        (None, token_policy.Step.LOGIN),
        (tokens(access_token=""), token_policy.Step.LOGIN),
        (tokens(), token_policy.Step.USE),
        (tokens(access_expires=None), token_policy.Step.USE),
        (tokens(access_expires=NOW + 301), token_policy.Step.USE),
        (tokens(access_expires=NOW + 299), token_policy.Step.REFRESH),
        (tokens(access_expires=NOW - 1), token_policy.Step.REFRESH),
        (tokens(access_lifetime=300.0, access_expires=NOW + 31), token_policy.Step.USE),
        (tokens(access_lifetime=300.0, access_expires=NOW + 29), token_policy.Step.REFRESH),
        (tokens(access_lifetime=None, access_expires=NOW + 400), token_policy.Step.USE),
        (tokens(access_expires=NOW, refresh_token=""), token_policy.Step.LOGIN),
        (tokens(access_expires=NOW, refresh_expires=NOW), token_policy.Step.LOGIN),
        (tokens(access_expires=NOW, refreshes=token_policy.REFRESH_LIMIT - 1), token_policy.Step.REFRESH),
        (tokens(access_expires=NOW, refreshes=token_policy.REFRESH_LIMIT), token_policy.Step.LOGIN),
    ],
)
def test_tokens_are_used_refreshed_ahead_of_time_or_replaced_by_a_sign_in(have, step):
    assert token_policy.next_step(have, now=NOW) is step


def test_a_refresh_counts_and_keeps_the_refresh_token_and_its_end():
    before = tokens(refreshes=7)
    after = before.refreshed("b", 3600.0, now=NOW)
    assert (after.access_token, after.access_expires, after.refreshes) == ("b", NOW + 3600, 8)
    assert (after.refresh_token, after.refresh_expires) == ("r", before.refresh_expires)
    assert before.refreshed("b", None, now=NOW).access_expires is None
    assert token_policy.renewal(after, now=NOW) is token_policy.Step.REFRESH


def test_tokens_are_not_shown():
    shown = repr(tokens(access_token="s3cret", refresh_token="s3cret"))
    assert "s3cret" not in shown
    assert "s3cret" not in str(list(tokens(access_token="s3cret").__rich_repr__()))


@given(st.text(max_size=30))
def test_any_text_is_read_as_a_token_without_an_error(text):
    token_policy.jwt_expiry(text)
    token_policy.jwt_expiry(f"{text}.{text}.{text}")


def test_the_end_of_a_web_token_is_read():
    def jwt(payload):
        return f"h.{base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip('=')}.s"

    assert token_policy.jwt_expiry(jwt({"exp": 12})) == 12.0
    assert token_policy.jwt_expiry(jwt({"exp": True})) is None
    assert token_policy.jwt_expiry(jwt({})) is None
    assert token_policy.jwt_expiry(jwt([])) is None


S3 = b"""<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message>
<StringToSign>AWS4 hunter2</StringToSign></Error>"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", ""),
        (b'{"status":422,"message":"limit cannot be\\n\\tgreater"}\n', "limit cannot be greater"),
        (b'{"status":422}', ""),
        (b"{broken", ""),
        (S3, "AccessDenied: Request has expired"),
        (
            b"<html><head><title>Blocked &amp; gone</title></html>",
            "an HTML page, not a response of the API: Blocked & gone",
        ),
        (b"<p>", "an HTML page, not a response of the API"),
        (b"plain  words", "plain words"),
    ],
)
def test_the_servers_words_are_found_in_every_kind_of_body(body, words):
    assert error_responses.server_message(body) == words


def test_an_error_answer_becomes_one_error_without_secrets():
    error = error_responses.error_from_response(
        403,
        {"X-Request-Id": "abc", "Retry-After": "2"},
        S3,
        url="https://u:hunter2@store:8443/key?X-Amz-Signature=hunter2",
        now=0,
        product="snapshots",
    )
    assert isinstance(error, errors.Forbidden)
    assert (error.status, error.request_id, error.retry_after) == (403, "abc", 2)
    assert error.url == "https://store:8443/key"
    assert "does not include snapshots" in str(error)
    assert "hunter2" not in repr(error) + str(error.__dict__)


@pytest.mark.parametrize(
    ("status", "kind", "advice"),
    [
        (400, errors.BadRequest, ""),
        (401, errors.Unauthorized, "sign in again"),
        (404, errors.NotFound, ""),
        (407, errors.StatusError, "proxy"),
        (418, errors.StatusError, ""),
        (422, errors.Unprocessable, ""),
        (429, errors.RateLimited, ""),
        (500, errors.ServerError, ""),
        (503, errors.ServerError, ""),
    ],
)
def test_each_status_has_its_class(status, kind, advice):
    error = error_responses.error_from_response(status, {}, b"", url="http://h/p", now=0)
    assert type(error) is kind
    assert advice in str(error)


@pytest.mark.parametrize(
    ("location", "target"),
    [("/q?key=hunter2", "http://h/q"), ("http://[", "(not a URL)"), ("http://[bad]/", "(not a URL)")],
)
def test_the_target_of_a_redirect_is_shown_without_its_query_if_it_is_a_url(location, target):
    error = error_responses.error_from_response(302, {"Location": location}, b"", url="http://h/p", now=0)
    assert f"redirected to {target} (Location)" in str(error)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("role", ["store", "public"])
def test_no_sign_in_is_advised_for_hosts_that_never_get_the_account(role):
    error = error_responses.error_from_response(401, {}, b"wrong key", url="http://h/p", now=0, role=role)
    assert str(error) == "HTTP 401 from http://h/p: wrong key"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://[::1]:80/a?b#c", "http://[::1]:80/a"),
        ("http://h:port/a", "http://h/a"),
        ("http://[bad", "(not a URL)"),
    ],
)
def test_shown_urls_have_no_query(url, shown):
    assert error_responses.bare_url(url) == shown


def test_a_quota_takes_the_higher_count_and_knows_what_fits():
    limits = Allowances(snapshot=30, chunk=1500)
    quota = quota_of(
        month="2026-11",
        served={"snapshot": 3, "chunk": 2000},
        counted={"snapshot/2026-11": 5, "snapshot/2026-10": 29},
        limits=limits,
    )
    assert quota.snapshot.used == 5
    assert quota.snapshot.left == 25
    assert quota.chunk.left == 0
    assert quota.ondemand.left is None
    assert quota.allows(Cost(pool="snapshot", requests=25))
    assert not quota.allows(Cost(pool="snapshot", requests=26))
    assert quota.allows(Cost(pool="ondemand", requests=10**9))
    assert quota.allows(Cost(pool=None, requests=10**9))
    with pytest.raises(ValueError, match="pool must be"):
        quota.of("lunch")


def test_months_are_those_of_utc():
    assert month_of(1_793_491_199) == "2026-10"
    assert month_of(1_793_491_200) == "2026-11"


@given(st.dictionaries(st.sampled_from(["name", "version", "new", "message", "status", "error"]), st.integers()))
def test_an_error_has_a_word_for_it_and_nothing_that_a_record_has(document: dict[str, int]):
    known = frozenset({"name", "version"})
    expected = not known & document.keys() and bool(document.keys() & {"message", "status", "error"})
    assert error_responses.is_error_document(json.dumps(document).encode(), known) is expected
    assert error_responses.is_error_document(json.dumps([document, document]).encode(), known) is expected


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"message"', b'{"message":', b"\xff", b"[" * 10_000, b"[[1]]"])
def test_what_is_no_object_is_for_others_to_judge(body: bytes):
    assert not error_responses.is_error_document(body, frozenset())


def test_flat_names_of_metadata_are_known_by_their_object():
    assert not error_responses.is_error_document(b'{"size__value":1,"message":"x"}', frozenset({"size"}))
