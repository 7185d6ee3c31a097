"""Files and uploads with the official client.

pytest tests/api/test_files.py
"""

import io
import threading

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.api.files import safe_name
from tunesmith.jobs import places

ROW = b'{"messages": []}\n'
LINES = ROW * 20
BIG = b'{"n": 1234567}\n' * 300_000  # 4.5 MB
FILE_KEYS = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"}


@pytest.fixture
def service(inside):
    return inside()


@pytest.fixture
def client(service):
    return service.openai()


def on_disk() -> list:
    return [p for p in (places.service() / "files").rglob("*") if p.is_file()]


def test_a_file_goes_in_is_shown_listed_read_and_deleted(client):
    made = client.files.create(file=("train.jsonl", LINES), purpose="fine-tune")
    assert made.id.startswith("file-") and set(made.model_dump()) == FILE_KEYS
    assert (made.object, made.bytes, made.filename, made.purpose, made.status, made.expires_at) == (
        "file", len(LINES), "train.jsonl", "fine-tune", "processed", None)
    assert client.files.retrieve(made.id) == made == client.files.list().data[0] == client.files.wait_for_processing(made.id)
    assert client.files.content(made.id).read() == LINES
    assert client.files.delete(made.id).model_dump() == {"id": made.id, "object": "file", "deleted": True}
    assert on_disk() == [] and client.files.list().data == []
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as raised:
            call(made.id)
        assert raised.value.body["message"] == f"No such File object: {made.id}"
        assert (raised.value.body["param"], raised.value.body["type"]) == ("id", "invalid_request_error")


@pytest.mark.parametrize("given", [LINES, io.BytesIO(LINES), ("a.jsonl", io.BytesIO(LINES), "application/jsonl")])
def test_every_way_in_which_the_client_takes_a_file(client, given):
    assert client.files.create(file=given, purpose="evals").bytes == len(LINES)


def test_a_path_keeps_its_name(client, tmp_path):
    (tmp_path / "größe.jsonl").write_bytes(LINES)
    assert client.files.create(file=tmp_path / "größe.jsonl", purpose="fine-tune").filename == "größe.jsonl"


def test_a_large_file_arrives_byte_for_byte_and_leaves_so(client):
    made = client.files.create(file=("big.jsonl", BIG), purpose="fine-tune")
    assert made.bytes == len(BIG)
    assert client.files.content(made.id).read() == BIG


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=300) | st.sampled_from([b"\r\n--", b"\r\n--x--\r\n", b"-" * 300, b"\r\n" * 150]))
def test_any_bytes_come_back_as_they_were(client, data):
    """Also those that look like the seams of a form."""
    made = client.files.create(file=("x", data), purpose="user_data")
    assert client.files.content(made.id).read() == data


def test_lists_go_a_page_at_a_time_both_ways_and_by_purpose(client):
    ids = [client.files.create(file=("a", LINES), purpose=p).id for p in ("evals", "fine-tune") * 3]
    order = [f.id for f in client.files.list(order="asc")]
    assert sorted(order) == sorted(ids)
    assert [f.id for f in client.files.list()] == order[::-1]
    assert [f.id for f in client.files.list(limit=2, order="asc")] == order, "the client asks for page after page"
    page = client.files.list(limit=2, order="asc", after=order[1])
    assert [f.id for f in page.data] == order[2:4] and page.has_more
    assert [f.id for f in client.files.list(purpose="evals", limit=1)] == [i for i in order[::-1] if ids.index(i) % 2 == 0]
    assert client.files.list(purpose="vision").data == []
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}, {"after": "file-none"}, {"after": "a\0b"}):
        with pytest.raises(openai.BadRequestError) as raised:
            client.files.list(**wrong)
        assert raised.value.param == next(iter(wrong))


