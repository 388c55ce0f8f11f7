"""Measures `syncctl serve` against the API server of the tests, with a simulated kubelet instead of containers.

(a) `POST /check` accepted per second by 64 clients, against a bare client that creates the same objects
(b) from a Pod's end to the written row while 1,000 Pods are alive
(c) memory with 0, 1,000 and 5,000 Pods alive
(d) idle: CPU, and calls to the API server

Usage: serve.py SYNCCTL [--only accept|delay|idle]; the environment is that of tests/cluster/up.
"""

import argparse
import collections
import concurrent.futures
import json
import secrets
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import load
from bench import psql
from kube import Cluster, in_threads
from kubelet import LABEL, End, Kubelet
from proxy import Proxy
from world import Service, World

CLIENTS = 64
ROUNDS, ROUND = 5, 400
ALIVE, MANY = 1000, 5000
ENDS_PER_SECOND, ENDS = 20, 600
# Two lists and the watches' settling.
RESYNC_SECONDS = 25
BARE = "jitsu.com/creator=bench-bare"
LAST_WORDS = json.dumps({"class": "DESTINATION_FAILED", "error": "the end of a simulated Pod"})
CONFIG = {"host": "db.example.com", "port": 5432, "username": "reader", "password": "p" * 32, "note": "x" * 200}
CATALOG = {"streams": [{"stream": {"name": f"stream{number}", "supported_sync_modes": ["full_refresh"],
                                   "json_schema": {"properties": {"id": {"type": "integer"}}}},
                        "sync_mode": "full_refresh", "destination_sync_mode": "append"} for number in range(3)]}


def check():
    """An operation: (key of its row, requests)."""
    key = f"check-{secrets.token_hex(8)}"
    path = f"/check?package=bench%2Fsource&version=1&storageKey={key}"
    return key, [{"method": "POST", "path": path, "body": json.dumps({"config": CONFIG})}]


def read():
    key = f"read-{secrets.token_hex(8)}"
    body = {"config": CONFIG, "catalog": CATALOG, "state": {}, "destinationConfig": {"destinationType": "discard"}}
    path = f"/read?package=bench%2Fsource&version=1&taskId={key}&syncId=sync-{key}"
    return key, [{"method": "POST", "path": path, "body": json.dumps(body)}]


def tasks(count):
    """Half of them checks, half of them reads."""
    return [(check, read)[number % 2]()[1] for number in range(count)]


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def accept(service, operations):
    result = load.send(CLIENTS, operations, address=service.address, headers=service.headers)
    result.require(200)
    return result


# (a) -----------------------------------------------------------------------------------------------------------------


class Bare:
    """The objects of one check as templates."""

    def __init__(self, world):
        pods, _ = world.admin.list(world.path("pods"), labelSelector=LABEL)
        secrets_of, _ = world.admin.list(world.path("secrets"), labelSelector=LABEL)
        (pod,), self.secrets = pods, secrets_of
        self.name, self.world = pod["metadata"]["name"], world
        for name in ("dnsPolicy", "schedulerName", "serviceAccount", "serviceAccountName", "tolerations", "priority",
                     "preemptionPolicy"):
            pod["spec"].pop(name, None)  # filled in by the API server
        self.objects = [(world.path("secrets"), self._text(one)) for one in self.secrets]
        self.objects.append((world.path("pods"), self._text(pod)))

    @staticmethod
    def _text(item):
        metadata = {key: item["metadata"][key] for key in ("name", "labels", "annotations")}
        label, value = BARE.split("=")
        metadata["labels"] = {**metadata["labels"], label: value}
        rest = {key: item[key] for key in ("spec", "data", "type") if key in item}
        kind = "Pod" if "spec" in item else "Secret"
        return json.dumps({"apiVersion": "v1", "kind": kind, "metadata": metadata, **rest})

    def operation(self):
        name = f"bare-{secrets.token_hex(8)}"
        return [{"method": "POST", "path": path, "body": text.replace(self.name, name)} for path, text in self.objects]


