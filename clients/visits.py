"""Python: LIBRARY URL N P, where LIBRARY is one of those at the end."""

import asyncio
import os
import sys
import threading
import urllib.parse

CA = os.environ["CLIENT_CA"]


def http_client(url):
    import http.client
    import ssl
    host = urllib.parse.urlsplit(url)
    context = ssl.create_default_context(cafile=CA)

    def visit():
        connection = http.client.HTTPSConnection(host.hostname, host.port, context=context)
        connection.request("GET", host.path)
        return connection.getresponse().read().decode()
    return visit


def ssl_session(url):
    import socket
    import ssl
    host = urllib.parse.urlsplit(url)
    context = ssl.create_default_context(cafile=CA)
    last = [None]

    def visit():
        with socket.create_connection((host.hostname, host.port)) as tcp:
            with context.wrap_socket(tcp, server_hostname=host.hostname, session=last[0]) as tls:
                tls.sendall(f"GET {host.path} HTTP/1.0\r\nHost: {host.hostname}\r\n\r\n".encode())
                answer = b""
                while more := tls.recv(65536):
                    answer += more
                last[0] = tls.session
        return answer.decode()
    return visit


def requests(url):
    import requests
    session = requests.Session()
    session.verify = CA
    return lambda: session.get(url).text


def httpx(url):
    import ssl
    import httpx
    client = httpx.Client(verify=ssl.create_default_context(cafile=CA))
    return lambda: client.get(url).text


def aiohttp(url):
    import ssl
    import aiohttp

    async def all_visits(one_by_one, at_once):
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=CA))
        async with aiohttp.ClientSession(connector=connector) as session:
            async def visit():
                async with session.get(url) as response:
                    print(await response.text(), end="")
            for _ in range(one_by_one):
                await visit()
            await asyncio.gather(*(visit() for _ in range(at_once)))
    return all_visits


def pycurl(url, share=None):
    """libcurl with GnuTLS, in Debian: one handle for all visits; with a share one for each."""
    import io
    import pycurl
    one = pycurl.Curl()

    def visit():
        body = io.BytesIO()
        curl = pycurl.Curl() if share else one
        for option, value in ((pycurl.URL, url), (pycurl.CAINFO, CA), (pycurl.WRITEDATA, body)):
            curl.setopt(option, value)
        if share:
            curl.setopt(pycurl.SHARE, share)
        curl.perform()
        return body.getvalue().decode()
    return visit


def pycurl_share(url):
    import pycurl as library
    share = library.CurlShare()
    share.setopt(library.SH_SHARE, library.LOCK_DATA_SSL_SESSION)
    return pycurl(url, share)


def curl_cffi(url):
    from curl_cffi import requests
    session = requests.Session(impersonate="chrome", verify=CA, http_version="v1")
    return lambda: session.get(url).text


def main():
    library, url, one_by_one, at_once = sys.argv[1:]
    visit = globals()[library](url)
    if asyncio.iscoroutinefunction(visit):
        asyncio.run(visit(int(one_by_one), int(at_once)))
        return
    for _ in range(int(one_by_one)):
        print(visit(), end="")
    threads = [threading.Thread(target=lambda: print(visit(), end="")) for _ in range(int(at_once))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


main()
