"""Stands between a client and the API server, in plain HTTP, and counts the calls by verb and resource."""

import collections
import re
import selectors
import socket
import threading

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
RESOURCE = re.compile(r"^/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/[^/]+)?/([a-z]+)(?:/([^/?]+))?(?:/([a-z]+))?")


def verb_of(method, path):
    """As the API server itself would call it, e.g. `list pods`."""
    found = RESOURCE.match(path)
    if not found:
        return f"{method.lower()} {path.partition('?')[0]}"
    resource, name, sub = found.groups()
    if method == "GET":
        watch = re.search(r"[?&]watch=(1|true)\b", path)
        verb = "watch" if watch else "get" if name else "list"
    else:
        verb = VERBS.get(method, method.lower())
    return f"{verb} {resource}{f'/{sub}' if sub else ''}"


class Proxy:
    """Each call gets a connection of its own to the API server."""

    def __init__(self, cluster):
        self.cluster, self.calls, self.lock = cluster, collections.Counter(), threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open = set()

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()
        with self.lock:
            for one in list(self.open):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with self.lock:
            self.open.add(client)
        try:
            with client:
                self._relay(client)
        except OSError:
            pass  # one of the two has gone
        finally:
            with self.lock:
                self.open.discard(client)

    def _relay(self, client):
        data = b""
        while b"\r\n\r\n" not in data:
            more = client.recv(65536)
            if not more:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        with self.lock:
            self.calls[verb_of(method, path)] += 1
        length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
        kept = [line for line in lines if line.split(":")[0].lower() not in ("connection", "host")]
        host = f"Host: {self.cluster.address[0]}:{self.cluster.address[1]}"
        server = self.cluster.connect().socket
        with server:
            head = "\r\n".join([first, host, "Connection: close", *kept])
            server.sendall(head.encode("latin-1") + b"\r\n\r\n" + body)
            while len(body) < length:
                more = client.recv(65536)
                body += more
                server.sendall(more)
                if not more:
                    return
            self._answer(client, server)

    @staticmethod
    def _answer(client, server):
        server.settimeout(None)
        with selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ)
            ready.register(server, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.fileobj is client:
                        return  # a client that has sent its request says nothing more, but for its leaving
                    data = server.recv(65536)
                    if not data:
                        return
                    client.sendall(data)
                    while server.pending():
                        client.sendall(server.recv(65536))
