"""docs/threat-model.md, row by row: what an attacker would do, done; and that each row names tests that exist.

pytest tests/api/test_threats.py
"""

import ast
import contextlib
import http.server
import json
import os
import pickle
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import AdapterError, TunesmithError
from tunesmith.jobs import places
from tunesmith.template.render import generation_prompt

ROOT = Path(__file__).parents[2]
JSON = {"Content-Type": "application/json"}


# ---- the page ---------------------------------------------------------------------------------------------------------


def test_every_row_of_the_threat_model_names_tests_that_exist():
    page = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| threat", "|--"))]
    named = [(row, re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)) for row in rows]
    assert len(rows) >= 20
    assert [row for row, tests in named if not tests] == [], "a row without a test"
    for file, test in {t for _, tests in named for t in tests}:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert test in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, f"{file} has no {test}"


# ---- what is loaded ---------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def bomb(tmp_path):
    """(bytes that make a directory when they are unpickled, whether they did, as a function)."""
    mark = tmp_path / "boom"
    data = pickle.dumps(Bomb(mark))
    pickle.loads(data)
    assert mark.exists(), "the control: it is live"
    mark.rmdir()
    return data, mark.exists


@pytest.fixture
def model(tiny_base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base)


@pytest.fixture
def adapter(model, tmp_path) -> Path:
    from peft import LoraConfig, get_peft_model

    path = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin", "training_args.bin"])
@pytest.mark.parametrize("beside", [True, False])
def test_pickled_weights_of_an_adapter_are_never_opened(adapter, tiny_base, bomb, name, beside):
    from transformers import AutoModelForCausalLM

    from tunesmith import methods

    data, went_off = bomb
    (adapter / name).write_bytes(data)
    if not beside:
        (adapter / "adapter_model.safetensors").unlink()
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    if beside:
        methods.load(base, adapter, name="x")
    else:
        with pytest.raises(AdapterError, match="no adapter_model.safetensors"):
            methods.load(base, adapter, name="x")
    assert not went_off()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
@pytest.mark.parametrize("beside", [True, False])
def test_pickled_weights_of_a_base_are_never_opened(tiny_base, tmp_path, bomb, name, beside):
    import torch

    from tunesmith.models.base import resolve
    from tunesmith.models.load import model_of, tokenizer_of

    data, went_off = bomb
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / name).write_bytes(data)
    if not beside:
        (base / "model.safetensors").unlink()
        with pytest.raises(TunesmithError, match="no .safetensors"):
            resolve(str(base))
    else:
        found = resolve(str(base))
        tokenizer_of(found)
        model_of(found, torch.float32)
    assert not went_off()


def test_code_that_comes_with_a_model_is_not_run(tiny_base, tmp_path):
    import torch

    from tunesmith.models.base import resolve
    from tunesmith.models.load import model_of, tokenizer_of

    base, mark = shutil.copytree(tiny_base, tmp_path / "base"), tmp_path / "ran"
    code = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\nclass Own: pass\n"
    for file in ("own.py", "configuration_own.py", "tokenization_own.py", "__init__.py", "setup.py"):
        (base / file).write_text(code, encoding="utf-8")
    for file, maps in (("config.json", {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "own.Own"}),
                       ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_own.Own", None]})):
        path = base / file
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"auto_map": maps}), encoding="utf-8")
    found = resolve(str(base))
    for load in (lambda: tokenizer_of(found), lambda: model_of(found, torch.float32)):
        with contextlib.suppress(TunesmithError):
            load()  # with the library's own classes, or not at all
    assert not mark.exists()
    exec(compile(code, "own.py", "exec"), {})
    assert mark.exists(), "the control: it would have left its mark"


# ---- templates --------------------------------------------------------------------------------------------------------

INJECTIONS = ["{{ 7 * 7 }}", "{% for x in messages %}x{% endfor %}", "{{ self._TemplateReference__context }}",
              "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{# hidden #}", "${7*7}", "{%raw%}{{}}{%endraw%}"]


@pytest.mark.parametrize("text", INJECTIONS)
def test_what_a_message_says_is_text_to_the_template(tiny_tokenizer, text):
    ids = generation_prompt(tiny_tokenizer, [{"role": "user", "content": text}])
    assert text in tiny_tokenizer.decode(ids)


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}{{ raise_exception('x') }}",
                                      "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}", "{% include '/etc/passwd' %}",
                                      "{{ lipsum.__globals__['os'].mkdir('MARK') }}"])
