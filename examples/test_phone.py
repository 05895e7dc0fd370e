"""Tests of phone.py against a running engine with the demo of `posduif dev`: users bob (an admin) and joe, table tasks.

    set -a; . .posduif/dev.env; set +a
    python3 -m unittest -v examples/test_phone.py

POSDUIF_URL and DATABASE_URL name the engine and its database; psql must be installed. Each test is one row of the
tables of docs/sync-protocol.md and has the name of that row. A proxy in this process drops, replaces and delays
answers. Each test enrolls users of its own, and no test stops or configures anything of the engine.
"""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request
import uuid
from urllib.parse import urlsplit

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.dont_write_bytecode = True

import phone as client  # noqa: E402

URL = os.environ.get("POSDUIF_URL", "")
DATABASE = os.environ.get("DATABASE_URL", "")
SECONDS = 15.0


# Helpers


def sql(text):
    command = ["psql", "-qtAX", "-v", "ON_ERROR_STOP=1", DATABASE, "-c", f"SET search_path = tenant_demo; {text}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout.strip()


def api(method, path, body=None, token=None):
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(URL + path, method=method, data=data)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read() or b"{}")


def until(condition, seconds=SECONDS):
    """Repeats the condition until it is true, and returns its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not become true in time")
        time.sleep(0.05)
    return value


class Proxy(http.server.ThreadingHTTPServer):
    """Forwards requests to the engine. `faults` are (part of the path, fault), each for one request:

    "refuse" closes the connection without forwarding, "drop" after forwarding, "strip" removes the cursor, a function
    changes the body of the answer, and a tuple (status, code, headers, details) is the answer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.faults, self.seen, self.streams = [], [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def take(self, path):
        for fault in self.faults:
            if fault[0] in path:
                self.faults.remove(fault)
                return fault[1]
        return None

    def break_streams(self):
        while self.streams:
            with contextlib.suppress(OSError):
                self.streams.pop().shutdown(socket.SHUT_RDWR)

    def requests(self, part):
        return [request for request in self.seen if part in request["path"]]

    def handle_error(self, request, client_address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append({"path": self.path, "headers": dict(self.headers), "at": time.monotonic(),
                                 "body": json.loads(body) if body else None})
        fault, path = self.server.take(self.path), self.path
        if fault == "refuse":
            return self.close()
        if fault == "strip":
            path = re.sub("&?cursor=[^&]*", "", path)
        if isinstance(fault, tuple):
            return self.answer(*fault)
        parts = urlsplit(URL)
        upstream = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Accept-Encoding")}
        self.upstream = upstream
        upstream.request(self.command, path, body or None, headers)
        response = upstream.getresponse()
        if "event-stream" in response.headers.get("Content-Type", ""):
            return self.relay(response)
        content = response.read()
        if fault == "drop":
            return self.close()
        if callable(fault):
            content = json.dumps(fault(json.loads(content))).encode()
        self.send_response(response.status)
        for name in ("Content-Type", "Retry-After"):
            if response.headers.get(name):
                self.send_header(name, response.headers[name])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def finish(self):
        if self.upstream:
            self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    upstream = None
    do_GET = do_POST = handle_one

    def answer(self, status, code, headers=None, details=None):
        content = json.dumps({"error": {"code": code, "message": "from the proxy", "details": details or {},
                                        "retryable": status in (429, 503)}}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def relay(self, response):
        self.server.streams.append(self.connection)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        while part := response.read1(4096):
            self.wfile.write(part)
            self.wfile.flush()

    def close(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *values):
        pass


@unittest.skipUnless(URL and DATABASE, "POSDUIF_URL and DATABASE_URL are not set")
class PhoneTest(unittest.TestCase):
    """The common part of the tests: a proxy, an admin, users with a list of their own."""

    @classmethod
    def setUpClass(cls):
        if not hasattr(PhoneTest, "admin"):
            login = api("POST", "/api/auth/login", {"username": "bob", "password": "posduif-demo"})
            PhoneTest.admin, PhoneTest.bob = login["token"], login["user"]["id"]

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="phone-"))
        self.proxy = Proxy()
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.addCleanup(self.proxy.server_close)
        self.addCleanup(self.proxy.shutdown)
        self.addCleanup(self.proxy.break_streams)

    def open(self, path=None, rows=None):
        phone = client.Phone(str(path or self.folder / f"{uuid.uuid4()}.db"), rows)
        phone.path = phone.store.db.execute("PRAGMA database_list").fetchone()[2]
        self.addCleanup(phone.store.db.close)
        return phone

    def enrollment(self, user=None):
        made = api("POST", "/api/enrollment/create", {"user_id": user} if user else {}, self.admin)
        return f"{self.proxy.url}/api/enrollment/{made['token']}"

    def phone(self, user=None, rows=None):
        phone = self.open(rows=rows)
        phone.enroll(self.enrollment(user))
        return phone

    def synced(self, rows=None, tasks=1, user=None):
        """A phone of a new user with a list and tasks, synced to the end."""
        phone = self.phone(user, 1000)
        phone.list = self.new_list(phone, tasks)
        until(lambda: phone.sync() is not None and len(phone.store.view("tasks")) >= tasks)
        until(lambda: phone.sync() == 0)
        phone.batch_rows = rows
        return phone

    def new_list(self, phone, tasks=1):
        id = str(uuid.uuid4())
        sql(f"INSERT INTO lists (id, name) VALUES ('{id}', 'a list');"
            f"INSERT INTO tasks (list_id, title) SELECT '{id}', 'task ' || g FROM generate_series(1, {tasks}) g;"
            f"INSERT INTO list_members (list_id, user_id) VALUES ('{id}', '{phone.store.get('user_id')}')")
        return id

    def task(self, phone):
        return next(iter(phone.store.view("tasks").values()))

    def stored(self, phone, id, table="tasks"):
        found = phone.store.row(table, id)
        return found.row if found else None

    def fails(self, kind, action):
        with self.assertRaises(kind) as caught:
            action()
        return caught.exception

    def step(self, phone, rows=1, wait=True):
        """Requests and stores one batch; waits until one with changes comes."""
        def once():
            cursor = phone.store.get("cursor")
            query = f"limit={rows}" + (f"&cursor={cursor}" if cursor else "")
            batch = phone.request("GET", f"/api/sync/incoming?{query}")
            self.assertTrue(phone.store_batch(cursor, batch))
            return batch if batch["changes"] or batch["messages"] or batch["users"] or not wait else None
        return until(once)

    def refused(self, phone):
        return phone.store.db.execute("SELECT status, code, id FROM refused ORDER BY n").fetchall()

    def groups(self, phone):
        return {audience for audience in phone.store.audiences() if audience.startswith("list:")}

    def kill_at(self, phone, patch, call):
        """Runs a call in a process that ends where the patch is called, without any cleanup."""
        code = (f"import os, sys; sys.path.insert(0, {str(HERE)!r}); sys.dont_write_bytecode = True\n"
                f"import phone\np = phone.Phone({phone.path!r})\n{patch}\n{call}\n")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 9, done.stderr)

    KILL_AT_CURSOR = ("real = phone.Store.set\n"
                      "phone.Store.set = lambda s, **k: os._exit(9) if k.get('cursor') else real(s, **k)")
    KILL_AT_RESULTS = "phone.Phone.store_results = lambda *a: os._exit(9)"

    @contextlib.contextmanager
    def following(self, phone):
        """Runs `follow` for the file of a phone in a thread."""
        record = type("Record", (), {"syncs": [], "errors": [], "end": None})()

        def run():
            own = client.Phone(phone.path)
            record.follower = client.Follower(own, 60, lambda text: (
                record.syncs if text.startswith("synced") else record.errors).append(text))
            try:
                record.follower.run()
            except client.PhoneError as error:
                record.end = error
            own.store.db.close()

        record.thread = threading.Thread(target=run, daemon=True)
        record.thread.start()
        try:
            yield record
        finally:
            record.follower.deadline = 0
            record.thread.join(10)


