"""A TUN device that the packets of the loopback go over while it is told to lose or delay them, which
takes no netem of the kernel. In a network namespace of our own: `bench/soak` has made one.

As a program it moves the packets: "loss PERCENT" and "delay MILLISECONDS" on standard input, and "none".
"""

import collections
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454ca
IFF_TUN, IFF_NO_PI = 0x1, 0x1000
# What this machine sends over TCP goes to the device; what comes from there is delivered.
RULE = "rule {} pref 10 iif lo ipproto tcp lookup 100"
SET_UP = (
    "link set wire mtu 65535 txqueuelen 10000 up",
    "route add default dev wire src 127.0.0.1 table 100",
    "rule add pref 100 lookup local",
    "rule del pref 0",
)
# From a device the kernel takes no address of the loopback, nor its own, unless it is told to.
SWITCHES = {"all/rp_filter": 0, "wire/rp_filter": 0, "wire/route_localnet": 1,
            "wire/accept_local": 1}


class Wire:
    """Raises OSError or CalledProcessError where there can be none."""

    def __init__(self, start):
        self.process = start([sys.executable, __file__], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True).process
        self.hear()
        for name, value in SWITCHES.items():
            with open(f"/proc/sys/net/ipv4/conf/{name}", "w", encoding="ascii") as file:
                file.write(str(value))
        for line in SET_UP:
            ip(line)

    def put(self, what):
        """What befalls all packets from now on: "loss 1", "delay 20", None."""
        if what is None:
            ip(RULE.format("del"))
        print(what or "none", file=self.process.stdin, flush=True)
        self.hear()
        if what is not None:
            ip(RULE.format("add"))

    def hear(self):
        if self.process.stdout.readline() != "ready\n":
            raise OSError("no TUN device")


def ip(command):
    subprocess.run(["ip", *command.split()], check=True, stderr=subprocess.DEVNULL)


def move():
    """Passes packets back to where they have come from, or not, until nobody gives orders."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH14x", b"wire", IFF_TUN | IFF_NO_PI))
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    print("ready", flush=True)
    loss, delay, kept = 0, 0, collections.deque()
    while True:
        wait = max(0, kept[0][0] - time.monotonic()) if kept else None
        ready = select.select([tun, 0], [], [], wait)[0]
        if 0 in ready:
            words = sys.stdin.readline().split()
            if not words:
                return
            loss = float(words[1]) / 100 if words[0] == "loss" else 0
            delay = float(words[1]) / 1000 if words[0] == "delay" else 0
            print("ready", flush=True)
        try:
            for _ in range(256):
                packet = os.read(tun, 65536)
                if packet[0] >> 4 == 4 and (not loss or random.random() >= loss):
                    kept.append((time.monotonic() + delay, packet))
        except BlockingIOError:
            pass
        while kept and kept[0][0] <= time.monotonic():
            os.write(tun, kept.popleft()[1])


if __name__ == "__main__":
    move()