def test_a_template_of_a_base_reaches_nothing_outside_of_it(tiny_tokenizer, tmp_path, template):
    import copy

    tokenizer, mark = copy.deepcopy(tiny_tokenizer), tmp_path / "mark"
    tokenizer.chat_template = template.replace("MARK", str(mark))
    try:
        said = tokenizer.decode(generation_prompt(tokenizer, [{"role": "user", "content": "x"}]))
    except Exception as error:  # jinja2 has many, ours is one
        said = str(error)
    assert not mark.exists() and "root:" not in said and "<class 'object'>" not in said


# ---- a live server: what it fetches, what it renders, what stops it ---------------------------------------------------


@pytest.fixture(scope="module")
def trap():
    """(its URL, the paths that were asked of it): a server that should hear nothing."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.fixture(scope="module")
def listed(start_server, trap, lively_base, tmp_path_factory):
    """A server whose hub is the trap, and that may fetch one base from it."""
    folder = tmp_path_factory.mktemp("listed")
    (folder / "config.yaml").write_text(f"bases: [owner/listed, {lively_base}]\nworkers: 0\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", trap[0])
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("HF_HOME", str(folder / "hub"))
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        return start_server(folder / "home", "--config", str(folder / "config.yaml"))


def ask(server, model: str, **options) -> httpx2.Response:
    body = {"model": model, "max_tokens": 1, "temperature": 0, "messages": [{"role": "user", "content": "x"}]} | options
    return httpx2.post(f"{server.url}/chat/completions", json=body, timeout=60)


def test_nothing_that_a_request_names_is_fetched(listed, trap, lively_base):
    url, asked = trap
    own = str(lively_base)
    for name in (f"{url}/model", "owner/other", "owner/listed@other", "owner/listed/../other", "hf:owner/other", f"hf:{url}",
                 "pypi:llm-other", "git+https://x", "//127.0.0.1/x", "file:///etc/passwd", "/etc", "../..",
                 str(lively_base.parent), f"{own}/", f"{own}/../{lively_base.name}"):
        answer = ask(listed, name)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), name
        assert httpx2.get(f"{listed.url}/models/{quote(name, safe='')}").status_code == 404, name
    for part in ({"type": "image_url", "image_url": {"url": f"{url}/x.png"}},
                 {"type": "file", "file": {"file_url": f"{url}/x"}},
                 {"type": "input_audio", "input_audio": {"data": f"{url}/x", "format": "mp3"}}):
        assert ask(listed, own, messages=[{"role": "user", "content": [part]}]).status_code == 400
    assert asked == []
    assert ask(listed, "owner/listed").status_code == 400
    assert any("owner/listed" in path for path in asked), "the control: the trap hears what the server does fetch"


def test_a_request_cannot_bring_a_template_of_its_own(listed, lively_base):
    plain = ask(listed, str(lively_base))
    assert plain.status_code == 200
    for options in ({"chat_template": "{% for i in range(400) %}longer {% endfor %}"},
                    {"chat_template_kwargs": {"chat_template": "x" * 400}}, {"add_generation_prompt": False}):
        answer = ask(listed, str(lively_base), **options)
        assert answer.status_code == 400 or answer.json()["usage"] == plain.json()["usage"]
        assert answer.status_code == 400 or answer.json()["choices"] == plain.json()["choices"]


BROKEN = [
    b"[" * 200_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b'{"model": ' + b"9" * 100_000 + b"}", b'{"model": 1e999999}',
    b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', b'{"model": "\\ud800", "prompt": "x"}',
    b'{"model": "BASE", "messages": [{"role": "user", "content": "\\udfff"}]}', b'{"model": "BASE", "prompt": "\\udfff"}',
    b'{"model": "BASE", "prompt": "x", "stop": "\\udfff"}', b'{"model": "BASE", "prompt": "x", "\\udfff": 1}',
    b'{"model": "x", "messages": "\xff"}', b'{"model": "a\\u0000b", "messages": [{"role": "user", "content": "x"}]}', b"\x00",
    b"NaN", b'{"model": "x", "seed": -Infinity, "messages": []}', b'{"messages": [' + b'{"role":"user"},' * 50_000 + b"{}]}"]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_json_that_is_made_to_break_a_parser_is_a_client_error(listed, lively_base, content):
    for path in ("chat/completions", "completions", "uploads"):
        sent = content.replace(b"BASE", str(lively_base).encode())
        answer = httpx2.post(f"{listed.url}/{path}", content=sent, headers=JSON, timeout=60)
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert ask(listed, str(lively_base)).status_code == 200
    assert "Traceback" not in listed.log.read_text(encoding="utf-8")


# ---- paths and statements ---------------------------------------------------------------------------------------------

ESCAPES = ["..", "../..", "../../service.db", "..%2f..%2fservice.db", "%2e%2e%2f%2e%2e%2fservice.db", "/etc/passwd",
           "%2fetc%2fpasswd", "..\\..\\service.db", "%00", "file-x%00", "file-x%0a", "' OR '1'='1",
           "file-x'; DROP TABLE files; --", "%25", "x" * 5000,
           "é", "%ff%fe", "file-%F0%9F%98%80", "{{7*7}}", "$(id)", "*", "file-x?y=z", "CON"]


@pytest.mark.parametrize("id", ESCAPES)
def test_no_id_leads_out_of_a_projects_files(inside, id):
    http = inside().http()
    made = http.post("/v1/files", files={"file": ("a", b"mine")}, data={"purpose": "evals"}).json()["id"]
    before = sorted(p for p in places.service().rglob("*") if "service.db" not in p.name)
    for method, path, body in (("GET", "files/{}", {}), ("GET", "files/{}/content", {}), ("DELETE", "files/{}", {}),
                               ("POST", "uploads/{}/complete", {"json": {"part_ids": [id]}}), ("GET", "models/{}", {}),
                               ("POST", "uploads/{}/parts", {"files": {"data": b"x"}}), ("POST", "uploads/{}/cancel", {})):
        answer = http.request(method, f"/v1/{path.format(id)}", follow_redirects=False, **body)
        assert 400 <= answer.status_code < 500 and b"SQLite" not in answer.content and b"root:" not in answer.content
    assert http.get("/v1/files", params={"after": id}).status_code == 400
    assert sorted(p for p in places.service().rglob("*") if "service.db" not in p.name) == before
    assert http.get(f"/v1/files/{made}/content").content == b"mine"


@pytest.fixture
def opened(inside):
    return inside().openai()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=40) | st.sampled_from(["../../../x", "/etc/cron.d/x", "a\0b", "..\\x", "\u202egpj.exe"]))
def test_no_filename_becomes_a_path(opened, name):
    client = opened
    made = client.files.create(file=(name or "x", b"mine"), purpose="user_data")
    assert [p.name for p in (places.service() / "files").rglob("*") if p.is_file()] == [made.id]
    upload = client.uploads.create(bytes=1, filename=name, mime_type="a/b", purpose="evals")
    assert not set(made.filename + upload.filename) & set("/\\\0")
    client.uploads.cancel(upload.id)
    client.files.delete(made.id)


# ---- what comes out ---------------------------------------------------------------------------------------------------


def test_a_failure_inside_is_told_to_the_log_without_keys_and_to_the_client_by_its_number(inside, capfd):
    from tunesmith.errors import StoreError

    service = inside(keyless=False)
    key = service.key("infer")

    @service.app.get("/v1/broken")
    def broken():
        raise RuntimeError(f"secret detail of {key}")

    @service.app.get("/v1/full")
    def full():
        raise StoreError("could not write /var/lib/secret", why="no space left")

    @service.app.get("/v1/half")
    async def half():
        from starlette.responses import StreamingResponse

        async def pieces():
            yield b"half"
            raise RuntimeError("secret detail")

        return StreamingResponse(pieces())

    for path in ("broken", "full"):
        answer = service.http(key).get(f"/v1/{path}", headers={"X-Request-Id": "mine-7"})
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert error["type"] == "server_error" and "mine-7" in error["message"] and "secret" not in answer.text
    service.http(key).get("/v1/half")
    log = capfd.readouterr().err
    assert "request mine-7 failed" in log and "RuntimeError: secret detail of sk-..." in log and "/var/lib/secret" in log
    assert key not in log and "test_threats.py" in log, "where it was, too"


def test_each_project_computes_in_a_home_of_its_own(home):
    """What one project's job has computed is not there, faster, for another's."""
    homes = [places.project_home(p) for p in ("proj_default", "proj_a", "proj_b")]
    assert len(set(homes)) == 3 and homes[0] == home
    for kind in ("runs", "datasets", "releases", "sweeps"):
        assert not [1 for a in homes for b in homes if a != b and (a / kind in b.parents or a / kind == b)]
