"""A kubelet without a node: moves Pods through their phases over the API, so that thousands "run" without a container.

It takes the Pods of one namespace that carry our label. Nothing is bound to a node: the scheduler leaves Pods pending
whose node selector fits none, and a status can be written all the same.

Usage: kubelet.py --kubeconfig FILE --namespace NAME [--start-seconds A..B] [--run-seconds A..B] [--exit CODE]
                  [--sidecar-exit CODE] [--message TEXT] [--for SECONDS]
Ends on TERM, or after --for seconds.
"""

import argparse
import datetime
import heapq
import itertools
import json
import queue
import random
import signal
import sys
import threading
import time

from kube import PATCH, ApiError, Cluster

LABEL = "jitsu.com/creator=bulker-sync-controller"
WORKERS = 16
# The server ends a watch after this; a connection that says nothing for longer is dead.
WATCH_SECONDS = 50


class End:
    """How the containers of a Pod end."""

    def __init__(self, source=0, sidecar=0, message=""):
        self.source, self.sidecar, self.message = source, sidecar, message


def between(limits):
    return random.uniform(*limits)


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Kubelet:
    """Starts Pods as they come, ends them after `run_seconds`, or, when that is None, when `end` says so."""

    def __init__(self, cluster, namespace, start_seconds=(0, 0), run_seconds=None, end=End()):
        self.cluster, self.path = cluster, f"/api/v1/namespaces/{namespace}/pods"
        self.start_seconds, self.run_seconds, self.default_end = start_seconds, run_seconds, end
        self.changed = threading.Condition()
        self.seen = {}  # name -> uid, from the moment a Pod is first seen until it is gone
        self.running = {}  # name -> when it was started
        self.annotations = {}  # name -> what the Pod's maker says of it; kept for as long as we run
        self.stopped = threading.Event()
        self.work, self.later, self.order = queue.SimpleQueue(), [], itertools.count()
        self.failures = 0
        self.watch = None
        self.threads = [threading.Thread(target=target, daemon=True)
                        for target in [self._watch, self._timer] + [self._worker] * WORKERS]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        with self.changed:
            self.changed.notify_all()
        if self.watch:
            self.watch.close()
        for _ in range(WORKERS):
            self.work.put(None)
        for thread in self.threads:
            thread.join()

    def wait(self, what, condition, seconds):
        """Waits until a condition on this object holds."""
        with self.changed:
            if not self.changed.wait_for(lambda: condition(self), seconds):
                raise TimeoutError(f"{what}: not within {seconds} s; {len(self.running)} Pods run")

    def end(self, name, end=None):
        """Ends a Pod's containers: (when it was sent, when the API server had taken it); None if the Pod is gone."""
        end = end or self.default_end
        with self.changed:
            started = self.running.pop(name, now())
        at, sent = now(), time.time()

        def container(container_name, code, message):
            state = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": message,
                     "startedAt": started, "finishedAt": at}
            return self._container(container_name, {"terminated": state}, ready=False)

        taken = self._write(name, {
            "phase": "Succeeded" if end.source == end.sidecar == 0 else "Failed",
            "conditions": self._conditions(ready=False),
            "containerStatuses": [container("sidecar", end.sidecar, end.message), container("source", end.source, "")],
        })
        return (sent, time.time()) if taken else None

    def _start(self, name):
        at = now()
        state = {"running": {"startedAt": at}}
        taken = self._write(name, {
            "phase": "Running", "conditions": self._conditions(ready=True), "podIP": "192.0.2.1",
            "podIPs": [{"ip": "192.0.2.1"}], "startTime": at,
            "containerStatuses": [self._container(each, state, ready=True) for each in ("sidecar", "source")],
        })
        if taken:
            with self.changed:
                self.running[name] = at
                self.changed.notify_all()
            if self.run_seconds:
                self._at(between(self.run_seconds), self.end, name)

    def _prepare(self, name):
        """Scheduled, and its containers are being made."""
        state = {"waiting": {"reason": "ContainerCreating"}}
        self._write(name, {
            "phase": "Pending", "conditions": self._conditions(ready=False), "startTime": now(),
            "containerStatuses": [self._container(each, state, ready=False) for each in ("sidecar", "source")],
        })

    @staticmethod
    def _container(name, state, ready):
        return {"name": name, "state": state, "ready": ready, "started": ready, "restartCount": 0, "lastState": {},
                "image": f"{name}:1", "imageID": f"{name}@sha256:{'0' * 64}"}

    @staticmethod
    def _conditions(ready):
        conditions = {"Initialized": True, "Ready": ready, "ContainersReady": ready, "PodScheduled": True}
        return [{"type": kind, "status": str(holds), "lastProbeTime": None, "lastTransitionTime": now()}
                for kind, holds in conditions.items()]

    def _write(self, name, status):
        """Whether the Pod was there."""
        answer = self.cluster.call("PATCH", f"{self.path}/{name}/status", {"status": status}, PATCH, also=(404,))
        return answer is not None

    # What a deletion leaves to the kubelet: containers are stopped, then the object goes.
    def _remove(self, name, uid):
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        self.cluster.call("DELETE", f"{self.path}/{name}", options, also=(404, 409))

    def _see(self, kind, pod):
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if kind == "DELETED":
            with self.changed:
                if self.seen.get(name) == uid:
                    del self.seen[name]
                    self.running.pop(name, None)
                    self.changed.notify_all()
        elif "deletionTimestamp" in pod["metadata"]:
            self.work.put((self._remove, name, uid))
        elif self.seen.get(name) != uid and "nodeName" not in pod["spec"]:  # a real node has its own kubelet
            self.annotations[name] = pod["metadata"].get("annotations", {})
            self._see_new(name, uid, pod.get("status", {}))

    def _see_new(self, name, uid, status):
        with self.changed:
            self.seen[name] = uid
            self.changed.notify_all()
        if status.get("phase") == "Running":
            with self.changed:
                self.running[name] = status["startTime"]
            if self.run_seconds:
                self._at(between(self.run_seconds), self.end, name)
        elif status.get("phase") in (None, "Pending"):
            delay = between(self.start_seconds)
            if delay:
                self.work.put((self._prepare, name))
                self._at(delay, self._start, name)
            else:
                self.work.put((self._start, name))

    def _at(self, delay, *job):
        with self.changed:
            heapq.heappush(self.later, (time.monotonic() + delay, next(self.order), job))
            self.changed.notify_all()

    def _timer(self):
        while not self.stopped.is_set():
            with self.changed:
                wait = self.later[0][0] - time.monotonic() if self.later else 1
                if wait > 0:
                    self.changed.wait(min(wait, 1))
                    continue
                job = heapq.heappop(self.later)[2]
            self.work.put(job)

    def _worker(self):
        while job := self.work.get():
            if self.stopped.is_set():
                return
            try:
                job[0](*job[1:])
            except (OSError, ApiError, ValueError) as error:
                if not self.stopped.is_set():
                    self.failures += 1
                    print(f"kubelet: {error}", file=sys.stderr)
                    self._at(1, *job)

    def _watch(self):
        while not self.stopped.is_set():
            try:
                pods, version = self.cluster.list(self.path, labelSelector=LABEL)
                there = {pod["metadata"]["uid"] for pod in pods}
                with self.changed:
                    for name in [name for name, uid in self.seen.items() if uid not in there]:
                        del self.seen[name]
                        self.running.pop(name, None)
                    self.changed.notify_all()
                for pod in pods:
                    self._see("ADDED", pod)
                while version and not self.stopped.is_set():
                    version = self._watch_from(version)
            except (OSError, ApiError, ValueError) as error:
                if not self.stopped.is_set():
                    self.failures += 1
                    print(f"kubelet: watching: {error}", file=sys.stderr)
                    self.stopped.wait(1)

    def _watch_from(self, version):
        """Until the server ends the watch; returns where to go on, or None to list anew."""
        self.watch = self.cluster.connect()
        try:
            label = LABEL.replace("=", "%3D")
            path = (f"{self.path}?watch=1&labelSelector={label}&resourceVersion={version}"
                    f"&timeoutSeconds={WATCH_SECONDS}&allowWatchBookmarks=true")
            for line in self.watch.lines(self.watch.request("GET", path)):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return None
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self._see(event["type"], event["object"])
            return version
        finally:
            self.watch.close()


def seconds(text):
    """`2` or `0.5..2`."""
    low, _, high = text.partition("..")
    return float(low), float(high or low)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--start-seconds", type=seconds, default=(0, 0), help="from being seen to running")
    parser.add_argument("--run-seconds", type=seconds, help="from running to the end; without it Pods run for ever")
    parser.add_argument("--exit", type=int, default=0, help="of the connector")
    parser.add_argument("--sidecar-exit", type=int, default=0)
    parser.add_argument("--message", default="", help="the sidecar's last words")
    parser.add_argument("--for", dest="lifetime", type=float, help="seconds until it ends by itself")
    arguments = parser.parse_args()
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    end = End(arguments.exit, arguments.sidecar_exit, arguments.message)
    cluster = Cluster(arguments.kubeconfig)
    with Kubelet(cluster, arguments.namespace, arguments.start_seconds, arguments.run_seconds, end) as kubelet:
        print("kubelet: watching", flush=True)
        done.wait(arguments.lifetime)
        print(f"kubelet: {len(kubelet.running)} Pods run, {kubelet.failures} calls failed", flush=True)


if __name__ == "__main__":
    main()
