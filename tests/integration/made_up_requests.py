"""Requests made up from the OpenAPI document, over the real socket.

A program, so that it can be run as any user. It prints how often each status was answered to each
route, or fails with what was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.made_up import CHECKS, examples, operations, send

ACCEPTED = 202
#: What a request may name that exists: most names that are made up name nothing.
REAL = {
    "vm": "web1", "alias": "net0", "nic": "52:54:00:00:01:00", "network": "blue", "name": "blue",
    "target": "red:p1",
}  # fmt: skip
METHODS = ["get", "post", "put", "delete"]  #: in this order: what exists is deleted last
LOOKS = ("/v1/vms", "/v1/networks", "/v1/ports", "/v1/nics", "/v1/connections")


class Fuzz:
    """Tries every route.

    :param may_change: whether this user may change anything.
    :param qmp: the monitor of ``web1``.
    :param count: requests for each route, and as many malformed ones for those with a body.
    """

    def __init__(self, client: httpx.Client, *, may_change: bool, count: int, qmp: str) -> None:
        self._client = client
        self._may_change = may_change
        self._real = {**REAL, "qmp": qmp}
        self._settings = examples(count, derandomize=True)
        self._known: object = None  #: what `_state` said, until a request is accepted
        self.statuses: dict[str, Counter[str]] = {}

    def run(self) -> None:
        document = self._client.get("/openapi.json").json()
        for operation, mode in operations(
            document, lambda each: (METHODS.index(each.method), each.path)
        ):
            self._try(operation, mode)

    def _try(self, operation: Any, mode: GenerationMode) -> None:
        route = f"{operation.method.upper()} {operation.path}"
        counted = self.statuses.setdefault(route, Counter())

        @given(case=operation.as_strategy(generation_mode=mode), real=st.data())
        @self._settings
        def try_one(case: Any, real: Any) -> None:
            if mode is GenerationMode.POSITIVE and real.draw(st.booleans()):
                self._name_what_exists(case)
            before = self._known or self._state()
            self._known = None
            answer = self._send(case)
            counted[str(answer.status_code)] += 1
            if case.method != "GET" and not self._may_change:
                assert answer.status_code >= 400, f"a stranger's {route} was accepted"
            if answer.status_code >= 400 or not self._may_change:
                after = self._state()
                assert after == before, f"a rejected {route} changed {before} to {after}"
                self._known = after
            case.validate_response(answer, checks=CHECKS)

        try_one()

    def _send(self, case: Any) -> httpx.Response:
        answer = send(self._client, case)
        if answer.status_code == ACCEPTED:
            while (begun := self._client.get(answer.headers["location"]).json())["ended"] is None:
                time.sleep(0.01)
            assert (begun["problem"] or {"status": 0})["status"] < 500, begun
        return answer

    def _name_what_exists(self, case: Any) -> None:
        for place in (case.path_parameters, case.body):
            if isinstance(place, dict):
                place.update({key: value for key, value in self._real.items() if key in place})
        if "/ports/" in case.path:
            case.path_parameters["name"] = "p1"
        if case.path == "/v1/vms" and isinstance(case.body, dict):
            case.body["name"] = self._real["vm"]
        if case.path == "/v1/networks" and isinstance(case.body, dict):
            case.body = {"name": "blue", "driver": "bridge", "options": {"bridge": "br-blue"}}

    def _state(self) -> object:
        """All that anybody can see: what the service says, and the devices of the kernel."""
        devices = sorted(path.name for path in Path("/sys/class/net").iterdir())
        return [self._client.get(path).json() for path in LOOKS], devices


def main() -> int:
    """Try everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("qmp")
    parser.add_argument("--stranger", action="store_true", help="this user may change nothing")
    parser.add_argument("--examples", type=int, default=20)
    words = parser.parse_args()
    transport = httpx.HTTPTransport(uds=words.socket)
    with httpx.Client(transport=transport, base_url="http://linkmgr", timeout=20) as client:
        fuzz = Fuzz(client, may_change=not words.stranger, count=words.examples, qmp=words.qmp)
        fuzz.run()
    sys.stdout.write(json.dumps(fuzz.statuses) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
