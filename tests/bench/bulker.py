"""A Bulker that throws rows away: a process of its own, which looks at nothing but the end of each request."""

import multiprocessing
import socket

ANSWER = b'{"message":"ok","state":{"status":"COMPLETED"}}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
END = b"\r\n0\r\n\r\n"  # rows hold no line break of this kind
BUFFER = 1 << 20


def serve(listener, received):
    buffer = bytearray(BUFFER)
    view = memoryview(buffer)
    while True:
        client, _ = listener.accept()
        with client:
            tail = b""
            while True:
                read = client.recv_into(buffer)
                if not read:
                    break  # cut off
                received.value += read
                tail = (tail + bytes(view[max(0, read - len(END)):read]))[-len(END):]
                if tail == END:
                    client.sendall(HEAD % len(ANSWER) + ANSWER)
                    break


class Discarding:
    """Listens on this machine for as long as it is entered; `received` counts bytes."""

    def __enter__(self):
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.count = multiprocessing.Value("Q", 0, lock=False)
        self.process = multiprocessing.Process(target=serve, args=(listener, self.count), daemon=True)
        self.process.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.close()
        self.destination = {"destinationType": "bulker", "url": url, "authToken": "bench-token"}
        return self

    def __exit__(self, *_):
        self.received = self.count.value
        self.process.terminate()
        self.process.join()
