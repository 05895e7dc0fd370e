#!/usr/bin/env python3
"""A driver of phone.py for `posduif kit`: docs/conformance.md has its commands.

    posduif kit run --driver 'python3 examples/phone_driver.py'
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FEATURES = ["restart", "write", "messages", "groups", "live", "clock"]

# A test may name a changed copy.
SOURCE = os.environ.get("POSDUIF_PHONE", str(Path(__file__).with_name("phone.py")))
spec = importlib.util.spec_from_file_location("phone", SOURCE)
phone = importlib.util.module_from_spec(spec)
sys.modules["phone"] = phone
spec.loader.exec_module(phone)


class Clock:
    """Stands for the module `time` in the phone: time passes by `advance` only."""

    strftime, gmtime = staticmethod(time.strftime), staticmethod(time.gmtime)

    def __init__(self) -> None:
        self.now = 1000.0
        self.changed = threading.Condition()
        self.waiting: tuple[float, queue.Queue[Any] | None] | None = None    # of the thread that follows
        self.is_closing = False

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.wait(seconds, None)

    def wait(self, seconds: float, events: queue.Queue[Any] | None) -> None:
        """Waits until the time has passed, or there are events."""
        with self.changed:
            self.waiting = (self.now + seconds, events)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.is_closing or not self.is_idle())
            self.waiting = None

    def is_idle(self) -> bool:
        if self.waiting is None:
            return False
        until, events = self.waiting
        return self.now < until and (events is None or events.empty())

    def advance(self, seconds: float) -> None:
        with self.changed:
            self.now += seconds
            self.changed.notify_all()


clock = Clock()
phone.time = clock


class Events(queue.Queue):
    def put(self, item: Any, *rest: Any) -> None:
        super().put(item, *rest)
        with clock.changed:
            clock.changed.notify_all()


class Queues:
    Queue, Empty = Events, queue.Empty


phone.queue = Queues


class Stream(phone.LiveStream):
    is_open = False

    def __init__(self, device: Any) -> None:
        super().__init__(device)
        Stream.is_open = True

    def close(self) -> None:
        Stream.is_open = False
        super().close()

    def next(self, seconds: float) -> list[Any]:
        clock.wait(seconds, self.events)
        if clock.is_closing:
            raise Closed
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self.events.get_nowait())
        return found


phone.LiveStream = Stream


class Closed(Exception):
    """Ends the thread that follows."""


class Following(phone.Follower):
    """A thread that follows the stream, with a connection of its own to the storage."""

    def __init__(self, store: str):
        self.last = ""
        self.thread = threading.Thread(target=self.follow, args=(store,), daemon=True)
        self.is_alive = True
        self.thread.start()

    def follow(self, store: str) -> None:
        try:
            super().__init__(phone.Phone(store), None, self.note)
            self.run()
        except Closed:
            pass
        except phone.PhoneError as error:
            self.note(str(error))
        finally:
            with clock.changed:
                self.is_alive = False
                clock.changed.notify_all()

    def note(self, text: str) -> None:
        self.last = text

    def sync_if_due(self) -> None:
        if clock.is_closing:
            raise Closed
        super().sync_if_due()

    def sync_now(self) -> None:
        """As if an event had arrived."""
        with clock.changed:
            self.is_due, self.not_before, self.is_stuck, self.last = True, 0.0, False, "no sync"
            if clock.waiting is not None:
                clock.waiting = (clock.now, None)
            clock.changed.notify_all()

    def wait_idle(self) -> None:
        with clock.changed:
            clock.changed.wait_for(lambda: not self.is_alive or clock.is_idle())

    def close(self) -> None:
        with clock.changed:
            clock.is_closing = True
            clock.changed.notify_all()
        self.thread.join()
        clock.is_closing, clock.waiting = False, None


class Driver:
    def __init__(self) -> None:
        self.store = ""
        self.phone: Any = None
        self.following: Following | None = None

    def init(self, given: dict[str, Any]) -> dict[str, Any]:
        self.store = str(Path(given["store"]) / "phone.db")
        self.phone = phone.Phone(self.store)
        return {"client": "phone.py", "features": FEATURES, "known": []}

    def enroll(self, given: dict[str, Any]) -> None:
        self.phone.enroll(given["url"])

    def change(self, op: str, given: dict[str, Any]) -> None:
        self.phone.change(given["table"], op, given["id"], given.get("row"))

    def sync(self, _: dict[str, Any]) -> None:
        if self.following is None:
            self.phone.sync()
            return
        self.following.sync_now()
        self.following.wait_idle()
        if not self.following.last.startswith("synced"):
            raise phone.PhoneError(self.following.last)

    def open(self, _: dict[str, Any]) -> None:
        self.following = Following(self.store)

    def close(self, _: dict[str, Any]) -> None:
        if self.following is not None:
            self.following.close()
        self.following = None

    def advance(self, given: dict[str, Any]) -> None:
        clock.advance(given["ms"] / 1000)

    def wait(self, _: dict[str, Any]) -> None:
        if self.following is not None:
            self.following.wait_idle()

    def rows(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"rows": list(self.phone.store.view(given["table"]).values())}

    def outbox(self, _: dict[str, Any]) -> dict[str, Any]:
        store = self.phone.store
        refused = store.db.execute("SELECT tbl, op, id, code FROM refused WHERE status = 'rejected' ORDER BY n")
        return {"waiting": [item.body() for item in store.items()],
                "refused": [dict(zip(("table", "op", "id", "code"), row)) for row in refused]}

    def status(self, _: dict[str, Any]) -> dict[str, Any]:
        get = self.phone.store.get
        state = "fresh" if get("cursor") is None else "snapshot" if get("snapshot") else "stream"
        return {"state": state if get("device_token") else "unenrolled", "live": "open" if Stream.is_open else "closed"}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        name = command["do"]
        try:
            if name in ("write", "edit", "delete", "read"):
                self.change("create" if name == "write" else name, command)
                return {"ok": True}
            return {"ok": True} | (getattr(self, name)(command) or {})
        except phone.PhoneError as error:
            return {"ok": False, "message": str(error)}


def main() -> None:
    driver = Driver()
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "bye":
            driver.close(command)
            return
        print(json.dumps({"n": command["n"]} | driver.answer(command)), flush=True)


if __name__ == "__main__":
    main()
