"""What measuring `syncctl serve` needs: a namespace with the shipped Role, a schema, the service as a process."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench import DATABASE, psql
from kube import Cluster

ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


class World:
    """A namespace and a schema of its own; both are removed at the end."""

    def __init__(self, scratch):
        self.scratch, self.name = scratch, f"bench-serve-{secrets.token_hex(4)}"
        self.schema = self.name.replace("-", "_")
        self.admin = Cluster(os.environ["SYNCCTL_TEST_KUBECONFIG"])
        self.kubeconfig = scratch / "kubeconfig"

    def __enter__(self):
        try:
            psql(f"CREATE SCHEMA {self.schema}")
            self._deploy()
            self.login(self.kubeconfig, self.admin.config["clusters"][0]["cluster"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        subprocess.run(["kubectl", "--kubeconfig", os.environ["SYNCCTL_TEST_KUBECONFIG"], "delete", "namespace",
                        self.name, "--ignore-not-found", "--wait=false"], check=False, stdout=subprocess.DEVNULL)
        subprocess.run(["psql", DATABASE, "-qX", "-c", f"DROP SCHEMA IF EXISTS {self.schema} CASCADE"], check=False,
                       stderr=subprocess.DEVNULL)

    def _deploy(self):
        """As a user would: an overlay with the name of the namespace."""
        rights = ROOT / "deploy" / "rbac"
        shutil.copytree(rights if rights.exists() else rights.parent, self.scratch / "rights")
        for name, document in {
            "kustomization.yaml": {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
                                   "namespace": self.name, "resources": ["rights", "namespace.yaml"]},
            "namespace.yaml": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}},
        }.items():
            (self.scratch / name).write_text(json.dumps(document))
        subprocess.run(["kubectl", "--kubeconfig", os.environ["SYNCCTL_TEST_KUBECONFIG"], "create", "--validate=false",
                        "-k", self.scratch], check=True, stdout=subprocess.DEVNULL)

    def login(self, path, cluster):
        """Writes a kubeconfig of the service's account for a cluster."""
        token = self.admin.call("POST", f"/api/v1/namespaces/{self.name}/serviceaccounts/syncctl/token", {
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}})
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "bench",
                  "clusters": [{"name": "bench", "cluster": cluster}],
                  "users": [{"name": "bench", "user": {"token": token["status"]["token"]}}],
                  "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench",
                                                             "namespace": self.name}}]}
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))

    def path(self, kind):
        return f"/api/v1/namespaces/{self.name}/{kind}"

    def count(self, kind, label):
        """Objects of a kind that carry a label."""
        query = f"labelSelector={label.replace('=', '%3D')}&limit=1"
        page = self.admin.call("GET", f"{self.path(kind)}?{query}")
        return len(page["items"]) + page["metadata"].get("remainingItemCount", 0) if page["items"] else 0

    def delete_all(self, kind, label):
        """Without grace."""
        query = f"labelSelector={label.replace('=', '%3D')}&gracePeriodSeconds=0"
        # The API server gives itself half a minute for all of them, and has deleted some when that is over.
        while self.admin.call("DELETE", f"{self.path(kind)}?{query}", also=(504,)) is None:
            pass


class Service:
    """`syncctl serve` on a port of its own."""

    def __init__(self, syncctl, world, kubeconfig=None):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        token, path = secrets.token_hex(16), f"search_path={world.schema}"
        self.address = ["127.0.0.1", self.port]
        self.headers = f"Host: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {token}\r\n"
        self.log = world.scratch / f"serve-{self.port}.log"
        self.command = [syncctl, "serve"]
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(world.scratch),
            "SYNCCTL_HTTP_HOST": "127.0.0.1", "SYNCCTL_HTTP_PORT": str(self.port), "SYNCCTL_AUTH_TOKENS": token,
            "SYNCCTL_DATABASE_URL": f"{DATABASE}&{path}",
            "SYNCCTL_SIDECAR_DATABASE_URL": f"{os.environ['SYNCCTL_TEST_SIDECAR_DATABASE_URL']}&{path}",
            "SYNCCTL_SIDECAR_IMAGE": "syncctl:bench", "SYNCCTL_INSTANCE_ID": f"bench-{self.port}",
            "SYNCCTL_KUBERNETES_CLIENT_CONFIG": str(kubeconfig or world.kubeconfig),
            "SYNCCTL_KUBERNETES_NAMESPACE": world.name,
            # No node has it: no kubelet but the simulated one takes these Pods.
            "SYNCCTL_KUBERNETES_NODE_SELECTOR": json.dumps({"syncctl.test/simulated": "true"}),
            "SYNCCTL_CONTAINER_STATUS_CHECK_SECONDS": "10",
            "SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS": "3600",
        }

    def __enter__(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log)
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait_ready(self):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (OSError, urllib.error.URLError):
                time.sleep(0.05)
        raise RuntimeError(f"syncctl serve is not ready:\n{self.log.read_text()[-2000:]}")

    def memory(self, line="VmRSS"):
        """MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(text.split()[1]) / 1024 for text in lines if text.startswith(f"{line}:"))

    def cpu(self):
        """Seconds since its start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
