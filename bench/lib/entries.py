"""Entries as the module makes them: what real handshakes have an nginx say to a store."""

import base64
import os
import re
import socket
import ssl
import threading

from builds import run
from processes import wait
from settings import PATIENCE, VERSIONS, Failed

NAME = "www.example.com"                # 15 bytes, as bench/zone has it
CERTIFICATES = {"none": None, "ecdsa": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
                "rsa": ["-newkey", "rsa:2048"]}
KINDS = [(version, certificate) for version in VERSIONS for certificate in CERTIFICATES]
SIGNED = "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=clientAuth\n" \
         "subjectAltName=email:client@example.com\n"


def client_certificates(work):
    """A CA, and clients of it with keys of both kinds; their certificates' sizes in DER."""
    ca = ["-CA", f"{work}/ca.pem", "-CAkey", f"{work}/ca.key", "-CAcreateserial"]
    run(["openssl", "req", "-x509", "-nodes", *CERTIFICATES["ecdsa"], "-keyout", f"{work}/ca.key",
         "-out", f"{work}/ca.pem", "-subj", "/O=Example/CN=Example client CA", "-days", "2"])
    with open(f"{work}/client.ext", "w", encoding="ascii") as file:
        file.write(SIGNED)
    sizes = {"none": 0}
    for name, key in CERTIFICATES.items():
        if key:
            path = f"{work}/client-{name}"
            run(["openssl", "req", "-new", "-nodes", *key, "-keyout", f"{path}.key", "-out",
                 f"{path}.csr", "-subj", "/O=Example/CN=client.example.com"])
            run(["openssl", "x509", "-req", "-in", f"{path}.csr", *ca, "-days", "2", "-extfile",
                 f"{work}/client.ext", "-out", f"{path}.pem"])
            with open(f"{path}.pem", encoding="ascii") as file:
                sizes[name] = len(ssl.PEM_cert_to_DER_cert(file.read()))
    return sizes


def verifies(work):
    """The lines of a server that asks clients for certificates."""
    return f"ssl_client_certificate {work}/ca.pem; ssl_verify_client optional;"


class Client:
    """One of a kind: a version of TLS, with a certificate or without."""

    def __init__(self, work, version, certificate="none"):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.context.minimum_version = self.context.maximum_version = \
            {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
        if certificate != "none":
            path = f"{work}/client-{certificate}"
            self.context.load_cert_chain(f"{path}.pem", f"{path}.key")

    def visit(self, port, session=None):
        """A handshake and a request; the session for the next one."""
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as tcp, \
                self.context.wrap_socket(tcp, server_hostname=NAME, session=session) as tls:
            tls.sendall(f"GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n".encode())
            answer = b"".join(iter(lambda: tls.recv(4096), b""))
            if b" 204 " not in answer or tls.session_reused != bool(session):
                raise Failed(f"resumed: {tls.session_reused}, {answer}")
            return tls.session


class Exchange:
    """A request of nginx's and its reply, in bytes as they were on the wire."""

    def __init__(self, request):
        self.request, self.reply = request, b""
        words = re.split(rb"\s+", request, maxsplit=8)
        # "*3 $3 SET $47 KEY ...", or "ms KEY ...".
        self.name = (words[2] if request[:1] == b"*" else words[0]).decode()
        self.key = words[4] if request[:1] == b"*" else words[1]

    def value(self):
        """What is stored or was found."""
        if self.name == "SET":
            return string(self.request.split(self.key + b"\r\n", 1)[1])
        if self.name == "ms":
            return self.request.split(b"\r\n", 1)[1][:-2]
        return string(self.reply)

    def bytes(self):
        return len(self.request), len(self.reply)


def string(data):
    head, rest = data.split(b"\r\n", 1)
    return rest[:int(re.search(rb"\d+", head).group())]


def one(data):
    """How long the first request or reply of either store is; 0 if it is not all there."""
    line = data.find(b"\r\n")
    if line < 0:
        return 0
    head, end = data[:line], line + 2
    if head[:1] == b"*":
        for _ in range(int(head[1:])):
            more = one(data[end:])
            if not more:
                return 0
            end += more
        return end
    more = 0
    if head[:1] == b"$" and head != b"$-1":
        more = int(head[1:]) + 2
    elif head[:3] == b"VA ":
        more = int(head.split()[1]) + 2
    elif head[:3] == b"ms ":
        more = int(head.split()[2]) + 2
    return end + more if len(data) >= end + more else 0


class Relay:
    """Between nginx and a store: notes what each says, and counts connections."""

    def __init__(self, port):
        self.to = port
        self.links = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        try:
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.to), PATIENCE)
                far.settimeout(None)
                for side in (near, far):
                    side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.links.append(exchanges := [])
                for way in ((near, far, self.request), (far, near, self.reply)):
                    threading.Thread(target=self.pump, args=(*way, exchanges), daemon=True).start()
        except OSError:
            pass

    @staticmethod
    def pump(source, target, note, exchanges):
        kept = b""
        try:
            while data := source.recv(65536):
                kept += data
                while size := one(kept):
                    note(exchanges, kept[:size])
                    kept = kept[size:]
                target.sendall(data)
        except OSError:
            pass
        for side in (source, target):
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    @staticmethod
    def request(exchanges, data):
        exchanges.append(Exchange(data))

    @staticmethod
    def reply(exchanges, data):
        next(one for one in exchanges if not one.reply).reply = data

    def exchanges(self):
        """Those that are complete and about an entry, and not a link's greeting."""
        return [one for link in list(self.links) for one in list(link)
                if one.reply and one.name not in ("version", "mn")]

    def forget(self):
        for link in self.links:
            link.clear()

    def stop(self):
        self.listener.close()


def handshakes(nginx, relay, work, kind, count):
    """What full handshakes of clients of a kind, and then their resumptions, say to a store."""
    client, port = Client(work, *kind), nginx.ports["ecdsa"]
    said, sessions = {}, [None] * count
    # Of TLS 1.2 a session, of TLS 1.3 two tickets; then a lookup, and of TLS 1.3 a ticket.
    for what in ("full", "resumed"):
        relay.forget()
        sessions = [client.visit(port, session) for session in sessions]
        least = count * (1 if kind[0] == "1.2" else 2)
        wait("the store", lambda least=least: len(relay.exchanges()) >= least)
        said[what] = relay.exchanges()
    return said


class Form:
    """A request of the module's, for other entries."""

    def __init__(self, exchange):
        self.head, self.tail = exchange.request.split(exchange.key, 1)

    def of(self, key):
        return self.head + key + self.tail


def keys(count):
    """Names of entries, of the module's form."""
    for _ in range(count):
        yield b"tls:" + base64.urlsafe_b64encode(os.urandom(32))[:43]