def calm(world):
    """Removes what a round has created, and waits until no process works on it."""
    for label in (LABEL, BARE):
        world.delete_all("pods", label)
    world.delete_all("secrets", BARE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(world.count(kind, LABEL) for kind in ("pods", "secrets")):
            time.sleep(1)
            return
        time.sleep(0.2)
    raise TimeoutError("syncctl does not clean up after Pods that were deleted")


class Summary:
    """Several rounds of one kind."""

    def __init__(self, rounds):
        rates = [one.rate for one in rounds]
        self.text = f"median {statistics.median(rates):.0f}/s ({min(rates):.0f}-{max(rates):.0f})"
        self.slow = 1000 * percentile([value for one in rounds for value in one.latencies], 0.99)
        self.client_cpu = 1000 * statistics.median(one.client_cpu / one.count for one in rounds)


def bench_accept(syncctl, world):
    with Service(syncctl, world) as service:
        accept(service, [check()[1]])
        bare = Bare(world)
        calm(world)
        ceiling = load.ceiling(CLIENTS, [check()[1]] * ROUND * 4, service.headers)

        def serve_round():
            return accept(service, [check()[1] for _ in range(ROUND)])

        def bare_round():
            operations = [bare.operation() for _ in range(ROUND)]
            result = load.send(CLIENTS, operations, kubeconfig=str(world.kubeconfig))
            result.require(201)
            return result

        rounds = {serve_round: [], bare_round: []}
        for number in range(ROUNDS + 1):
            for run in list(rounds)[::(-1) ** number]:
                result = run()
                calm(world)
                if number > 0:  # the first warms what is cached
                    rounds[run].append(result)
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in zip(*rounds.values()))
    ours, theirs = (Summary(results) for results in rounds.values())
    print(f"(a) POST /check       {ours.text}, p99 {ours.slow:.0f} ms, {CLIENTS} clients, {ROUNDS} rounds of {ROUND}")
    print(f"    bare objects      {theirs.text}, p99 {theirs.slow:.0f} ms")
    print(f"    ratio             {ratio:.2f}  (goal: at least 0.8)")
    print(f"    the clients       {ceiling.rate:.0f}/s against a server that does nothing; "
          f"CPU per operation {ours.client_cpu:.2f} ms, bare {theirs.client_cpu:.2f} ms")


# (b) (c) -------------------------------------------------------------------------------------------------------------


def install_trigger(schema):
    """Each final row leaves the time of its commit in `ends`."""
    psql(
        f"CREATE TABLE {schema}.ends (key text, status text, at timestamptz)",
        f"""CREATE FUNCTION {schema}.note_end() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
              IF NEW.status <> 'RUNNING' THEN
                INSERT INTO {schema}.ends VALUES (to_jsonb(NEW) ->> TG_ARGV[0], NEW.status, clock_timestamp());
              END IF;
              RETURN NULL;
            END $$""",
        *[f"""CREATE CONSTRAINT TRIGGER note_end AFTER INSERT OR UPDATE ON {schema}.{table}
              DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {schema}.note_end('{column}')"""
          for table, column in (("source_check", "key"), ("source_task", "task_id"))])


def rows(schema):
    """Key -> (status, seconds since the epoch) of the first final row."""
    found = psql(f"SELECT DISTINCT ON (key) key || ' ' || status || ' ' || extract(epoch FROM at) FROM {schema}.ends "
                 "ORDER BY key, at")
    return {key: (status, float(at)) for key, status, at in (line.split() for line in found.splitlines())}


def clock_difference():
    """How far the database's clock is ahead of ours."""
    measured = []
    for _ in range(5):
        before = time.time()
        theirs = float(psql("SELECT extract(epoch FROM clock_timestamp())"))
        measured.append((time.time() - before, theirs - (before + time.time()) / 2))
    error, difference = min(measured)
    # On one machine there is one clock, and the measurement is worse than that.
    return difference if abs(difference) > error else 0.0


def key_of(annotations):
    return annotations["TaskID"] if annotations["TaskType"] == "read" else annotations["StorageKey"]


def end_some(service, kubelet, count, per_second):
    """Ends Pods at a steady rate and starts others for them: key -> (sent, taken) of the ends."""
    victims = list(kubelet.running)[:count]
    ended, failures, begin = {}, [], time.monotonic()

    def step(number, victim):
        time.sleep(max(0.0, begin + number / per_second - time.monotonic()))
        ended[key_of(kubelet.annotations[victim])] = kubelet.end(victim, End(sidecar=3, message=LAST_WORDS))
        operation = tasks(2)[number % 2]
        connection = load.Requests({"address": service.address, "headers": service.headers, "clients": 1,
                                    "operations": [operation]})
        connection.run(None)
        if set(connection.statuses) != {"200"}:
            failures.append(connection.refusals)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(step, number, victim) for number, victim in enumerate(victims)]:
            done.result()
    if failures:
        raise RuntimeError(f"tasks were refused: {failures[:3]}")
    return ended


def wait_for_rows(schema, keys, seconds):
    deadline = time.monotonic() + seconds
    while True:
        found = rows(schema)
        missing = set(keys) - set(found)
        if not missing:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(missing)} of {len(keys)} rows were not written within {seconds} s")
        time.sleep(0.5)


def report_delays(ended, found, difference):
    sent = [found[key][1] - difference - times[0] for key, times in ended.items()]
    taken = [found[key][1] - difference - times[1] for key, times in ended.items()]
    wrong = collections.Counter(found[key][0] for key in ended)
    if set(wrong) != {"FAILED"}:
        raise RuntimeError(f"not all rows say FAILED: {wrong}")
    milliseconds = [1000 * value for value in taken]
    print(f"(b) end to row        p50 {statistics.median(milliseconds):.0f} ms, "
          f"p99 {percentile(milliseconds, 0.99):.0f} ms, longest {max(milliseconds):.0f} ms  (goal: p99 below 250)")
    print(f"                      {len(ended)} ends at {ENDS_PER_SECOND}/s while {ALIVE} Pods are alive; "
          f"from the moment the end was sent p99 {1000 * percentile(sent, 0.99):.0f} ms")


