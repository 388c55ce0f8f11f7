"""Clients that send at the same time, as processes of their own, so that Python's one lock does not hold them back.

As a program it is one such process (with `trivial` the server of `ceiling`): reads a JSON line {"clients",
"operations", "kubeconfig" or "address"}, says `ready`, waits for `go`, and answers with a JSON line. An operation is a
list of requests, sent one after the other.
"""

import asyncio
import collections
import json
import resource
import socket
import subprocess
import sys
import threading
import time

from kube import Cluster, Connection

# More would take the CPU from what is measured, on a machine with two of them.
PROCESSES = 2


class Round:
    """What came of a round."""

    def __init__(self, results):
        self.begin = min(result["begin"] for result in results)
        self.seconds = max(result["end"] for result in results) - self.begin
        self.count = sum(result["count"] for result in results)
        self.statuses = sum((collections.Counter(result["statuses"]) for result in results), collections.Counter())
        self.latencies = sorted(latency for result in results for latency in result["latencies"])
        self.client_cpu = sum(result["cpu"] for result in results)
        self.refusals = [text for result in results for text in result["refusals"]]

    @property
    def rate(self):
        return self.count / self.seconds

    def require(self, status):
        if set(self.statuses) != {str(status)}:
            raise RuntimeError(f"not only {status}: {dict(self.statuses)} {self.refusals[:3]}")


def send(clients, operations, **target):
    """Sends operations (lists of {"method", "path", "body"}) by so many clients at a time: a Round.

    `kubeconfig` keeps connections alive; `address` and `headers` are a service whose connections take one request.
    """
    processes = []
    try:
        for number in range(PROCESSES):
            process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       text=True)
            processes.append(process)
            job = {**target, "clients": clients // PROCESSES, "operations": operations[number::PROCESSES]}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        for process in processes:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a client did not get ready")
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        lines = [process.stdout.readline() for process in processes]
        if not all(lines):
            raise RuntimeError("a client ended early")
        return Round([json.loads(line) for line in lines])
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


class Requests:
    """The operations of one process, ready to be sent."""

    def __init__(self, job):
        if "kubeconfig" in job:
            cluster = Cluster(job["kubeconfig"])
            self.kept = [cluster.connect() for _ in range(job["clients"])]
            headers = cluster.headers
        else:
            self.kept = [None] * job["clients"]
            headers = job["headers"]
            self.connect = lambda: Connection(lambda: socket.create_connection(tuple(job["address"]), 60), headers)
        self.left = collections.deque(
            [self._bytes(headers, request) for request in operation] for operation in job["operations"])
        self.statuses, self.refusals, self.latencies = collections.Counter(), [], []

    @staticmethod
    def _bytes(headers, request):
        body = request["body"].encode()
        head = f"{request['method']} {request['path']} HTTP/1.1\r\n{headers}Content-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def run(self, kept):
        """One client."""
        while True:
            try:
                operation = self.left.popleft()
            except IndexError:
                return
            begin = time.monotonic()
            for request in operation:
                connection = kept or self.connect()
                status, body = connection.send(request)
                if not kept:
                    connection.close()
                self.statuses[str(status)] += 1
                if status >= 300 and len(self.refusals) < 5:
                    self.refusals.append(body.decode(errors="replace")[:300])
            self.latencies.append(time.monotonic() - begin)


class Trivial(asyncio.Protocol):
    """The least that a server can do; whoever is not faster against it, is measured and not the service."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{\"ok\":true}"

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self.transport.write(self.ANSWER)
            self.transport.close()


async def trivial():
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def ceiling(clients, operations, headers):
    """What these clients reach against a server that does nothing: a Round."""
    server = subprocess.Popen([sys.executable, __file__, "trivial"], stdout=subprocess.PIPE, text=True)
    try:
        return send(clients, operations, address=["127.0.0.1", int(server.stdout.readline())], headers=headers)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def main():
    if sys.argv[1:] == ["trivial"]:
        asyncio.run(trivial())
    requests = Requests(json.loads(sys.stdin.readline()))
    count = len(requests.left)
    threads = [threading.Thread(target=requests.run, args=(kept,)) for kept in requests.kept]
    print("ready", flush=True)
    sys.stdin.readline()
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end, after = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if len(requests.latencies) != count:
        sys.exit("a client failed")
    print(json.dumps({"begin": begin, "end": end, "count": count, "cpu": cpu, "statuses": requests.statuses,
                      "refusals": requests.refusals, "latencies": requests.latencies}), flush=True)


if __name__ == "__main__":
    main()
