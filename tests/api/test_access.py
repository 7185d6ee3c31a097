"""Who may ask: keys, scopes, projects, a server without keys and the pages that must not reach it, and what is written down.

pytest tests/api/test_access.py
"""

import json
import socket

import httpx2
import openai
import pytest

from tunesmith.api.server import serve
from tunesmith.errors import UsageError
from tunesmith.jobs import keys, projects

ROUTES = {"infer": ("GET", "/v1/models"), "train": ("GET", "/v1/files"), "admin": ("GET", "/metrics")}
LINES = b'{"a": 1}\n'


@pytest.fixture
def service(inside):
    return inside(keyless=False)


# ---- keys and scopes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "},
                                  {"Authorization": "Bearer sk-ts-" + "a" * 43}, {"Authorization": "Basic c2s6dHM="},
                                  {"Authorization": b"Bearer \xff\xfe"}, {"Authorization": "Bearer " + "x" * 5000}])
def test_without_a_key_of_ours_everything_below_v1_is_401(service, sent):
    service.key("admin")
    for method, path in (("GET", "/v1/files"), ("POST", "/v1/chat/completions"), ("GET", "/v1/nothing"), ("GET", "/metrics")):
        answer = service.http().request(method, path, headers=sent)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError) as raised:
        service.openai("sk-wrong-1234567890").files.list()
    assert "sk-wrong" not in raised.value.message, "what was sent is not said back"
    assert service.http().get("/healthz").status_code == 200, "a probe needs no key"


@pytest.mark.parametrize("scope, allowed", [("infer", {"infer"}), ("train", {"infer", "train"}),
                                            ("admin", {"infer", "train", "admin"})])
def test_a_scope_allows_what_it_says_and_nothing_more(service, scope, allowed):
    http = service.http(service.key(scope))
    for needed, (method, path) in ROUTES.items():
        answer = http.request(method, path)
        assert answer.status_code == (200 if needed in allowed else 403)
        if needed not in allowed:
            assert answer.json()["error"]["code"] == "insufficient_scope" and needed in answer.json()["error"]["message"]


def test_a_key_that_is_revoked_is_refused_at_the_next_request(service):
    row, key = keys.add(service.database, "default", ["train"])
    client = service.openai(key)
    client.files.list()
    keys.revoke(service.database, row["id"])
    with pytest.raises(openai.AuthenticationError):
        client.files.list()


def test_the_header_of_a_project_has_to_be_the_keys(service):
    other = projects.add(service.database, "other")["id"]
    key = service.key("train", project="other")
    assert service.openai(key, project=other).files.list().data == []
    for wrong in ("proj_default", "proj_none", "other"):
        with pytest.raises(openai.AuthenticationError) as raised:
            service.openai(key, project=wrong).files.list()
        assert raised.value.code == "mismatched_project"


# ---- a server without keys --------------------------------------------------------------------------------------------


def test_without_keys_this_machine_needs_none_until_there_is_one(inside):
    service = inside()
    service.openai("anything").files.list()
    key = service.key("infer")
    with pytest.raises(openai.AuthenticationError):
        service.openai("anything").files.list()
    service.openai(key).models.list()
    with service.database.read() as connection:
        keys.revoke(service.database, keys.every(connection)[0]["id"])
    with pytest.raises(openai.AuthenticationError):
        service.openai("anything").models.list()


@pytest.mark.parametrize("headers, comes_in", [
    ({}, True), ({"Host": "localhost:8321"}, True), ({"Host": "[::1]:8321"}, True), ({"Host": "127.3.2.1"}, True),
    ({"Host": "127.0.0.1:5", "Origin": "http://127.0.0.1:5", "Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Host": "rebound.example"}, False), ({"Host": "rebound.example:8321", "Origin": "http://rebound.example:8321"}, False),
    ({"Host": "127.0.0.1.rebound.example"}, False), ({"Host": "localhost.rebound.example"}, False),
    ({"Host": "0.0.0.0"}, False),
    ({"Host": ""}, False), ({"Host": "[::1"}, True), ({"Host": "[2001:db8::1]"}, False), ({"Host": "192.168.0.7:80"}, False),
    ({"Origin": "https://evil.example"}, False), ({"Origin": "null"}, False), ({"Origin": "http://127.0.0.1:3000"}, False),
    ({"Origin": "http://127.0.0.1.evil.example"}, False), ({"Sec-Fetch-Site": "cross-site"}, False)])
def test_without_keys_pages_of_others_do_not_come_in(inside, headers, comes_in):
    service = inside()
    for method, path, status in (("GET", "/v1/files", 200), ("GET", "/metrics", 200), ("POST", "/v1/files", 400)):
        answer = service.http().request(method, path, headers=headers)
        assert answer.status_code == (status if comes_in else 403), answer.text
        assert "access-control-allow-origin" not in answer.headers


def test_with_a_key_the_name_of_the_host_is_anybodys(service):
    """Behind a proxy it is the public name; a foreign page has no key to send."""
    foreign = {"Host": "models.example", "Origin": "https://a.example"}
    answer = service.http(service.key("infer")).get("/v1/models", headers=foreign)
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


