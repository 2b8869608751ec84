"""Captures what the real oslo.messaging puts on the wire.

Runs calls, casts and failures between real clients and servers and keeps the body of each message as
the broker would get it, after every layer of encoding:

    target/python/bin/python interop/capture_golden.py messaging-core/tests/golden

Without RABBITMQ_URL the messages go through kombu's own broker in memory, whose bodies are the same.
Ids and the paths in tracebacks are made the same in every run and on every machine, and nothing else is
touched, so that a newer oslo.messaging shows up as a difference in the golden files.
"""

import datetime
import decimal
import logging
import os
import pathlib
import random
import sys
import sysconfig
import threading
import time
import types
import uuid

# Ids are drawn from a seeded source, before anything takes a reference to the real one.
_source = random.Random(20260102)
_source_lock = threading.Lock()


def _uuid4():
    with _source_lock:
        return uuid.UUID(int=_source.getrandbits(128), version=4)


uuid.uuid4 = _uuid4

import kombu.messaging  # noqa: E402
import oslo_messaging  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_context import context as oslo_context  # noqa: E402
from oslo_messaging._drivers import common  # noqa: E402

TOPIC = "golden"
RELAY_TOPIC = "golden-relay"
WAIT = 10


class Tap:
    """Sees every body right after kombu encoded it, and hands out those of one scenario."""

    def __init__(self):
        self._arrived = threading.Condition()
        self._bodies = []
        publish = kombu.messaging.Producer._publish

        def tapped(producer, body, *args, **kwargs):
            with self._arrived:
                self._bodies.append(body.encode() if isinstance(body, str) else body)
                self._arrived.notify_all()
            return publish(producer, body, *args, **kwargs)

        kombu.messaging.Producer._publish = tapped

    def clear(self):
        with self._arrived:
            self._bodies.clear()

    def take(self, marker, which=0):
        """The body number `which` among those that hold `marker`."""

        def found():
            return [body for body in self._bodies if marker in body]

        with self._arrived:
            if not self._arrived.wait_for(lambda: len(found()) > which, timeout=WAIT):
                raise RuntimeError(f"no message with {marker} within {WAIT} s")
            return found()[which]


REQUEST = rb"\"method\": "
REPLY = rb"\"result\": "


def trim_paths():
    """Tracebacks quote files: make them those of a system-wide installation."""
    real = common.traceback
    places = [
        (sysconfig.get_path("purelib"), "/usr/lib/python3/dist-packages"),
        (sysconfig.get_path("stdlib"), "/usr/lib/python3"),
        (os.path.abspath(__file__), "/srv/service.py"),
    ]

    def format_exception(*args):
        lines = []
        for line in real.format_exception(*args):
            # A relayed failure quotes the lines of the one before, which are trimmed already.
            for installed, shown in places:
                line = line.replace(f'File "{installed}', f'File "{shown}')
            lines.append(line)
        return lines

    common.traceback = types.SimpleNamespace(format_exception=format_exception)


class OutOfDisk(Exception):
    """As services define them: a message made from keyword arguments."""

    def __init__(self, message=None, **kwargs):
        self.kwargs = kwargs
        super().__init__(message or "host %(host)s has %(free)d bytes left" % kwargs)


# An importable module of the application, as the peer that rebuilds the exception must have.
OutOfDisk.__module__ = "service.exceptions"
_exceptions = types.ModuleType("service.exceptions")
_exceptions.OutOfDisk = OutOfDisk
sys.modules["service"] = types.ModuleType("service")
sys.modules["service.exceptions"] = _exceptions


class Endpoint:
    target = oslo_messaging.Target(version="1.5")

    def __init__(self, relay=None):
        self.relay = relay

    def echo(self, ctxt, **args):
        return args.get("value")

    def slow(self, ctxt):
        time.sleep(1.4)
        return "done"

    def fail(self, ctxt, text):
        raise ValueError(text)

    def fail_own(self, ctxt):
        raise OutOfDisk(free=0, host="c\u00f3mpute-1")

    def relayed(self, ctxt, name):
        return self.relay.call(ctxt, name)


class Namespaced:
    target = oslo_messaging.Target(namespace="baseapi", version="1.3")

    def echo(self, ctxt, **args):
        return args.get("value")


class ContextSerializer(oslo_messaging.NoOpSerializer):
    """What services do with the context of oslo.context."""

    def serialize_context(self, context):
        return context.to_dict()


