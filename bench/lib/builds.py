"""The nginx that are measured, each with its build of the module."""

import glob
import os
import re
import subprocess

from settings import LOAD, MODULE, QUICK, ROOT, Failed


class Build:
    def __init__(self, letter, binary, module):
        said = subprocess.run([binary, "-V"], capture_output=True, text=True, check=True).stderr
        self.letter, self.binary, self.module = letter, binary, module
        self.version = re.search(r"nginx version: (\S+)", said).group(1)
        # Another program may be made with another library.
        self.openssl = (re.findall(r"(?:built|running) with (\S+ \S+?)[ )\n]", said) or ["?"])[-1]
        self.flags = re.search(r"configure arguments:(.*)", said).group(1)
        self.name = f"({letter}) {self.version}"
        self.label = f"{self.name}, {self.openssl}"


def build():
    """What `make build` has left, the vendored nginx, other Debian releases, and the clients. The
    first of them is measured in full."""
    env = environment()
    build_load(env)
    run(CARGO + ["--manifest-path", "bench/seal/Cargo.toml", "--target-dir", "target/bench/seal"],
        env)
    builds = [one for one in (installed(),) if one]
    if builds and QUICK:
        return builds
    run(CARGO + ["-p", "ngx-http-ssl-session-module", "--features", "vendored",
                 "--target-dir", "target/vendored"], env)
    made = glob.glob("target/vendored/release/build/nginx-sys-*/out/objs/nginx")
    vendored = os.path.abspath(max(made, key=os.path.getmtime))
    builds.append(Build("b", vendored, os.path.abspath(f"target/vendored/release/lib{MODULE}")))
    if QUICK:
        return builds
    for letter, release in (("c", "trixie"), ("d", "sid")):
        binary = os.path.abspath(f"target/debian-{release}/nginx")
        if os.path.exists(binary):
            run(["tools/build-module", "unpacked", os.path.dirname(binary)])
            builds.append(Build(letter, binary,
                                os.path.abspath(f"target/debian-{release}/{MODULE}")))
    return builds


CARGO = ["cargo", "build", "--quiet", "--release", "--locked"]


def environment():
    # Not by tools/build-module: it would put this build in the place of the other.
    env = {name: value for name, value in os.environ.items()
           if name not in ("NGX_VERSION", "OPENSSL_VERSION", "PCRE2_VERSION", "ZLIB_VERSION",
                           "NGINX_SOURCE_DIR", "NGINX_BUILD_DIR")}
    env.setdefault("NGX_CONFIGURE_ARGS", "--with-debug --with-poll_module --with-select_module")
    return env


def build_load(env):
    run(CARGO + ["--manifest-path", "bench/load/Cargo.toml", "--target-dir", "target/bench/load"],
        env)


def installed():
    """What `make build` has left for an nginx that is installed, if it is for one."""
    with open("target/nginx-binary", encoding="utf-8") as file:
        binary = file.read().strip()
    if binary.startswith(os.path.join(ROOT, "target/")):
        return None
    return Build("a", binary, os.path.abspath(f"target/{MODULE}"))


def clients(full=False):
    """The command of the clients. OpenSSL 3.0 resumes at the least cost, and decodes a certificate
    so slowly that full handshakes, for which the newest there is is taken, would be limited."""
    for release in ("sid", "trixie") if full else ():
        root = os.path.join(ROOT, f"target/debian-{release}/root")
        loader = glob.glob(f"{root}/lib*/ld-linux-*.so.*")
        libc = glob.glob(f"{root}/usr/lib/*/libc.so.6")
        if loader and libc and os.path.exists(f"{os.path.dirname(root)}/nginx"):
            return [loader[0], "--inhibit-cache", "--library-path", os.path.dirname(libc[0]), LOAD]
    return [LOAD]


def run(command, env=None, say=None):
    done = subprocess.run(command, env=env, input=say, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout
