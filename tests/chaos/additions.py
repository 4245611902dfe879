"""Files that somebody adds meanwhile, by form, in parts or as OpenAI's client does: each is there once, or never."""

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.beside import Finding

PAUSE_SECONDS = 3.0  # between two additions
RETRY_SECONDS = 0.5
KEEP_SECONDS = 60.0  # of an upload in parts: TUNEYARD_KEEP_UPLOADS_HOURS
GIVE_UP = 0.35  # of those whose request got no answer
ROWS = (60, 60, 4000)
PARTS = 4
PART_SECONDS = 0.3  # between two parts of an upload
BETWEEN_PARTS, COMPLETING = "upload, parts", "upload, completion"  # what the one who adds is busy with
AGAIN = 4  # additions with an answer, and such without one, that are sent again at the end


@dataclass
class Addition:
    """A file; `references` has what answers called it, `refusal` an answer that it should not have had."""

    name: str
    content: bytes
    way: str
    references: set[str] = field(default_factory=set)
    unanswered: int = 0
    is_given_up: bool = False
    refusal: str | None = None


@dataclass
class Begun:
    """An upload of `/v1/uploads` that may be gone on with; its parts are sent from the last one to the first."""

    id: str
    at: float
    part_ids: list[str] = field(default_factory=list)


