"""What the Python peers of the interoperability tests share.

A peer prints `ready`, then answers requests: one JSON object a line on stdin, each with an `id`, and one JSON
object a line on stdout with the same `id`. It ends when stdin ends, so that it cannot outlive the test that
started it, and at SIGTERM. What it logs goes to stderr.
"""

import concurrent.futures
import datetime
import decimal
import json
import os
import signal
import sys
import threading
import uuid

_out = threading.Lock()


def say(answer):
    """Writes one line at once."""
    line = answer if isinstance(answer, str) else json.dumps(answer)
    with _out:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def run(answer, threads):
    """Answers each request with what `answer(request)` returns, a dict; up to `threads` at once."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    pool = concurrent.futures.ThreadPoolExecutor(threads)

    def one(request):
        try:
            outcome = answer(request)
        except Exception as fault:  # A fault of the test's request: the test prints it.
            outcome = {"fault": f"{type(fault).__name__}: {fault}"}
        say({"id": request["id"], **outcome})

    say("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if threads == 1:
            one(request)
        else:
            pool.submit(one, request)
    # Nobody reads the answers any more; threads that still wait for a broker must not keep the process.
    os._exit(0)


_TYPES = {
    "$datetime": datetime.datetime.fromisoformat,
    "$date": datetime.date.fromisoformat,
    "$uuid": uuid.UUID,
    "$set": set,
    "$tuple": tuple,
    "$bytes": str.encode,
    "$decimal": decimal.Decimal,
    "$float": float,
}


def typed(value):
    """Python's own types out of JSON: {"$set": [1]} is a set."""
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, dict):
        if len(value) == 1:
            ((name, inside),) = value.items()
            if name in _TYPES:
                return _TYPES[name](inside)
        return {name: typed(item) for name, item in value.items()}
    return value