def test_a_file_expires_when_it_was_asked_to(client, service):
    import sqlalchemy as sa

    from tunesmith.jobs.tables import files

    made = client.files.create(file=("a", LINES), purpose="evals", expires_after={"anchor": "created_at", "seconds": 3600})
    assert made.expires_at == made.created_at + 3600
    with service.database.write() as connection:
        connection.execute(sa.update(files).values(expires_at=made.created_at - 1))
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert client.files.list().data == []
    for wrong, param in (({"anchor": "created_at", "seconds": 3599}, "seconds"), ({"anchor": "now", "seconds": 4000}, "anchor"),
                         ({"anchor": "created_at", "seconds": 2_592_001}, "seconds"), ({"seconds": 4000}, "anchor"),
                         ({"anchor": "created_at", "seconds": "²²²²"}, "seconds")):
        with pytest.raises(openai.BadRequestError) as raised:
            client.files.create(file=("a", LINES), purpose="evals", expires_after=wrong)
        assert raised.value.param == f"expires_after.{param}"


@pytest.mark.parametrize("data, line, start", [(b'{\n "a": 1\n}\n', 1, "{"), (b"{}\n[1, 2]\n", 2, "[1, 2]"),
                                               (b'"text that goes on"', 1, '"text th')])
def test_what_is_no_jsonl_is_refused_in_openais_words_and_not_kept(client, data, line, start):
    with pytest.raises(openai.BadRequestError) as raised:
        client.files.create(file=("a.jsonl", data), purpose="fine-tune")
    assert raised.value.body == {
        "message": "Expected file to have JSONL format, where every line is a JSON dictionary. "
                   f'Line {line} is not a dictionary (HINT: line starts with: "{start}...").',
        "type": "invalid_request_error", "param": None, "code": None}
    assert on_disk() == []


