"""Files and models that are sent to do harm: bombs, names, sizes and parts that are wrong, and many at once."""

import gzip
import hashlib
import io
import json
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pyarrow as pa

from tests.attack.case import Finding, Harm, Target, case
from tests.attack.children import write_page, write_rows_of_nothing
from tests.patience import PATIENCE

BOMB_SECONDS = 120.0 * PATIENCE  # until a bomb is refused: its check has 30 s of CPU time, and more by the megabyte
AT_ONCE = 20
BROKEN_OFF = 6  # of clients that go away in the middle
GONE_SECONDS = 20.0  # for what they have sent to be removed
MARK = "escapee"  # in each hostile name
NAMES = (
    f"../{MARK}", f"..\\{MARK}", f"/tmp/{MARK}", f"a/../../{MARK}", f"{MARK}\0x", f"{MARK}.lock", f"refs/heads/{MARK}",
    f"-f {MARK}", f"$(touch {MARK})", f"{MARK}@v1", f"{MARK}.jsonl", f"{MARK}\u202e", f"~{MARK}", f"{MARK}/..", "..",
    f"file-{'0' * 24}", "uploads", "HEAD", ".git", "x" * 300,
)  # fmt: skip
PURPOSE = {"purpose": "fine-tune"}
OPENAI_NAMES = 6  # of them are tried as files of OpenAI's interface too: each takes a process
PATHS = (
    "/datasets/{}", "/datasets/{}/content", "/datasets/{}/rows", "/datasets/uploads/{}", "/v1/files/{}/content",
    "/models/{}", "/models/local/{}", "/model-uploads/{}",
)  # fmt: skip
PLACES = ("../../../../etc/passwd", "..", ".git/config", "../registry", "a\0b", "%2e%2e/x")
# In the state folder; of an upload of `/v1/uploads` that has ended the record stays for a while.
WORKING = ("own-data/staging/*", "own-data/uploads/*", "own-data/file-uploads/*/[0-9]*-*", "models/.uploads/*")


def make_rows(name: str, count: int = 40) -> bytes:
    """Rows that no other file has."""
    rows = ({"instruction": f"Greet guest {row} of {name}.", "output": "Welcome!"} for row in range(count))
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def send(client: httpx.Client, filename: str, content: bytes, **fields: str) -> httpx.Response:
    """Add a file by a form."""
    return client.post("/datasets", files={"file": (filename, content)}, data=fields)


