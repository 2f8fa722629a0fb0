"""A real Kubernetes API server on loopback, for the chart: Debian's kube-apiserver 1.20 over its etcd.

Debian 12 has the server only as source, with all of its modules, so it is built once (about 4 minutes of two cores,
2 GB meanwhile, 120 MB after) with Debian's Go. It does admission and validation; there are no controllers and no
nodes, so nothing ever runs. Objects of later API versions are unknown to it, and custom resources crash it: built with
this Go, its JSON library walks maps wrongly. Needs root and Debian 12.
"""

import contextlib
import glob
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

VERSION = "1.20.2"
# Packages of the source tree whose types are in the OpenAPI tables, which are generated and not shipped.
MODULES = (
    "api apimachinery apiextensions-apiserver/pkg apiserver/pkg/apis kube-aggregator/pkg/apis metrics component-base"
    " kube-controller-manager kube-scheduler kubelet kube-proxy cloud-provider"
)


@contextlib.contextmanager
def running(cache):
    """Yields a kubeconfig's path and a function that sends a request; the server ends with the block."""
    server = build(Path(cache))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        run = Path(folder)
        etcd, peer, port = free_ports(3)
        key = run / "account.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        token = os.urandom(16).hex()
        (run / "tokens").write_text(f"{token},admin,admin,system:masters\n")
        url, etcd_url = f"https://127.0.0.1:{port}", f"http://127.0.0.1:{etcd}"
        commands = [
            ["etcd", "--data-dir", run / "etcd", "--listen-client-urls", etcd_url, "--unsafe-no-fsync"]
            + ["--advertise-client-urls", etcd_url, "--listen-peer-urls", f"http://127.0.0.1:{peer}"],
            [server, "--etcd-servers", etcd_url, "--secure-port", str(port), "--bind-address", "127.0.0.1"]
            + ["--cert-dir", run / "certs", "--token-auth-file", run / "tokens", "--authorization-mode", "RBAC"]
            + ["--service-cluster-ip-range", "10.0.0.0/24", "--service-account-key-file", key]
            + ["--service-account-signing-key-file", key]
            + ["--service-account-issuer", "https://kubernetes.default.svc"]
            # Its controller does not run here, and pods need none.
            + ["--disable-admission-plugins", "ServiceAccount"],
        ]
        logs = [run / "etcd.log", run / "apiserver.log"]
        for command, log in zip(commands, logs):
            process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT)
            ending.callback(stop, process)

        def client(method, path, body=None):
            data = json.dumps(body).encode() if body is not None else None
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            request = urllib.request.Request(url + path, data, headers, method=method)
            context = ssl._create_unverified_context()  # its certificate is of its own making
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return answer.read()

        wait_for(lambda: client("GET", "/readyz"), logs[1])
        config = run / "kubeconfig"
        cluster = {"server": url, "insecure-skip-tls-verify": True}
        config.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": cluster}], "users": [{"name": "x", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        }))
        yield str(config), client


def stop(process):
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(answered, log):
    until = time.monotonic() + 120
    while True:
        try:
            return answered()
        except OSError:
            if time.monotonic() > until:
                raise SystemExit(f"no API server within 120 s:\n{log.read_text()[-2500:]}") from None
            time.sleep(0.2)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def build(cache):
    """The server's binary, built at the first call."""
    install(go="golang-go", etcd="etcd-server", openssl="openssl")
    binary = cache / f"kube-apiserver-{VERSION}"
    if binary.exists():
        return binary
    print(f"building kube-apiserver {VERSION} in {cache}, which takes minutes once", flush=True)
    go = cache / "go"
    shutil.rmtree(go, ignore_errors=True)
    top = go / "src/k8s.io/kubernetes"
    top.mkdir(parents=True)
    fetch(cache, top)
    # Its version is stamped at a release build; without it a chart's kubeVersion would be compared with v0.0.0.
    for base in glob.glob(f"{top}/staging/src/k8s.io/*/**/version/base.go", recursive=True):
        text = Path(base).read_text()
        text = re.sub(r'"v0\.0\.0-master[^"]*"', f'"v{VERSION}"', text)
        major, minor, _ = VERSION.split(".")
        for name, value in (("gitMajor", major), ("gitMinor", minor)):
            text = re.sub(rf"({name} +string)[^/]*//", rf'\1 = "{value}" //', text)
        Path(base).write_text(text)
    env = dict(os.environ, GOPATH=str(go), GO111MODULE="off", CGO_ENABLED="0", GOCACHE=str(go / "cache"), GOFLAGS="")

    def run(*command, **more):
        subprocess.run(command, cwd=top, env=env, check=True, **more)

    generator = go / "openapi-gen"
    run("go", "build", "-o", generator, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen")
    folders = " ".join(f"vendor/k8s.io/{module}/" for module in MODULES.split())
    marked = subprocess.run(
        f"grep -rlE --include='*.go' '^// \\+k8s:openapi-gen=true' pkg/ {folders} | xargs -n1 dirname | sort -u",
        shell=True, cwd=top, text=True, capture_output=True, check=True,
    ).stdout.split()
    types = [f"k8s.io/kubernetes/{path}" for path in marked if "/examples" not in path and "/testing" not in path]
    run(generator, "-i", ",".join(types), "-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "zz_generated.openapi",
        "-h", "/dev/null", "-r", go / "violations", "--output-base", go / "src", stderr=subprocess.DEVNULL)
    run("go", "build", "-ldflags", "-s -w", "-o", go / "kube-apiserver", "./cmd/kube-apiserver")
    shutil.move(go / "kube-apiserver", binary)
    shutil.rmtree(go)
    shutil.rmtree(cache / "apt")
    return binary


def fetch(cache, top):
    """The source, from where this machine's own apt gets Debian's packages."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)"], text=True, capture_output=True, check=True
    ).stdout.splitlines()
    sources = sorted({line for line in listed if re.search(r" bookworm(-security)?$", line)})
    if not sources:
        raise SystemExit("apt knows no source of Debian 12's packages")
    apt = cache / "apt"
    (apt / "lists/partial").mkdir(parents=True, exist_ok=True)
    signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    (apt / "sources.list").write_text("".join(f"deb-src {signed} {source} main\n" for source in sources))
    options = ["-o", f"Dir::Etc::sourcelist={apt}/sources.list", "-o", "Dir::Etc::sourceparts=/nonexistent"]
    options += ["-o", f"Dir::State::lists={apt}/lists", "-o", "APT::Sandbox::User=root"]
    subprocess.run(["apt-get", *options, "update", "-qq"], check=True)
    subprocess.run(["apt-get", *options, "source", "-qq", "--download-only", "kubernetes"], cwd=apt, check=True)
    archive = next(apt.glob(f"kubernetes_*{VERSION}.orig.tar.gz"))
    subprocess.run(["tar", "xzf", archive, "-C", top, "--strip-components=1"], check=True)


def install(**commands):
    missing = [package for command, package in commands.items() if not shutil.which(command)]
    if missing:
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive", RUNLEVEL="1")
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=600"]
        subprocess.run([*apt, "update", "-qq"], env=env, check=True)
        subprocess.run([*apt, "install", "-y", "-qq", "--no-install-recommends", *missing], env=env, check=True)