class Adder(threading.Thread):
    """Adds files, one after the other, until `close`. `busy_with` is the way of the one that waits for an answer."""

    def __init__(self, url: str, rng: random.Random, deadline: float) -> None:
        super().__init__(name="adder")
        self.additions: list[Addition] = []
        self.busy_with: str | None = None
        self._rng = random.Random(rng.random())  # noqa: S311 - no secret
        self._client = httpx.Client(base_url=url, timeout=60)
        self._deadline = deadline
        self._stopped = threading.Event()
        self._last_upload_at = 0.0
        self._uploads: dict[str, str] = {}  # by the name of the addition, those that may be gone on with
        self._begun: dict[str, Begun] = {}

    def run(self) -> None:
        """Add one after the other."""
        ways = {
            "form": self._send_form,
            "parts": self._send_parts,
            "file": self._send_file,
            "upload": self._send_upload,
        }
        while not self._stopped.is_set() and time.monotonic() < self._deadline:
            number = len(self.additions)
            way = [*ways][number % len(ways)]
            addition = Addition(f"added-{number}", make_rows(f"added-{number}", self._rng.choice(ROWS)), way)
            self.additions.append(addition)
            self._insist(addition, ways[way])
            self._stopped.wait(PAUSE_SECONDS)

    def close(self) -> None:
        """Finish the one that is begun."""
        self._stopped.set()
        self.join()

    def pick(self) -> str | None:
        """A version that an answer has named."""
        found = [one for addition in list(self.additions) for one in list(addition.references)]
        return found[-1] if found else None

    def _insist(self, addition: Addition, send: Callable[[Addition], httpx.Response]) -> None:
        """Send it until there is an answer, or give it up."""
        while time.monotonic() < self._deadline:
            self.busy_with = addition.way
            try:
                answer = send(addition)
            except httpx.TransportError:
                answer = None
            finally:
                self.busy_with = None
            if answer is not None and not answer.is_server_error:
                try:
                    addition.references.add(read_reference(answer.raise_for_status().json()))
                except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
                    addition.refusal = f"{answer.status_code} {answer.text[:200]}"
                return
            addition.unanswered += 1
            if self._stopped.is_set() or self._rng.random() < GIVE_UP:
                addition.is_given_up = True
                return
            time.sleep(RETRY_SECONDS)
        addition.is_given_up = True

    # -- the ways; each returns an error, or the answer that names the version

    def _send_form(self, addition: Addition) -> httpx.Response:
        return self._client.post("/datasets", files={"file": (f"{addition.name}.jsonl", addition.content)})

    def _send_file(self, addition: Addition) -> httpx.Response:
        files = {"file": (f"{addition.name}.jsonl", addition.content)}
        return self._client.post("/v1/files", files=files, data={"purpose": "fine-tune"})

    def _send_parts(self, addition: Addition) -> httpx.Response:
        """Go on with the upload that was begun, or begin another one if it is gone."""
        known = self._uploads.pop(addition.name, None)
        found = self._client.get(f"/datasets/uploads/{known}") if known else None
        if found is None or found.status_code == httpx.codes.NOT_FOUND:
            body = {"filename": f"{addition.name}.jsonl", "bytes": len(addition.content)}
            self._last_upload_at = time.monotonic()
            found = self._client.post("/datasets/uploads", json=body)
        if not found.is_success:
            return found
        upload = found.json()
        place = f"/datasets/uploads/{upload['upload_id']}"
        self._uploads[addition.name] = upload["upload_id"]
        there = {part["number"] for part in upload["parts"]}
        for number, part in enumerate(split(addition.content), 1):
            if number not in there:
                put = self._client.put(f"{place}/parts/{number}", content=part)
                if not put.is_success:
                    return self._or_begin_again(put, addition)
        return self._or_begin_again(self._client.post(f"{place}/complete"), addition)

    def _or_begin_again(self, answer: httpx.Response, addition: Addition) -> httpx.Response:
        """The answer; the upload may have expired, or be completed without an answer: then it is begun again."""
        if answer.status_code == httpx.codes.NOT_FOUND:
            del self._uploads[addition.name]
            return self._send_parts(addition)
        return answer

    def _send_upload(self, addition: Addition) -> httpx.Response:
        """Go on with the upload that was begun, without a look at it, as there is none; complete it twice."""
        if (begun := self._begun.get(addition.name)) is None:
            body = {"filename": f"{addition.name}.jsonl", "bytes": len(addition.content), "purpose": "fine-tune"}
            now = self._last_upload_at = time.monotonic()
            answer = self._client.post("/v1/uploads", json=body | {"mime_type": "application/jsonl"})
            if not answer.is_success:
                return answer
            begun = self._begun[addition.name] = Begun(answer.json()["id"], now)
        place = f"/v1/uploads/{begun.id}"
        self.busy_with = BETWEEN_PARTS
        for part in split(addition.content)[::-1][len(begun.part_ids) :]:
            put = self._client.post(f"{place}/parts", files={"data": part})
            if not put.is_success:
                return self._or_another(put, addition, begun)
            begun.part_ids.append(put.json()["id"])
            time.sleep(PART_SECONDS)
        self.busy_with = COMPLETING
        body = {"part_ids": begun.part_ids[::-1], "md5": hashlib.md5(addition.content).hexdigest()}  # noqa: S324
        first = self._client.post(f"{place}/complete", json=body)
        if not first.is_success:
            return self._or_another(first, addition, begun)
        addition.references.add(read_reference(first.json()))
        return self._client.post(f"{place}/complete", json=body)

    def _or_another(self, answer: httpx.Response, addition: Addition, begun: Begun) -> httpx.Response:
        """The answer; an upload that has expired is begun again."""
        if answer.is_client_error and time.monotonic() > begun.at + KEEP_SECONDS:
            del self._begun[addition.name]
            return self._send_upload(addition)
        return answer

    # -- at the end

    def examine(self, home: Path) -> list[Finding]:
        """What is broken, once the service is well; sends some of the files again."""
        findings = [*self._judge_what_is_there(), *self._judge_repeats()]
        listed = {one["name"] for one in self._client.get("/datasets").raise_for_status().json()}
        for name in listed - {addition.name for addition in self.additions}:
            findings.append(Finding("data_half", f"{name} is listed, and nobody added it"))
        findings += self._judge_leftovers(home)
        self._client.close()
        return findings

    def _judge_what_is_there(self) -> Iterator[Finding]:
        files = Counter(file["filename"] for file in self._client.get("/v1/files").raise_for_status().json()["data"])
        for addition in self.additions:
            name = addition.name
            if addition.refusal:
                yield Finding("data_lost", f"{name} ({addition.way}) was refused: {addition.refusal}")
            answer = self._client.get(f"/datasets/{name}")
            versions = answer.json()["versions"] if answer.is_success else []
            if addition.references and not versions:
                yield Finding("data_lost", f"{name} ({addition.way}) was added, and is gone: {answer.text[:200]}")
            if len(versions) > 1 or len(addition.references) > 1:
                yield Finding("data_duplicated", f"{name}: {len(versions)} versions, called {addition.references}")
            if (found := files[f"{name}.jsonl"]) != len(versions):
                harm = "data_lost" if found < len(versions) else "data_duplicated"
                yield Finding(harm, f"{name}: {len(versions)} versions, and {found} files in /v1/files")
            for version in versions:
                content = self._client.get(f"/datasets/{version['reference']}/content")
                if content.content != addition.content or version["bytes"] != len(addition.content):
                    yield Finding("data_half", f"{version['reference']} has other bytes than were added")

    def _judge_repeats(self) -> Iterator[Finding]:
        answered = [addition for addition in self.additions if addition.references]
        given_up = [addition for addition in self.additions if addition.is_given_up]
        for addition in given_up[-AGAIN:] + answered[-AGAIN:]:
            answer = self._send_form(addition)
            if not answer.is_success:
                yield Finding("data_lost", f"{addition.name} sent again: {answer.status_code} {answer.text[:200]}")
            elif (found := read_reference(answer.json())) not in (addition.references or {f"{addition.name}@v1"}):
                yield Finding("data_duplicated", f"{addition.name} sent again is {found}, not {addition.references}")

    def _judge_leftovers(self, home: Path) -> Iterator[Finding]:
        """Once uploads have expired, the next one removes what is left of them."""
        time.sleep(max(0.0, self._last_upload_at + KEEP_SECONDS + 1 - time.monotonic()))
        last = self._client.post("/datasets/uploads", json={"filename": "last.jsonl", "bytes": 1}).raise_for_status()
        self._client.delete(f"/datasets/uploads/{last.json()['upload_id']}").raise_for_status()
        body = {"filename": "last.jsonl", "bytes": 1, "purpose": "fine-tune", "mime_type": "application/jsonl"}
        last = self._client.post("/v1/uploads", json=body).raise_for_status()
        self._client.post(f"/v1/uploads/{last.json()['id']}/cancel").raise_for_status()
        for path in find_left_uploads(home / "own-data/file-uploads"):
            yield Finding("data_left", f"{path} is left")
        for place in ("staging", "uploads"):
            for path in (home / "own-data" / place).glob("*"):
                yield Finding("data_left", f"{path} is left")
        known = {addition.content for addition in self.additions}
        for path in (home / "own-data/content/files/md5").glob("*/*"):
            if path.read_bytes() not in known:
                yield Finding("data_left", f"{path} is the content of no version")


def find_left_uploads(folder: Path) -> Iterator[Path]:
    """Parts of uploads that have all ended, and records that are kept for longer than they may be."""
    yield from folder.glob("*/[0-9]*-*")
    for record in folder.glob("*/upload.json"):
        expired_at = datetime.fromisoformat(json.loads(record.read_text(encoding="utf-8"))["expires_at"])
        if expired_at + timedelta(seconds=KEEP_SECONDS) < datetime.now(UTC) - timedelta(seconds=1):
            yield record


def make_rows(name: str, count: int) -> bytes:
    """So many rows that no other addition has."""
    rows = (
        {"instruction": f"Greet guest {row} of {name}.", "output": f"Welcome, guest {row}!"} for row in range(count)
    )
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def split(content: bytes) -> list[bytes]:
    """The content in PARTS parts."""
    size = -(-len(content) // PARTS)
    return [content[start : start + size] for start in range(0, len(content), size)]


def read_reference(added: dict[str, Any]) -> str:
    """The version, in the answer of either interface."""
    return str(added.get("reference") or added.get("file", added)["dataset"])