class Unenrolled(PhoneTest):
    def test_enrollment_response_stores_token_and_user(self):
        """Unenrolled: the enrollment succeeds."""
        phone = self.phone()
        self.assertTrue(phone.store.get("device_token") and phone.store.get("user_id"))
        self.assertIsNone(phone.store.get("cursor"))

    def test_missing_response_repeats_enrollment(self):
        """Unenrolled: no answer to `complete`."""
        phone, url = self.open(), self.enrollment()
        self.proxy.faults.append(("complete", "drop"))
        self.fails(client.Unanswered, lambda: phone.enroll(url))
        again = self.open(phone.path)
        again.enroll(url)
        first, second = [request["body"] for request in self.proxy.requests("complete")]
        self.assertEqual(first, second)

    def test_refused_enrollment_needs_a_new_one(self):
        """Unenrolled: 400 `ENROLLMENT_USED`, and 404."""
        url = self.enrollment()
        self.open().enroll(url)
        phone = self.open()
        self.assertIn("new enrollment", str(self.fails(client.PhoneError, lambda: phone.enroll(url))))
        unknown = f"{self.proxy.url}/api/enrollment/{uuid.uuid4()}"
        self.assertIn("new enrollment", str(self.fails(client.PhoneError, lambda: phone.enroll(unknown))))
        self.assertIsNone(phone.store.get("device_token"))

    def test_same_user_keeps_rows_cursor_and_outbox(self):
        """Unenrolled: the same user enrolls again."""
        phone = self.synced()
        phone.change("tasks", "edit", self.task(phone)["id"], {"done": True})
        cursor, rows = phone.store.get("cursor"), phone.store.view("tasks")
        phone.enroll(self.enrollment(phone.store.get("user_id")))
        self.assertEqual((cursor, rows), (phone.store.get("cursor"), phone.store.view("tasks")))
        phone.sync()
        self.assertEqual(phone.store.items(), [])

    def test_other_user_deletes_rows_cursor_and_outbox(self):
        """Unenrolled: another user enrolls."""
        phone = self.synced()
        device = phone.store.get("device_id")
        phone.change("tasks", "create", None, {"list_id": phone.list, "title": "unsent"})
        self.assertEqual(phone.enroll(self.enrollment()), 1)
        self.assertNotEqual(device, phone.store.get("device_id"))
        self.assertEqual((phone.store.items(), phone.store.view("tasks"), phone.store.number("acked_seq")), ([], {}, 0))
        self.assertIsNone(phone.store.get("cursor"))

    def test_sync_without_token_sends_nothing(self):
        """Unenrolled: a sync is requested."""
        phone = self.open()
        phone.store.set(server=self.proxy.url)
        self.fails(client.NotEnrolled, phone.sync)
        self.assertEqual(self.proxy.seen, [])

    def test_user_write_goes_to_outbox(self):
        """Unenrolled: the user makes a change."""
        phone = self.open()
        id = phone.change("tasks", "create", None, {"title": "early"}).id
        self.assertEqual(phone.store.view("tasks")[id]["title"], "early")
        phone.enroll(self.enrollment())
        self.assertEqual([item.seq for item in phone.store.items()], [1])


class Fresh(PhoneTest):
    def test_complete_snapshot_is_stored(self):
        """Fresh: a batch with `reset`, without `has_more`."""
        phone = self.phone()
        phone.store.put_row("tasks", "stale", client.StoredRow({"id": "stale"}, None, False, True))

        def complete(batch):
            return batch | {"has_more": False}
        self.proxy.faults.append(("incoming", complete))
        self.step(phone, 1000)
        self.assertNotIn("stale", phone.store.view("tasks"))
        self.assertFalse(phone.store.number("snapshot"))
        self.assertIn(self.bob, phone.store.view("users"))

    def test_first_snapshot_page_is_stored_with_cursor(self):
        """Fresh: a batch with `reset` and `has_more`."""
        phone = self.phone()
        phone.store.put_row("tasks", "stale", client.StoredRow({"id": "stale"}, None, False, True))
        self.step(phone)
        self.assertTrue(phone.store.number("snapshot") and phone.store.get("cursor"))
        self.assertTrue(phone.store.row("tasks", "stale").old)

    def test_missing_response_repeats_request(self):
        """Fresh: no answer."""
        phone = self.phone()
        self.proxy.faults.append(("incoming", "drop"))
        self.fails(client.Unanswered, phone.sync)
        self.assertIsNone(phone.store.get("cursor"))
        self.assertGreater(phone.sync(), 0)

    def test_retry_after_delays_request(self):
        """Fresh: 429, 5xx."""
        self.check_retry_after(self.phone())

    def check_retry_after(self, phone):
        self.proxy.faults.append(("incoming", (503, "SYNC_ERROR", {"Retry-After": 1})))
        before = len(self.proxy.requests("incoming"))
        client.within(10, phone.sync)
        first, second = self.proxy.requests("incoming")[before:before + 2]
        self.assertGreaterEqual(second["at"] - first["at"], 1.0)

    def test_ended_token_is_deleted(self):
        """Fresh: 401."""
        self.check_ended_token(self.phone())

    def check_ended_token(self, phone):
        phone.change("tasks", "create", None, {"title": "kept"})
        rows, cursor = phone.store.view("tasks"), phone.store.get("cursor")
        self.revoke(phone)
        self.fails(client.NotEnrolled, phone.sync)
        self.assertIsNone(phone.store.get("device_token"))
        self.assertEqual((rows, cursor), (phone.store.view("tasks"), phone.store.get("cursor")))
        self.assertEqual(len(phone.store.items()), 1)

    def revoke(self, phone):
        api("DELETE", f"/api/devices/{phone.store.get('device_id')}", None, self.admin)

    def test_user_write_goes_to_outbox(self):
        """Fresh: the user makes a change; uploads need no cursor."""
        phone = self.phone()
        phone.change("messages", "create", None, {"recipient_id": self.bob, "content": "without a cursor"})
        phone.upload()
        self.assertEqual((phone.store.items(), phone.store.get("cursor")), ([], None))