def zip_nothing() -> bytes:
    """Kilobytes that unpack to 256 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", bytes(2**28))
    return buffer.getvalue()


def write_by(write: Callable[[Path], object]) -> bytes:
    """What a function writes to a file."""
    with tempfile.NamedTemporaryFile() as file:
        write(Path(file.name))
        return Path(file.name).read_bytes()


BOMBS: dict[str, Callable[[], bytes]] = {
    "nul.jsonl.gz": lambda: gzip.compress(bytes(2**28), 1),
    "rows.jsonl.gz": lambda: gzip.compress(b'{"text": "a"}\n' * 2**19, 1),
    "twice.jsonl.gz": lambda: gzip.compress(gzip.compress(bytes(2**28), 1), 9),
    "cut.jsonl.gz": lambda: gzip.compress(make_rows("cut"))[:-9],
    "nul.jsonl.zst": lambda: pa.compress(bytes(2**28), codec="zstd", asbytes=True),
    "zip.jsonl": zip_nothing,
    "zip.csv": zip_nothing,
    "zip.parquet": zip_nothing,
    "zip.jsonl.gz": zip_nothing,
    "page.parquet": lambda: write_by(write_page),
    "nothing.parquet": lambda: write_by(write_rows_of_nothing),
    "nested.jsonl": lambda: b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested.json": lambda: b"[" * 100_000 + b"]" * 100_000,
    "columns.csv": lambda: b",".join(b"c%d" % number for number in range(200_000)) + b"\n1\n",
    "number.jsonl": lambda: b'{"text": ' + b"9" * 10**6 + b"}",
}


@case
def uploaded_bombs_are_refused(target: Target) -> Iterator[Finding]:
    """Archives, pages and nesting that grow without end: an answer in time for each, and nothing of them stays."""
    with target.client(timeout_seconds=BOMB_SECONDS + 30) as client:
        for name, make in BOMBS.items():
            content, began = make(), time.monotonic()
            answer = send(client, name, content, name=f"bomb-{began:.0f}")
            if (seconds := time.monotonic() - began) > BOMB_SECONDS:
                yield Finding(Harm.STARVED, f"{name}: an answer after {seconds:.0f} s")
            if answer.is_server_error:
                yield Finding(Harm.UNSETTLED, f"{name}: {answer.status_code} {answer.text[:200]}")
            if answer.is_success:  # as rows of another kind than it seems; no job has to take them
                client.delete(f"/datasets/{answer.json()['name']}")
    yield from find_leftovers(target.service.settings.home)


@case
def names_of_uploads_lead_nowhere(target: Target) -> Iterator[Finding]:
    """Of files, datasets, uploads and models, in forms, bodies and paths."""
    home = target.service.settings.home
    with target.client() as client:
        added = []
        for number, name in enumerate(NAMES):
            answers = [
                send(client, f"{name}.jsonl", make_rows(name)),
                send(client, "rows.jsonl", make_rows(name), name=name),
                client.post("/datasets/uploads", json={"filename": f"{name}.jsonl", "bytes": 5, "name": name}),
                client.post("/v1/uploads", json={"filename": name, "bytes": 5, **PURPOSE, "mime_type": name[:200]}),
                client.post("/models", json=announce(name)),
                client.post("/models", json=announce("attack/names", name)),
            ]
            if number < OPENAI_NAMES:
                file = {"file": (name, make_rows(name))}
                answers.append(client.post("/v1/files", files=file, data=PURPOSE))
            for answer in answers:
                if answer.is_server_error:
                    yield Finding(Harm.UNSETTLED, f"{name!r:.40}: {answer.status_code} {answer.text[:200]}")
                if answer.is_success:
                    added.append(answer.json())
        for one in added:
            if upload := one.get("upload_id"):
                client.delete(f"/model-uploads/{upload}" if "files" in one else f"/datasets/uploads/{upload}")
            elif one.get("object") == "upload":
                client.post(f"/v1/uploads/{one['id']}/cancel").raise_for_status()
            elif dataset := one.get("dataset") or one.get("name"):
                client.delete(f"/datasets/{dataset}")
        for path in PATHS:
            for place in PLACES:
                found = client.get(path.format(quote(place, safe="")))
                if found.is_server_error:
                    yield Finding(Harm.UNSETTLED, f"{found.url}: {found.status_code}")
                if "root:x:0" in found.text or "[core]" in found.text:
                    yield Finding(Harm.LEAKED, f"{found.url} is answered with a file: {found.text[:100]}")
    there = [*home.rglob(f"*{MARK}*"), *target.folder.rglob(f"*{MARK}*"), *Path(tempfile.gettempdir()).glob(f"{MARK}*")]
    if escaped := [path for path in there if ".git" not in path.parts]:
        yield Finding(Harm.ESCAPED, f"hostile names are files: {escaped[:5]}")
    yield from find_leftovers(home)


def announce(name: str, path: str = "model.safetensors") -> dict[str, object]:
    """Files of a base model, as `POST /models` takes them."""
    digest = hashlib.sha256(b"{}").hexdigest()
    return {"name": name, "files": [{"path": one, "bytes": 2, "sha256": digest} for one in ("config.json", path)]}


@case
def broken_parts_make_no_file(target: Target) -> Iterator[Finding]:
    """Wrong numbers, sizes and sums, parts sent twice, completed twice at once and deleted meanwhile."""
    home, content = target.service.settings.home, make_rows("parts", 400)
    third = -(-len(content) // 3)
    parts = [content[start : start + third] for start in range(0, len(content), third)]
    with target.client() as client, ThreadPoolExecutor(4) as pool:
        begin = {"filename": "attack-parts.jsonl", "bytes": len(content)}
        place = f"/datasets/uploads/{client.post('/datasets/uploads', json=begin).json()['upload_id']}"
        wrong = [
            client.put(f"{place}/parts/{number}", content=b"x") for number in (0, -1, 10_001, 2**70, "1.5", "x")
        ] + [
            client.put(f"{place}/parts/1", content=b""),
            client.put(f"{place}/parts/1", content=content + b"x"),
            client.put(f"{place}/parts/1", params={"sha256": "0" * 64}, content=parts[0]),
            client.post(f"{place}/complete"),
            *(client.post("/datasets/uploads", json=begin | {"bytes": size}) for size in (0, -1, 2**62, 2**63, 1e300)),
        ]
        for number, part in ((1, parts[1]), (2, parts[0]), (3, parts[2])):
            client.put(f"{place}/parts/{number}", content=part)
        wrong.append(client.put(f"{place}/parts/4", content=b"x"))
        for answer in wrong:
            if not answer.is_client_error and answer.status_code != httpx.codes.INSUFFICIENT_STORAGE:
                yield Finding(Harm.UNSETTLED, f"{answer.request.method} {answer.url}: {answer.status_code}")
        together = [pool.submit(client.put, f"{place}/parts/{number}", content=parts[number - 1]) for number in (1, 2)]
        for one in together:
            one.result()
        ends = [one.result() for one in [pool.submit(client.post, f"{place}/complete") for _ in range(3)]]
        if not any(end.is_success for end in ends) or any(end.is_server_error for end in ends):
            yield Finding(Harm.UNSETTLED, f"three that complete an upload: {[end.text[:100] for end in ends]}")
        if client.get("/datasets/attack-parts/content").content != content:
            yield Finding(Harm.UNSETTLED, "a file in parts that were corrected is another one")
        if len(client.get("/datasets/attack-parts").json()["versions"]) != 1:
            yield Finding(Harm.UNSETTLED, "an upload that is completed by three is more than one version")
        client.delete("/datasets/attack-parts")
        yield from _delete_while_completing(client, pool, content)
        yield from _spoil_model(client)
    yield from find_leftovers(home)


def _delete_while_completing(client: httpx.Client, pool: ThreadPoolExecutor, content: bytes) -> Iterator[Finding]:
    for seconds in (0.0, 0.1, 0.5):
        begin = {"filename": "attack-gone.jsonl", "bytes": len(content)}
        place = f"/datasets/uploads/{client.post('/datasets/uploads', json=begin).json()['upload_id']}"
        client.put(f"{place}/parts/1", content=content)
        end = pool.submit(client.post, f"{place}/complete")
        time.sleep(seconds)
        client.delete(place)
        if end.result().is_server_error:
            yield Finding(Harm.UNSETTLED, f"an upload that is deleted as it is completed: {end.result().text[:200]}")
        if end.result().is_success:
            if client.get("/datasets/attack-gone/content").content != content:
                yield Finding(Harm.UNSETTLED, "what was completed as it was deleted is another file")
            client.delete("/datasets/attack-gone")


def _spoil_model(client: httpx.Client) -> Iterator[Finding]:
    """Pieces beyond the end, before they are due, of other content, and a model that is none."""
    place = f"/model-uploads/{client.post('/models', json=announce('attack/spoiled')).json()['upload_id']}"
    for path, offset, piece in (
        ("config.json", 5, b"x"), ("config.json", 2**49, b"x"), ("config.json", -1, b"x"), ("config.json", 0, b"xxx"),
        ("config.json", 0, b"[]"), ("../config.json", 0, b"x"), ("other.json", 0, b"x"),
    ):  # fmt: skip
        answer = client.put(place, params={"path": path, "offset": offset}, content=piece)
        if not answer.is_client_error:
            yield Finding(Harm.UNSETTLED, f"{len(piece)} bytes at {offset} of {path}: {answer.status_code}")
    for path in ("config.json", "model.safetensors"):
        client.put(place, params={"path": path}, content=b"{}")
    if not (answer := client.post(f"{place}/complete")).is_client_error:
        yield Finding(Harm.UNSETTLED, f"a model that is none: {answer.status_code} {answer.text[:200]}")
    client.delete(place)
    if client.get("/models/attack/spoiled").is_success:
        yield Finding(Harm.ESCAPED, "a model that is none is there")


@case
def uploads_at_once_are_all_whole(target: Target) -> Iterator[Finding]:
    """Twenty at the same time, while others go away in the middle of theirs."""
    contents = {f"attack-many-{number}": make_rows(str(number), 5000) for number in range(AT_ONCE)}
    with target.client(timeout_seconds=120) as client, ThreadPoolExecutor(AT_ONCE + BROKEN_OFF) as pool:
        sent = {name: pool.submit(send, client, f"{name}.jsonl", content) for name, content in contents.items()}
        broken = [pool.submit(break_off, target, number) for number in range(BROKEN_OFF)]
        for one in broken:
            one.result()
        for name, content in contents.items():
            answer = sent[name].result()
            if not answer.is_success:
                yield Finding(Harm.STARVED, f"{name}: {answer.status_code} {answer.text[:200]}")
            elif client.get(f"/datasets/{name}/content").content != content:
                yield Finding(Harm.UNSETTLED, f"{name} is another file")
            client.delete(f"/datasets/{name}")
        for number in range(BROKEN_OFF):
            if client.get(f"/datasets/attack-broken-{number}").is_success:
                yield Finding(Harm.ESCAPED, "a file of which a part was sent is a version")
    yield from find_leftovers(target.service.settings.home)


def break_off(target: Target, number: int) -> None:
    """Send the beginning of a form, and go away."""
    place = urlsplit(target.url)
    head = (
        f"POST /datasets HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {target.keys['submit']}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 9000000\r\n\r\n--b\r\nContent-Disposition: "
        f'form-data; name="file"; filename="attack-broken-{number}.jsonl"\r\n\r\n'
    )
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as line:
        line.sendall(head.encode() + make_rows("broken", 2000))
        time.sleep(0.2 * number)


def find_leftovers(home: Path, patterns: Iterable[str] = WORKING) -> Iterator[Finding]:
    """Found: what is left of uploads in these places a while after the last one has ended."""
    end = time.monotonic() + GONE_SECONDS
    while left := [*list_working(home, patterns)]:
        if time.monotonic() > end:
            yield Finding(Harm.UNSETTLED, f"left of uploads: {left[:5]}")
            return
        time.sleep(0.5)


def list_working(home: Path, patterns: Iterable[str] = WORKING) -> Iterator[Path]:
    """What is there of uploads that are not published."""
    for pattern in patterns:
        yield from home.glob(pattern)
