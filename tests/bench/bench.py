"""Measures syncctl against something real in the same run, because machines are noisy: ratios are what counts.

(a) `syncctl spec` of a connector that answers at once, against a bare Pod of two containers
(b) `read` into Postgres through the sidecar, against `psql \\copy` of the same rows into the same table
(c) the sidecar into a destination that discards
(d) peak memory of both roles
(e) the sidecar into a Bulker that discards, over HTTP on this machine

Usage: bench.py SYNCCTL [--rows N] [--runs N]; the environment is that of tests/cluster/up.
"""

import argparse
import base64
import csv
import gzip
import http.client
import json
import os
import shutil
import ssl
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse
import uuid
from pathlib import Path

from bulker import Discarding

SCHEMA = "bench"
DATABASE = os.environ["SYNCCTL_TEST_DATABASE_URL"]


def psql(*statements):
    """Runs statements and returns the last one's output."""
    command = ["psql", DATABASE, "-qAtX", "-v", "ON_ERROR_STOP=1"]
    for statement in statements:
        command += ["-c", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def finish(process):
    """Waits for a process: (exit code, peak memory in MB, CPU seconds).

    The peak is read from /proc while it runs: that of wait4 counts what this process was when it forked.
    """
    peak = 0

    def watch():
        nonlocal peak
        try:
            while True:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
                time.sleep(0.01)
        except (FileNotFoundError, ProcessLookupError):
            pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, peak / 1024, usage.ru_utime + usage.ru_stime


# (a) -----------------------------------------------------------------------------------------------------------------


class Api:
    """The few calls of a bare client, over the kubeconfig's certificates."""

    def __init__(self, kubeconfig, scratch):
        text = subprocess.run(
            ["kubectl", "--kubeconfig", kubeconfig, "config", "view", "--raw", "--flatten", "--minify", "-o", "json"],
            check=True, capture_output=True, text=True).stdout
        config = json.loads(text)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        server = urllib.parse.urlparse(cluster["server"])
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self.headers = {"Content-Type": "application/json"}
        if "token" in user:
            self.headers["Authorization"] = f"Bearer {user['token']}"
        else:
            pem = scratch / "client.pem"
            pem.write_bytes(base64.b64decode(user["client-certificate-data"]) + b"\n"
                            + base64.b64decode(user["client-key-data"]))
            context.load_cert_chain(pem)
        self.connect = lambda: http.client.HTTPSConnection(server.hostname, server.port or 443, context=context)

    def call(self, method, path, body=None):
        connection = self.connect()
        connection.request(method, path, json.dumps(body) if body else None, self.headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]}")
        return json.loads(text)

    def bare_pod(self, namespace, image):
        """Creates a Pod of two containers that end at once, and watches until both have: seconds."""
        name = f"bare-{uuid.uuid4().hex[:8]}"
        container = {"image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", "true"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": False,
            "containers": [{"name": "one", **container}, {"name": "two", **container}]}}
        path = f"/api/v1/namespaces/{namespace}/pods"
        begin = time.monotonic()
        self.call("POST", path, pod)
        connection = self.connect()
        connection.request("GET", f"{path}?watch=1&fieldSelector=metadata.name%3D{name}", headers=self.headers)
        for line in connection.getresponse():
            if json.loads(line)["object"]["status"].get("phase") == "Succeeded":
                break
        seconds = time.monotonic() - begin
        connection.close()
        self.call("DELETE", f"{path}/{name}", {"gracePeriodSeconds": 0})
        return seconds


