"""Measures loading rows: the sidecar against `psql \\copy` of the same rows in the same run, because machines are noisy.

Per shape of rows (small, numeric, 1.7 KB nested):
(b) append into Postgres, against `\\copy` into the same table
(c) append_dedup into a table that holds half of the keys, against `\\copy` and one INSERT ... ON CONFLICT
(d) into a destination that discards
(e) into a Bulker that discards, over HTTP on this machine
(f) peak memory of all of these
and for small rows
(g) append of 10 k to 10 M rows: the cost has to grow as the rows do
(h) append, append_dedup and Bulker with 2,001 states, against the same rows with one state
(i) with --baseline: discarding, against another build of the program

Usage: rows.py SYNCCTL [--rows N] [--runs N] [--longest N] [--only PART] [--baseline SYNCCTL]; the environment is that of
tests/cluster/up. The sidecar runs on this machine, over its pipes, and not in a Pod, where its CPU limit would be what is
measured.
"""

import argparse
import csv
import gzip
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse
import uuid
from pathlib import Path

from bench import DATABASE, finish, psql
from bulker import Discarding

SCHEMA = "bench_rows"
# Without it the sidecar would expect the Pod of another controller.
CONTRACT = re.search(r'VERSION: &str = "(.*?)"', (Path(__file__).parents[2] / "src/contract.rs").read_text())[1]

COLUMNS = {
    "id": {"type": "integer"},
    "name": {"type": "string"},
    "price": {"type": "number"},
    "ts": {"type": "string", "format": "date-time"},
}


def small(number):
    return {"id": number, "name": f"name of item {number}", "price": number * 0.25, "ts": "2026-01-02T03:04:05.678Z"}


def numeric(number):
    """Amounts as databases and APIs send them."""
    return {"id": number, "amount": number * 0.25, "price": number + 0.99, "rate": number / 7, "total": number * 1234567}


def large(number):
    """About 1.7 KB, nested."""
    lines = [{"sku": f"sku-{number}-{line}", "amount": line, "note": "x" * 100} for line in range(10)]
    return {**small(number), "order": {"lines": lines, "customer": {"id": number, "tags": ["a", "b", "c"]}}}


SHAPES = {
    "small rows": (small, COLUMNS, 1),
    "numeric rows": (numeric, {name: {"type": "integer" if name == "id" else "number"} for name in numeric(0)}, 1),
    "1.7 KB rows": (large, {**COLUMNS, "order": {"type": "object"}}, 10),
}


def write_rows(scratch, shape, count, states=0):
    """The rows as Airbyte messages, with so many states among them, and as CSV."""
    make, columns, _ = SHAPES[shape]
    messages, table = scratch / f"messages-{states}", scratch / "rows.csv"
    every = count // states if states else count + 1
    with open(messages, "w") as out, open(table, "w", newline="") as rows:
        writer = csv.writer(rows)
        for number in range(count):
            row = make(number)
            record = {"stream": "items", "data": row, "emitted_at": 1760000000000}
            out.write(json.dumps({"type": "RECORD", "record": record}) + "\n")
            if number % every == every - 1:
                stream = {"stream_descriptor": {"name": "items"}, "stream_state": {"id": number}}
                out.write(json.dumps({"type": "STATE", "state": {"type": "STREAM", "stream": stream}}) + "\n")
            writer.writerow([json.dumps(row[c]) if isinstance(row[c], dict) else row[c] for c in columns])
    return messages, table


def sidecar(syncctl, scratch, messages, columns, destination, key=None, repeat=1):
    """Runs the sidecar over a file of messages, some times over: (seconds, peak memory in MB, CPU seconds).

    With a key the rows are merged by it.
    """
    work = Path(tempfile.mkdtemp(dir=scratch))
    for folder in ("pipes", "reports", "secrets", "config"):
        (work / folder).mkdir()
    catalog = {"streams": [{"stream": {"name": "items", "json_schema": {"properties": columns}},
                            "sync_mode": "incremental", "primary_key": [[key]] if key else [],
                            "destination_sync_mode": "append_dedup" if key else "append"}]}
    for name, document in {"config": {}, "catalog": catalog, "destinationConfig": destination}.items():
        (work / "secrets" / f"{name}.json.gz.000").write_bytes(gzip.compress(json.dumps(document).encode()))
    environment = {
        "COMMAND": "read", "PACKAGE": "bench", "PACKAGE_VERSION": "1", "SYNC_ID": "bench", "TASK_ID": str(uuid.uuid4()),
        "DATABASE_URL": f"{DATABASE}&search_path={SCHEMA}",
        "STDOUT_PIPE_FILE": str(work / "pipes/stdout"), "STDERR_PIPE_FILE": str(work / "pipes/stderr"),
        "SYNCCTL_SECRETS_DIR": str(work / "secrets"), "SYNCCTL_CONFIG_DIR": str(work / "config"),
        "SYNCCTL_REPORTS_DIR": str(work / "reports"), "SYNCCTL_CONTRACT": CONTRACT,
    }
    begin = time.monotonic()
    process = subprocess.Popen([syncctl, "sidecar"], env=environment)

    def source():
        while not (work / "pipes/ready").exists():
            time.sleep(0.002)
        script = 'cd "$1"; shift; exec 2>pipes/stderr >pipes/stdout; cat "$@"; echo 0 >reports/exit_code'
        subprocess.run(["sh", "-c", script, "sh", work, *[messages] * repeat], check=True)

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


