"""What is turned away before it is routed: too much, too often, too large; and that it costs nobody else anything."""

import asyncio
import json
import threading

import httpx
import pytest
from served import serving

from study.service import gate
from study.service.gate import Gate
from study.service.limits import Rate
from study.service.settings import ServiceSettings


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_client_may_make_a_second_s_worth_at_once_and_then_as_many_a_second():
    clock = Clock()
    rate = Rate(5, clock)
    assert [rate.take("a") for _ in range(5)] == [0.0] * 5
    assert rate.take("a") == pytest.approx(0.2)
    clock.now += 0.2
    assert (rate.take("a"), rate.take("a") > 0) == (0.0, True)
    clock.now += 1000
    assert sum(rate.take("a") == 0 for _ in range(20)) == 5


def test_one_client_s_haste_is_not_another_s():
    rate = Rate(2, Clock())
    assert [rate.take(client) == 0 for client in "aabab"] == [True, True, True, False, True]


def test_of_very_many_clients_the_last_are_remembered():
    rate = Rate(1, Clock())
    for number in range(10_000):
        rate.take(str(number))
    assert rate.take("9999") > 0
    assert len(rate._left) < 5000


def test_writes_and_reads_are_limited_apart_and_told_when_to_come_again(tmp_path):
    with serving(ServiceSettings(home=tmp_path, writes_per_s=2, reads_per_s=5)) as client:
        writes = [client.post("/api/v1/studies/none/stop", json={}) for _ in range(4)]
        assert [answer.status_code for answer in writes] == [404, 404, 429, 429]
        assert writes[-1].headers["Retry-After"] == "1"
        assert "at most 2 writes a second" in writes[-1].json()["error"]
        reads = [client.get("/api/v1/studies").status_code for _ in range(30)]
        assert reads[:5] == [200] * 5
        assert 429 in reads
        client.headers["Authorization"] = "Bearer guess"  # where there is no token, none buys more
        assert client.get("/api/v1/studies").status_code in (200, 429)


def test_a_wrong_token_counts_against_its_client_and_not_against_the_token(tmp_path):
    token = "t" * 20
    with serving(ServiceSettings(home=tmp_path, token=token, reads_per_s=10)) as client:
        wrong = {client.get("/api/v1/studies", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(30)}
        assert wrong == {401, 429}
        assert client.get("/api/v1/studies", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_large_is_not_read(service, told):
    body = b'{"name": "' + b"x" * 70_000 + b'"}'
    content = body if told else (body[start : start + 1000] for start in range(0, len(body), 1000))
    answer = service.post("/api/v1/studies", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "65536 bytes" in answer.json()["error"]


def test_a_body_that_comes_drop_by_drop_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_BODY_S", 0.2)
    sent = []

    async def drop():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/studies", "headers": headers, "client": ("127.0.0.1", 1)}
    asyncio.run(asyncio.wait_for(Gate(None, ServiceSettings(home=tmp_path))(scope, drop, send), 5))
    assert sent[0]["status"] == 408


def test_beyond_so_many_at_once_requests_are_turned_away_at_once_and_the_others_are_answered(tmp_path):
    held, told = asyncio.Event(), []

    async def app(scope, receive, send):
        await held.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(gate):
        messages = []

        async def send(message):
            messages.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)}
        await gate(scope, None, send)
        told.append((messages[0]["status"], messages[1]["body"]))

    async def run():
        gate = Gate(app, ServiceSettings(home=tmp_path, max_in_flight=3))
        asked = [asyncio.create_task(ask(gate)) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [status for status, _ in told] == [429, 429]
        assert "at most 3 requests" in json.loads(told[0][1])["error"]
        held.set()
        await asyncio.gather(*asked)
        await ask(gate)

    asyncio.run(run())
    assert [status for status, _ in told] == [429, 429, 200, 200, 200, 200]


def test_a_flood_is_shed_with_429_alone_and_the_service_stays_up(made_home):
    with serving(ServiceSettings(home=made_home, reads_per_s=30)) as client:
        statuses = []

        def flood():
            with httpx.Client(base_url=client.base_url, timeout=30) as own:
                statuses.extend(own.get("/api/v1/studies/grown").status_code for _ in range(40))

        threads = [threading.Thread(target=flood) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(statuses) == 320
        assert set(statuses) == {200, 429}
