"""A small Debian booted with a real systemd, for what only PID 1 can show.

    with Machine(cache, packages=["sudo"], files={"/srv/x": "local/x"}) as machine:
        code, text = machine.run("systemctl is-active x")

The tree is made once by mmdebstrap (half a minute) and kept in `cache`; each boot is a throwaway overlay of it (2 s)
in a network namespace with nothing but loopback, so that ports never clash and nothing on this machine changes.
Needs root on Debian; installs mmdebstrap and systemd-container where they are missing.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}


def need(**tools):
    """Installs the packages whose tools are missing."""
    missing = [package for tool, package in tools.items() if not shutil.which(tool.replace("_", "-"))]
    if not missing:
        return
    if os.geteuid() != 0:
        sys.exit(f"missing, and only root can install it: {', '.join(missing)}")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=600"]
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive", RUNLEVEL="1")
    subprocess.run([*apt, "update", "-qq"], env=environment, check=True)
    install = [*apt, "install", "-y", "-qq", "--no-install-recommends", *missing]
    subprocess.run(install, env=environment, check=True)


def debian_mirror():
    """Where this machine's own apt gets Debian from."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    found = subprocess.run(asked, text=True, stdout=subprocess.PIPE, check=True).stdout.split()
    mirrors = [uri for uri in sorted(set(found)) if "security" not in uri]
    return mirrors[0] if mirrors else sys.exit("apt has no source of Debian packages")


def tree(cache, packages):
    """A Debian of these packages."""
    packages = sorted({"systemd", "systemd-sysv", "dbus", *packages})
    place = os.path.join(cache, "boot-" + re.sub(r"[^a-z0-9]+", "_", "-".join(packages)))
    if os.path.exists(f"{place}/.complete"):
        return place
    shutil.rmtree(place, ignore_errors=True)
    make = ["mmdebstrap", "-q", "--variant=minbase", f"--include={','.join(packages)}"]
    subprocess.run([*make, "bookworm", place, debian_mirror()], check=True)
    for terminals in ("console-getty.service", "getty.target"):
        os.symlink("/dev/null", f"{place}/etc/systemd/system/{terminals}")
    open(f"{place}/.complete", "w").close()
    return place


class Machine:
    """Boots on entering, is gone on leaving."""

    def __init__(self, cache, packages=(), files=None):
        need(mmdebstrap="mmdebstrap", systemd_nspawn="systemd-container", nsenter="util-linux")
        os.makedirs(cache, exist_ok=True)
        self.base = tree(cache, packages)
        self.files = files or {}
        self.boot = None
        self.work = tempfile.mkdtemp(dir=cache, prefix="booted-")
        # A caller that is told to end leaves by the front door.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        for folder in ("upper", "work", "root"):
            os.mkdir(f"{self.work}/{folder}")
        self.root = f"{self.work}/root"
        layers = f"lowerdir={self.base},upperdir={self.work}/upper,workdir={self.work}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        for place, local in self.files.items():
            os.makedirs(os.path.dirname(self.root + place), exist_ok=True)
            (shutil.copytree if os.path.isdir(local) else shutil.copy)(local, self.root + place)
        # A name that resolves, for sudo.
        for file, text in (("hostname", "localhost\n"), ("hosts", "127.0.0.1 localhost\n")):
            with open(f"{self.root}/etc/{file}", "w") as opened:
                opened.write(text)
        log = open(f"{self.work}/log", "w")
        nspawn = ["systemd-nspawn", "-q", "-D", self.root, "--keep-unit", "--register=no", "--private-network", "-b"]
        self.boot = subprocess.Popen(nspawn, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        self.init = self.wait_for(self.find_init, "systemd")
        self.wait_for(lambda: self.run("systemctl is-system-running")[1] in ("running", "degraded"), "the boot")

    def find_init(self):
        if self.boot.poll() is not None:
            sys.exit("it does not boot:\n" + open(f"{self.work}/log").read()[-2000:])
        children = open(f"/proc/{self.boot.pid}/task/{self.boot.pid}/children").read().split()
        return next((child for child in children if open(f"/proc/{child}/comm").read() == "systemd\n"), None)

    def wait_for(self, holds, what, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = holds()
            if found:
                return found
            time.sleep(0.2)
        raise TimeoutError(f"waited {seconds} s for {what}")

    def run(self, command):
        """Runs a shell command inside: exit code, what it printed."""
        enter = ["nsenter", "-t", self.init, "-m", "-u", "-i", "-n", "-p", "--", "sh", "-c", command]
        done = subprocess.run(enter, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, timeout=180)
        return done.returncode, done.stdout.strip()

    def __exit__(self, *_):
        if self.boot:
            # systemd-nspawn powers off at the first SIGTERM and kills at the next.
            for _ in range(2):
                self.boot.terminate()
                try:
                    self.boot.wait(15)
                    break
                except subprocess.TimeoutExpired:
                    pass
            else:
                self.boot.kill()
                self.boot.wait()
        subprocess.run(["umount", f"{self.work}/root"], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.work, ignore_errors=True)
