"""Two nginx and the stores between them, with what can go wrong there."""

import os
import re
import signal
import socket
import subprocess
import threading
import time

from due import Ledger
from processes import Nginx, Process, connects, free_port, wait
from settings import LOAD_CPU, PATIENCE, Failed
from stores import Memcached, Redis

# As operators have them, but for the length of a fetch: this machine has other things to do.
FETCH_TIMEOUT = 0.2
LIMITS = f"fetch_timeout {FETCH_TIMEOUT * 1000:.0f}ms; connect_timeout 500ms;"


class Node(Nginx):
    """One that is told what it does by signals."""

    def reload(self):
        old = self.worker
        self.process.send_signal(signal.SIGHUP)
        wait("the new worker", lambda: self.find_worker() not in (old, None))

    def kill_worker(self):
        old = self.worker
        os.kill(old, signal.SIGKILL)
        wait("another worker", lambda: self.find_worker() not in (old, None))

    def find_worker(self):
        """The newest: an old one may have something to do still."""
        if self.process.poll() is not None:
            raise Failed("nginx: " + self.errors())
        with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as file:
            children = [int(pid) for pid in file.read().split()]
        workers = [pid for pid in children if self.is_worker(pid)]
        self.worker = max(workers) if workers else None
        return self.worker

    @staticmethod
    def is_worker(pid):
        try:
            with open(f"/proc/{pid}/cmdline", encoding="ascii") as file:
                return "worker process" in (said := file.read()) and "shutting" not in said
        except OSError:
            return False

    def own_memory(self):
        """Its pages that no zone has, in bytes."""
        with open(f"/proc/{self.worker}/status", encoding="ascii") as file:
            return int(re.search(r"^RssAnon:\s+(\d+) kB", file.read(), re.M).group(1)) * 1024

    def lines(self):
        return self.errors().count("\n")

    def alerts(self):
        # A worker that was killed is one.
        return [line for line in self.errors().splitlines()
                if re.search(r"\[(alert|crit|emerg)\]", line) and "exited on signal 9" not in line]


class Fleet:
    """The nodes; kinds of stores say how they are asked, and what can go wrong."""

    name = ""
    tiers = ""
    parts = 1           # servers that have sessions of their own

    def __init__(self, built, work):
        self.ledger = Ledger()
        self.work = f"{work}/{self.name}"
        os.mkdir(self.work)
        for end in ("pem", "key"):
            os.link(f"{work}/rsa.{end}", f"{self.work}/rsa.{end}")
        self.write_keys()
        self.start(work)
        text = (f"{self.keys_text()} ssl_session_backend fleet {{ {self.block()} {LIMITS} }} "
                f"ssl_session_fetch {self.tiers} fleet; ssl_session_store fleet; "
                "ssl_session_epoch epoch;")
        self.nodes = [Node(work, built, text) for _ in range(2)]

    def keys_text(self):
        return f"ssl_session_key {self.work}/first.key; ssl_session_key {self.work}/second.key;"

    def write_keys(self):
        for name in ("first", "second"):
            with open(f"{self.work}/{name}.key", "wb") as file:
                file.write(os.urandom(32))

    def new_key(self):
        """In three steps: all know it, all use it, and then it is the old one of the next time."""
        first, second = f"{self.work}/first.key", f"{self.work}/second.key"
        with open(f"{self.work}/new", "wb") as file:
            file.write(os.urandom(32))
        os.replace(f"{self.work}/new", second)
        for node in self.nodes:
            node.reload()
        os.rename(first, f"{self.work}/old")
        os.rename(second, first)
        os.rename(f"{self.work}/old", second)
        for node in self.nodes:
            node.reload()

    def start(self, work):
        raise NotImplementedError

    def block(self):
        raise NotImplementedError

    def set_epoch(self):
        """Nor are sessions of the six seconds after it resumed."""
        now = time.monotonic()
        self.ledger.withdraw(now, now + 6)
        self.tell_epoch()

    def tell_epoch(self):
        for one in self.redises:
            one.tell(f"SET tls:epoch {int(time.time())}")

    def share(self, _):
        """Of all sessions, those that lookups find at this server."""
        return 1 / self.parts

    def gone(self, n, begin):
        """A server is there again, empty."""
        now = time.monotonic()
        self.ledger.lose(self.share(n), begin)
        self.ledger.hush(self.share(n), begin, now)
        self.ledger.refuse(self.share(n), begin, now)

    def hung(self, n, begin):
        """A server goes on, with all that it was asked meanwhile."""
        self.ledger.hush(self.share(n), begin, time.monotonic() - FETCH_TIMEOUT)


def tell(where, *words):
    """A command to a port, or an address and a port, and its answer, as text."""
    where = where if isinstance(where, tuple) else ("127.0.0.1", where)
    command = f"*{len(words)}\r\n" + "".join(f"${len(str(w))}\r\n{w}\r\n" for w in words)
    with socket.create_connection(where, PATIENCE) as link:
        link.settimeout(5)
        link.sendall(command.encode() + b"*1\r\n$4\r\nQUIT\r\n")
        try:
            return b"".join(iter(lambda: link.recv(65536), b"")).decode(errors="replace")
        except TimeoutError:
            return ""


def answers(port, *words):
    """The strings and numbers of an answer: none of ours has a line break in it."""
    lines = tell(port, *words).split("\r\n")[:-2]
    if lines and lines[0][:1] in "-":
        raise Failed(f"{words[0]}: {lines[0]}")
    return [line.removeprefix(":") for line in lines if line[:1] not in ("$", "*")]


def answer(port, *words):
    """The one string or number of an answer, or nothing."""
    return next(iter(answers(port, *words)), "")


class OneRedis(Fleet):
    name = "redis"

    def start(self, work):
        self.redises = [Redis(self.work)]
        self.faults = {"kill": self.kill, "stop": self.stop, "pause": self.pause,
                       "links": self.links, "full": self.full, "wrong": self.wrong}
        # What takes CAP_NET_ADMIN.
        if os.geteuid() == 0:
            self.faults["reset"] = self.reset

    def block(self):
        return "".join(f"server 127.0.0.1:{redis.port};" for redis in self.redises)

    def one(self, draw):
        return draw.randrange(len(self.redises))

    def kill(self, draw):
        n = self.one(draw)
        begin = time.monotonic()
        self.redises[n].signal(signal.SIGKILL)
        time.sleep(0.2)
        self.redises[n] = self.redises[n].again()
        self.gone(n, begin)

    def stop(self, draw):
        n = self.one(draw)
        begin = time.monotonic()
        self.redises[n].signal(signal.SIGSTOP)
        time.sleep(0.5)
        self.redises[n].signal(signal.SIGCONT)
        self.hung(n, begin)

    def pause(self, draw):
        tell(self.redises[self.one(draw)].port, "CLIENT", "PAUSE", 100, "ALL")

    def links(self, draw):
        self.redises[self.one(draw)].drop_links()

    def reset(self, draw):
        """Its connections end by RST, whichever are idle, as something on the way may have it."""
        port = self.redises[self.one(draw)].port
        subprocess.run(["ss", "--kill", "--tcp", "state", "established", f"sport = :{port}"],
                       check=True, stdout=subprocess.DEVNULL)

    def full(self, draw):
        n = self.one(draw)
        port = self.redises[n].port
        begin = time.monotonic()
        tell(port, "CONFIG", "SET", "maxmemory", 1)
        time.sleep(0.5)
        tell(port, "CONFIG", "SET", "maxmemory", 0)
        self.ledger.refuse(self.share(n), begin, time.monotonic())

    def wrong(self, draw):
        port = self.redises[self.one(draw)].port
        for _ in range(10):
            answer = tell(port, "RANDOMKEY").split("\r\n")
            if len(answer) > 1 and answer[1].startswith("tls:") and answer[1] != "tls:epoch":
                tell(port, "SET", answer[1], draw.choice(["", "x" * 300, "y" * 2_000_000]), "EX", 60)


class TwoRedises(OneRedis):
    name = "two-zone"
    tiers = "shared:near:4m"
    parts = 2

    def start(self, work):
        super().start(work)
        self.redises.append(Redis(self.work))


