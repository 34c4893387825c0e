"""nginx and the clients, and what any process has."""

import json
import os
import re
import signal
import socket
import subprocess
import time

from builds import clients, run
from settings import CERTIFICATES, LOAD_CPU, PATIENCE, SERVER_CPU, SOURCES, Failed

KEYS = {"ecdsa": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]}
# The buffers of a connection go from one to the next.
MALLOC = "glibc.malloc.tcache_max=65536:glibc.malloc.tcache_count=200"
TICKS = os.sysconf("SC_CLK_TCK")
MEMORY = ("rss", "pss", "uss", "data")

ours = []                               # what has to end with us
ports = iter(range(20000, 32000))       # below those that connections come from


class Process:
    def __init__(self, command, cpu, **how):
        self.process = subprocess.Popen(
            command, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}), **how)
        self.pid = self.process.pid
        ours.append(self)

    def served_by(self):
        """The process whose CPU is that of the handshakes."""
        return self.pid

    def ticks(self):
        """Seconds in user mode and in the kernel. Each tick of the kernel's clock sees one of them,
        and the exact time is shared out by ticks: right for some seconds, not for a slice."""
        with open(f"/proc/{self.served_by()}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return tuple(int(field) / TICKS for field in fields[11:13])

    def at_rest(self):
        before = self.cpu()
        time.sleep(0.02)
        return self.cpu() == before

    def rest(self):
        wait("the worker at rest", self.at_rest)

    def cpu(self):
        with open(f"/proc/{self.served_by()}/schedstat", encoding="ascii") as file:
            return file.read().split()[0]

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def stop_all():
    for one in reversed(ours):
        one.stop()
    ours.clear()


class Nginx(Process):
    made = 0
    worker = None

    def __init__(self, work, built, sessions, module=True, tickets=False, log=False, server="",
                 keepalive=0, blocks=1, main=""):
        Nginx.made += 1
        self.dir = os.path.join(work, f"nginx-{Nginx.made}")
        os.mkdir(self.dir)
        # "fill" makes a hundred sessions of TLS 1.3 in a handshake.
        self.ports = {name: free_port() for name in (*CERTIFICATES, "fill")}
        load = f"load_module {built.module};" if module else ""
        key = f"ssl_session_key {work}/session.key;"
        if not module or "ssl_session_key" in sessions:
            key = ""
        user = "user root;" if os.geteuid() == 0 else ""
        access = "off" if not log else f"{self.dir}/access.log lookups"
        form = "" if not log else \
            "log_format lookups '$ssl_session_fetch_status $ssl_session_fetch_time';"
        temp = "".join(f"{name}_temp_path {self.dir}/{name};" for name in
                       ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
                       if f"--without-http_{name}" not in built.flags)
        servers = ""
        for name, port in self.ports.items():
            certificate = "ecdsa" if name == "fill" else name
            fill = "ssl_conf_command NumTickets 100;" if name == "fill" else ""
            for i in range(blocks if name == "ecdsa" else 1):
                backlog = "backlog=4096" if i == 0 else ""
                servers += f"""
    server {{
        listen 127.0.0.1:{port} ssl {backlog};
        server_name host-{i}.example;
        ssl_certificate {work}/{certificate}.pem;
        ssl_certificate_key {work}/{certificate}.key;
        {fill} {server}
        return 204;
    }}"""
        with open(f"{self.dir}/nginx.conf", "w", encoding="utf-8") as file:
            file.write(f"""
{load}
{main}
{user}
daemon off;
worker_processes 1;
pid {self.dir}/nginx.pid;
error_log {self.dir}/error.log error;
events {{ worker_connections 20000; }}
http {{
    {temp}
    {form}
    access_log {access};
    keepalive_timeout {keepalive};
    server_names_hash_max_size 4096;
    server_names_hash_bucket_size 128;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_tickets {"on" if tickets else "off"};
    ssl_session_timeout 1h;
    {key}
    {sessions}
    {servers}
}}
""")
        super().__init__([built.binary, "-p", self.dir, "-c", f"{self.dir}/nginx.conf",
                          "-e", f"{self.dir}/error.log"], SERVER_CPU,
                         # What it warns of is in the log, too.
                         stderr=subprocess.DEVNULL)
        wait("nginx", lambda: self.find_worker() and connects(self.ports["ecdsa"]))
        self.rest()

    def kill(self):
        super().kill()
        # A master that is killed leaves its worker behind.
        try:
            if self.worker:
                os.kill(self.worker, signal.SIGKILL)
        except OSError:
            pass

    def find_worker(self):
        if self.process.poll() is not None:
            raise Failed("nginx: " + self.errors())
        with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as file:
            children = file.read().split()
        self.worker = int(children[0]) if children else None
        return self.worker

    def served_by(self):
        return self.worker

    def busy(self):
        """Nanoseconds of CPU of the worker, which is at rest."""
        self.rest()
        return int(self.cpu())

    def is_traced(self):
        with open(f"/proc/{self.worker}/status", encoding="ascii") as file:
            return "TracerPid:\t0\n" not in file.read()

    def sockets(self):
        return len(os.listdir(f"/proc/{self.worker}/fd"))

    def memory(self):
        """Bytes. What was allocated and never written to is in "data" only."""
        fields = {}
        for name in ("smaps_rollup", "status"):
            with open(f"/proc/{self.worker}/{name}", encoding="ascii") as file:
                fields |= {key: int(kb) * 1024 for key, kb
                           in re.findall(r"^(\w+):\s+(\d+) kB", file.read(), re.M)}
        uss = fields["Private_Clean"] + fields["Private_Dirty"]
        return dict(zip(MEMORY, (fields["Rss"], fields["Pss"], uss, fields["VmData"])))

    def errors(self):
        with open(f"{self.dir}/error.log", encoding="utf-8", errors="replace") as file:
            return file.read()

    def forget_errors(self):
        os.truncate(f"{self.dir}/error.log", 0)

    def forget_log(self):
        # nginx appends: it goes on at the beginning.
        os.truncate(f"{self.dir}/access.log", 0)

    def log_lines(self, n):
        def lines():
            with open(f"{self.dir}/access.log", encoding="ascii") as file:
                return file.read().splitlines()
        wait("the access log", lambda: len(lines()) >= n)
        return lines()


class Load(Process):
    """Clients; they keep their sessions from one go to the next. "stores" are processes that work
    for the server, and whose CPU is looked at beside the worker's; "full" are clients that make
    full handshakes at the least cost."""

    handshakes = 0                      # of all clients

    def __init__(self, server, version, port="ecdsa", stores=(), full=False):
        self.server, self.version = server, version
        self.pids = ",".join(str(pid) for pid in (server.served_by(), *(s.pid for s in stores)))
        super().__init__([*clients(full), str(server.ports[port]), version, str(SOURCES)],
                         LOAD_CPU,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         env=os.environ | {"GLIBC_TUNABLES": MALLOC, "OPENSSL_CONF": "/dev/null"})

    def prime(self, n, primer=None, port="ecdsa"):
        """Sessions of n full handshakes with another server than the one they are offered to."""
        if primer:
            self.to(primer, port)
        self.go("prime", n)
        if primer:
            self.to(self.server, port)

    def to(self, server, port="ecdsa"):
        self.ask("to", server.ports[port])

    def go(self, what, *words, cpu=False):
        """Handshakes, of which none may have failed."""
        answer = self.ask(what, *words, *([f"pids={self.pids}"] if cpu else []))
        Load.handshakes += answer["handshakes"]
        wrong = answer["failed"]
        if what != "finish" and str(words[0]).isdecimal():
            wrong = wrong or answer["handshakes"] != int(words[0])
        if wrong:
            raise Failed(f"{what} {words}: {answer}; {self.server.errors()}")
        return answer

    def ask(self, *words):
        try:
            print(*words, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            raise Failed(f"load {words} failed; {self.server.errors()}")
        return json.loads(answer)


def check_logs(servers):
    for server in servers:
        if said := server.errors():
            raise Failed(f"{server.dir}/error.log:\n{said}")


def certificates(work):
    os.umask(0o077)
    with open(f"{work}/session.key", "wb") as file:
        file.write(os.urandom(32))
    for name, key in KEYS.items():
        run(["openssl", "genpkey", *key, "-out", f"{work}/{name}.key"])
        run(["openssl", "req", "-new", "-x509", "-key", f"{work}/{name}.key", "-subj",
             "/CN=localhost", "-days", "2", "-out", f"{work}/{name}.pem"])


def free_port():
    for port in ports:
        with socket.socket() as probe:
            # As servers do: connections that have ended do not hold the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass
    raise Failed("no free port")


def connects(port, host="127.0.0.1"):
    try:
        socket.create_connection((host, port), 1).close()
        return True
    except OSError:
        return False


def wait(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"waited {PATIENCE} s in vain for {what}")
        time.sleep(0.01)