def fill(service, kubelet, count):
    """Starts tasks until so many Pods run: tasks per second."""
    missing = count - len(kubelet.running)
    result = accept(service, tasks(missing))
    kubelet.wait(f"{count} running Pods", lambda one: len(one.running) >= count, 120)
    return result.rate


def bench_alive(syncctl, world):
    with Service(syncctl, world) as service, Kubelet(world.admin, world.name) as kubelet:
        install_trigger(world.schema)
        time.sleep(RESYNC_SECONDS)
        print(f"(c) memory            {service.memory():.1f} MB with no Pod", flush=True)
        fill(service, kubelet, ALIVE)
        time.sleep(RESYNC_SECONDS)
        print(f"                      {service.memory():.1f} MB with {ALIVE} Pods alive", flush=True)
        difference = clock_difference()
        before = service.cpu()
        ended = end_some(service, kubelet, ENDS, ENDS_PER_SECOND)
        cpu = service.cpu() - before
        report_delays(ended, wait_for_rows(world.schema, ended, 60), difference)
        print(f"                      {1000 * cpu / len(ended):.1f} ms CPU for each task that starts and ends",
              flush=True)
        kubelet.wait("the Pods that took their places", lambda one: len(one.running) >= ALIVE, 60)
        rate = fill(service, kubelet, MANY)
        time.sleep(2 * RESYNC_SECONDS)
        print(f"(c) memory            {service.memory():.1f} MB with {MANY} Pods alive, at most "
              f"{service.memory('VmHWM'):.1f} MB  (goal: less than 60); filled at {rate:.0f} tasks/s", flush=True)
        before, begin = service.cpu(), time.monotonic()
        time.sleep(RESYNC_SECONDS)
        share = (service.cpu() - before) / (time.monotonic() - begin)
        print(f"                      {100 * share:.1f} % of a CPU while nothing happens to them", flush=True)
        drain(service, world, kubelet)


def drain(service, world, kubelet):
    """All Pods end as fast as the API server accepts it."""
    running = dict(kubelet.running)
    begin = time.monotonic()
    in_threads(16, lambda name: kubelet.end(name, End(sidecar=3, message=LAST_WORDS)), running)
    accepted = time.monotonic() - begin
    wait_for_rows(world.schema, {key_of(kubelet.annotations[name]) for name in running}, 300)
    written = time.monotonic() - begin
    kubelet.wait("an empty namespace", lambda one: not one.seen, 300)
    print(f"    all end at once   {len(running)} Pods in {accepted:.1f} s; rows after {written:.1f} s, Pods gone after "
          f"{time.monotonic() - begin:.1f} s; at most {service.memory('VmHWM'):.1f} MB", flush=True)


# (d) -----------------------------------------------------------------------------------------------------------------


def bench_idle(syncctl, world, seconds):
    with Service(syncctl, world) as service:
        time.sleep(RESYNC_SECONDS)
        before, begin = service.cpu(), time.monotonic()
        time.sleep(seconds)
        cpu = (service.cpu() - before) * 60 / (time.monotonic() - begin)
    with Proxy(Cluster(str(world.kubeconfig))) as proxy:
        kubeconfig = world.scratch / "kubeconfig-counted"
        world.login(kubeconfig, {"server": proxy.address})
        with Service(syncctl, world, kubeconfig):
            time.sleep(RESYNC_SECONDS)
            with proxy.lock:
                proxy.calls.clear()
            begin = time.monotonic()
            time.sleep(seconds)
            with proxy.lock:
                calls, minutes = dict(proxy.calls), (time.monotonic() - begin) / 60
    each = ", ".join(f"{count / minutes:.1f} {verb}" for verb, count in sorted(calls.items(), key=lambda one: -one[1]))
    print(f"(d) idle              {1000 * cpu:.0f} ms CPU a minute (in steps of 10), "
          f"{sum(calls.values()) / minutes:.0f} API calls a minute")
    print(f"                      counted by a proxy before the API server: {each}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("syncctl")
    parser.add_argument("--only", choices=["accept", "delay", "idle"])
    parser.add_argument("--idle-seconds", type=float, default=60)
    arguments = parser.parse_args()
    # The end of a terminal or of a job cleans up as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    steps = {"accept": bench_accept, "delay": bench_alive,
             "idle": lambda syncctl, world: bench_idle(syncctl, world, arguments.idle_seconds)}
    syncctl = str(Path(arguments.syncctl).resolve())
    for name, step in steps.items():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as folder, World(Path(folder)) as world:
                step(syncctl, world)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
