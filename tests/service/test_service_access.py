"""Who is answered: whoever has the token; without one, this machine's own page and clients, and no other page in a browser."""

import pytest
from served import serving

from study.errors import UserError
from study.service.settings import TOKEN_VARIABLE, ServiceSettings, is_loopback, read_token

TOKEN = "correct-horse-battery"
STUDIES = "/api/v1/studies"


@pytest.fixture(scope="module")
def guarded(made_home):
    with serving(ServiceSettings(home=made_home, token=TOKEN)) as client:
        yield client


@pytest.mark.parametrize("given", [None, "", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN])
@pytest.mark.parametrize("path", [STUDIES, f"{STUDIES}/grown/front", "/api/v1/openapi.json", "/api/v1/nothing"])
def test_without_the_token_nothing_is_told(guarded, path, given):
    answer = guarded.get(path, headers={} if given is None else {"Authorization": given})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "token" in answer.json()["error"]
    assert TOKEN not in answer.text


def test_the_token_is_a_header_and_no_part_of_an_address(guarded):
    assert guarded.get(STUDIES, headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    assert guarded.get(STUDIES, params={"token": TOKEN, "access_token": TOKEN}).status_code == 401
    assert guarded.get(STUDIES, headers={"Cookie": f"token={TOKEN}"}).status_code == 401


def test_the_page_and_the_pulse_need_no_token_and_do_not_hold_it(guarded):
    for path in ("/", "/static/page.js", "/static/page.css", "/healthz"):
        answer = guarded.get(path)
        assert answer.status_code == 200
        assert TOKEN not in answer.text
    assert 'data-token="yes"' in guarded.get("/").text


def test_with_a_token_any_name_of_the_host_will_do_and_any_origin(guarded):
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "gpu-box.example:8400", "Origin": "https://proxy.example"}
    assert guarded.get(STUDIES, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8400", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1"]
)
def test_without_a_token_a_name_that_somebody_else_gave_this_machine_is_refused(service, host):
    for path in ("/", STUDIES, "/healthz"):
        answer = service.get(path, headers={"Host": host})
        assert answer.status_code == 403
        assert "this machine's own name" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8400", "[::1]:8400"])
def test_this_machine_s_own_names_are_known(service, host):
    assert service.get(STUDIES, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ],
)  # fmt: skip
def test_without_a_token_another_page_can_neither_write_nor_read(service, headers):
    assert service.post(f"{STUDIES}/grown/stop", json={}, headers=headers).status_code == 403
    assert service.get(f"{STUDIES}/grown/front", headers=headers).status_code == 403


def test_the_own_page_may_write(service):
    headers = {"Origin": str(service.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert service.post(f"{STUDIES}/none/stop", json={}, headers=headers).status_code == 404


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_form_of_another_page_can_send_is_no_write(service, guarded, kind):
    for client, more in ((service, {}), (guarded, {"Authorization": f"Bearer {TOKEN}"})):
        answer = client.post(f"{STUDIES}/none/stop", content=b"{}", headers={"Content-Type": kind, **more})
        assert answer.status_code == 415


def test_no_page_of_others_may_read_frame_or_guess(service):
    for path in ("/", STUDIES, f"{STUDIES}/nothing", "/static/page.js"):
        headers = service.get(path, headers={"Origin": str(service.base_url).rstrip("/")}).headers
        assert "access-control-allow-origin" not in headers
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self';" in policy
        assert "default-src 'none'" in policy
    assert service.options(STUDIES, headers={"Origin": "https://evil.example"}).status_code in (403, 405)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7", "no.such.host.invalid"])
def test_elsewhere_than_on_this_machine_it_wants_a_token(tmp_path, host):
    with pytest.raises(UserError, match=r"must have a token, but --host is .* and there is none; set STUDY_TOKEN"):
        ServiceSettings(home=tmp_path, host=host)
    assert ServiceSettings(home=tmp_path, host=host, token=TOKEN).host == host


def test_this_machine_s_addresses_are_told_from_others():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.3.4.5", "localhost", "::1", "0.0.0.0", "10.0.0.1", "")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip


def test_a_token_comes_from_a_file_or_the_environment_and_leaves_the_environment(tmp_path, monkeypatch):
    import os

    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(None) == TOKEN
    assert TOKEN_VARIABLE not in os.environ
    assert read_token(None) is None
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-2\n")
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(file) == f"{TOKEN}-2"
    assert TOKEN_VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("token", "told"), [("", "has 0 characters"), ("short", "has 5"), ("a b" * 8, "others"), ("ü" * 20, "others")]
)
def test_a_token_that_can_be_guessed_or_sent_by_no_header_is_refused_and_not_shown(tmp_path, token, told):
    file = tmp_path / "secret"
    file.write_text(token)
    with pytest.raises(UserError, match=told) as caught:
        read_token(file)
    assert not token or token not in str(caught.value).replace(str(file), "")


def test_a_token_s_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="must be readable text"):
        read_token(tmp_path / "none")


def test_settings_do_not_print_the_token(tmp_path):
    assert TOKEN not in repr(ServiceSettings(home=tmp_path, token=TOKEN))