def form(*parts: tuple[str, str | None, bytes], boundary: str = "x", end: str = "--") -> dict:
    body = b""
    for name, filename, data in parts:
        quoted = f'; filename="{filename}"' if filename is not None else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{quoted}\r\n\r\n'.encode() + data + b"\r\n"
    return {"content": body + f"--{boundary}{end}\r\n".encode(),
            "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


FILE, PURPOSE = ("file", "a", LINES), ("purpose", None, b"evals")


@pytest.mark.parametrize("sent, param, words", [
    ({"json": {"file": "x", "purpose": "evals"}}, None, "multipart/form-data"),
    ({"content": b"", "headers": {"Content-Type": "multipart/form-data"}}, None, "multipart/form-data"),
    ({"content": b"no form", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, None, "no form"),
    (form(PURPOSE), "file", "Field required"),
    (form(FILE), "purpose", "Field required"),
    (form(FILE, ("purpose", None, b"assistants_output")), "purpose", "is not one of"),
    (form(FILE, ("purpose", None, b"\xff\0")), "purpose", "is not one of"),
    (form(FILE, PURPOSE, PURPOSE), "purpose", "twice"),
    (form(FILE, FILE, PURPOSE), "file", "one file"),
    (form(FILE, PURPOSE, ("id", None, b"file-mine")), "id", "Unknown parameter: 'id'"),
    (form(FILE, ("purpose", None, b"x" * 5000)), "purpose", "longer than"),
    (form(FILE, PURPOSE, end=""), None, "cut off"),
    (form(FILE, PURPOSE, boundary="b" * 300), None, "boundary"),
])
def test_a_form_that_is_not_right_is_a_bad_request_and_leaves_nothing(service, sent, param, words):
    answer = service.http().post("/v1/files", **sent)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param and words in answer.json()["error"]["message"]
    assert on_disk() == []


@pytest.mark.parametrize("given, shown", [
    ("../../etc/passwd", "passwd"), ("C:\\x\\train.jsonl", "train.jsonl"), ("a\0b\n.jsonl", "ab.jsonl"), ("..", "upload"),
    ("/", "upload"), ("", "upload"), ("inv\u202egpj.exe", "invgpj.exe"), (" x ", "x"),
    ("é" * 200 + ".jsonl", "é" * 124 + ".jsonl"), ("a" * 300, "a" * 255), ("x." + "b" * 400, "x." + "b" * 253)])
def test_names_are_for_showing(given, shown):
    assert safe_name(given) == shown


@given(st.text(max_size=400))
def test_every_name_is_one_line_of_at_most_255_bytes_and_no_path(name):
    safe = safe_name(name)
    assert 0 < len(safe.encode()) <= 255 and not set(safe) & set("/\\\0\n\r\u2028") and safe not in (".", "..")
    assert len(safe.splitlines()) == 1
    assert safe_name(safe) == safe


# ---- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [LINES, BIG])
def test_a_file_in_parts_by_the_clients_own_helper(client, data, tmp_path):
    (tmp_path / "in parts.jsonl").write_bytes(data)
    upload = client.uploads.upload_file_chunked(file=tmp_path / "in parts.jsonl", mime_type="text/jsonl", purpose="fine-tune",
                                                part_size=-(-len(data) // 3))
    assert (upload.object, upload.status, upload.bytes, upload.filename) == ("upload", "completed", len(data), "in parts.jsonl")
    assert upload.expires_at == upload.created_at + 3600
    assert upload.file == client.files.retrieve(upload.file.id)
    assert client.files.content(upload.file.id).read() == data
    assert not list((places.service() / "uploads").iterdir())


def begin(client, data=LINES, **options):
    asked = {"bytes": len(data), "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"} | options
    return client.uploads.create(**asked)


def test_parts_are_joined_in_the_order_that_complete_names_and_the_file_expires(client):
    upload = begin(client, expires_after={"anchor": "created_at", "seconds": 7200})
    assert (upload.status, upload.file) == ("pending", None)
    second, first = (client.uploads.parts.create(upload.id, data=d) for d in (LINES[170:], LINES[:170]))
    assert first.id.startswith("part_") and (first.object, first.upload_id) == ("upload.part", upload.id)
    done = client.uploads.complete(upload.id, part_ids=[first.id, second.id])
    assert client.files.content(done.file.id).read() == LINES
    assert done.file.expires_at == done.file.created_at + 7200
    assert client.uploads.complete(upload.id, part_ids=[first.id, second.id]) == done


def test_what_cannot_be_completed_says_why(client):
    upload = begin(client)
    part = client.uploads.parts.create(upload.id, data=LINES)
    for options, words in (({"part_ids": [part.id], "md5": "0" * 32}, "md5"), ({"part_ids": ["part_x"]}, "No such part"),
                           ({"part_ids": []}, "part_ids"), ({"part_ids": [part.id, part.id]}, "twice"),
                           ({"part_ids": [part.id], "md5": "short"}, "md5")):
        with pytest.raises(openai.BadRequestError, match=words):
            client.uploads.complete(upload.id, **options)
    assert client.uploads.cancel(upload.id).status == "cancelled"
    for call in (lambda: client.uploads.cancel(upload.id), lambda: client.uploads.parts.create(upload.id, data=b"x"),
                 lambda: client.uploads.complete(upload.id, part_ids=[part.id])):
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            call()
    for call in (client.uploads.cancel, lambda id: client.uploads.parts.create(id, data=b"x")):
        with pytest.raises(openai.NotFoundError, match="No such Upload object: upload_x"):
            call("upload_x")


@pytest.mark.parametrize("param, options", [
    ("bytes", {"bytes": 0}), ("bytes", {"bytes": 2**63}), ("bytes", {"bytes": "many"}), ("purpose", {"purpose": "other"}),
    ("mime_type", {"mime_type": "x"}), ("mime_type", {"mime_type": "a/" + "b" * 200}), ("filename", {"filename": "x" * 5000}),
    ("expires_after.seconds", {"expires_after": {"anchor": "created_at", "seconds": 1}}),
    ("parts", {"extra_body": {"parts": 3}})])
def test_an_upload_that_is_not_right_is_a_bad_request_that_names_it(client, param, options):
    with pytest.raises(openai.BadRequestError) as raised:
        begin(client, **options)
    assert raised.value.param == param


def test_completing_at_once_from_many_clients_makes_one_file(client, service):
    upload = begin(client)
    part = client.uploads.parts.create(upload.id, data=LINES)
    done, barrier = [], threading.Barrier(4)

    def complete() -> None:
        barrier.wait()
        done.append(service.openai().uploads.complete(upload.id, part_ids=[part.id]).file.id)

    threads = [threading.Thread(target=complete) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(done) == 4 and len(set(done)) == 1 == len(client.files.list().data) == len(on_disk())