def postgres():
    url = urllib.parse.urlparse(DATABASE)
    return {"destinationType": "postgres", "host": url.hostname, "port": url.port, "database": url.path[1:],
            "username": url.username, "password": urllib.parse.unquote(url.password or ""), "defaultSchema": SCHEMA,
            "sslMode": "disable"}


def timed(*statements):
    begin = time.monotonic()
    psql(*statements)
    return time.monotonic() - begin


class Report:
    """Prints the figures of one shape."""

    def __init__(self, count, megabytes):
        self.count, self.megabytes = count, megabytes

    def line(self, label, seconds, cpu=None):
        note = f"{cpu:.2f} s CPU" if cpu is not None else ""
        print(f"    {label:28} {seconds:6.2f} s  {self.count / seconds / 1e3:6.0f} k records/s  "
              f"{self.megabytes / seconds:5.0f} MB/s  {note}", flush=True)

    def against(self, label, ours, theirs, other, goal):
        """Our runs and the seconds of the other: pairs of one round, so that noise hits both."""
        self.line(label, statistics.median(run[0] for run in ours), statistics.median(run[2] for run in ours))
        self.line(other, statistics.median(theirs))
        ratios = [their / our[0] for our, their in zip(ours, theirs)]
        print(f"        ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}; goal: at least {goal})")


def bench_shape(syncctl, runs, scratch, shape, rows):
    _, columns, divisor = SHAPES[shape]
    count = rows // divisor
    messages, table = write_rows(scratch, shape, count)
    report = Report(count, messages.stat().st_size / 1e6)
    print(f"{shape}: {count} records, {report.megabytes:.0f} MB")
    names = ", ".join(f'"{name}"' for name in columns)
    copy = f"\\copy {SCHEMA}.%s ({names}) FROM '{table}' WITH (FORMAT csv)"
    load = lambda **more: sidecar(syncctl, scratch, messages, columns, postgres(), **more)

    psql(f"DROP TABLE IF EXISTS {SCHEMA}.items, {SCHEMA}.copied")
    load()  # makes the table
    psql(f"CREATE TABLE {SCHEMA}.copied (LIKE {SCHEMA}.items INCLUDING ALL)")
    loads, copies, discards, posts = [], [], [], []
    for _ in range(runs):
        psql(f"TRUNCATE {SCHEMA}.items, {SCHEMA}.copied", "CHECKPOINT")
        loads.append(load())
        copies.append(timed(copy % "copied"))
        discards.append(sidecar(syncctl, scratch, messages, columns, {"destinationType": "discard"}))
        with Discarding() as bulker:
            posts.append(sidecar(syncctl, scratch, messages, columns, bulker.destination))
        assert bulker.received > report.megabytes * 5e5, f"only {bulker.received} bytes arrived"
    assert psql(f"SELECT count(*) FROM {SCHEMA}.items") == str(count)
    report.against("(b) append", loads, copies, "    psql \\copy", 1.0)

    psql(f"DROP TABLE {SCHEMA}.items, {SCHEMA}.copied")
    load(key="id")
    psql(f"CREATE TABLE {SCHEMA}.copied (LIKE {SCHEMA}.items INCLUDING ALL)")
    merges, upserts = [], []
    update = ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in columns if name != "id")
    for _ in range(runs):
        for name in ("items", "copied"):
            psql(f"TRUNCATE {SCHEMA}.{name}", copy % name, f"DELETE FROM {SCHEMA}.{name} WHERE id % 2 = 0",
                 f"VACUUM ANALYZE {SCHEMA}.{name}")
        psql("CHECKPOINT")
        merges.append(load(key="id"))
        psql("CHECKPOINT")
        upserts.append(timed(
            f"CREATE TEMPORARY TABLE staged (LIKE {SCHEMA}.copied)", (copy % "staged").replace(f"{SCHEMA}.staged", "staged"),
            f"INSERT INTO {SCHEMA}.copied SELECT * FROM staged ON CONFLICT (id) DO UPDATE SET {update}"))
    assert psql(f"SELECT count(*) FROM {SCHEMA}.items") == str(count)
    report.against("(c) append_dedup", merges, upserts, "    \\copy and ON CONFLICT", 0.85)
    report.line("(d) discarding", statistics.median(run[0] for run in discards),
                statistics.median(run[2] for run in discards))
    print("        (goal: 200 MB/s on one core)")
    report.line("(e) bulker", statistics.median(run[0] for run in posts), statistics.median(run[2] for run in posts))
    print("        (goal: 150 MB/s for the 1.7 KB rows)")
    peak = max(run[1] for run in loads + merges + discards + posts)
    print(f"    (f) peak memory {peak:.1f} MB (goal: less than 40)")
    psql(f"DROP TABLE {SCHEMA}.items, {SCHEMA}.copied")