class Snapshot(Fresh):
    """Only the tests of this class: those of Fresh are replaced below or excluded by load_tests."""

    def begun(self, rows=1):
        phone = self.synced()
        with phone.store.transaction():
            phone.store.set(cursor=None, snapshot=None)
        self.step(phone, rows)
        self.assertTrue(phone.store.number("snapshot"))
        return phone

    def test_page_is_stored_with_cursor(self):
        """Snapshot: a batch with `has_more`."""
        phone = self.begun()
        cursor = phone.store.get("cursor")
        self.step(phone)
        self.assertTrue(phone.store.number("snapshot"))
        self.assertNotEqual(cursor, phone.store.get("cursor"))

    def test_last_page_deletes_unmentioned_rows(self):
        """Snapshot: a batch without `has_more`."""
        phone = self.begun()
        phone.store.put_row("tasks", "stale", client.StoredRow({"id": "stale"}, None, True, True))
        phone.sync()
        self.assertEqual(len(phone.store.view("tasks")), 1)

    def test_missing_response_repeats_request(self):
        """Snapshot: no answer."""
        phone = self.begun()
        cursor = phone.store.get("cursor")
        self.proxy.faults.append(("incoming", "drop"))
        self.fails(client.Unanswered, phone.sync)
        self.assertEqual(cursor, phone.store.get("cursor"))
        phone.sync()
        self.assertEqual(len(phone.store.view("tasks")), 1)

    def test_new_snapshot_keeps_old_rows_until_its_end(self):
        """Snapshot: a batch with `reset`."""
        phone = self.begun()
        self.proxy.faults.append(("incoming", "strip"))
        batch = self.step(phone)
        self.assertTrue(batch["reset"])
        self.assertEqual(len(phone.store.view("tasks")), 1)
        phone.sync()
        self.assertEqual(len(phone.store.view("tasks")), 1)
        self.assertFalse(phone.store.number("snapshot"))

    def test_refused_cursor_is_deleted(self):
        """Snapshot: 400 `INVALID_CURSOR`."""
        self.check_refused_cursor(self.begun())

    def check_refused_cursor(self, phone):
        phone.change("tasks", "create", None, {"list_id": phone.list, "title": "kept"})
        phone.store.set(cursor="AQCJrh8-pZ5eBAAAAAAAAAABAAAAAAGZ")
        self.proxy.faults.append(("outgoing", "refuse"))
        self.fails(client.Unanswered, phone.sync)
        self.assertEqual((len(phone.store.items()), len(phone.store.view("tasks"))), (1, 2))
        self.assertFalse(phone.store.number("snapshot"))

    def test_ended_token_is_deleted(self):
        """Snapshot: 401."""
        self.check_ended_token(self.begun())

    def test_retry_after_delays_request(self):
        """Snapshot: 429, 5xx."""
        self.check_retry_after(self.begun())

    def test_killed_device_continues_from_stored_cursor(self):
        """Snapshot: the device crashes."""
        phone = self.begun()
        cursor = phone.store.get("cursor")
        self.kill_at(phone, self.KILL_AT_CURSOR, "p.sync()")
        again = self.open(phone.path)
        self.assertEqual((again.store.get("cursor"), again.store.number("snapshot")), (cursor, 1))
        again.sync()
        self.assertEqual(len(again.store.view("tasks")), 1)

    def test_user_write_goes_to_outbox(self):
        """Snapshot: the user makes a change, which the snapshot does not touch."""
        phone = self.begun()
        id = phone.change("tasks", "create", None, {"list_id": phone.list, "title": "meanwhile"}).id
        while phone.store.number("snapshot"):
            self.step(phone, 1000, wait=False)
        self.assertIn(id, phone.store.view("tasks"))
        self.assertEqual(len(phone.store.items()), 1)


