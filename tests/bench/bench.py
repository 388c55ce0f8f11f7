"""Measures syncctl against something real in the same run, because machines are noisy: ratios are what counts.

(a) `syncctl spec` of a connector that answers at once, against a bare Pod of two containers
(b) peak memory of the command

Usage: bench.py SYNCCTL [--runs N]; the environment is that of tests/cluster/up.
"""

import argparse
import base64
import http.client
import json
import os
import ssl
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse
import uuid
from pathlib import Path

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
    print(f"(b) peak memory CLI   {memory:.1f} MB  (goal: less than 25)")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("syncctl")
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        psql(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE", f"CREATE SCHEMA {SCHEMA}")
        bench_spec(arguments.syncctl, arguments.runs, Path(folder))
        psql(f"DROP SCHEMA {SCHEMA} CASCADE")


if __name__ == "__main__":
    main()
