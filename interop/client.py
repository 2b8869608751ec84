"""A client of real oslo.messaging that makes the calls a test asks for.

    client.py URL

A request is {"id", "op": "call" or "cast", "target": {..}, "method"} and, where wanted, "args", "context",
"timeout" and "monitor" in seconds, "version_cap", "at_least_once", "retry" and "prepare" (a list of arguments of
`prepare`, applied one after the other). The answer is {"id", "result"} or {"id", "error"}, with the "seconds" it took.
"""

import sys
import time

import oslo_messaging
from oslo_config import cfg

import peer

# Parts of the library read the global configuration whatever they are given.
CONF = cfg.CONF
CONF([], project="interop")
TRANSPORT = oslo_messaging.get_rpc_transport(
    CONF, sys.argv[1], allowed_remote_exmods=["service_errors"]
)
UNSET = object()


def error_of(error):
    described = {
        "class": type(error).__name__,
        "module": type(error).__module__,
        "bases": [base.__name__ for base in type(error).__mro__],
        "text": str(error),
        "kwargs": getattr(error, "kwargs", None),
    }
    for name in ("exc_type", "value", "traceback"):
        if hasattr(error, name):
            described[name] = getattr(error, name)
    return described


def send(request):
    client = oslo_messaging.get_rpc_client(
        TRANSPORT,
        oslo_messaging.Target(**request["target"]),
        timeout=request.get("timeout", 20),
        version_cap=request.get("version_cap"),
        retry=request.get("retry"),
        call_monitor_timeout=request.get("monitor"),
        transport_options=oslo_messaging.TransportOptions(
            at_least_once=request.get("at_least_once", False)
        ),
    )
    send = {"call": client.call, "cast": client.cast}[request["op"]]
    for arguments in request.get("prepare", []):
        client = client.prepare(**arguments)
        send = {"call": client.call, "cast": client.cast}[request["op"]]
    args = peer.typed(request.get("args", {}))
    started = time.monotonic()
    try:
        outcome = {"result": send(request.get("context", {}), request["method"], **args)}
    except Exception as error:  # Whatever it is: it is what the test wants to know.
        outcome = {"error": error_of(error)}
    return {**outcome, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    peer.run(send, threads=32)