class Stream(Snapshot):
    """As for Snapshot."""

    def begun(self, rows=1):
        return self.synced()

    def test_rows_are_stored_and_acknowledged(self):
        """Stream: a batch with rows."""
        phone = self.begun()
        id = sql(f"INSERT INTO messages (sender_id, recipient_id, content) VALUES ('{self.bob}',"
                 f" '{phone.store.get('user_id')}', 'hello') RETURNING id")
        until(lambda: phone.sync() and id in phone.store.view("messages"))
        self.assertEqual(self.proxy.requests("ack")[-1]["body"], {"cursor": phone.store.get("cursor")})
        until(lambda: sql(f"SELECT status FROM messages WHERE id = '{id}'") == "synced")

    def test_deletes_remove_rows(self):
        """Stream: a batch with deletions."""
        phone = self.begun()
        sql(f"DELETE FROM tasks WHERE list_id = '{phone.list}'")
        until(lambda: phone.sync() is not None and not phone.store.view("tasks"))

    def test_empty_batch_stores_cursor(self):
        """Stream: an empty batch; there is nothing to acknowledge."""
        phone = self.begun()
        acks = len(self.proxy.requests("ack"))
        self.proxy.faults.append(("incoming", lambda batch: batch | {"cursor": "of-an-empty-batch"}))
        self.assertEqual(phone.sync(), 0)
        self.assertEqual(phone.store.get("cursor"), "of-an-empty-batch")
        self.assertEqual(len(self.proxy.requests("ack")), acks)

    def test_missing_response_repeats_request(self):
        """Stream: no answer; what was not stored comes again."""
        phone = self.begun()
        sql(f"INSERT INTO tasks (list_id, title) VALUES ('{phone.list}', 'again')")

        def lost():
            self.proxy.faults.append(("incoming", "drop"))
            self.fails(client.Unanswered, phone.sync)
            return phone.sync()
        until(lost)
        self.assertEqual(len(phone.store.view("tasks")), 2)

    def test_reset_starts_snapshot(self):
        """Stream: a batch with `reset`. The outbox is not touched."""
        phone = self.begun()
        id = phone.change("tasks", "create", None, {"list_id": phone.list, "title": "mine"}).id
        self.proxy.faults.append(("incoming", "strip"))
        self.assertTrue(self.step(phone)["reset"])
        self.assertTrue(phone.store.number("snapshot"))
        while phone.store.number("snapshot"):
            self.step(phone, 1000, wait=False)
        self.assertEqual(len(phone.store.items()), 1)
        self.assertIn(id, phone.store.view("tasks"))

    def test_refused_cursor_is_deleted(self):
        """Stream: 400 `INVALID_CURSOR`."""
        self.check_refused_cursor(self.begun())

    def test_ended_token_is_deleted(self):
        """Stream: 401."""
        self.check_ended_token(self.begun())

    def test_retry_after_delays_request(self):
        """Stream: 429, 5xx."""
        self.check_retry_after(self.begun())

    def test_killed_device_continues_from_stored_cursor(self):
        """Stream: the device crashes between storing the rows and the cursor of a batch: it has neither."""
        phone = self.begun()
        cursor = phone.store.get("cursor")
        sql(f"INSERT INTO tasks (list_id, title) VALUES ('{phone.list}', 'after the kill')")
        until(lambda: phone.request("GET", f"/api/sync/incoming?cursor={cursor}")["changes"])
        self.kill_at(phone, self.KILL_AT_CURSOR, "p.sync()")
        again = self.open(phone.path)
        self.assertEqual((again.store.get("cursor"), len(again.store.view("tasks"))), (cursor, 1))
        again.sync()
        self.assertEqual(len(again.store.view("tasks")), 2)

    def test_restored_older_copy_catches_up_or_resets(self):
        """Stream: its storage is restored from an older copy."""
        phone = self.begun()
        copy = self.folder / "copy.db"
        phone.store.db.execute("VACUUM INTO ?", (str(copy),))
        sql(f"INSERT INTO tasks (list_id, title) VALUES ('{phone.list}', 'since the copy')")
        until(lambda: phone.sync())
        restored = self.open(copy)
        restored.sync()
        self.assertEqual(restored.store.view("tasks"), phone.store.view("tasks"))

    def test_user_actions_go_to_outbox_with_seen_base(self):
        """Stream: the user writes, edits, deletes or reads."""
        phone = self.begun()
        message = sql(f"INSERT INTO messages (sender_id, recipient_id, content) VALUES ('{self.bob}',"
                      f" '{phone.store.get('user_id')}', 'hello') RETURNING id")
        until(lambda: phone.sync() and message in phone.store.view("messages"))
        id = self.task(phone)["id"]
        made = phone.change("tasks", "create", None, {"list_id": phone.list, "title": "new"}).id
        phone.change("tasks", "edit", id, {"done": True})
        phone.change("tasks", "delete", id)
        phone.change("messages", "read", message)
        bodies = [item.body() for item in phone.store.items()]
        self.assertEqual([body["seq"] for body in bodies], [1, 2, 3, 4])
        self.assertEqual([(body["op"], body.get("base_version"), body.get("base_seq")) for body in bodies],
                         [("create", None, None), ("edit", 1, None), ("delete", None, 2), ("read", None, None)])
        self.assertEqual(set(phone.store.view("tasks")), {made})
        phone.sync()
        self.assertEqual((phone.store.items(), self.refused(phone)), ([], []))


