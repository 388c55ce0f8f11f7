"""A bare client of the API server: kept-alive connections and as little of our own time as Python allows."""

import base64
import json
import queue
import socket
import ssl
import subprocess
import tempfile
import threading
import urllib.parse

PATCH = "application/merge-patch+json"
# Longer than any answer that is not a watch; a watch ends itself earlier.
TIMEOUT_SECONDS = 60


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, method, path, status, text):
        super().__init__(f"{method} {path}: {status} {text[:300]!r}")
        self.status = status


class Connection:
    """One connection: a request, then its answer, then the next. Not for several threads at a time."""

    def __init__(self, connect, headers):
        self.socket = connect()
        self.headers = headers
        self.rest = b""

    def send(self, request):
        """Sends the bytes of a request; returns (status, body)."""
        self.socket.sendall(request)
        status, length = self._head()
        body = self._chunks() if length is None else self._exactly(length)
        return status, body

    def lines(self, request):
        """Sends the bytes of a request that has no end; gives its answer line by line."""
        self.socket.sendall(request)
        status, length = self._head()
        if status != 200 or length is not None:
            raise ApiError("GET", "a watch", status, self._exactly(length or 0))
        rest = b""
        while chunk := self._chunk():
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines

    def request(self, method, path, body=None, content_type="application/json"):
        """The bytes of a request."""
        head = f"{method} {path} HTTP/1.1\r\n{self.headers}"
        if body is not None:
            head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + (body or b"")

    def close(self):
        # A thread that waits for an answer wakes up, too.
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()

    def _more(self):
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("the connection was closed")
        self.rest += data

    def _until(self, end):
        while (at := self.rest.find(end)) < 0:
            self._more()
        found, self.rest = self.rest[:at], self.rest[at + len(end):]
        return found

    def _exactly(self, length):
        while len(self.rest) < length:
            self._more()
        found, self.rest = self.rest[:length], self.rest[length:]
        return found

    def _head(self):
        """(status, length of the body, or None for chunks)."""
        first, *lines = self._until(b"\r\n\r\n").lower().split(b"\r\n")
        length = 0
        for line in lines:
            if line.startswith(b"content-length:"):
                length = int(line[15:])
            elif line.startswith(b"transfer-encoding:"):
                length = None
        return int(first.split(b" ", 2)[1]), length

    def _chunk(self):
        chunk = self._exactly(int(self._until(b"\r\n"), 16))
        self._until(b"\r\n")
        return chunk

    def _chunks(self):
        body = b""
        while chunk := self._chunk():
            body += chunk
        return body


class Cluster:
    """An API server, as a kubeconfig describes it, and a pool of connections to it."""

    def __init__(self, kubeconfig):
        self.config = config = json.loads(subprocess.run(
            ["kubectl", "--kubeconfig", kubeconfig, "config", "view", "--raw", "--flatten", "--minify", "-o", "json"],
            check=True, capture_output=True, text=True).stdout)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        server = urllib.parse.urlparse(cluster["server"])
        self.address = (server.hostname, server.port or 443)
        self.headers = f"Host: {server.netloc}\r\nAccept: application/json\r\n"
        self.tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        if "token" in user:
            self.headers += f"Authorization: Bearer {user['token']}\r\n"
        else:
            with tempfile.NamedTemporaryFile() as pem:
                pem.write(base64.b64decode(user["client-certificate-data"]) + b"\n"
                          + base64.b64decode(user["client-key-data"]))
                pem.flush()
                self.tls.load_cert_chain(pem.name)
        self.idle = queue.LifoQueue()

    def connect(self):
        """A new connection, outside the pool."""
        def tls():
            plain = socket.create_connection(self.address, timeout=TIMEOUT_SECONDS)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self.tls.wrap_socket(plain, server_hostname=self.address[0])

        return Connection(tls, self.headers)

    def call(self, method, path, body=None, content_type="application/json", also=()):
        """A request with a JSON answer. Statuses of `also` are no error, and answered with None."""
        try:
            connection, kept = self.idle.get_nowait(), True
        except queue.Empty:
            connection, kept = self.connect(), False
        data = None if body is None else json.dumps(body).encode()
        request = connection.request(method, path, data, content_type)
        try:
            status, text = connection.send(request)
        except (OSError, ValueError):
            connection.close()
            # The server may close what was idle for long.
            if not kept or method == "POST":
                raise
            connection = self.connect()
            status, text = connection.send(request)
        self.idle.put(connection)
        if status in also:
            return None
        if status >= 300:
            raise ApiError(method, path, status, text)
        return json.loads(text)

    def list(self, path, **query):
        """All objects in pages, and the version that a watch goes on from."""
        items, version, more = [], None, ""
        while True:
            page = self.call("GET", f"{path}?{urllib.parse.urlencode({**query, 'limit': 500, 'continue': more})}")
            items += page["items"]
            version, more = page["metadata"]["resourceVersion"], page["metadata"].get("continue", "")
            if not more:
                return items, version

    def close(self):
        """Closes what is idle."""
        while True:
            try:
                self.idle.get_nowait().close()
            except queue.Empty:
                return


def in_threads(count, work, items):
    """Does `work` for each item, `count` at a time; the first error ends it."""
    left, errors = queue.SimpleQueue(), []
    for item in items:
        left.put(item)

    def run():
        while not errors:
            try:
                item = left.get_nowait()
            except queue.Empty:
                return
            try:
                work(item)
            except Exception as error:  # raised by the thread that waits
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
