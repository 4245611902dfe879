"""What a client is told of its job's end, and that it can check by whom."""

import base64
import hmac
import math
import time
from uuid import uuid4

import pytest
from pydantic import ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from jobs.settings import Settings
from jobs.storage.tables import JobReport
from jobs.webhooks.call import build_event_payload, build_payload, read_retry_after, send, sign
from tests.conftest import WEBHOOK_SECRETS
from tests.receiver import Receiver


def test_a_completed_job_names_its_adapter():
    job_id = uuid4()
    result = {"model_name": "support", "model_version": "2", "metrics": {"eval_loss": 1.5}}
    report = JobReport(job_id=job_id, result=result, output_path="/out/adapter", tracking_url="http://m/run")

    assert build_payload(job_id, "completed", report) == {
        "job_id": str(job_id),
        "status": "completed",
        "tracking_url": "http://m/run",
        "output_path": "/out/adapter",
        "model_name": "support",
        "model_version": "2",
        "metrics": {"eval_loss": 1.5},
    }


def test_a_failed_job_says_why_also_when_it_could_not_report():
    job_id = uuid4()
    report = JobReport(job_id=job_id, error="dataset x is not there", error_code="dataset_not_found")
    reported, killed = build_payload(job_id, "failed", report), build_payload(job_id, "failed", None, "exited with 137")

    assert (reported["error"], reported["error_code"]) == ("dataset x is not there", "dataset_not_found")
    assert (killed["error"], killed["error_code"]) == ("exited with 137", "crashed")


def test_what_is_told_before_the_end_names_its_event():
    job_id = uuid4()
    details = {"step": 10, "path": "/out/checkpoint-10", "other": 1}

    assert build_event_payload(job_id, "started", {}) == {
        "job_id": str(job_id), "status": "running", "event": "started",
    }  # fmt: skip
    assert build_event_payload(job_id, "checkpoint", details) == {
        "job_id": str(job_id), "status": "running", "event": "checkpoint", "step": 10, "path": "/out/checkpoint-10",
    }  # fmt: skip


def test_every_secret_of_a_rotation_verifies_a_call_and_no_other_does():
    receiver = Receiver(200)
    payload = {"job_id": "1", "error": "é ✓"}
    settings = Settings()
    secrets = [secret.get_secret_value() for secret in settings.webhook_secrets]
    assert send(receiver.url, "msg_1", payload, secrets, settings.webhook_allow).is_delivered
    receiver.close()

    ((headers, body),) = receiver.requests
    assert secrets == WEBHOOK_SECRETS
    assert headers["webhook-id"] == "msg_1"
    for secret in secrets:
        assert Webhook(secret).verify(body, headers) == payload
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body.replace(b"1", b"2"), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 43 + "=").verify(body, headers)


def test_signatures_are_those_of_the_specification():
    """HMAC-SHA256 of `id.timestamp.body` by each secret's bytes, whatever the library does."""
    body, now = '{"job_id":"ü"}', 1_700_000_000
    expected = []
    for secret in WEBHOOK_SECRETS:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        digest = hmac.digest(key, f"msg_1.{now}.{body}".encode(), "sha256")
        expected.append(f"v1,{base64.b64encode(digest).decode()}")
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(now)}
    assert sign(WEBHOOK_SECRETS, "msg_1", now, body) == headers | {"webhook-signature": " ".join(expected)}
    assert sign([], "msg_1", now, body) == headers


@pytest.mark.parametrize("secret", ["hunter2hunter2hunter2hunter2", "whsec_c2hvcnQ=", "whsec_!!!", "whsec_"])
def test_a_secret_that_is_none_is_refused_and_not_shown(monkeypatch, secret):
    monkeypatch.setenv("TUNEYARD_WEBHOOK_SECRETS", f"{WEBHOOK_SECRETS[0]},{secret}")
    with pytest.raises(ValidationError, match="must be whsec_ and the base64 of 24 to 64 random bytes") as caught:
        Settings()
    assert secret not in str(caught.value).replace("must be whsec_", "")
    assert WEBHOOK_SECRETS[0] not in str(caught.value)


def test_settings_do_not_show_secrets():
    assert WEBHOOK_SECRETS[0] not in repr(Settings()) + str(Settings())


@pytest.mark.parametrize(("value", "seconds"), [("120", 120), ("", 0), ("soon", 0), ("-5", 0), ("1.5", 0)])
def test_retry_after_in_seconds(value, seconds):
    assert read_retry_after(value) == seconds


def test_retry_after_as_a_date():
    moment = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 40 < read_retry_after(moment) <= 100
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "99999999999999999999999999",
        "-5",
        "1e400",
        "\u0663",
        "Mon, 99 Jan 2026 99:99:99 GMT",
        "x" * 9000,
    ],
)
def test_a_retry_after_that_no_date_holds_ends_no_delivery(value):
    assert 0 <= read_retry_after(value) < math.inf


@pytest.mark.parametrize("written", [f"{WEBHOOK_SECRETS[0]},", f" {WEBHOOK_SECRETS[0]} ,\n", f",{WEBHOOK_SECRETS[0]}"])
def test_a_list_may_end_with_a_comma(monkeypatch, written):
    monkeypatch.setenv("TUNEYARD_WEBHOOK_SECRETS", written)
    assert [secret.get_secret_value() for secret in Settings().webhook_secrets] == [WEBHOOK_SECRETS[0]]
