"""A plain AMQP client: sends what no well-behaved peer would, and shows what really is on the wire.

    raw.py URL

Requests, answered in order:

- {"op": "exchange", "name", "type", ..flags}, {"op": "queue", "name", ..flags}, {"op": "bind", "exchange",
  "queue", "key"} and {"op": "delete", "name"} (a queue) are answered with {"id", "ok": true}.
- {"op": "publish", "exchange", "key", "properties": {..}} with "text" or "hex" as the body, "repeat" to send it so
  many times over, and "pack" ("zlib", "gzip", "bz2") to compress it; the answer says whether it was "routed".
- {"op": "get", "queue", "seconds"} takes the next message: {"id", "message": {"exchange", "key", "properties",
  "text" or "hex", "redelivered"}}, null if none came. Properties hold those that the message has.
- {"op": "exists", "exchange"} is answered with {"id", "exists"}.
- {"op": "depth", "queue"} is answered with {"id", "ready", "consumers"}: the messages that wait there, and how many
  consumers it has; both are null if there is no such queue.
"""

import bz2
import sys
import time
import urllib.parse
import zlib

import pika

import peer


def connect(url):
    parts = urllib.parse.urlsplit(url)
    vhost = urllib.parse.unquote(parts.path[1:]) or "/"
    parameters = pika.ConnectionParameters(
        host=parts.hostname or "localhost",
        port=parts.port or 5672,
        virtual_host=vhost,
        credentials=pika.PlainCredentials(parts.username or "guest", parts.password or "guest"),
        # Between two requests nobody answers heartbeats.
        heartbeat=0,
    )
    return pika.BlockingConnection(parameters)


def packed(body, repeat, pack):
    """The body so many times over, compressed: piece by piece, because it may be far larger than what is sent."""
    if pack is None:
        return body * repeat
    pack = {
        "zlib": zlib.compressobj,
        "gzip": lambda: zlib.compressobj(wbits=31),
        "bz2": bz2.BZ2Compressor,
    }[pack]()
    pieces = max(1, len(body) * repeat >> 20)
    whole, rest = divmod(repeat, pieces)
    chunk = body * whole
    compressed = [pack.compress(chunk) for _ in range(pieces)]
    return b"".join([*compressed, pack.compress(body * rest), pack.flush()])


PROPERTIES = (
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)


class Raw:
    def __init__(self, url):
        self.connection = connect(url)
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()

    def answer(self, request):
        op = request.pop("op")
        fields = {name: value for name, value in request.items() if name != "id"}
        return getattr(self, op)(**fields) or {"ok": True}

    def exchange(self, name, type, **flags):
        self.channel.exchange_declare(name, type, **flags)

    def queue(self, name, **flags):
        self.channel.queue_declare(name, **flags)

    def bind(self, exchange, queue, key):
        self.channel.queue_bind(queue, exchange, key)

    def delete(self, name):
        self.channel.queue_delete(name)

    def publish(self, exchange, key, properties, text="", hex=None, repeat=1, pack=None):
        body = text.encode() if hex is None else bytes.fromhex(hex)
        body = packed(body, repeat, pack)
        try:
            self.channel.basic_publish(
                exchange, key, body, pika.BasicProperties(**properties), mandatory=True
            )
        except pika.exceptions.UnroutableError:
            return {"routed": False}
        return {"routed": True}

    def get(self, queue, seconds):
        until = time.monotonic() + seconds
        while True:
            method, properties, body = self.channel.basic_get(queue, auto_ack=True)
            if method is not None:
                return {"message": self.shown(method, properties, body)}
            if time.monotonic() >= until:
                return {"message": None}
            self.connection.sleep(0.01)

    def exists(self, exchange):
        return {"exists": self.passive("exchange_declare", exchange) is not None}

    def depth(self, queue):
        found = self.passive("queue_declare", queue)
        if found is None:
            return {"ready": None, "consumers": None}
        return {"ready": found.method.message_count, "consumers": found.method.consumer_count}

    def passive(self, declare, name):
        """What a passive declare says, None if there is none; the refusal closes the channel it is asked on."""
        channel = self.connection.channel()
        try:
            found = getattr(channel, declare)(name, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return None
        channel.close()
        return found

    @staticmethod
    def shown(method, properties, body):
        message = {
            "exchange": method.exchange,
            "key": method.routing_key,
            "redelivered": method.redelivered,
            "properties": {
                name: getattr(properties, name)
                for name in PROPERTIES
                if getattr(properties, name) is not None
            },
        }
        try:
            message["text"] = body.decode()
        except UnicodeDecodeError:
            message["hex"] = body.hex()
        return message


if __name__ == "__main__":
    peer.run(Raw(sys.argv[1]).answer, threads=1)
