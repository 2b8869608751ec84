"""Exceptions of an application, in a module that both ends can import."""


class OutOfDisk(Exception):
    """As services define them: a message made from keyword arguments."""

    message = "host %(host)s has %(free)d bytes left"

    def __init__(self, message=None, **kwargs):
        self.kwargs = kwargs
        super().__init__(message or self.message % kwargs)