class Outbox(Fresh):
    """As for Snapshot."""

    def edited(self, title="mine", answer=None):
        """A synced phone with an edit of its task in the outbox."""
        phone = self.synced()
        phone.id = self.task(phone)["id"]
        phone.change("tasks", "edit", phone.id, {"title": title})
        return phone

    def lost(self, phone):
        """Uploads; the answer is lost."""
        self.proxy.faults.append(("outgoing", "drop"))
        self.fails(client.Unanswered, phone.upload)

    def server_edit(self, id, title="server"):
        sql(f"UPDATE tasks SET title = '{title}' WHERE id = '{id}'")

    def download_until(self, phone, condition):
        until(lambda: phone.download() is not None and condition())

    def test_applied_item_is_removed(self):
        """Outbox: `applied`."""
        phone = self.edited()
        phone.upload()
        row = self.stored(phone, phone.id)
        self.assertEqual((row["title"], row["version"], phone.store.items()), ("mine", 2, []))

    def test_first_result_of_a_repeated_item_is_shown_at_once(self):
        """Outbox: the first result of an item that was sent before."""
        phone = self.synced()
        id = phone.change("tasks", "create", None, {"list_id": phone.list, "title": "lost"}).id
        self.lost(phone)
        phone.upload()
        self.assertEqual((self.stored(phone, id)["title"], phone.store.items()), ("lost", []))

    def test_first_result_of_a_repeated_item_replaces_an_older_row(self):
        """Outbox: the same, and batches have brought an older row since."""
        phone = self.edited()
        self.lost(phone)
        self.assertEqual(self.stored(phone, phone.id)["version"], 1)
        phone.upload()
        self.assertEqual((self.stored(phone, phone.id)["version"], self.stored(phone, phone.id)["title"]), (2, "mine"))

    def test_first_result_of_a_repeated_item_leaves_newer_rows(self):
        """Outbox: the same, and batches have brought a row that is not older, or deleted it."""
        phone = self.edited()
        self.lost(phone)
        self.server_edit(phone.id)
        self.download_until(phone, lambda: self.stored(phone, phone.id)["version"] == 3)
        phone.upload()
        self.assertEqual((self.stored(phone, phone.id)["title"], phone.store.items()), ("server", []))
        id = phone.change("tasks", "create", None, {"list_id": phone.list, "title": "deleted since"}).id
        self.lost(phone)
        self.download_until(phone, lambda: self.stored(phone, id))
        sql(f"DELETE FROM tasks WHERE id = '{id}'")
        self.download_until(phone, lambda: self.stored(phone, id) is None)
        phone.upload()
        self.assertEqual((self.stored(phone, id), phone.store.items()), (None, []))

    def test_batches_behind_a_stored_result_leave_its_row(self):
        """Outbox: a batch brings the row with a lower number than the result that was stored."""
        phone = self.synced()
        id = phone.change("tasks", "create", None, {"list_id": phone.list, "title": "one"}).id
        phone.upload()
        phone.change("tasks", "edit", id, {"title": "two"})
        phone.upload()
        batch = self.step(phone, 1)
        self.assertEqual([change["row"]["version"] for change in batch["changes"]], [1])
        self.assertEqual(self.stored(phone, id)["title"], "two")
        self.assertEqual(phone.store.row("tasks", id).via, [f"list:{phone.list}"])
        self.download_until(phone, lambda: "created_at" in self.stored(phone, id))
        self.assertEqual(phone.store.settled("tasks", id), (False, None))

    def test_deleted_row_stays_away_until_batches_reach_its_deletion(self):
        """Outbox: the same, and the item deleted the row."""
        phone = self.edited()
        phone.upload()
        phone.change("tasks", "delete", phone.id)
        phone.upload()
        batch = self.step(phone, 1)
        self.assertEqual([change["op"] for change in batch["changes"]], ["update"])
        self.assertIsNone(self.stored(phone, phone.id))
        self.download_until(phone, lambda: phone.store.settled("tasks", phone.id) == (False, None))
        self.assertIsNone(self.stored(phone, phone.id))

    def test_rows_of_own_tables_compare_by_version_only(self):
        """Outbox: the same, and the own table has a column `revision`."""
        phone = self.edited()
        phone.upload()
        self.download_until(phone, lambda: phone.store.settled("tasks", phone.id) == (False, None))
        phone.change("tasks", "edit", phone.id, {"title": "again"})
        phone.upload()
        row, via = self.stored(phone, phone.id), [f"list:{phone.list}"]
        for title, version in (("before", 2), ("behind", 4)):
            change = {"table": "tasks", "op": "update", "id": phone.id, "via": via,
                      "row": row | {"title": title, "version": version, "revision": 1}}
            with phone.store.transaction():
                phone.apply_change(change, False)
            self.assertEqual(self.stored(phone, phone.id)["title"], "again" if version == 2 else title)

    def test_duplicate_item_is_removed(self):
        """Outbox: `duplicate`. The row is there already, as the same content of the same user."""
        phone = self.edited("same")
        self.server_edit(phone.id, "same")
        self.proxy.faults.append(("outgoing", lambda answer: (self.assert_status(answer, "duplicate"), answer)[1]))
        phone.upload()
        self.assertEqual((phone.store.items(), self.refused(phone)), ([], []))

    def assert_status(self, answer, *statuses):
        self.statuses = [result["status"] for result in answer["results"]]
        if self.statuses != list(statuses):
            self.addCleanup(self.assertEqual, self.statuses, list(statuses))

    def message(self):
        phone = self.synced()
        id = phone.change("messages", "create", None, {"recipient_id": self.bob, "content": "one"}).id
        phone.sync()
        until(lambda: phone.sync() == 0)
        sql(f"UPDATE messages SET content = 'server' WHERE id = '{id}'")
        return phone, id

    def test_conflict_under_last_write_wins_stores_own_version(self):
        """Outbox: `conflict`, last write wins."""
        phone, id = self.message()
        phone.change("messages", "edit", id, {"content": "mine"})
        self.proxy.faults.append(("outgoing", lambda answer: (self.assert_status(answer, "conflict"), answer)[1]))
        phone.upload()
        row = self.stored(phone, id, "messages")
        self.assertEqual((row["content"], row["version"], phone.store.items()), ("mine", 3, []))

    def test_conflict_under_manual_stores_other_version(self):
        """Outbox: `conflict`, manual, which own tables always have. The lost change is kept and shown."""
        phone = self.edited()
        self.server_edit(phone.id)
        phone.upload()
        self.assertEqual((self.stored(phone, phone.id)["title"], phone.store.items()), ("server", []))
        self.assertEqual(self.refused(phone), [("conflict", "CONFLICT", phone.id)])
        shown = subprocess.run([sys.executable, HERE / "phone.py", "--db", phone.path, "outbox"], capture_output=True,
                               text=True, timeout=30).stdout
        self.assertIn('"mine"', shown)
        self.assertIn('"server"', shown)

    def test_conflict_of_a_delete_removes_the_row(self):
        """Outbox: `conflict` of a `delete`, last write wins."""
        phone, id = self.message()
        phone.change("messages", "delete", id)
        self.proxy.faults.append(("outgoing", lambda answer: (self.assert_status(answer, "conflict"), answer)[1]))
        phone.upload()
        self.assertIsNone(self.stored(phone, id, "messages"))
        until(lambda: phone.sync() and not phone.store.settled("messages", id)[0])
        self.assertIsNone(self.stored(phone, id, "messages"))

    def test_several_edits_of_one_row_are_applied_in_order(self):
        """Outbox: several edits of one row wait."""
        phone = self.edited("one")
        for title in ("two", "three"):
            phone.change("tasks", "edit", phone.id, {"title": title})
        phone.sync()
        self.assertEqual(self.refused(phone), [])
        self.assertEqual(sql(f"SELECT title, version FROM tasks WHERE id = '{phone.id}'"), "three|4")

    def test_edits_after_a_lost_conflict_are_rejected(self):
        """Outbox: the first of them loses its conflict."""
        phone = self.edited("one")
        phone.change("tasks", "edit", phone.id, {"title": "two"})
        self.server_edit(phone.id)
        phone.sync()
        self.assertEqual([entry[:2] for entry in self.refused(phone)],
                         [("conflict", "CONFLICT"), ("rejected", "DEPENDS_ON_FAILED")])
        self.assertEqual(self.stored(phone, phone.id)["title"], "server")

    def test_edits_after_a_won_conflict_are_applied(self):
        """Outbox: the first of them wins its conflict."""
        phone, id = self.message()
        phone.change("messages", "edit", id, {"content": "mine"})
        phone.change("messages", "edit", id, {"content": "mine too"})
        phone.upload()
        self.assertEqual(self.refused(phone), [])
        self.assertEqual(sql(f"SELECT content FROM messages WHERE id = '{id}'"), "mine too")

    def test_edit_after_a_lost_response_stands_on_the_unanswered_one(self):
        """Outbox: the user edits a row whose last edit has no answer yet."""
        phone = self.edited("one")
        self.lost(phone)
        self.download_until(phone, lambda: self.stored(phone, phone.id)["version"] == 2)
        phone.change("tasks", "edit", phone.id, {"title": "two"})
        self.assertEqual([item.base_seq for item in phone.store.items()], [None, 1])
        phone.sync()
        self.assertEqual(self.refused(phone), [])
        self.assertEqual(sql(f"SELECT title FROM tasks WHERE id = '{phone.id}'"), "two")

    def test_rejected_item_leaves_the_queue(self):
        """Outbox: `rejected`. It is kept with the reason until the user discards it."""
        phone = self.edited("")
        phone.sync()
        self.assertEqual((self.refused(phone), phone.store.items()), ([("rejected", "VALIDATION_ERROR", phone.id)], []))
        self.assertEqual(self.stored(phone, phone.id)["title"], "task 1")
        phone.sync()
        self.assertEqual(len(self.proxy.requests("outgoing")), 1)
        phone.discard("r1")
        self.assertEqual(self.refused(phone), [])

    def test_retry_item_and_those_behind_it_stay(self):
        """Outbox: `retry`, or an unknown status."""
        for status in ("retry", "unheard-of"):
            phone = self.edited("one")
            phone.change("tasks", "edit", phone.id, {"title": "two"})
            self.proxy.faults.append(("outgoing", lambda answer: answer | {"results": [
                answer["results"][0], answer["results"][1] | {"status": status}]}))
            self.fails(client.Unanswered, phone.sync)
            self.assertEqual([item.seq for item in phone.store.items()], [2])
            phone.sync()
            self.assertEqual(phone.store.items(), [])

    def test_stored_results_are_acknowledged(self):
        """Outbox: a result is stored."""
        phone = self.edited()
        phone.sync()
        phone.change("tasks", "edit", phone.id, {"done": True})
        phone.sync()
        self.assertEqual([request["body"]["acked_seq"] for request in self.proxy.requests("outgoing")], [0, 1])

    def test_oversized_upload_is_halved(self):
        """Outbox: 413."""
        phone = self.synced()
        for _ in range(2):
            phone.change("tasks", "create", None, {"list_id": phone.list, "title": "long", "note": "x" * 5_000_000})
        phone.upload()
        self.assertEqual([len(request["body"]["items"]) for request in self.proxy.requests("outgoing")], [2, 1, 1])
        self.assertEqual((phone.store.items(), self.refused(phone)), ([], []))
        sql(f"DELETE FROM tasks WHERE list_id = '{phone.list}'")

    def test_oversized_single_item_is_rejected(self):
        """Outbox: 413 for a single item. Its number is not used up."""
        phone = self.edited("x" * 9_000_000)
        phone.change("tasks", "edit", phone.id, {"done": True})
        phone.sync()
        self.assertEqual(self.refused(phone), [("rejected", "PAYLOAD_TOO_LARGE", phone.id)])
        self.assertEqual(phone.store.items(), [])
        last = self.proxy.requests("outgoing")[-1]["body"]["items"]
        self.assertEqual([(item["seq"], item["base_version"]) for item in last], [(1, 1)])
        self.assertEqual(sql(f"SELECT done, title FROM tasks WHERE id = '{phone.id}'"), "t|task 1")

    def test_sequence_gap_renumbers_the_outbox(self):
        """Outbox: 409 `SEQUENCE_GAP`."""
        phone = self.synced()
        phone.store.set(acked_seq=41)
        id = phone.change("tasks", "create", None, {"list_id": phone.list, "title": "one"}).id
        phone.change("tasks", "edit", id, {"title": "two"})
        before = len(self.proxy.requests("incoming"))
        phone.sync()
        sent = [[item["seq"] for item in request["body"]["items"]] for request in self.proxy.requests("outgoing")]
        self.assertEqual(sent, [[42, 43], [1, 2]])
        self.assertNotIn("cursor", self.proxy.requests("incoming")[before]["path"])
        self.assertEqual(sql(f"SELECT title FROM tasks WHERE id = '{id}'"), "two")

    def restored(self):
        """A phone that was restored from a copy of before its last upload, which it has not made again."""
        phone = self.synced()
        phone.id = self.task(phone)["id"]
        copy = self.folder / "copy.db"
        phone.store.db.execute("VACUUM INTO ?", (str(copy),))
        phone.change("tasks", "edit", phone.id, {"title": "before the loss"})
        phone.sync()
        restored = self.open(copy)
        restored.id, restored.list = phone.id, phone.list
        return restored

    def test_restored_device_gets_the_results_of_repeats_first(self):
        """Outbox: 409 `DEVICE_RESTORED` for several items."""
        phone = self.edited("one")
        copy = self.folder / "copy.db"
        phone.store.db.execute("VACUUM INTO ?", (str(copy),))
        phone.change("tasks", "edit", phone.id, {"title": "two"})
        phone.sync()
        restored = self.open(copy)
        id = restored.change("tasks", "create", None, {"list_id": phone.list, "title": "after the loss"}).id
        restored.sync()
        sent = [[item["seq"] for item in request["body"]["items"]] for request in self.proxy.requests("outgoing")]
        self.assertEqual(sent, [[1, 2], [1, 2], [1], [2], [3]])
        self.assertEqual(sql(f"SELECT title FROM tasks WHERE id IN ('{phone.id}', '{id}') ORDER BY title"),
                         "after the loss\ntwo")

    def test_restored_device_renumbers_the_outbox(self):
        """Outbox: 409 `DEVICE_RESTORED` for a single item."""
        phone = self.restored()
        id = phone.change("tasks", "create", None, {"list_id": phone.list, "title": "after"}).id
        phone.sync()
        sent = [[item["seq"] for item in request["body"]["items"]] for request in self.proxy.requests("outgoing")]
        self.assertEqual(sent, [[1], [1], [2]])
        self.assertIn(id, phone.store.view("tasks"))
        self.assertEqual((phone.store.items(), phone.store.number("acked_seq")), ([], 2))

    def test_renumbered_edit_keeps_the_version_of_its_base(self):
        """Outbox: the outbox is numbered again, and the result of a `base_seq` is stored."""
        phone = self.edited("one")
        phone.change("tasks", "edit", phone.id, {"title": "two"})
        self.proxy.faults.append(("outgoing", lambda answer: answer | {"results": [
            answer["results"][0], answer["results"][1] | {"status": "retry"}]}))
        self.fails(client.Unanswered, phone.upload)
        phone.restart_numbers(9)
        item, = phone.store.items()
        self.assertEqual((item.seq, item.base_version, item.base_seq, phone.store.number("acked_seq")), (9, 2, None, 8))
        self.assertIsNone(phone.store.get("cursor"))

    def test_missing_response_keeps_items_and_fetches(self):
        """Outbox: no answer, 429, 5xx."""
        for fault in ("refuse", (503, "DATABASE_ERROR", {"Retry-After": 1})):
            phone = self.edited()
            self.server_edit(phone.id, "fetched")
            until(lambda: phone.request("GET", f"/api/sync/incoming?cursor={phone.store.get('cursor')}")["changes"])
            self.proxy.faults.append(("outgoing", fault))
            self.fails(client.Unanswered, phone.sync)
            self.assertEqual((len(phone.store.items()), self.stored(phone, phone.id)["title"]), (1, "fetched"))

    def test_killed_device_sends_unanswered_items_again(self):
        """Outbox: the device crashes before it has stored the response."""
        phone = self.edited()
        self.kill_at(phone, self.KILL_AT_RESULTS, "p.upload()")
        again = self.open(phone.path)
        again.sync()
        first, second = [request["body"]["items"] for request in self.proxy.requests("outgoing")]
        self.assertEqual((first, again.store.items()), (second, []))
        self.assertEqual(sql(f"SELECT version FROM tasks WHERE id = '{phone.id}'"), "2")

    def test_ended_token_is_deleted(self):
        """Outbox: 401."""
        phone = self.edited()
        self.revoke(phone)
        self.fails(client.NotEnrolled, phone.sync)
        self.assertEqual((phone.store.get("device_token"), len(phone.store.items())), (None, 1))


