"""Runs the functional tests that oslo.messaging ships, with servers of Longshore in the place of their own.

    upstream.py list                    prints the name of each test, one a line
    upstream.py run SERVERS NAME...     runs these tests, one after another

SERVERS is `python` for the tests as they are, or the path of a Unix socket. There each server that a test makes
through `RpcServerFixture` is a connection, with one JSON object a line: the request to serve, which the other
side answers when the server is up, then {"op": "state"}, {"op": "synced", "seconds"} and {"op": "stop"}. An answer
with a "fault" fails the test.

Each test ends with one JSON object on stdout: {"test", "outcome", "servers", "seconds", "detail"}, where outcome is
"passed", "skipped" or "failed", and servers is how many of them were Longshore's. The tests' own variables say where
the broker is: RPC_TRANSPORT_URL and NOTIFY_TRANSPORT_URL.
"""

import json
import os
import pathlib
import socket
import sys
import time
import unittest

# First of all, because it makes the standard library cooperative for the whole process.
from oslo_messaging.tests import functional

import fixtures
from oslo_messaging.tests.functional import utils

PACKAGE = functional.__name__
FOLDER = pathlib.Path(functional.__file__).parent
ROOT = FOLDER.parents[len(PACKAGE.split(".")) - 1]
# More than the other side takes for the longest that it is asked for.
PATIENCE = 60


class RemoteEndpoint:
    """What a test reads of its endpoint: the attributes of the one at the other side."""

    def __init__(self, ask):
        self._ask = ask

    def __getattr__(self, name):
        return self._ask({"op": "state"})[name]


class RemoteSyncs:
    """What a test reads of its fixture's queue: it waits until `sync` was called."""

    def __init__(self, ask):
        self._ask = ask

    def get(self, timeout):
        self._ask({"op": "synced", "seconds": timeout})


class LongshoreServer(fixtures.Fixture):
    """Stands where the tests want an `RpcServerFixture`."""

    path = None
    made = 0

    def __init__(
        self, conf, url, target, endpoint=None, ctrl_target=None, executor="eventlet"
    ):
        super().__init__()
        self.counterpart = endpoint or utils.TestServerEndpoint()
        self.request = {
            "url": url,
            "exchange": target.exchange,
            "topic": target.topic,
            "server": target.server,
            "executor": executor,
            "methods": public_methods(self.counterpart),
        }
        own_target = getattr(self.counterpart, "target", None)
        if own_target is not None:
            self.request["namespace"] = own_target.namespace
            self.request["version"] = own_target.version

    def _setUp(self):
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(PATIENCE)
        self.addCleanup(self.connection.close)
        self.connection.connect(LongshoreServer.path)
        self.stream = self.connection.makefile("rw", encoding="utf-8")
        self.ask(self.request)
        LongshoreServer.made += 1
        self.addCleanup(self.ask, {"op": "stop"})
        self.endpoint = RemoteEndpoint(self.ask)
        self.syncq = RemoteSyncs(self.ask)

    def ask(self, request):
        self.stream.write(json.dumps(request) + "\n")
        self.stream.flush()
        line = self.stream.readline()
        if not line:
            raise ConnectionError(f"no answer to {request}")
        answer = json.loads(line)
        if "fault" in answer:
            raise AssertionError(f"{answer['fault']} (asked {request})")
        return answer


def public_methods(endpoint):
    return [
        name
        for name in dir(type(endpoint))
        if not name.startswith("_") and callable(getattr(endpoint, name))
    ]


class Report(unittest.TestResult):
    """Writes what became of each test."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()
        self.made_before = LongshoreServer.made
        self.outcome = "passed"
        self.details = []

    def stopTest(self, test):
        line = {
            "test": short_name(test),
            "outcome": self.outcome,
            "servers": LongshoreServer.made - self.made_before,
            "seconds": round(time.monotonic() - self.began, 1),
            "detail": "\n".join(self.details),
        }
        self.out.write(json.dumps(line) + "\n")
        self.out.flush()
        super().stopTest(test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.outcome = "skipped"
        self.details.append(reason)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.failed(test, err)

    def addError(self, test, err):
        super().addError(test, err)
        self.failed(test, err)

    def failed(self, test, err):
        self.outcome = "failed"
        self.details.append(self._exc_info_to_string(err, test))


def short_name(test):
    return test.id().removeprefix(PACKAGE + ".")


def all_tests():
    """Each test of the suite by its name; one that cannot be imported is there as one that fails."""

    def flat(suite):
        for item in suite:
            if isinstance(item, unittest.TestSuite):
                yield from flat(item)
            else:
                yield item

    loader = unittest.TestLoader()
    found = loader.discover(str(FOLDER), top_level_dir=str(ROOT))
    return {short_name(test): test for test in flat(found)}


def run(servers, names):
    # What tests and their processes print must not get between the reports.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if servers != "python":
        LongshoreServer.path = servers
        utils.RpcServerFixture = LongshoreServer
    tests = all_tests()
    report = Report(out)
    for name in names:
        tests[name].run(report)
    out.flush()
    # Threads of the tests that are left must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "list":
        print("\n".join(all_tests()))
    else:
        run(sys.argv[2], sys.argv[3:])