def bench_spec(syncctl, runs, scratch):
    kubeconfig, namespace = os.environ["SYNCCTL_TEST_KUBECONFIG"], f"bench-{uuid.uuid4().hex[:8]}"
    kubectl = ["kubectl", "--kubeconfig", kubeconfig]
    subprocess.run([*kubectl, "create", "namespace", namespace], check=True, stdout=subprocess.DEVNULL)
    environment = {
        **os.environ,
        "SYNCCTL_DATABASE_URL": f"{DATABASE}&search_path={SCHEMA}",
        "SYNCCTL_SIDECAR_DATABASE_URL": f"{os.environ['SYNCCTL_TEST_SIDECAR_DATABASE_URL']}&search_path={SCHEMA}",
        "SYNCCTL_SIDECAR_IMAGE": "syncctl:bench",
        "SYNCCTL_KUBERNETES_CLIENT_CONFIG": kubeconfig,
        "SYNCCTL_KUBERNETES_NAMESPACE": namespace,
    }
    api, image = Api(kubeconfig, scratch), "syncctl-test/instant:1"
    ours, bare, memory = [], [], 0
    for run in range(runs + 1):
        begin = time.monotonic()
        process = subprocess.Popen([syncctl, "spec", image, "-q"], env=environment, stdout=subprocess.DEVNULL)
        code, peak, _ = finish(process)
        seconds = time.monotonic() - begin
        assert code == 0, f"syncctl spec ended with {code}"
        other = api.bare_pod(namespace, image)
        if run > 0:  # the first of each warms what is cached
            ours.append(seconds)
            bare.append(other)
            memory = max(memory, peak)
    subprocess.run([*kubectl, "delete", "namespace", namespace, "--wait=false"], check=True, stdout=subprocess.DEVNULL)
    a, b = statistics.median(ours), statistics.median(bare)
    print(f"(a) syncctl spec      median {a:.3f} s ({min(ours):.3f}-{max(ours):.3f})")
    print(f"    bare Pod          median {b:.3f} s ({min(bare):.3f}-{max(bare):.3f})")
    print(f"    ratio             {a / b:.2f}  (goal: at most 1.15)")
    print(f"(d) peak memory CLI   {memory:.1f} MB  (goal: less than 25)")


# (b) (c) (d) ---------------------------------------------------------------------------------------------------------

COLUMNS = {
    "id": {"type": "integer"},
    "name": {"type": "string"},
    "price": {"type": "number"},
    "ts": {"type": "string", "format": "date-time"},
}


def small(number):
    return {"id": number, "name": f"name of item {number}", "price": number * 0.25, "ts": "2026-01-02T03:04:05.678Z"}


def large(number):
    """About 1.7 KB, nested."""
    lines = [{"sku": f"sku-{number}-{line}", "amount": line, "note": "x" * 100} for line in range(10)]
    return {**small(number), "order": {"lines": lines, "customer": {"id": number, "tags": ["a", "b", "c"]}}}


SHAPES = {
    "small rows": (small, COLUMNS, 1),
    "1.7 KB rows": (large, {**COLUMNS, "order": {"type": "object"}}, 10),
}


def write_rows(scratch, shape, count):
    """The rows as Airbyte messages and as CSV."""
    make, columns, _ = SHAPES[shape]
    messages, table = scratch / "messages", scratch / "rows.csv"
    with open(messages, "w") as out, open(table, "w", newline="") as rows:
        writer = csv.writer(rows)
        for number in range(count):
            row = make(number)
            record = {"stream": "items", "data": row, "emitted_at": 1760000000000}
            out.write(json.dumps({"type": "RECORD", "record": record}) + "\n")
            writer.writerow([json.dumps(row[c]) if isinstance(row[c], dict) else row[c] for c in columns])
    return messages, table


def sidecar(syncctl, scratch, messages, columns, destination):
    """Runs the sidecar over a file of messages: (seconds, peak memory in MB, CPU seconds)."""
    work = Path(tempfile.mkdtemp(dir=scratch))
    for folder in ("pipes", "secrets", "config"):
        (work / folder).mkdir()
    catalog = {"streams": [{"stream": {"name": "items", "json_schema": {"properties": columns}},
                            "sync_mode": "full_refresh", "destination_sync_mode": "append"}]}
    for name, document in {"config": {}, "catalog": catalog, "destinationConfig": destination}.items():
        (work / "secrets" / f"{name}.json.gz.000").write_bytes(gzip.compress(json.dumps(document).encode()))
    environment = {
        "COMMAND": "read", "PACKAGE": "bench", "PACKAGE_VERSION": "1", "SYNC_ID": "bench", "TASK_ID": str(uuid.uuid4()),
        "DATABASE_URL": f"{DATABASE}&search_path={SCHEMA}",
        "STDOUT_PIPE_FILE": str(work / "pipes/stdout"), "STDERR_PIPE_FILE": str(work / "pipes/stderr"),
        "SYNCCTL_SECRETS_DIR": str(work / "secrets"), "SYNCCTL_CONFIG_DIR": str(work / "config"),
    }
    begin = time.monotonic()
    process = subprocess.Popen([syncctl, "sidecar"], env=environment)

    def source():
        while not (work / "pipes/ready").exists():
            time.sleep(0.002)
        script = 'exec 2>"$1/stderr" >"$1/stdout"; cat "$2"; echo 0 >"$1/exit_code"'
        subprocess.run(["sh", "-c", script, "sh", work / "pipes", messages], check=True)

    feeder = threading.Thread(target=source)
    feeder.start()
    code, peak, cpu = finish(process)
    seconds = time.monotonic() - begin
    feeder.join()
    status = psql(f"SELECT status || coalesce(error, '') FROM {SCHEMA}.source_task WHERE task_id = "
                  f"'{environment['TASK_ID']}'")
    assert (code, status) == (0, "SUCCESS"), f"the sidecar ended with {code}: {status}"
    shutil.rmtree(work)
    return seconds, peak, cpu


