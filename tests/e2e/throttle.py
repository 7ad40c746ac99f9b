"""A TCP proxy on loopback whose way up is slow: a device's thin link to its broker."""

import contextlib
import socket
import threading
import time

PIECE_BYTES = (
    256  # forwarded at a time: below an update, so that its pieces are spread over the time it takes
)
BUFFER_BYTES = 4096  # of the kernel's receive buffer: what is in there has left the device


class Throttle:
    """Listens on `port` and passes on to `target`; what comes from clients at `rate` bytes a second."""

    def __init__(self, target, rate):
        self.rate = rate
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.port = self._listener.getsockname()[1]
        self._sockets = []
        self._threads = []
        self._start(self._accept)

    def cut(self):
        """Break every connection; new ones are taken."""
        self._shut(*self._sockets)
        self._sockets.clear()

    def close(self):
        """End every connection and thread."""
        self._shut(self._listener, *self._sockets)
        for thread in self._threads:
            thread.join(5)

    def _shut(self, *sockets):
        for each in sockets:
            with contextlib.suppress(OSError):  # it is closed already
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _start(self, run, *arguments):
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            self._start(self._pass, near, far, True)
            self._start(self._pass, far, near, False)

    def _pass(self, source, sink, slow):
        try:
            while data := source.recv(PIECE_BYTES if slow else 65536):
                if slow:
                    time.sleep(len(data) / self.rate)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return