def test_a_server_that_others_can_reach_does_not_start_without_a_key(home, tmp_path, cli):
    done = cli("serve", "--host", "0.0.0.0", "--port", 0, "--base", tmp_path, check=2)
    assert "no API key was made" in done.stderr and "tunesmith access key add --project default --scope admin" in done.stderr
    done = cli("access", "key", "add", "--project", "default", "--scope", "admin", check=0)
    with pytest.raises(UsageError, match="nothing to serve"):
        serve(channels=[], releases=[], base=None, host="0.0.0.0", port=0, say=lambda line: None)


def test_a_server_on_loopback_says_that_it_needs_no_key_and_the_first_key_ends_that(start_server, home, tmp_path, command):
    (tmp_path / "config.yaml").write_text("aliases: {small: ./nowhere}\nworkers: 0\n", encoding="utf-8")
    server = start_server(home, "--config", str(tmp_path / "config.yaml"))
    assert httpx2.get(f"{server.url}/files").status_code == 200
    assert "no API key was made: everybody on this machine may do everything" in server.log.read_text(encoding="utf-8")
    key = command("access", "key", "add", "--project", "default", "--scope", "train", "--json", check=0).json
    assert httpx2.get(f"{server.url}/files").status_code == 401
    headers = {"Authorization": f"Bearer {key['key']}"}
    assert httpx2.get(f"{server.url}/files", headers=headers).status_code == 200
    command("access", "key", "revoke", key["id"], check=0)
    assert httpx2.get(f"{server.url}/files", headers=headers).status_code == 401
    assert key["key"] not in server.log.read_text(encoding="utf-8")


# ---- what is written down ---------------------------------------------------------------------------------------------


def test_every_change_and_every_refusal_is_a_row_and_reading_is_none(service):
    row, key = keys.add(service.database, "default", ["train"])
    client = service.openai(key)
    made = client.files.create(file=("secret-name.jsonl", LINES), purpose="fine-tune")
    client.files.list()
    client.files.content(made.id)
    client.files.delete(made.id)
    upload = client.uploads.create(bytes=1, filename="a", mime_type="a/b", purpose="evals")
    with pytest.raises(openai.BadRequestError):
        client.uploads.create(bytes=0, filename="a", mime_type="a/b", purpose="evals")
    service.http(key).get("/metrics")
    service.http("sk-ts-" + "wrong" * 10).get("/v1/files/sk-ts-abcdefghijklmnop")
    log = service.log()
    assert [(e["action"], e["object"], e["status"]) for e in log] == [
        ("POST /files", made.id, 200), ("DELETE /files/{}", made.id, 200), ("POST /uploads", upload.id, 200),
        ("POST /uploads", None, 400), ("GET /metrics", None, 403), ("GET", "/v1/files/sk-...", 401)]
    assert {(e["project_id"], e["key_id"]) for e in log[:-1]} == {("proj_default", row["id"])}
    assert (log[-1]["project_id"], log[-1]["key_id"]) == (None, None)
    assert {e["address"] for e in log} == {"127.0.0.1"} and log[0]["request_id"] == made._request_id
    told = json.dumps([dict(e) for e in log])
    assert key not in told and "wrong" not in told and "secret-name" not in told and '"a": 1' not in told


def test_whoever_has_an_answer_has_a_row(service):
    """The row is there before the answer is, so no change that a client knows of is missing."""
    seen, client = [], service.openai(service.key("train"))
    for _ in range(5):
        client.files.create(file=("a", LINES), purpose="evals")
        seen.append(len(service.log()))
    assert seen == [1, 2, 3, 4, 5]


def test_the_command_line_shows_the_log(service, command):
    service.openai(service.key("train")).files.create(file=("a", LINES), purpose="evals")
    service.http().get("/v1/files")
    found = command("access", "log", "--json", check=0).json["entries"]
    assert [(e["action"], e["status"]) for e in found] == [("GET", 401), ("POST /files", 200)]
    assert "POST /files" in command("access", "log", "--limit", "2", check=0).stdout


# ---- ids and headers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent, kept", [("abc-1.2_3", True), ("x" * 64, True), ("x" * 65, False), ("a b", False),
                                        ('"}{', False), ("", False)])
def test_every_answer_names_its_request(inside, sent, kept):
    for path in ("/v1/files", "/v1/nothing", "/healthz", "/v1/files/none"):
        answer = inside().http().get(path, headers={"X-Request-Id": sent})
        found = answer.headers.get_list("x-request-id")
        assert len(found) == 1 and (found == [sent] if kept else found[0].startswith("req_") and len(found[0]) == 28)


def test_answers_are_no_pages(inside):
    http = inside().http()
    page = {"file": ("a.html", b"<script>alert(1)</script>")}
    made = http.post("/v1/files", files=page, data={"purpose": "user_data"}).json()
    for path in ("/v1/files", "/v1/nothing", f"/v1/files/{made['id']}/content"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'") and "no-store" in headers["cache-control"]
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''a.html"


def test_the_server_does_not_say_what_it_is_made_of(bare):
    server, _ = bare
    assert "server" not in httpx2.get(f"{server.url}/files").headers
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port))) as raw:  # HTTP/1.0 has no Host
        raw.sendall(b"GET /v1/files HTTP/1.0\r\n\r\n")
        assert b" 403 " in raw.recv(1000).split(b"\r\n")[0]