def bench_read(syncctl, runs, scratch, rows):
    url = urllib.parse.urlparse(DATABASE)
    postgres = {"destinationType": "postgres", "host": url.hostname, "port": url.port, "database": url.path[1:],
                "username": url.username, "password": urllib.parse.unquote(url.password), "defaultSchema": SCHEMA,
                "sslMode": "disable"}
    for shape, (_, columns, divisor) in SHAPES.items():
        count = rows // divisor
        messages, table = write_rows(scratch, shape, count)
        megabytes = messages.stat().st_size / 1e6
        print(f"{shape}: {count} records, {megabytes:.0f} MB")

        def show(label, seconds, note=""):
            print(f"    {label:17} {seconds:.2f} s  {count / seconds / 1e3:.0f} k records/s  "
                  f"{megabytes / seconds:.0f} MB/s  {note}")

        psql(f"DROP TABLE IF EXISTS {SCHEMA}.items, {SCHEMA}.copied")
        sidecar(syncctl, scratch, messages, columns, postgres)  # makes the table
        psql(f"CREATE TABLE {SCHEMA}.copied (LIKE {SCHEMA}.items INCLUDING ALL)")
        names = ", ".join(f'"{name}"' for name in columns)
        loads, copies, discards, posts = [], [], [], []
        for _ in range(runs):
            psql(f"TRUNCATE {SCHEMA}.items, {SCHEMA}.copied", "CHECKPOINT")
            loads.append(sidecar(syncctl, scratch, messages, columns, postgres))
            begin = time.monotonic()
            psql(f"\\copy {SCHEMA}.copied ({names}) FROM '{table}' WITH (FORMAT csv)")
            copies.append(time.monotonic() - begin)
            discards.append(sidecar(syncctl, scratch, messages, columns, {"destinationType": "discard"}))
            with Discarding() as bulker:
                posts.append(sidecar(syncctl, scratch, messages, columns, bulker.destination))
            assert bulker.received > megabytes * 5e5, f"only {bulker.received} bytes arrived"
        assert psql(f"SELECT count(*) FROM {SCHEMA}.items") == str(count)
        load, copy = statistics.median(run[0] for run in loads), statistics.median(copies)
        show("(b) sidecar", load, f"{statistics.median(run[2] for run in loads):.2f} s CPU")
        show("    psql \\copy", copy)
        print(f"        ratio         {copy / load:.2f}  (goal: at least 0.7)")
        discard = statistics.median(run[0] for run in discards)
        show("(c) discarding", discard, f"{statistics.median(run[2] for run in discards):.2f} s CPU "
                                        "(goal: 150 MB/s and 250 k records/s on one core)")
        print(f"(d) peak memory       {max(run[1] for run in loads + discards):.1f} MB  (goal: less than 40)")
        post = statistics.median(run[0] for run in posts)
        show("(e) bulker", post, f"{statistics.median(run[2] for run in posts):.2f} s CPU, peak memory "
                                 f"{max(run[1] for run in posts):.1f} MB (goal: 150 MB/s for the 1.7 KB rows, 40 MB)")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("syncctl")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=["spec", "read"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        psql(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE", f"CREATE SCHEMA {SCHEMA}")
        # The sidecar finds its tables made: the command that starts a task makes them.
        if arguments.only != "read":
            bench_spec(arguments.syncctl, arguments.runs * 3, scratch)
        if arguments.only != "spec":
            bench_read(arguments.syncctl, arguments.runs, scratch, arguments.rows)
        psql(f"DROP SCHEMA {SCHEMA} CASCADE")


if __name__ == "__main__":
    main()
