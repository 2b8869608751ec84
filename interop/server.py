"""Servers of real oslo.messaging with the endpoints that a test asks for.

    server.py URL

Requests, each answered with {"id", "ok": true} unless it says otherwise:

- {"op": "serve", "topic", "server", "endpoints"} and, where wanted, "exchange", "policy" ("legacy", "default",
  "explicit") and "ping". Endpoints are "standard", or a list of {"target", "methods", "exposed"}: a method of the
  latter returns the endpoint's number and its own name, so that a test sees who answered.
- {"op": "stop"} stops all servers and waits for them.
- {"op": "recorded", "server"} is answered with {"recorded": [..]}: what `record` was called with, in order.
"""

import collections
import datetime
import sys
import threading
import time
import uuid

import oslo_messaging
from oslo_config import cfg
from oslo_messaging.rpc import dispatcher

import peer
import service_errors

# Parts of the library read the global configuration whatever they are given.
CONF = cfg.CONF
CONF([], project="interop")
TRANSPORT = oslo_messaging.get_rpc_transport(
    CONF, sys.argv[1], allowed_remote_exmods=["service_errors"]
)
POLICIES = {
    "legacy": dispatcher.LegacyRPCAccessPolicy,
    "default": dispatcher.DefaultRPCAccessPolicy,
    "explicit": dispatcher.ExplicitRPCAccessPolicy,
}


class Standard:
    """What the tests call most: the counterpart of the Rust service of the tests."""

    def __init__(self, name, recorded):
        self.name = name
        self.recorded = recorded

    def echo(self, ctxt, value):
        return value

    def context(self, ctxt):
        return ctxt

    def whoami(self, ctxt):
        return self.name

    def record(self, ctxt, value):
        self.recorded.append(value)
        return value

    def slow(self, ctxt, seconds):
        time.sleep(seconds)
        return "done"

    def big(self, ctxt, size):
        return "x" * size

    def add(self, ctxt, a, b):
        return a + b

    def types(self, ctxt):
        """Values that JSON has no types for."""
        return {
            "datetime": datetime.datetime(2026, 1, 2, 3, 4, 5),
            "date": datetime.date(2026, 1, 2),
            "uuid": uuid.UUID(int=1),
            "set": {1},
            "tuple": (1, "two"),
            "bytes": b"raw",
            "not_a_number": float("nan"),
            "big": 2**70,
        }

    def fail(self, ctxt, kind):
        raise {
            "value": ValueError("boom"),
            "type": TypeError("not that type"),
            "key": KeyError("k"),
            "timeout": TimeoutError("too slow"),
            "unicode": ValueError("caf\u00e9 \"q\" \\ \n \U0001f600"),
            "own": service_errors.OutOfDisk(host="c1", free=0),
            "unknown": type("Unheard", (Exception,), {"__module__": "nobody.knows"})("what"),
        }[kind]

    @oslo_messaging.expected_exceptions(ValueError)
    def fail_as_expected(self, ctxt):
        raise ValueError("as usual")

    def relay(self, ctxt, topic, name, args):
        """Calls another server, and passes on what comes back, failures too."""
        target = oslo_messaging.Target(topic=topic)
        client = oslo_messaging.get_rpc_client(TRANSPORT, target, timeout=20)
        return client.call(ctxt, name, **args)


class StandardNamespaced(Standard):
    """The same in a namespace and a version of its own."""

    target = oslo_messaging.Target(namespace="tests", version="3.2")


def endpoint(number, described):
    """An object with the methods that are described."""

    def method(name, exposed):
        def answer(self, ctxt):
            return f"{number}:{name}"

        answer.__name__ = name
        return oslo_messaging.expose(answer) if exposed else answer

    methods = {
        name: method(name, name in described.get("exposed", []))
        for name in described["methods"]
    }
    if described.get("target") is not None:
        methods["target"] = oslo_messaging.Target(**described["target"])
    return type("Endpoint", (), methods)()


class Servers:
    def __init__(self):
        self.running = []
        self.recorded = collections.defaultdict(list)
        # The ping option is read from the global configuration while a server is made.
        self.making = threading.Lock()

    def serve(self, request):
        name = request["server"]
        described = request["endpoints"]
        if described == "standard":
            recorded = self.recorded[name]
            endpoints = [Standard(name, recorded), StandardNamespaced(name, recorded)]
        else:
            endpoints = [endpoint(number, one) for number, one in enumerate(described)]
        target = oslo_messaging.Target(
            exchange=request.get("exchange"), topic=request["topic"], server=name
        )
        with self.making:
            CONF.register_opts(dispatcher._dispatcher_opts)
            CONF.set_override("rpc_ping_enabled", request.get("ping", False))
            server = oslo_messaging.get_rpc_server(
                TRANSPORT,
                target,
                endpoints,
                access_policy=POLICIES[request.get("policy", "default")],
            )
        server.start()
        self.running.append(server)
        return {"ok": True}

    def stop(self):
        while self.running:
            server = self.running.pop()
            server.stop()
            server.wait()
        return {"ok": True}

    def answer(self, request):
        if request["op"] == "serve":
            return self.serve(request)
        if request["op"] == "stop":
            return self.stop()
        if request["op"] == "recorded":
            return {"recorded": list(self.recorded[request["server"]])}
        raise ValueError(f"unknown request {request['op']}")


if __name__ == "__main__":
    peer.run(Servers().answer, threads=8)