class Groups(PhoneTest):
    def leave(self, phone, id):
        sql(f"DELETE FROM list_members WHERE list_id = '{id}' AND user_id = '{phone.store.get('user_id')}'")

    def test_join_brings_rows_of_before(self):
        """Groups: `join` in `changes`."""
        phone = self.synced(rows=2)
        id = self.new_list(phone, 5)
        until(lambda: phone.sync() and len(phone.store.view("tasks")) == 6)
        self.assertEqual(self.groups(phone), {f"list:{phone.list}", f"list:{id}"})

    def test_rows_after_the_join_follow_the_snapshot_of_the_group(self):
        """Groups: no answer to one of these batches."""
        phone = self.synced(rows=2)
        id = self.new_list(phone, 5)
        until(lambda: any(change["op"] == "join" for change in self.step(phone, 2)["changes"]))
        self.proxy.faults.append(("incoming", "drop"))
        self.fails(client.Unanswered, phone.sync)
        sql(f"UPDATE tasks SET title = 'meanwhile' WHERE list_id = '{id}'")
        until(lambda: phone.sync() is not None and
              [row["title"] for row in phone.store.view("tasks").values() if row["list_id"] == id] == ["meanwhile"] * 5)

    def test_row_that_left_the_group_before_the_join_goes_with_the_others(self):
        """Groups: the same, in a batch without `reset`, when the group is not stored, but rows have it in `via`."""
        phone = self.synced(tasks=2)
        gone, still = sorted(phone.store.view("tasks").values(), key=lambda row: row["id"])
        join = {"op": "join", "group": "list", "id": "other"}
        both = [{"table": "tasks", "op": "update", "id": row["id"], "row": row,
                 "via": [f"list:{phone.list}", "list:other"]} for row in (gone, still)]
        with phone.store.transaction():
            for change in (*both, join, both[1], join):     # `gone` has left the list meanwhile; entries may come again
                phone.apply_change(change, False)
        self.assertEqual(set(phone.store.view("tasks")), {gone["id"], still["id"]})
        self.leave(phone, phone.list)
        until(lambda: phone.sync() is not None and self.groups(phone) == {"list:other"})
        self.assertEqual(set(phone.store.view("tasks")), {still["id"]})

    def test_result_within_a_snapshot_keeps_no_former_audiences(self):
        """Groups: a result is stored for a row that is marked as old."""
        phone = self.synced()
        row = self.task(phone)
        with phone.store.transaction():
            phone.apply_change({"table": "tasks", "op": "update", "id": row["id"], "row": row,
                                "via": [f"list:{phone.list}", f"user:{phone.store.get('user_id')}"]}, False)
            phone.begin_snapshot()
            phone.apply_change({"op": "join", "group": "list", "id": phone.list}, True)
        phone.change("tasks", "edit", row["id"], {"title": "mine"})
        phone.upload()
        self.assertEqual(self.stored(phone, row["id"])["title"], "mine")
        with phone.store.transaction():
            phone.apply_change({"op": "leave", "group": "list", "id": phone.list}, True)
        self.assertEqual(phone.store.view("tasks"), {})

    def test_leave_removes_rows_seen_by_that_group_only(self):
        """Groups: `leave`."""
        phone = self.synced()
        id = self.new_list(phone, 3)
        until(lambda: phone.sync() and len(phone.store.view("tasks")) == 4)
        self.leave(phone, id)
        until(lambda: phone.sync() and len(phone.store.view("tasks")) == 1)
        self.assertEqual(self.groups(phone), {f"list:{phone.list}"})
        self.assertEqual(set(phone.store.view("lists")), {phone.list})

    def test_leave_removes_rows_that_only_results_have_brought(self):
        """Groups: the same, while there are rows of own tables that only results have brought."""
        phone = self.synced()
        id = phone.change("tasks", "create", None, {"list_id": phone.list, "title": "mine"}).id
        phone.upload()
        self.assertIsNone(phone.store.row("tasks", id).via)
        with phone.store.transaction():
            phone.apply_change({"op": "leave", "group": "list", "id": phone.list}, False)
        self.assertEqual(phone.store.view("tasks"), {})

    def test_leave_keeps_rows_that_a_snapshot_has_brought(self):
        """Groups: the same, and a batch or snapshot has brought the row."""
        phone = self.synced()
        id = phone.change("messages", "create", None, {"recipient_id": self.bob, "content": "kept"}).id
        phone.upload()
        with phone.store.transaction():
            phone.store.set(cursor=None, snapshot=None)
        phone.sync()
        self.assertTrue(phone.store.row("messages", id).brought)
        self.leave(phone, phone.list)
        until(lambda: phone.sync() is not None and not self.groups(phone))
        self.assertIn(id, phone.store.view("messages"))

    def test_result_of_a_repeat_after_the_leave_brings_no_row(self):
        """Groups: the same, while an item that was sent has no answer and no row."""
        phone = self.synced()
        phone.change("tasks", "create", None, {"list_id": phone.list, "title": "mine"})
        self.proxy.faults.append(("outgoing", "drop"))
        self.fails(client.Unanswered, phone.upload)
        self.leave(phone, phone.list)
        until(lambda: phone.download() is not None and not self.groups(phone))
        phone.upload()
        self.assertEqual((phone.store.items(), phone.store.view("tasks")), ([], {}))

    def test_row_that_no_audience_of_the_device_sees_is_not_kept(self):
        """Groups: a row whose `via` names no audience of the device."""
        phone = self.synced()
        row = self.task(phone)
        with phone.store.transaction():
            phone.apply_change({"table": "tasks", "op": "update", "id": row["id"], "row": row, "via": ["list:other"]},
                               False)
        self.assertEqual(phone.store.view("tasks"), {})

    def test_reset_forgets_groups_until_the_snapshot_names_them(self):
        """Groups: a batch with `reset`."""
        phone = self.synced()
        phone.store.db.execute("INSERT INTO groups VALUES ('list:former')")
        with phone.store.transaction():
            phone.store.set(cursor=None, snapshot=None)
        phone.sync()
        self.assertEqual(self.groups(phone), {f"list:{phone.list}"})


