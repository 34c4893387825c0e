"""What sessions are stored in."""

import re
import signal
import socket
import subprocess
import threading

from processes import Process, connects, free_port, wait
from settings import LOAD_CPU, PATIENCE

# On a machine with other things to do, lookups shall be slow rather than fail.
PATIENT = (f"connect_timeout {PATIENCE}s; fetch_timeout {PATIENCE}s; "
           f"store_timeout {PATIENCE}s; queue 20000;")


def both(target):
    return f"ssl_session_fetch {target}; ssl_session_store {target};"


def backend(servers, more="", tiers="", store=True, fetch=""):
    """A configuration that looks up and stores at these servers, behind the tiers."""
    stored = f"{tiers} fleet" if store else "off"
    return (f"{block(servers, more)} ssl_session_fetch {tiers} fleet {fetch}; "
            f"ssl_session_store {stored};")


def block(servers, more=""):
    """These servers, by themselves."""
    servers = "".join(f"server {server};" for server in servers)
    return f"ssl_session_backend fleet {{ {servers} {more} {PATIENT} }}"


class Redis(Process):
    """Over TCP, a unix socket and TLS at once; over TCP at so many addresses, 16 at most."""

    made = 0

    def __init__(self, work, port=None, hosts=1):
        Redis.made += 1
        self.work = work
        self.hosts = [f"127.0.0.{n + 1}" for n in range(hosts)]
        self.port = port or free_port()
        self.tls_port = free_port()
        self.socket = f"{work}/redis-{Redis.made}.sock"
        super().__init__(
            ["redis-server", "--port", str(self.port), "--bind", *self.hosts, "--save", "",
             "--appendonly", "no", "--dir", work, "--daemonize", "no",
             "--unixsocket", self.socket,
             "--tls-port", str(self.tls_port), "--tls-auth-clients", "no",
             "--tls-cert-file", f"{work}/rsa.pem", "--tls-key-file", f"{work}/rsa.key",
             "--tls-ca-cert-file", f"{work}/rsa.pem"],
            LOAD_CPU, stdout=subprocess.DEVNULL)
        wait("redis-server", lambda: connects(self.port))

    def address(self):
        return f"127.0.0.1:{self.port}"

    def addresses(self):
        return [f"{host}:{self.port}" for host in self.hosts]

    def again(self):
        """The same server, after it was killed."""
        self.process.wait(PATIENCE)
        return Redis(self.work, self.port)

    def signal(self, number):
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(PATIENCE)

    def drop_links(self):
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as link:
            link.sendall(b"CLIENT KILL TYPE normal SKIPME yes\r\n")
            link.recv(64)

    def backend(self, **how):
        return backend([self.address()], **how)

    def block(self):
        return block([self.address()])

    def backend_unix(self, **how):
        return backend([f"unix:{self.socket}"], **how)

    def backend_tls(self, more="", **how):
        return backend([f"127.0.0.1:{self.tls_port}"], more=(
            f"ssl on; ssl_name localhost; ssl_trusted_certificate {self.work}/rsa.pem; {more}"),
            **how)

    def hits(self):
        return self.stat("keyspace_hits")

    def lookups(self):
        return self.hits() + self.stat("keyspace_misses")

    def stat(self, name):
        return int(re.search(rf"{name}:(\d+)", self.tell("INFO stats")).group(1))

    def info(self):
        return dict(re.findall(r"^(\w+):(.*?)\r$", self.tell("INFO everything"), re.M))

    def keys(self):
        return int(re.search(r":(\d+)", self.tell("DBSIZE")).group(1))

    def tell(self, command):
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as link:
            link.sendall(f"{command}\r\nQUIT\r\n".encode())
            return b"".join(iter(lambda: link.recv(65536), b"")).decode()


class Memcached(Process):
    """On a port of 127.0.0.1, with so many megabytes and connections."""

    def __init__(self, port=None, memory=512, links=1024):
        self.port = port or free_port()
        super().__init__(["memcached", "-l", "127.0.0.1", "-p", str(self.port), "-m", str(memory),
                          "-c", str(links), "-t", "1", "-u", "root"], LOAD_CPU,
                         stdout=subprocess.DEVNULL)
        wait("memcached", lambda: connects(self.port))

    def backend(self, **how):
        return backend([f"127.0.0.1:{self.port}"], more="protocol memcached;", **how)

    def hits(self):
        return int(self.stats()["get_hits"])

    def stats(self, group=""):
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as link:
            link.sendall(f"stats {group}".strip().encode() + b"\r\nquit\r\n")
            text = b"".join(iter(lambda: link.recv(65536), b"")).decode()
        return dict(re.findall(r"^STAT (\S+) (.*?)\r$", text, re.M))


class Silent:
    """Takes the place of a redis-server that hangs: reads, counts, and says nothing, until it is
    told to answer that it has nothing."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", free_port()))
        self.port = self.listener.getsockname()[1]
        self.gets = 0
        self.owed = 0
        self.answers = False
        self.link = None
        self.lock = threading.Lock()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        try:
            self.link, _ = self.listener.accept()
            with self.link:
                # A command may be cut anywhere: what can still become one is kept.
                kept = b""
                while data := self.link.recv(65536):
                    kept += data
                    gets = kept.count(b"\r\nGET\r\n")
                    kept = kept[-6:]
                    with self.lock:
                        self.gets += gets
                        self.owed += gets
                        if self.answers:
                            self.pay()
        except OSError:
            pass

    def pay(self):
        self.link.sendall(b"$-1\r\n" * self.owed)
        self.owed = 0

    def answer(self):
        with self.lock:
            self.answers = True
            self.pay()

    def stop(self):
        self.listener.close()
