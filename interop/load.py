"""The same load as the benchmarks' other subjects, on real oslo.messaging: a client, and a server in a second process.

    load.py call|cast|fanout --topic TOPIC --in-flight N --millis MS --warm-up MS [--servers N] [--lengths A,B,..]

RABBITMQ_URL names the broker. Prints one line of JSON: the figures of the run, those of both processes together.
Everything that has a default keeps it, except for how long the queues of a run that is over are kept.
"""

import argparse
import itertools
import json
import logging
import os
import resource
import subprocess
import sys
import threading
import time

import oslo_messaging
from oslo_config import cfg

EXCHANGE = "longshore-bench"
DRAIN = 30


def transport():
    conf = cfg.CONF
    conf([], project="load")
    made = oslo_messaging.get_rpc_transport(conf, os.environ["RABBITMQ_URL"])
    conf.set_override("rabbit_transient_queues_ttl", 60, group="oslo_messaging_rabbit")
    return made


def usage():
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM:"))
    return {
        "cpu_us": (used.ru_utime + used.ru_stime) * 1e6,
        "switches": used.ru_nvcsw + used.ru_nivcsw,
        "rss_mb": int(peak.split()[1]) / 1024,
    }


class Endpoint:
    def __init__(self, echoes, servers, say):
        self.echoes = echoes
        self.servers = servers
        self.say = say
        self.lock = threading.Lock()
        self.handled = 0
        self.missing = {}

    def health_check(self, ctxt, seqid, host, req):
        return [seqid, host, req if self.echoes else "I'm fine!"]

    def note(self, ctxt, seqid, host, req):
        with self.lock:
            self.handled += 1

    def refresh(self, ctxt, seqid, host, req):
        with self.lock:
            left = self.missing.get(seqid, self.servers) - 1
            self.missing[seqid] = left
            if left == 0:
                del self.missing[seqid]
        if left == 0:
            self.say({"everywhere": seqid})


def serve(options):
    out = threading.Lock()

    def say(answer):
        with out:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    endpoint = Endpoint(bool(options.lengths), options.servers, say)
    shared = transport()
    for number in range(options.servers):
        target = oslo_messaging.Target(
            exchange=EXCHANGE, topic=options.topic, server=str(number)
        )
        server = oslo_messaging.get_rpc_server(shared, target, [endpoint], executor="threading")
        server.start()
    say({"ready": True})
    for _ in sys.stdin:
        with endpoint.lock:
            handled = endpoint.handled
        say({"usage": {**usage(), "handled": handled}})
    # Whoever started this process is gone or through; threads that wait for a broker must not keep it.
    os._exit(0)


class Server:
    """The process of the servers, as the client sees it."""

    def __init__(self):
        command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--serve"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answers = {}
        self.arrived = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()
        self.take("ready")

    def read(self):
        for line in self.process.stdout:
            for name, value in json.loads(line).items():
                with self.arrived:
                    key = (name, value) if name == "everywhere" else name
                    self.answers[key] = value
                    self.arrived.notify_all()

    def take(self, key):
        with self.arrived:
            if not self.arrived.wait_for(lambda: key in self.answers, timeout=60):
                sys.exit(f"no {key} from the server within 60 s")
            return self.answers.pop(key)

    def usage(self):
        self.process.stdin.write("usage\n")
        self.process.stdin.flush()
        return self.take("usage")

    def drained(self, expected):
        until = time.monotonic() + DRAIN
        while self.usage()["handled"] < expected:
            if time.monotonic() > until:
                sys.exit(f"{expected} casts were not handled within {DRAIN} s")
            time.sleep(0.01)

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=10)


class Load:
    def __init__(self, options, server):
        self.options = options
        self.server = server
        self.numbers = itertools.count()
        self.lengths = [int(length) for length in options.lengths.split(",") if length]
        target = oslo_messaging.Target(exchange=EXCHANGE, topic=options.topic)
        self.client = oslo_messaging.get_rpc_client(transport(), target)
        self.everyone = self.client.prepare(fanout=True)

    def once(self):
        seqid = next(self.numbers)
        req = "How are you?"
        if self.lengths:
            req = "x" * self.lengths[seqid % len(self.lengths)]
        args = {"seqid": seqid, "host": "api-1", "req": req}
        if self.options.operation == "call":
            answered = self.client.call({}, "health_check", **args)[0]
            if answered != seqid:
                raise RuntimeError(f"question {seqid} got answer {answered}")
        elif self.options.operation == "cast":
            self.client.cast({}, "note", **args)
        else:
            self.everyone.cast({}, "refresh", **args)
            self.server.take(("everywhere", seqid))

    def run(self, millis):
        """The times of all calls in seconds, sorted, and how long all took."""
        started = time.monotonic()
        end = started + millis / 1000
        times = [[] for _ in range(self.options.in_flight)]
        failures = []

        def work(own):
            try:
                while (begun := time.monotonic()) < end:
                    self.once()
                    own.append(time.monotonic() - begun)
            except Exception as failure:  # It ends the run, which is void then.
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(own,)) for own in times]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return sorted(itertools.chain(*times)), time.monotonic() - started


def load(options):
    server = Server()
    client = Load(options, server)
    done, _ = client.run(options.warm_up)
    sent = len(done)
    if options.operation == "cast":
        server.drained(sent)
    before = [usage(), server.usage()]
    times, seconds = client.run(options.millis)
    if options.operation == "cast":
        server.drained(sent + len(times))
    after = [usage(), server.usage()]
    server.end()

    def used(what):
        return sum(b[what] - a[what] for a, b in zip(before, after)) / len(times)

    sample = {
        "calls": len(times),
        "calls_per_s": len(times) / seconds,
        "p50_us": times[len(times) // 2] * 1e6,
        "p99_us": times[len(times) * 99 // 100] * 1e6,
        "cpu_us_per_call": used("cpu_us"),
        "switches_per_call": used("switches"),
        "rss_mb": sum(process["rss_mb"] for process in after),
    }
    print(json.dumps(sample), flush=True)
    os._exit(0)


def main():
    logging.disable(logging.CRITICAL)
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("operation", choices=["call", "cast", "fanout"])
    arguments.add_argument("--topic", required=True)
    arguments.add_argument("--in-flight", type=int, required=True)
    arguments.add_argument("--servers", type=int, default=1)
    arguments.add_argument("--millis", type=int, required=True)
    arguments.add_argument("--warm-up", type=int, required=True)
    arguments.add_argument("--lengths", default="")
    arguments.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.serve:
        serve(options)
    else:
        load(options)


if __name__ == "__main__":
    main()