class Events(PhoneTest):
    def add(self, phone, title="live"):
        sql(f"INSERT INTO tasks (list_id, title) VALUES ('{phone.list}', '{title}')")

    def shows(self, phone, tasks):
        until(lambda: len(phone.store.view("tasks")) == tasks)

    def test_event_triggers_one_sync(self):
        """Live events: any event with an `id`. Its id is stored after the sync."""
        phone = self.synced()
        with self.following(phone) as record:
            until(lambda: record.syncs)
            self.assertIsNone(phone.store.get("last_event"))
            self.add(phone)
            self.shows(phone, 2)
            until(lambda: phone.store.get("last_event"))
            count = len(record.syncs)
            time.sleep(1.0)
            self.assertLessEqual(len(record.syncs), count + 1)

    def test_opened_stream_triggers_one_sync(self):
        """Live events: the stream opens."""
        phone = self.synced()
        self.add(phone)
        until(lambda: phone.request("GET", f"/api/sync/incoming?cursor={phone.store.get('cursor')}")["changes"])
        with self.following(phone) as record:
            self.shows(phone, 2)
            time.sleep(1.0)
            self.assertLessEqual(len(record.syncs), 2)

    def test_broken_stream_resumes_by_last_event_id(self):
        """Live events: the stream ends."""
        phone = self.synced()
        with self.following(phone) as record:
            until(lambda: record.syncs)
            self.add(phone)
            last = until(lambda: phone.store.get("last_event"))
            self.proxy.break_streams()
            self.add(phone)
            self.shows(phone, 3)
            until(lambda: len(self.proxy.requests("/sse/")) == 2)
        self.assertEqual(self.proxy.requests("/sse/")[1]["headers"].get("Last-Event-ID"), last)

    def raw(self, text, seconds=0.0):
        """A stream in place of the next one: `hello`, these events after a second, and the end."""
        def stream(handler):
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.end_headers()
            handler.wfile.write(b'event: hello\ndata: {"type":"hello"}\n\n')
            time.sleep(1.0)
            handler.wfile.write(text.encode())
            time.sleep(seconds)
        real = Handler.handle_one

        def once(handler):
            if "/sse/" in handler.path and handler.server is self.proxy and not self.proxy.requests("/sse/"):
                self.proxy.seen.append({"path": handler.path, "headers": {}, "body": None, "at": time.monotonic()})
                return stream(handler)
            return real(handler)
        Handler.do_GET = once
        self.addCleanup(setattr, Handler, "do_GET", real)

    def test_bye_reconnects_after_given_delay(self):
        """Live events: `bye`."""
        phone = self.synced()
        self.raw('event: bye\ndata: {"type":"bye","reconnect_ms":2500}\n\n')
        with self.following(phone) as record:
            first, second = until(lambda: (found := self.proxy.requests("/sse/")) and len(found) == 2 and found)
            self.assertGreaterEqual(second["at"] - first["at"], 2.5)
            until(lambda: record.syncs)

    def test_reset_event_triggers_sync(self):
        """Live events: `reset`."""
        phone = self.synced()
        self.raw('event: reset\ndata: {"type":"reset"}\n\n', 5.0)
        with self.following(phone) as record:
            until(lambda: len(record.syncs) == 2, 5.0)
            self.assertEqual(len(self.proxy.requests("/sse/")), 1)

    def test_revoked_event_deletes_token(self):
        """Live events: `revoked`."""
        phone = self.synced()
        phone.change("tasks", "create", None, {"title": "kept"})
        phone.store.db.execute("UPDATE outbox SET sent = 1")
        self.proxy.faults += [("outgoing", "refuse")] * 50
        with self.following(phone) as record:
            until(lambda: self.proxy.requests("/sse/") and record.errors)
            api("DELETE", f"/api/devices/{phone.store.get('device_id')}", None, self.admin)
            until(lambda: record.end)
        self.assertEqual((phone.store.get("device_token"), len(phone.store.items())), (None, 1))

    def test_refused_last_event_id_is_deleted(self):
        """Live events: 400 `INVALID_CURSOR`."""
        phone = self.synced()
        phone.store.set(last_event="not-an-id")
        with self.following(phone) as record:
            until(lambda: record.syncs)
        self.assertIsNone(phone.store.get("last_event"))
        self.assertEqual(self.proxy.requests("/sse/")[0]["headers"].get("Last-Event-ID"), "not-an-id")


CLASSES = (Unenrolled, Fresh, Snapshot, Stream, Outbox, Groups, Events)


def load_tests(loader, tests, pattern):
    """The tests that each class defines itself, and the number of rows of the protocol's tables that they cover."""
    named = {f"{kind.__name__.lower()}::{name[5:]}" for kind in CLASSES for name in vars(kind)
             if name.startswith("test_")}
    protocol = (HERE.parent / "docs" / "sync-protocol.md").read_text()
    rows = set(re.findall(r"`(\w+::\w+)` \|$", protocol, re.MULTILINE))
    print(f"{len(rows & named)} of {len(rows)} rows of the tables have a test", file=sys.stderr)
    for name in sorted(rows ^ named):
        print(f"  {'without a test' if name in rows else 'not a row'}: {name}", file=sys.stderr)
    suite = unittest.TestSuite()
    for kind in CLASSES:
        suite.addTests(kind(name) for name in vars(kind) if name.startswith("test_"))
    return suite


if __name__ == "__main__":
    unittest.main()
