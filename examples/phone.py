#!/usr/bin/env python3
"""An offline-first device client of Posduif in Python, with the standard library only.

It implements docs/sync-protocol.md: the docstrings name its headings. Everything that the device stores is in one
SQLite file, and the user reads and writes that file, with or without a network.

    phone.py --db phone.db enroll http://127.0.0.1:8080/api/enrollment/<token>
    phone.py --db phone.db sync
    phone.py --db phone.db create tasks '{"list_id": "6c69...", "title": "Milk"}'
    phone.py --db phone.db follow
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import queue
import random
import socket
import sqlite3
import sys
import threading
import time
import uuid
import zlib
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Callable, Iterator
from urllib.parse import quote, urlencode, urlsplit

Row = Json = dict[str, Any]

REQUEST_SECONDS = 40.0      # more than server.request_timeout_seconds (30)
SILENCE_SECONDS = 45.0      # three heartbeats (live.heartbeat_seconds, 15)
LONGEST_WAIT_SECONDS = 3600.0
RECOVERIES_MAX = 30         # answers 409 in one sync
TIME = "%Y-%m-%dT%H:%M:%SZ"
DEFAULTS = {"upload_items": 1000, "sync_interval": 300}     # of the server, until it has sent its own


class PhoneError(Exception):
    """A failure with a message for the user."""


class NotEnrolled(PhoneError):
    """The device has no token. Rows, cursor and outbox are kept."""


class Unanswered(PhoneError):
    """No answer, or one that permits a repetition: 429, 5xx or `retryable`."""

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class Refused(PhoneError):
    """An answer that a repetition does not change: 400, 403, 404, 409, 413, 415."""

    def __init__(self, status: int, code: str, message: str, details: Json):
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.details = status, code, details


# Storage
SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (
    tbl TEXT, id TEXT, row TEXT NOT NULL,
    via TEXT,                               -- the audiences as JSON; null where the server sends none
    old INTEGER NOT NULL,                   -- the current snapshot has not sent it
    brought INTEGER NOT NULL,               -- a batch has brought it, not only the result of an own item
    PRIMARY KEY (tbl, id));
CREATE TABLE IF NOT EXISTS settled (
    tbl TEXT, id TEXT, number INTEGER,      -- `revision` of a message, `version` of other rows
    old INTEGER NOT NULL,                   -- settled before the current snapshot, which has not sent the row
    PRIMARY KEY (tbl, id));
CREATE TABLE IF NOT EXISTS groups (audience TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY, tbl TEXT NOT NULL, op TEXT NOT NULL, id TEXT NOT NULL, row TEXT,
    base_version INTEGER, base_seq INTEGER,
    base_done INTEGER NOT NULL DEFAULT 0,   -- the item of base_seq has a result and did not fail
    base_result INTEGER,                    -- the version of that result
    sent INTEGER NOT NULL DEFAULT 0,        -- an attempt may have reached the server
    gone INTEGER NOT NULL DEFAULT 0);       -- since then, batches deleted or replaced its row
CREATE TABLE IF NOT EXISTS refused (
    n INTEGER PRIMARY KEY AUTOINCREMENT, seq INTEGER NOT NULL, tbl TEXT NOT NULL, op TEXT NOT NULL, id TEXT NOT NULL,
    row TEXT, status TEXT NOT NULL, code TEXT, message TEXT, server TEXT);
"""


@dataclass
class StoredRow:
    row: Row
    via: list[str] | None
    old: bool
    brought: bool


@dataclass
class Item:
    """A change of the user without a result."""

    seq: int
    table: str
    op: str
    id: str
    row: Row | None
    base_version: int | None
    base_seq: int | None
    base_done: bool
    base_result: int | None
    sent: bool
    gone: bool

    def body(self) -> Json:
        """Sequence numbers: the item as it is sent, the same in each attempt."""
        body: Json = {"seq": self.seq, "table": self.table, "op": self.op, "id": self.id}
        for key in ("row", "base_version", "base_seq"):
            if getattr(self, key) is not None:
                body[key] = getattr(self, key)
        return body


def dump(value: Any) -> str | None:
    return json.dumps(value) if value is not None else None


def number_of(table: str, row: Json) -> int | None:
    """Batches: what orders the versions of a row, if anything does."""
    number = row.get("revision" if table == "messages" else "version")
    return number if isinstance(number, int) else None


def effect(row: Row | None, item: Item, user_id: str | None) -> Row | None:
    """What a device stores: the row as the user sees it, with the change of the item applied."""
    if item.op == "create":
        sent = {"sender_id": user_id, "status": "pending_sync", "synced_at": None, "read_at": None}
        return {"id": item.id} | (sent if item.table == "messages" else {}) | (row or {}) | (item.row or {})
    if row is None or item.op == "delete":
        return None
    read = {"read_at": row.get("read_at") or time.strftime(TIME, time.gmtime()), "status": "read"}
    return row | (read if item.op == "read" else item.row or {})


class Store:
    """What a device stores: one SQLite file with transactions that survive a crash."""

    def __init__(self, path: str):
        self.db = sqlite3.connect(path, timeout=30, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.executescript(SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. A transaction within another one is part of it."""
        if self.db.in_transaction:
            yield
            return
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def get(self, key: str) -> str | None:
        found = self.db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def set(self, **settings: Any) -> None:
        """Stores settings; None deletes one."""
        with self.transaction():
            for key, value in settings.items():
                self.db.execute("DELETE FROM settings WHERE key = ?", (key,))
                if value is not None:
                    self.db.execute("INSERT INTO settings VALUES (?, ?)", (key, str(value)))

    def number(self, key: str) -> int:
        return int(self.get(key) or DEFAULTS.get(key, 0))

    def row(self, table: str, id: str) -> StoredRow | None:
        found = self.db.execute("SELECT row, via, old, brought FROM rows WHERE tbl = ? AND id = ?",
                                (table, id)).fetchone()
        return StoredRow(json.loads(found[0]), json.loads(found[1] or "null"), *found[2:]) if found else None

    def put_row(self, table: str, id: str, stored: StoredRow) -> None:
        self.db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?)",
                        (table, id, dump(stored.row), dump(stored.via), stored.old, stored.brought))

    def delete(self, kind: str, table: str, id: str) -> None:
        self.db.execute(f"DELETE FROM {kind} WHERE tbl = ? AND id = ?", (table, id))

    def view(self, table: str) -> dict[str, Row]:
        """What a device stores: the rows with the changes of the outbox applied to them."""
        rows = {id: json.loads(row) for id, row in
                self.db.execute("SELECT id, row FROM rows WHERE tbl = ? ORDER BY id", (table,))}
        for item in self.items("tbl = ?", table):
            row = effect(rows.get(item.id), item, self.get("user_id"))
            rows.pop(item.id, None) if row is None else rows.__setitem__(item.id, row)
        return rows

    def settled(self, table: str, id: str) -> tuple[bool, int | None]:
        found = self.db.execute("SELECT number FROM settled WHERE tbl = ? AND id = ?", (table, id)).fetchone()
        return (True, found[0]) if found else (False, None)

    def settle(self, table: str, id: str, number: int | None) -> None:
        self.db.execute("INSERT OR REPLACE INTO settled VALUES (?, ?, ?, 0)", (table, id, number))

    def audiences(self) -> set[str]:
        """Groups: the audiences of a device are its user, the tenant and the groups that it has stored."""
        groups = self.db.execute("SELECT audience FROM groups").fetchall()
        return {"tenant", f"user:{self.get('user_id')}", *(audience for audience, in groups)}

    def items(self, where: str = "1", *values: Any, limit: int = -1) -> list[Item]:
        rows = self.db.execute(f"SELECT * FROM outbox WHERE {where} ORDER BY seq LIMIT ?", (*values, limit)).fetchall()
        return [Item(*row[:4], json.loads(row[4] or "null"), *row[5:]) for row in rows]

    def put_item(self, item: Item) -> None:
        self.db.execute("INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (item.seq, item.table, item.op, item.id, dump(item.row), item.base_version, item.base_seq,
                         item.base_done, item.base_result, item.sent, item.gone))

    def mark_gone(self, table: str, id: str) -> None:
        """Uploads: batches have deleted or replaced the row since its items were first sent."""
        self.db.execute("UPDATE outbox SET gone = 1 WHERE sent AND tbl = ? AND id = ?", (table, id))

    def mark_missing_gone(self) -> None:
        """Uploads: the same for all rows that the device does not have, after a snapshot or a `leave`."""
        self.db.execute("UPDATE outbox SET gone = 1 WHERE sent AND NOT EXISTS"
                        " (SELECT 1 FROM rows WHERE rows.tbl = outbox.tbl AND rows.id = outbox.id)")

    def refuse(self, item: Item, status: str, code: str | None, message: str | None, server: Row | None = None) -> None:
        """What a device stores: keeps what was not applied, with the reason, until the user has seen it."""
        self.db.execute("INSERT INTO refused (seq, tbl, op, id, row, status, code, message, server)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (item.seq, item.table, item.op, item.id, dump(item.row), status, code, message, dump(server)))

    def renumber(self, items: list[Item], first: int) -> None:
        """Replaces the outbox by these items, numbered from `first`, with their `base_seq` numbered likewise."""
        numbers = {item.seq: first + place for place, item in enumerate(items)}
        self.db.execute("DELETE FROM outbox")
        for item in items:
            item.seq, item.base_seq = numbers[item.seq], numbers.get(item.base_seq or 0, item.base_seq)
            self.put_item(item)


# Requests
def base_of(url: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection to the server of a URL, and the path of that URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PhoneError(f"not an address of a server: {url}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=REQUEST_SECONDS), parts.path.rstrip("/")


@contextmanager
def network() -> Iterator[None]:
    """Delays: a failure of the network, or half of an answer, is no answer."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError, EOFError, zlib.error) as error:
        raise Unanswered(f"no answer from the server: {error or type(error).__name__}") from error


def answer_of(response: http.client.HTTPResponse) -> Json:
    """Delays: the JSON of an answer. Separates errors that permit a repetition from those of the client."""
    content = response.read()
    if response.headers.get("Content-Encoding") == "gzip":
        content = gzip.decompress(content)
    if response.status < 300:
        return json.loads(content or b"{}")
    error: Json = {}
    with suppress(ValueError, AttributeError):      # a proxy in between answers in HTML
        error = json.loads(content).get("error") or {}
    code, message = error.get("code", ""), error.get("message", response.reason)
    if response.status == 401:
        raise NotEnrolled(f"the server refuses the device token ({code}): enroll again")
    if response.status == 429 or response.status >= 500 or error.get("retryable"):
        given = response.headers.get("Retry-After", "")
        raise Unanswered(f"{response.status} {code}: {message}", float(given) if given.isdigit() else None)
    raise Refused(response.status, code, message, error.get("details") or {})


class Backoff:
    """Delays: 1 s, doubled up to 1 min, with a random delay of up to the same length, and `Retry-After`."""

    def __init__(self) -> None:
        self.base = 1.0

    def next(self, retry_after: float | None = None) -> float:
        base, self.base = self.base, min(60.0, self.base * 2)
        wait = base if retry_after is None else max(retry_after, 0.0)
        return min(wait + random.uniform(0, base), LONGEST_WAIT_SECONDS)


def within(seconds: float, action: Callable[[], int]) -> int:
    """Delays: repeats what has no answer, at the earliest after `Retry-After`, until the time is over."""
    deadline, backoff = time.monotonic() + seconds, Backoff()
    while True:
        try:
            return action()
        except Unanswered as error:
            wait = backoff.next(error.retry_after)
            if time.monotonic() + wait > deadline:
                raise
            time.sleep(wait)


# The device
class Phone:
    """A device: its storage, and the requests that change it."""

    def __init__(self, path: str, batch_rows: int | None = None):
        self.store = Store(path)
        self.batch_rows = batch_rows

    def request(self, method: str, path: str, body: Json | None = None, base: str | None = None) -> Json:
        """Sends one request and returns the JSON of a successful answer."""
        connection, prefix = base_of(base or self.store.get("server") or "")
        headers = {"Accept-Encoding": "gzip"} | (self.credentials() if base is None else {})
        if body is not None:
            headers["Content-Type"] = "application/json"
        with closing(connection), network():
            connection.request(method, prefix + path, dump(body), headers)
            return answer_of(connection.getresponse())

    def credentials(self) -> dict[str, str]:
        token = self.store.get("device_token")
        return {"X-Device-ID": self.store.get("device_id") or "", "Authorization": f"Bearer {token}"} if token else {}

    @contextmanager
    def signed_in(self) -> Iterator[None]:
        """States and events. Without a token nothing is sent; 401 and `revoked` delete it and keep the rest."""
        token = self.store.get("device_token")
        if token is None:
            raise NotEnrolled("this device is not enrolled: phone.py enroll URL")
        try:
            yield
        except NotEnrolled:
            with self.store.transaction():
                if self.store.get("device_token") == token:
                    self.store.set(device_token=None)
            raise

    def enroll(self, url: str) -> int:
        """Unenrolled: completes an enrollment, or repeats it. Returns how many changes of another user it deleted."""
        server, found, token = url.strip().rpartition("/api/enrollment/")
        if not found:
            raise PhoneError("not an enrollment URL: expected <server>/api/enrollment/<token>")
        with self.store.transaction():
            if self.store.get("enrollment_url") != url.strip():
                device_id = self.store.get("device_id") or uuid.uuid4()
                self.store.set(enrollment_url=url.strip(), enrollment_device=device_id)
        try:
            return self.store_identity(server, self.complete_enrollment(server, token))
        except Refused as error:
            if error.code in ("ENROLLMENT_USED", "ENROLLMENT_EXPIRED") or error.status == 404:
                self.store.set(enrollment_url=None)
                raise PhoneError(f"{error}: a new enrollment is needed") from error
            raise

    def complete_enrollment(self, server: str, token: str) -> Json:
        """Enrollment: calls `complete` only. 409: the device id is another user's, so a new one is chosen, once."""
        complete = lambda: self.request("POST", "/api/enrollment/complete", {
            "token": token, "device_id": self.store.get("enrollment_device")}, server)
        try:
            return complete()
        except Refused as error:
            if error.status != 409:
                raise
        self.store.set(enrollment_device=uuid.uuid4())
        return complete()

    def store_identity(self, server: str, answer: Json) -> int:
        """Unenrolled: stores token and user in one transaction. Another user deletes what the former one had."""
        deleted = 0
        with self.store.transaction():
            if self.store.get("user_id") not in (None, answer["user_id"]):
                deleted = len(self.store.items())
                for table in ("rows", "settled", "groups", "outbox", "refused"):
                    self.store.db.execute(f"DELETE FROM {table}")
                self.store.set(cursor=None, snapshot=None, acked_seq=None, last_event=None)
            if self.store.get("device_id") != answer["device_id"]:
                self.store.set(cursor=None, last_event=None)    # Cursors: a cursor belongs to one device
            self.store.set(device_id=answer["device_id"], device_token=answer["device_token"],
                           user_id=answer["user_id"], server=server, enrollment_url=None, enrollment_device=None)
        return deleted

    def change(self, table: str, op: str, id: str | None = None, row: Row | None = None) -> Item:
        """Stream, the user writes: adds the change to the outbox with the next `seq`, based on what the user saw."""
        store = self.store
        if row is not None and not isinstance(row, dict):
            raise PhoneError("a row is a JSON object")
        with store.transaction():
            id = id or str((row or {}).get("id") or uuid.uuid4())
            if op != "create" and id not in store.view(table):
                raise PhoneError(f"{table} has no row {id}")
            last = store.items()[-1:]
            item = Item(last[0].seq + 1 if last else store.number("acked_seq") + 1, table, op, id,
                        {key: value for key, value in row.items() if key != "id"} if row is not None else None,
                        None, None, False, None, False, False)
            if op == "create" and table == "messages":
                item.row = {"created_at": time.strftime(TIME, time.gmtime())} | (item.row or {})
            if op in ("edit", "delete"):
                own = store.items("tbl = ? AND id = ? AND op <> 'read'", table, id)
                stored = store.row(table, id)
                if own:
                    item.base_seq = own[-1].seq
                elif stored is not None:
                    item.base_version = stored.row.get("version")
            store.put_item(item)
        return item

    def drop_item(self, item: Item) -> None:
        """The outbox, 413 for a single item: its number is not used up, and items based on it get its base."""
        others = [other for other in self.store.items() if other.seq != item.seq]
        for other in others:
            if other.base_seq == item.seq:
                other.base_version, other.base_seq = item.base_version, item.base_seq
                other.base_done, other.base_result = item.base_done, item.base_result
            other.sent = other.sent and other.seq < item.seq
        self.store.renumber(others, min(other.seq for other in (item, *others)))

    def discard(self, label: str) -> None:
        """Removes a refused change that the user has seen (`r1`), or one that was never sent (`7`)."""
        with self.store.transaction():
            if label.startswith("r"):
                found = self.store.db.execute("DELETE FROM refused WHERE n = ?", (label[1:],)).rowcount
            else:
                found = len(items := self.store.items("seq = ? AND NOT sent", label))
                for item in items:
                    self.drop_item(item)
        if not found:
            raise PhoneError(f"{label} is not there, or was sent and may be applied: its number stands for that change")

    def upload(self) -> None:
        """The outbox, in every state with a token: sends the items in order, and stores the results in that order."""
        size, recoveries = self.store.number("upload_items"), 0
        while items := self.mark_sent(size):
            try:
                answer = self.request("POST", "/api/sync/outgoing", {
                    "items": [item.body() for item in items], "acked_seq": self.store.number("acked_seq"),
                    "pending_count": len(self.store.items()) - len(items)})
            except Refused as error:
                self.unmark_sent(items)
                recoveries += error.status == 409
                if recoveries > RECOVERIES_MAX:
                    raise
                size = self.recover(items, error)
                continue
            if not self.store_results(items, answer["results"]):
                raise Unanswered(f"{len(self.store.items())} items wait: the server cannot apply the first one yet")

    def recover(self, items: list[Item], error: Refused) -> int:
        """The outbox, 413, `SEQUENCE_GAP` and `DEVICE_RESTORED`. Returns how many items to send next."""
        if len(items) > 1 and (error.status == 413 or error.code == "DEVICE_RESTORED"):
            return len(items) // 2
        if error.status == 413:
            with self.store.transaction():
                self.store.refuse(items[0], "rejected", error.code, str(error))
                self.drop_item(items[0])
        elif error.code in ("SEQUENCE_GAP", "DEVICE_RESTORED"):
            self.restart_numbers(int(error.details["expected"]))
        else:
            raise error
        return self.store.number("upload_items")

    def mark_sent(self, size: int) -> list[Item]:
        """Returns the first items as they were before this attempt, and stores that it may reach the server."""
        with self.store.transaction():
            items = self.store.items(limit=size)
            if items:
                self.store.db.execute("UPDATE outbox SET sent = 1 WHERE seq <= ?", (items[-1].seq,))
        return items

    def unmark_sent(self, items: list[Item]) -> None:
        """The server has refused the upload as a whole: this attempt has applied nothing."""
        with self.store.transaction():
            self.store.db.executemany("UPDATE outbox SET sent = ? WHERE seq = ? AND id = ?",
                                      [(item.sent, item.seq, item.id) for item in items])

    def store_results(self, items: list[Item], results: list[Json]) -> bool:
        """The outbox: stores the results in one transaction. Returns false if items have to be sent again later."""
        with self.store.transaction():
            for item, result in zip(items, results):
                current = self.store.items("seq = ?", item.seq)
                if not current or current[0].body() != item.body():
                    return True     # another process has stored this response, or numbered the outbox again
                if not self.store_result(item, current[0].gone, result):
                    return False
        return len(results) >= len(items)

    def store_result(self, item: Item, gone: bool, result: Json) -> bool:
        """The outbox, one row of the table for each status. Returns false for `retry` and unknown ones."""
        status, lost = result.get("status"), False
        if status == "applied":
            gone = gone or result.get("overtaken") is True
            if result.get("server") is not None and not gone:   # merged with changes of others
                self.store_own(item, result["server"], number_of(item.table, result["server"]))
            else:
                self.store_effect(item, gone, result)
        elif status == "conflict":
            lost = result.get("winner") != "mine"
            self.store_conflict(item, gone, result, lost)
        elif status == "rejected":
            lost = True
            self.store.refuse(item, "rejected", result.get("code"), result.get("message"))
        elif status != "duplicate":
            return False
        if not lost:
            self.store.db.execute("UPDATE outbox SET base_done = 1, base_result = ? WHERE base_seq = ?",
                                  (result.get("version"), item.seq))
        self.store.db.execute("DELETE FROM outbox WHERE seq = ?", (item.seq,))
        self.store.set(acked_seq=max(item.seq, self.store.number("acked_seq")))
        return True

    def store_effect(self, item: Item, gone: bool, result: Json) -> None:
        """The outbox, `applied`: stores the effect as the row, unless batches have brought what is not older."""
        store, number = self.store, number_of(item.table, result)
        stored = store.row(item.table, item.id)
        known = number_of(item.table, stored.row) if stored else None
        if gone or (stored is None and item.op != "create"):
            return
        if known is not None and number is not None and known >= number:
            return
        row = effect(stored.row if stored else None, item, store.get("user_id"))
        if row is not None:
            row |= {key: result[key] for key in ("version", "revision") if result.get(key) is not None}
        self.store_own(item, row, number)

    def store_conflict(self, item: Item, gone: bool, result: Json, lost: bool) -> None:
        """The outbox, `conflict`: stores `server` as the row, and keeps a lost change for the user to decide."""
        server = result.get("server")
        is_removed = item.table == "messages" and self.store.row(item.table, item.id) is not None
        if not gone and (server is not None or is_removed):
            self.store_own(item, server, number_of(item.table, server or result))
        if lost:
            self.store.refuse(item, "conflict", result.get("code"), result.get("message"), server)

    def store_own(self, item: Item, row: Row | None, number: int | None) -> None:
        """Settled rows: stores or deletes the row of a result. A row that the snapshot has not sent stays old."""
        before = self.store.row(item.table, item.id) or StoredRow({}, None, bool(self.store.number("snapshot")), False)
        if row is None:
            self.store.delete("rows", item.table, item.id)
        else:
            # What an old row says is from before the snapshot, which may not show it any more.
            via = [] if before.old and before.via is not None else before.via
            self.store.put_row(item.table, item.id, StoredRow(row, via, before.old, before.brought))
        self.store.settle(item.table, item.id, number)

    def restart_numbers(self, expected: int) -> None:
        """Sequence numbers: numbers the outbox from `details.expected` and deletes the cursor, in one transaction."""
        with self.store.transaction():
            kept: list[Item] = []
            for item in self.store.items():
                if item.base_seq is not None and item.base_seq not in {other.seq for other in kept}:
                    if not item.base_done:
                        self.store.refuse(item, "rejected", "DEPENDS_ON_FAILED", "the change it is based on is lost")
                        continue
                    item.base_version, item.base_seq, item.base_done = item.base_result, None, False
                item.sent = item.gone = False
                kept.append(item)
            self.store.renumber(kept, expected)
            self.store.set(acked_seq=expected - 1, cursor=None, snapshot=None)

    def download(self) -> int:
        """Fresh, Snapshot, Stream: requests and stores batches, and acknowledges after the last one."""
        rows, resets, batch = 0, 0, {"has_more": True}
        while batch["has_more"]:
            cursor = self.store.get("cursor")
            query = {"cursor": cursor, "limit": self.batch_rows}
            given = urlencode({key: value for key, value in query.items() if value is not None})
            try:
                batch = self.request("GET", f"/api/sync/incoming?{given}")
            except Refused as error:
                if error.code != "INVALID_CURSOR" or resets:
                    raise
                resets += 1
                self.store.set(cursor=None, snapshot=None)
                continue
            if self.store_batch(cursor, batch):
                rows += sum(len(batch[key]) for key in ("messages", "users", "changes"))
        if rows:
            with suppress(Unanswered, Refused):     # the next request with the cursor acknowledges, too
                self.request("POST", "/api/sync/ack", {"cursor": self.store.get("cursor")})
        return rows

    def store_batch(self, cursor: str | None, batch: Json) -> bool:
        """Batches: stores a batch in one transaction with its cursor, or discards it if the cursor has moved."""
        with self.store.transaction():
            if self.store.get("cursor") != cursor:
                return False
            if batch["reset"]:
                self.begin_snapshot()
            always = self.store.number("snapshot") or batch.get("scope") is not None
            for table in ("messages", "users"):
                for row in batch[table]:
                    self.bring(table, row["id"], row, None, always)
            for change in batch["changes"]:
                self.apply_change(change, always, batch["reset"])
            if not batch["has_more"] and self.store.number("snapshot"):
                self.end_snapshot()
            self.store.set(cursor=batch["cursor"])
        return True

    def begin_snapshot(self) -> None:
        """A batch with `reset`: marks all rows as old and removes all groups."""
        self.store.set(snapshot=1)
        self.store.db.execute("UPDATE rows SET old = 1")
        self.store.db.execute("UPDATE settled SET old = 1")
        self.store.db.execute("DELETE FROM groups")

    def end_snapshot(self) -> None:
        """A batch without `has_more`: deletes the rows that are still marked as old."""
        self.store.db.execute("DELETE FROM rows WHERE old")
        self.store.db.execute("DELETE FROM settled WHERE old")
        self.store.mark_missing_gone()
        self.store.set(snapshot=None)

    def apply_change(self, change: Json, always: bool, reset: bool = False) -> None:
        """Batches: one of `changes`, in their order. Outbox messages (`op: message`) are events, not rows."""
        op = change["op"]
        if op == "join":
            self.join(f"{change['group']}:{change['id']}", reset)
        elif op == "leave":
            self.leave(f"{change['group']}:{change['id']}")
        elif op == "delete":
            self.remove(change["table"], str(change["id"]))
        elif op in ("insert", "update"):
            self.bring(change["table"], str(change["id"]), change["row"], change.get("via"), always)

    def bring(self, table: str, id: str, row: Row, via: list[str] | None, always: bool) -> None:
        """Batches: stores a row of a batch, unless a result or a batch has stored a newer one."""
        store, number = self.store, number_of(table, row)
        if via is not None and not store.audiences() & set(via):
            return self.remove(table, id)
        stored, (is_settled, least) = store.row(table, id), store.settled(table, id)
        if not always and number is not None and least is not None and number < least:
            if stored and via is not None:
                store.put_row(table, id, StoredRow(stored.row, via, stored.old, stored.brought))
            return
        if table == "messages" and stored and not stored.old and (number_of(table, stored.row) or 0) > (number or 0):
            return
        used_again = stored and stored.brought and stored.row.get("created_at") != row.get("created_at")
        is_new = stored is None and not store.items("tbl = ? AND id = ? AND op = 'create'", table, id)
        if number is None or used_again or is_new:
            store.mark_gone(table, id)
        store.put_row(table, id, StoredRow(row, via, False, True))
        store.delete("settled", table, id)
        if is_settled and always:
            store.settle(table, id, number)

    def remove(self, table: str, id: str) -> None:
        """Stream, a batch with deletions: deletes the row, if present."""
        self.store.delete("rows", table, id)
        self.store.delete("settled", table, id)
        self.store.mark_gone(table, id)

    def join(self, audience: str, reset: bool) -> None:
        """Groups, `join`: stores the group. Rows may have left it before: its pages name it again in their `via`."""
        store = self.store
        if not store.db.execute("INSERT OR IGNORE INTO groups VALUES (?)", (audience,)).rowcount or reset:
            return      # the rows of a snapshot are as of now already
        for table, id, stored in store.db.execute("SELECT tbl, id, via FROM rows WHERE via IS NOT NULL").fetchall():
            via = json.loads(stored)
            if audience in via:
                store.db.execute("UPDATE rows SET via = ? WHERE tbl = ? AND id = ?",
                                 (dump([other for other in via if other != audience]), table, id))

    def leave(self, audience: str) -> None:
        """Groups, `leave`: removes the group and the rows that no audience of the device sees any more."""
        store = self.store
        store.db.execute("DELETE FROM groups WHERE audience = ?", (audience,))
        audiences = store.audiences()
        for table, id, via, brought in store.db.execute("SELECT tbl, id, via, brought FROM rows").fetchall():
            is_seen = brought or table == "messages" if via is None else bool(audiences & set(json.loads(via)))
            if not is_seen:
                self.remove(table, id)
        store.mark_missing_gone()

    def sync(self) -> int:
        """States and events: uploads the outbox, then requests batches, even if the upload has no answer."""
        failed: PhoneError | None = None
        with self.signed_in():
            try:
                self.upload()
            except (Unanswered, Refused) as error:
                failed = error
            rows = self.download()
        if failed is not None:
            raise failed
        return rows

    def read_settings(self) -> None:
        """Limits: stores what the server's configuration has for devices. Without an answer the last one counts."""
        with suppress(Unanswered, Refused):
            answer = self.request("GET", "/api/app-instructions")
            self.store.set(upload_items=answer["limits"]["upload_items_max"],
                           sync_interval=answer["sync_config"]["sync_interval_seconds"])


# Live events
@dataclass
class Event:
    name: str
    id: str | None
    data: Json


class LiveStream:
    """Live events: one connection to /sse/mobile/:device_id. A thread reads it, so that a sync does not delay it."""

    def __init__(self, phone: Phone):
        self.events: queue.Queue[Event | None] = queue.Queue()
        self.retry_seconds: float | None = None
        self.connection, prefix = base_of(phone.store.get("server") or "")
        self.connection.timeout = SILENCE_SECONDS
        headers = {"Accept": "text/event-stream"} | phone.credentials()
        if last := phone.store.get("last_event"):
            headers["Last-Event-ID"] = last
        path = f"{prefix}/sse/mobile/{quote(phone.store.get('device_id') or '', safe='')}?presence=false"
        with network():
            self.connection.request("GET", path, None, headers)
            self.sock = self.connection.sock
            self.response = self.connection.getresponse()
            if self.response.status == 204:
                raise NotEnrolled("the device was revoked: enroll again")
            if self.response.status != 200:
                answer_of(self.response)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        """Puts the events of the stream into the queue. No heartbeat for SILENCE_SECONDS ends it."""
        name, id, data = "message", None, []
        with suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            while line := self.response.readline():
                field, _, value = line.decode().rstrip("\r\n").partition(":")
                value = value.removeprefix(" ")
                if field == "event":
                    name = value
                elif field == "id":
                    id = value
                elif field == "data":
                    data.append(value)
                elif field == "retry" and value.isdigit():
                    self.retry_seconds = int(value) / 1000
                elif line.strip() == b"" and data:
                    self.events.put(Event(name, id, json.loads("\n".join(data))))
                    name, id, data = "message", None, []
        self.events.put(None)

    def next(self, seconds: float) -> list[Event | None]:
        """All events that have arrived, or none within the time. None stands for the end of the stream."""
        events: list[Event | None] = []
        with suppress(queue.Empty):
            events.append(self.events.get(timeout=max(seconds, 0.01)))
            while True:
                events.append(self.events.get_nowait())
        return events

    def close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class Follower:
    """Live events: keeps a stream open and syncs when an event arrives, until the device is revoked."""

    def __init__(self, phone: Phone, seconds: float | None, report: Callable[[str], None]):
        self.phone, self.report = phone, report
        self.deadline = time.monotonic() + seconds if seconds is not None else float("inf")
        self.opening, self.syncing = Backoff(), Backoff()
        self.is_due = True                      # a sync is wanted
        self.not_before = 0.0                   # but not before this time
        self.is_stuck = False                   # the server has refused the upload: the next event repeats it
        self.synced_at = 0.0
        self.last_id: str | None = None         # of the last event that no sync has followed yet

    def run(self) -> None:
        """Opens one stream after the other."""
        with self.phone.signed_in():
            self.phone.read_settings()
            while time.monotonic() < self.deadline:
                self.wait(self.follow_once())

    def wait(self, seconds: float) -> None:
        """Delays: without a live stream, syncs at the interval of the server."""
        until = min(time.monotonic() + seconds, self.deadline)
        while (left := until - time.monotonic()) > 0:
            if time.monotonic() - self.synced_at > self.phone.store.number("sync_interval"):
                self.is_due = True
            self.sync_if_due()
            time.sleep(min(0.2, left))

    def follow_once(self) -> float:
        """The stream opens: syncs once. Returns the time until the next attempt, after the stream has ended."""
        try:
            stream = LiveStream(self.phone)
        except Unanswered as error:
            self.report(str(error))
            return self.opening.next(error.retry_after)
        except Refused as error:
            if error.code != "INVALID_CURSOR":
                raise
            self.phone.store.set(last_event=None)
            return self.opening.next(0.0)
        self.is_due, self.last_id = True, None
        try:
            return self.serve(stream)
        finally:
            stream.close()

    def serve(self, stream: LiveStream) -> float:
        """Syncs for the events of one stream until it ends."""
        while (left := self.deadline - time.monotonic()) > 0:
            self.sync_if_due()
            for event in stream.next(min(left, 1.0)):
                if event is None:
                    return self.opening.next(stream.retry_seconds)
                self.opening = Backoff()
                if event.name == "revoked":
                    raise NotEnrolled("the device was revoked: enroll again")
                if event.name == "bye":
                    return min(float(event.data.get("reconnect_ms", 1000)) / 1000, LONGEST_WAIT_SECONDS)
                self.is_due |= event.id is not None or event.name in ("reset", "sync_required")
                self.last_id = event.id or self.last_id
        return 0.0

    def sync_if_due(self) -> None:
        """Any event with an `id`: syncs once for all events received so far, then stores the last `id`.

        Changes that another process has added to the outbox are a reason, too."""
        has_items = not self.is_stuck and self.phone.store.items("NOT sent", limit=1)
        if time.monotonic() < self.not_before or not (self.is_due or has_items):
            return
        try:
            self.report(f"synced {self.phone.sync()} rows")
            self.is_stuck = False
        except Unanswered as error:
            self.is_due, self.not_before = True, time.monotonic() + self.syncing.next(error.retry_after)
            return self.report(str(error))
        except Refused as error:
            self.is_stuck = True
            self.report(str(error))
        if self.last_id is not None:
            self.phone.store.set(last_event=self.last_id)
        self.syncing = Backoff()
        self.is_due, self.last_id, self.synced_at = False, None, time.monotonic()


# Command line
def print_outbox(store: Store) -> None:
    """Prints the changes without a result, and those that were refused, until the user has seen them."""
    for item in store.items():
        print(item.seq, "sent, no result" if item.sent else "waits", json.dumps(item.body()), sep="\t")
    refused = store.db.execute("SELECT n, status, code, message, tbl, op, id, row, server FROM refused ORDER BY n")
    for n, status, code, message, table, op, id, row, server in refused:
        change = {"table": table, "op": op, "id": id, "row": json.loads(row or "null"),
                  "server": json.loads(server or "null")}
        print(f"r{n}", f"{status} {code or ''}: {message or ''}", json.dumps(change), sep="\t")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="An offline-first device of Posduif, in one SQLite file.")
    top.add_argument("--db", required=True, metavar="FILE", help="the SQLite file; created if missing")
    top.add_argument("--limit", type=int, metavar="ROWS", help="rows of a batch (default: the server's)")
    top.add_argument("--timeout", type=float, metavar="S", help="limit of a sync (30) or of follow (none)")
    commands = top.add_subparsers(dest="command", required=True)
    for usage in ("enroll URL", "sync", "follow", "list TABLE", "create TABLE JSON", "edit TABLE ID JSON",
                  "delete TABLE ID", "read ID", "outbox", "discard SEQ"):
        name, *arguments = usage.split()
        command = commands.add_parser(name)
        for argument in arguments:
            command.add_argument(argument.lower(), metavar=argument, type=json.loads if argument == "JSON" else str)
    return top


def run(options: argparse.Namespace) -> None:
    phone = Phone(options.db, options.limit)
    timeout = options.timeout if options.timeout is not None else 30.0
    if options.command == "enroll":
        deleted = within(timeout, lambda: phone.enroll(options.url))
        print(f"enrolled {phone.store.get('device_id')} for user {phone.store.get('user_id')}")
        if deleted:
            print(f"{deleted} unsent changes of the former user were deleted", file=sys.stderr)
    elif options.command == "sync":
        print(f"{within(timeout, phone.sync)} rows, {len(phone.store.items())} items wait")
    elif options.command == "follow":
        Follower(phone, options.timeout, lambda text: print(text, flush=True)).run()
    elif options.command == "list":
        for row in phone.store.view(options.table).values():
            print(json.dumps(row, ensure_ascii=False))
    elif options.command in ("create", "edit", "delete", "read"):
        given = vars(options)
        print(phone.change(given.get("table", "messages"), options.command, given.get("id"), given.get("json")).id)
    elif options.command == "outbox":
        print_outbox(phone.store)
    elif options.command == "discard":
        phone.discard(options.seq)


def main() -> int:
    try:
        run(parser().parse_args())
    except (PhoneError, sqlite3.Error) as error:
        print(f"phone.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