def main(folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Each failure that is captured would be logged with its traceback.
    logging.disable(logging.CRITICAL)
    tap = Tap()
    trim_paths()

    url = os.environ.get("RABBITMQ_URL", "kombu+memory:////")
    # Parts of the library read the global configuration whatever they are given.
    conf = cfg.CONF
    conf([], project="golden")
    transport = oslo_messaging.get_rpc_transport(
        conf, url, allowed_remote_exmods=["service.exceptions"]
    )

    def client(**target):
        return oslo_messaging.get_rpc_client(
            transport, oslo_messaging.Target(topic=TOPIC, **target), timeout=WAIT
        )

    def serve(topic, *endpoints):
        server = oslo_messaging.get_rpc_server(
            transport,
            oslo_messaging.Target(topic=topic, server="s1"),
            list(endpoints),
        )
        server.start()
        return server

    relay = oslo_messaging.get_rpc_client(
        transport, oslo_messaging.Target(topic=RELAY_TOPIC), timeout=WAIT
    )
    servers = [serve(RELAY_TOPIC, Endpoint()), serve(TOPIC, Endpoint(relay), Namespaced())]
    plain = client()

    def keep(name, body):
        (folder / f"{name}.json").write_bytes(body)

    def request(name, run, which=0):
        tap.clear()
        run()
        keep(name, tap.take(REQUEST, which))

    def reply(name, run, which=0):
        tap.clear()
        try:
            run()
        except Exception as failure:  # The failure is what is captured.
            print(f"{name}: {type(failure).__name__}")
        keep(name, tap.take(REPLY, which))

    context = {
        "user": "bob",
        "request_id": "req-1",
        "roles": ["admin", "r\u00e9der"],
        "auth_token": None,
        "nested": {"a": {"b": 1.5}},
    }
    rich = oslo_context.RequestContext(
        auth_token="token", user_id="u1", project_id="p1", roles=["member"], request_id="req-2"
    )

    request("call", lambda: plain.call({}, "echo", value=1))
    request(
        "call_namespace_version",
        lambda: client(namespace="baseapi", version="1.3").call({}, "echo", value="x"),
    )
    request("call_context", lambda: plain.call(context, "echo", value=None))
    request(
        "call_request_context",
        lambda: oslo_messaging.get_rpc_client(
            transport,
            oslo_messaging.Target(topic=TOPIC),
            timeout=WAIT,
            serializer=ContextSerializer(),
        ).call(rich, "echo"),
    )
    # The second request of a chain: its context is the one that the first server's endpoint was given.
    request(
        "call_relayed_context",
        lambda: plain.call({"user": "bob"}, "relayed", name="echo"),
        which=1,
    )
    request(
        "call_monitor", lambda: plain.prepare(call_monitor_timeout=4).call({}, "echo")
    )
    request(
        "call_types",
        lambda: plain.call(
            {},
            "echo",
            when=datetime.datetime(2026, 1, 2, 3, 4, 5),
            day=datetime.date(2026, 1, 2),
            id=uuid.UUID(int=1),
            set={1},
            tuple=(1, "two"),
            bytes=b"raw",
            decimal=decimal.Decimal("1.50"),
            big=2**70,
            float=0.1,
            yes=True,
            no=None,
        ),
    )
    request(
        "call_unicode",
        lambda: plain.call(
            {"us\u00e9r": "\u2603"},
            "echo",
            value="caf\u00e9 \U0001f600 \"quoted\" back\\slash \n\t\x00\x7f\u2028",
        ),
    )
    request(
        "call_not_a_number",
        lambda: plain.call(
            {"load": float("nan")}, "echo", value=[float("inf"), -float("inf"), "NaN"]
        ),
    )
    request("call_lone_surrogate", lambda: plain.call({}, "echo", value="\ud800"))
    request("cast", lambda: plain.cast({}, "echo", value=[1, 2]))
    request(
        "cast_context_version",
        lambda: client(version="1.1").cast({"user": "bob"}, "echo", value={"k": "v"}),
    )
    request("cast_fanout", lambda: plain.prepare(fanout=True).cast({}, "echo"))

    reply("reply_null", lambda: plain.call({}, "echo", value=None))
    reply("reply_list", lambda: plain.call({}, "echo", value=[1, "two", None, {"k": []}]))
    reply("reply_string", lambda: plain.call({}, "echo", value="caf\u00e9 \"q\" \\ \n"))
    reply("reply_object", lambda: plain.call({}, "echo", value={"a": {"b": [True, 1.5]}}))
    reply("reply_false", lambda: plain.call({}, "echo", value=False))
    reply("reply_not_a_number", lambda: plain.call({}, "echo", value=[float("nan"), 1]))
    reply("reply_lone_surrogate", lambda: plain.call({}, "echo", value="\udc00"))

    monitored = plain.prepare(call_monitor_timeout=2)
    reply("heartbeat", lambda: monitored.call({}, "slow"))
    reply("reply_after_heartbeat", lambda: monitored.call({}, "slow"), which=1)

    reply("failure_value_error", lambda: plain.call({}, "fail", text="boom"))
    reply("failure_unicode", lambda: plain.call({}, "fail", text="caf\u00e9 \"q\" \\ \n\x00 \U0001f600"))
    reply("failure_own_class", lambda: plain.call({}, "fail_own"))
    # The first reply is the inner server's, the second the failure as the outer one passes it on.
    reply("failure_relayed", lambda: plain.call({}, "relayed", name="fail_own"), which=1)
    reply("failure_no_such_method", lambda: plain.call({}, "missing"))
    reply("failure_unsupported_version", lambda: client(version="9.9").call({}, "echo"))

    for server in servers:
        server.stop()
        server.wait()
    transport.cleanup()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: capture_golden.py FOLDER")
    main(sys.argv[1])
