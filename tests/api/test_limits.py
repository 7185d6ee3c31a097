"""What one client may take: bytes, requests and tokens a minute; and that a slow one holds up nobody.

pytest tests/api/test_limits.py
"""

import socket
import time

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.api.errors import BadParameter
from tunesmith.api.limits import RateLimits
from tunesmith.jobs import places
from tunesmith.jobs.settings import Limits

KB = 1024


def stored() -> list:
    root = places.service()
    return [p for kind in ("files", "uploads") for p in (root / kind).rglob("*") if p.is_file()]


def pieces(size: int, piece: int = 4 * KB):
    """A body without a length, as a client sends it in chunks."""
    for _ in range(-(-size // piece)):
        yield b" " * piece


# ---- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/uploads", "/v1/chat/completions", "/v1/nothing/here"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413_however_it_comes(inside, path, chunked):
    http = inside(limits={"body_bytes": 10 * KB}).http()
    body = {"content": pieces(40 * KB) if chunked else b" " * 40 * KB, "headers": {"Content-Type": "application/json"}}
    answer = http.post(path, **body)
    if path == "/v1/nothing/here" and chunked:
        assert answer.status_code == 404, "nobody reads it"
    else:
        assert answer.status_code == 413 and "larger than 10,240 bytes" in answer.json()["error"]["message"]
    assert http.post("/v1/uploads", content=b" " * 9 * KB, headers={"Content-Type": "application/json"}).status_code == 400


@pytest.mark.parametrize("size, fits", [(100 * KB, True), (100 * KB + 1, False), (300 * KB, False)])
def test_a_file_may_have_as_many_bytes_as_the_limit_says(inside, size, fits):
    client = inside(limits={"file_bytes": 100 * KB, "part_bytes": 100 * KB}).openai()
    upload = client.uploads.create(bytes=size, filename="a", mime_type="a/b", purpose="evals")
    for send in (lambda: client.files.create(file=("a", b"x" * size), purpose="evals"),
                 lambda: client.uploads.parts.create(upload.id, data=b"x" * size)):
        if fits:
            send()
            continue
        with pytest.raises(openai.APIStatusError) as raised:
            send()
        assert raised.value.status_code == 413 and "larger than" in raised.value.message
    assert len(stored()) == 2 * fits


def test_a_project_may_have_so_many_bytes_and_deleting_makes_room(inside):
    service = inside(limits={"project_bytes": 100 * KB, "upload_bytes": 80 * KB})
    client = service.openai()
    first = client.files.create(file=("a", b"x" * 60 * KB), purpose="evals")
    with pytest.raises(openai.APIStatusError, match="100|102,400") as raised:
        client.files.create(file=("a", b"x" * 60 * KB), purpose="evals")
    assert raised.value.code == "project_full"
    with pytest.raises(openai.BadRequestError, match="may have 102,400"):
        client.uploads.create(bytes=60 * KB, filename="a", mime_type="a/b", purpose="evals")
    with pytest.raises(openai.APIStatusError, match="an upload may have"):
        client.uploads.create(bytes=81 * KB, filename="a", mime_type="a/b", purpose="evals")
    assert len(stored()) == 1
    client.files.delete(first.id)
    client.uploads.create(bytes=60 * KB, filename="a", mime_type="a/b", purpose="evals")
    with pytest.raises(openai.APIStatusError):
        client.files.create(file=("a", b"x" * 60 * KB), purpose="evals")
    service.key("train")


# ---- requests and tokens ----------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.lists(st.floats(0, 100), max_size=60))
def test_in_any_minute_there_are_at_most_twice_as_many_requests_and_waiting_as_told_always_helps(limit, waits):
    """A full bucket at once and what flows into it meanwhile: never more, and `retry-after` is not too short."""
    now = [0.0]
    rates, let_in = RateLimits(Limits(requests_per_minute=limit), lambda: now[0]), []
    for wait in waits:
        now[0] += wait
        try:
            rates.take("key", False)
        except BadParameter as error:
            now[0] += int(error.headers["retry-after-ms"]) / 1000
            rates.take("key", False)
        let_in.append(now[0])
    for end in let_in:
        assert sum(end - 60 < at <= end for at in let_in) <= 2 * limit


def test_the_request_after_the_last_one_is_429_and_says_when_to_come_again(inside):
    service = inside(keyless=False, limits={"requests_per_minute": 3})
    first, second = service.key("train"), service.key("train")
    for left in (2, 1, 0):
        headers = service.http(first).get("/v1/files").headers
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("3", str(left))
        assert "x-ratelimit-limit-tokens" not in headers
    with pytest.raises(openai.RateLimitError) as raised:
        service.openai(first).files.list()
    error, headers = raised.value, raised.value.response.headers
    assert (error.code, error.type, error.param) == ("rate_limit_exceeded", "requests", None)
    assert 0 < int(headers["retry-after"]) <= 20 and 0 < int(headers["retry-after-ms"]) <= 20_000
    assert headers["x-ratelimit-remaining-requests"] == "0" and headers["x-ratelimit-reset-requests"] in (
        "1m0s", *(f"{n / 10:g}s" for n in range(400, 600)))
    service.openai(second).files.list()
    assert service.http().get("/v1/files").status_code == 401, "whoever has no key takes nothing of anybody's"
    assert service.http().get("/healthz").status_code == 200


def test_tokens_are_counted_when_they_are_known_and_an_answer_may_overdraw():
    now = [0.0]
    rates = RateLimits(Limits(tokens_per_minute=60), lambda: now[0])
    assert rates.take("a", True)["x-ratelimit-remaining-tokens"] == "60"
    rates.spend("a", 90)
    with pytest.raises(BadParameter, match="tokens per min") as raised:
        rates.take("a", True)
    assert (raised.value.status, raised.value.kind, raised.value.headers["retry-after"]) == (429, "tokens", "31")
    assert rates.take("a", False)["x-ratelimit-remaining-tokens"] == "0", "what takes no tokens goes on"
    rates.take("b", True)
    now[0] = 31.0
    rates.take("a", True)


def test_answers_of_a_model_are_counted_whole_and_streamed(start_server, home, tmp_path, lively_base):
    (tmp_path / "config.yaml").write_text(f"limits: {{tokens_per_minute: 1000}}\nbases: [{lively_base}]\n", encoding="utf-8")
    server = start_server(home, "--config", str(tmp_path / "config.yaml"))
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    asked = {"model": str(lively_base), "prompt": [5] * 300, "max_tokens": 8, "temperature": 0}

    def left() -> int:
        return int(httpx2.get(f"{server.url}/models").headers["x-ratelimit-remaining-tokens"])

    assert left() == 1000
    took = client.completions.create(**asked).usage.total_tokens
    assert 300 < took <= 308 and 1000 - took <= left() < 1000 - took + 100, "some flowed back meanwhile"
    before = left()
    list(client.completions.create(**asked, stream=True))
    assert before - left() > 200
    with pytest.raises(openai.RateLimitError) as raised:
        for _ in range(8):
            client.completions.create(**asked)
    assert raised.value.type == "tokens"
    client.models.list()


# ---- slow and broken clients ------------------------------------------------------------------------------------------


def connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    return socket.create_connection((host, int(port)))


HEAD = ("POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        'Content-Length: 1000\r\n\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc')


def test_sixty_uploads_that_drip_hold_up_nobody_and_leave_nothing_when_they_break_off(bare):
    """More than there are threads to wait in."""
    server, home = bare
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    dripping = [connect(server) for _ in range(60)]
    for one in dripping:
        one.sendall(HEAD.encode())
    for _ in range(3):
        for one in dripping:
            one.sendall(b"d")
        made = client.files.create(file=("b", b"x" * 100_000), purpose="evals")
        assert client.files.content(made.id).read() == b"x" * 100_000
        client.files.delete(made.id)
    files = home / "service" / "files" / "proj_default"
    for one in dripping:
        one.close()
    deadline = time.monotonic() + 30
    while list(files.iterdir()):
        assert time.monotonic() < deadline, list(files.iterdir())
        time.sleep(0.05)
    assert client.files.list().data == []
    assert "Traceback" not in server.log.read_text(encoding="utf-8"), "that is no failure of the server's"


def test_a_client_that_sends_far_too_much_hears_why(bare):
    """Over a real socket the server has to read on for a while, or the answer is lost with the connection."""
    server, _ = bare
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    with pytest.raises(openai.APIStatusError, match="larger than") as raised:
        client.files.create(file=("b", b"x" * 5_000_000), purpose="evals")
    assert raised.value.status_code == 413
    with connect(server) as raw:
        raw.sendall(b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n")
        assert raw.recv(1000).split(b"\r\n")[0] in (b"HTTP/1.1 413 Request Entity Too Large", b"HTTP/1.1 413 Content Too Large",
                                                    b"HTTP/1.1 400 Bad Request")