class TlsRedis(OneRedis):
    name = "rediss"

    def start(self, work):
        self.certificate = f"{work}/rsa.pem"
        super().start(work)
        self.password = 0
        self.faults = {name: fault for name, fault in self.faults.items() if name != "kill"}
        self.faults["password"] = self.new_password
        self.new_password(None)

    def block(self):
        return (f"server 127.0.0.1:{self.redises[0].tls_port}; username nginx; "
                f"password_file {self.work}/password; ssl on; ssl_name localhost; "
                f"ssl_trusted_certificate {self.certificate};")

    def new_password(self, _):
        self.password += 1
        with open(f"{self.work}/new-password", "w", encoding="ascii") as file:
            file.write(f"secret-{self.password}\n")
        os.rename(f"{self.work}/new-password", f"{self.work}/password")
        tell(self.redises[0].port, "ACL", "SETUSER", "nginx", "reset", "on",
             f">secret-{self.password}", "~tls:*", "+get", "+set", "+del", "+ping")


class NamedRedis(OneRedis):
    """Two servers, of which the name leads to one, now to the other."""

    name = "named"
    host = "sessions.test"

    def start(self, work):
        super().start(work)
        # One port, at an address for each.
        self.redises += [AtAddress(self.work, "127.0.0.2", self.redises[0].port)]
        self.dns = NameServer("127.0.0.1")
        for name in ("kill", "full"):
            del self.faults[name]
        self.faults["name"] = self.move

    def one(self, draw):
        return 0

    def share(self, n):
        return float(self.dns.address == f"127.0.0.{n + 1}")

    def keys_text(self):
        return f"resolver 127.0.0.1:{self.dns.port} valid=1s ipv6=off; {super().keys_text()}"

    def block(self):
        return f"server {self.host}:{self.redises[0].port};"

    def move(self, _):
        """Its answers are good for a second: until then each node may ask either server."""
        now = time.monotonic()
        self.ledger.lose(1, now, now + 1)
        self.dns.address = "127.0.0.2" if self.dns.address == "127.0.0.1" else "127.0.0.1"

    def tell_epoch(self):
        for host in ("127.0.0.1", "127.0.0.2"):
            tell((host, self.redises[0].port), "SET", "tls:epoch", int(time.time()))


class AtAddress(Process):
    """A plain redis-server at one address."""

    def __init__(self, work, host, port):
        home = f"{work}/{host}"
        os.mkdir(home)
        super().__init__(["redis-server", "--port", str(port), "--bind", host, "--save", "", "--dir", home],
                         LOAD_CPU, stdout=subprocess.DEVNULL)
        wait("redis-server", lambda: connects(port, host))