def bench_growth(syncctl, scratch, longest):
    """The same file of rows is read over and over: what grows is the stream."""
    step = 10_000
    messages, _ = write_rows(scratch, "small rows", step)
    print(f"small rows: growth, append in one stream of {step} to {longest} records")
    count = step
    while count <= longest:
        psql(f"DROP TABLE IF EXISTS {SCHEMA}.items", "CHECKPOINT")
        run = sidecar(syncctl, scratch, messages, COLUMNS, postgres(), repeat=count // step)
        Report(count, messages.stat().st_size / 1e6 * (count // step)).line(f"(g) {count} records", run[0], run[2])
        print(f"        {run[2] / count * 1e6:.2f} us CPU a record, peak memory {run[1]:.1f} MB")
        count *= 10
    psql(f"DROP TABLE IF EXISTS {SCHEMA}.items")


def bench_states(syncctl, runs, scratch, rows):
    """The same rows with many states and with one."""
    count = min(rows, 200_100) // 2001 * 2001
    many, _ = write_rows(scratch, "small rows", count, 2001)
    one, _ = write_rows(scratch, "small rows", count, 1)
    print(f"small rows: {count} records with 2001 states, and with one")
    report = Report(count, one.stat().st_size / 1e6)
    with Discarding() as bulker:
        for label, destination, key in [("append", postgres(), None), ("append_dedup", postgres(), "id"),
                                        ("bulker", bulker.destination, "id")]:
            psql(f"DROP TABLE IF EXISTS {SCHEMA}.items")
            pairs = []
            for run in range(runs + 1):
                psql(f"DROP TABLE IF EXISTS {SCHEMA}.items", "CHECKPOINT")
                ours = sidecar(syncctl, scratch, many, COLUMNS, destination, key=key)
                psql(f"DROP TABLE IF EXISTS {SCHEMA}.items", "CHECKPOINT")
                theirs = sidecar(syncctl, scratch, one, COLUMNS, destination, key=key)
                if run > 0:
                    pairs.append((ours, theirs))
            ratios = [ours[0] / theirs[0] for ours, theirs in pairs]
            report.line(f"(h) {label}, 2001 states", statistics.median(ours[0] for ours, _ in pairs))
            report.line("    one state", statistics.median(theirs[0] for _, theirs in pairs))
            print(f"        ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}; goal: at most 1.3)")
    psql(f"DROP TABLE IF EXISTS {SCHEMA}.items")


def bench_baseline(syncctl, baseline, runs, scratch, rows):
    """Discards the same rows with two builds in turn: what reading lines costs."""
    for shape, (_, columns, divisor) in SHAPES.items():
        messages, _ = write_rows(scratch, shape, rows // divisor)
        report = Report(rows // divisor, messages.stat().st_size / 1e6)
        discard = lambda program: sidecar(program, scratch, messages, columns, {"destinationType": "discard"})
        pairs = [(discard(syncctl), discard(baseline)) for _ in range(runs + 1)][1:]
        print(shape)
        report.line("(i) discarding", statistics.median(ours[0] for ours, _ in pairs),
                    statistics.median(ours[2] for ours, _ in pairs))
        report.line("    baseline", statistics.median(theirs[0] for _, theirs in pairs),
                    statistics.median(theirs[2] for _, theirs in pairs))
        ratios = [ours[2] / theirs[2] for ours, theirs in pairs]
        print(f"        CPU {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f}; goal: at most 1.03)")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("syncctl")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--longest", type=int, default=10_000_000)
    parser.add_argument("--only", choices=["shapes", "growth", "states", "baseline"])
    parser.add_argument("--baseline", metavar="SYNCCTL")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        psql(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE", f"CREATE SCHEMA {SCHEMA}")
        # The sidecar finds its tables made: the command that starts a task makes them, before it looks for a cluster.
        environment = {**os.environ, "SYNCCTL_DATABASE_URL": f"{DATABASE}&search_path={SCHEMA}",
                       "SYNCCTL_SIDECAR_IMAGE": "none", "SYNCCTL_KUBERNETES_CLIENT_CONFIG": str(scratch / "none")}
        subprocess.run([arguments.syncctl, "spec", "none:1", "-q"], env=environment, check=False,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wants = lambda part: arguments.only in (None, part)
        if wants("shapes"):
            for shape in SHAPES:
                bench_shape(arguments.syncctl, arguments.runs, scratch, shape, arguments.rows)
        if wants("growth"):
            bench_growth(arguments.syncctl, scratch, arguments.longest)
        if wants("states"):
            bench_states(arguments.syncctl, arguments.runs, scratch, arguments.rows)
        if arguments.baseline and wants("baseline"):
            bench_baseline(arguments.syncctl, arguments.baseline, arguments.runs, scratch, arguments.rows)
        psql(f"DROP SCHEMA {SCHEMA} CASCADE")


if __name__ == "__main__":
    main()