class NameServer(threading.Thread):
    """Answers each question with one address, which is good for a second."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address = address
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.start()

    def run(self):
        while True:
            query, who = self.socket.recvfrom(512)
            # RFC 1035, section 4: the header, and the question again; a pointer to its name.
            end = query.index(b"\0", 12) + 5
            header = query[:2] + b"\x81\x80" + b"\0\1\0\1\0\0\0\0"
            record = b"\xc0\x0c\0\1\0\1" + (1).to_bytes(4, "big") + b"\0\4"
            self.socket.sendto(header + query[12:end] + record + socket.inet_aton(self.address), who)


class Cluster(OneRedis):
    name = "cluster"
    parts = 3

    def start(self, work):
        super().start(work)
        for redis in self.redises:
            redis.stop()
        self.redises = [ClusterNode(self.work) for _ in range(self.parts)]
        for n, redis in enumerate(self.redises):
            low, high = (16384 * k // self.parts for k in (n, n + 1))
            tell(redis.port, "CLUSTER", "ADDSLOTSRANGE", low, high - 1)
            tell(redis.port, "CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            for other in self.redises[:n]:
                tell(redis.port, "CLUSTER", "MEET", "127.0.0.1", other.port, other.bus)
        wait("the cluster", lambda: all(
            "cluster_state:ok" in tell(r.port, "CLUSTER", "INFO")
            and "cluster_known_nodes:3" in tell(r.port, "CLUSTER", "INFO") for r in self.redises))
        # A node that is killed would be another one afterwards.
        del self.faults["kill"]
        self.faults["reshard"] = self.reshard

    def block(self):
        return super().block() + "cluster on;"

    def reshard(self, draw):
        """Slots move with their sessions, from one node to another."""
        old, new = draw.sample(self.redises, 2)
        ids = {node: answer(node.port, "CLUSTER", "MYID") for node in (old, new)}
        for _ in range(10):
            key = answer(old.port, "RANDOMKEY")
            if not key:
                break
            slot = answer(old.port, "CLUSTER", "KEYSLOT", key)
            tell(new.port, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[old])
            tell(old.port, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[new])
            # Until nothing is left: what is stored meanwhile goes to the new one.
            while keys := answers(old.port, "CLUSTER", "GETKEYSINSLOT", slot, 100):
                tell(old.port, "MIGRATE", "127.0.0.1", new.port, "", 0, 5000, "KEYS", *keys)
            for node in (new, old):
                tell(node.port, "CLUSTER", "SETSLOT", slot, "NODE", ids[new])


class ClusterNode(Process):
    def __init__(self, work):
        self.port, self.bus = free_port(), free_port()
        home = f"{work}/{self.port}"
        os.mkdir(home)
        super().__init__(["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save",
                          "", "--dir", home, "--cluster-enabled", "yes", "--cluster-port",
                          str(self.bus), "--cluster-node-timeout", "5000"],
                         LOAD_CPU, stdout=subprocess.DEVNULL)
        wait("redis-server", lambda: connects(self.port))

    signal, tell, drop_links = Redis.signal, Redis.tell, Redis.drop_links


class Sentinels(OneRedis):
    name = "sentinel"

    def start(self, work):
        super().start(work)
        replica = Redis(self.work)
        self.redises.append(replica)
        tell(replica.port, "REPLICAOF", "127.0.0.1", self.redises[0].port)
        self.port = free_port()
        conf = f"{self.work}/sentinel.conf"
        with open(conf, "w", encoding="ascii") as file:
            file.write(f"port {self.port}\nbind 127.0.0.1\ndir {self.work}\n"
                       f"sentinel monitor fleet 127.0.0.1 {self.redises[0].port} 1\n"
                       "sentinel down-after-milliseconds fleet 3000\n"
                       "sentinel failover-timeout fleet 3000\n")
        self.sentinel = Process(["redis-server", conf, "--sentinel"], LOAD_CPU, stdout=subprocess.DEVNULL)
        wait("the sentinel", lambda: connects(self.port))
        for name in ("kill", "wrong", "full"):
            del self.faults[name]
        self.faults["failover"] = self.failover

    def block(self):
        return f"server 127.0.0.1:{self.port}; sentinel fleet;"

    def ask(self, what):
        """Of a Sentinel, which knows no QUIT."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as link:
            link.sendall(f"SENTINEL {what} fleet\r\n".encode())
            return link.recv(256).decode()

    def master(self):
        """Its number, as the Sentinel says, who says it to all."""
        port = int(self.ask("GET-MASTER-ADDR-BY-NAME").split("\r\n")[4])
        return next(n for n, redis in enumerate(self.redises) if redis.port == port)

    def share(self, n):
        return float(n == self.master())

    def failover(self, _):
        """What is stored with the old master after the other one was promoted goes with it."""
        old = self.master()
        new = 1 - old
        # Refused while another is under way.
        if "+OK" not in self.ask("FAILOVER"):
            return
        promoted = self.when(lambda: "master" in answers(self.redises[new].port, "ROLE"))
        changed = self.when(lambda: self.master() == new)
        if promoted and changed:
            self.ledger.lose(1, changed, since=promoted)

    @staticmethod
    def when(condition):
        """The time of it, if it comes within three seconds. Sentinels end the connections of who changes."""
        until = time.monotonic() + 3
        while (now := time.monotonic()) < until:
            try:
                if condition():
                    return now
            except OSError:
                pass
            time.sleep(0.01)
        return None


class OneMemcached(Fleet):
    name = "memcached"

    def start(self, work):
        self.memcached = Memcached()
        self.faults = {"stop": self.stop, "kill": self.kill}

    def block(self):
        return f"server 127.0.0.1:{self.memcached.port}; protocol memcached;"

    def stop(self, _):
        begin = time.monotonic()
        self.memcached.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        self.memcached.process.send_signal(signal.SIGCONT)
        self.hung(0, begin)

    def kill(self, _):
        begin = time.monotonic()
        self.memcached.kill()
        time.sleep(0.2)
        self.memcached = Memcached(self.memcached.port)
        self.gone(0, begin)

    def tell_epoch(self):
        value = str(int(time.time()))
        with socket.create_connection(("127.0.0.1", self.memcached.port), PATIENCE) as link:
            link.sendall(f"set tls:epoch 0 0 {len(value)}\r\n{value}\r\nquit\r\n".encode())
            link.recv(64)


KINDS = (OneRedis, TwoRedises, TlsRedis, NamedRedis, Cluster, Sentinels, OneMemcached)
