"""Debian's Chromium without a window, driven by its DevTools protocol: loads one page and says what it saw.

chromium.py URL RESOLVER_RULES SPKI  -> one line of JSON:
    {"status", "text", "protocol", "group", "cipher", "subject", "issuer"}, or {"error"} when nothing was loaded

RESOLVER_RULES as --host-resolver-rules takes them; SPKI is the base64 SHA-256 of a public key that is trusted.
"""
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import websocket

url, rules, spki = sys.argv[1:]
profile = tempfile.mkdtemp(prefix="hedgerow-chromium-")
arguments = [
    "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0", "--remote-allow-origins=*",
    f"--user-data-dir={profile}", f"--host-resolver-rules={rules}", f"--ignore-certificate-errors-spki-list={spki}",
    "about:blank",
]


def with_us():
    """Chromium leads a group of its own and dies with this script."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


browser = subprocess.Popen(
    arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=with_us
)


def look():
    deadline = time.monotonic() + 60
    active = os.path.join(profile, "DevToolsActivePort")
    while not (os.path.exists(active) and open(active).read().count("\n") >= 1):
        if browser.poll() is not None or time.monotonic() > deadline:
            return {"error": f"Chromium did not start: {browser.poll()}"}
        time.sleep(0.05)
    port = open(active).readline().strip()
    while True:
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10))
        pages = [p for p in pages if p["type"] == "page"]
        if pages:
            break
        if time.monotonic() > deadline:
            return {"error": "Chromium opened no page"}
        time.sleep(0.05)
    page = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=30)
    number = 0
    seen = {}

    def send(method, **parameters):
        nonlocal number
        number += 1
        page.send(json.dumps({"id": number, "method": method, "params": parameters}))
        return number

    send("Network.enable")
    send("Page.enable")
    navigate = send("Page.navigate", url=url)
    text = None
    while time.monotonic() < deadline:
        message = json.loads(page.recv())
        if message.get("id") == navigate and message["result"].get("errorText"):
            return {"error": message["result"]["errorText"]}
        if message.get("method") == "Network.responseReceived" and message["params"]["type"] == "Document":
            response = message["params"]["response"]
            security = response.get("securityDetails", {})
            seen = {
                "status": response["status"], "protocol": response.get("protocol"),
                "group": security.get("keyExchangeGroup"), "cipher": security.get("cipher"),
                "subject": security.get("subjectName"), "issuer": security.get("issuer"),
            }
        if message.get("method") == "Page.loadEventFired" and text is None:
            text = send("Runtime.evaluate", expression="document.body.innerText")
        if text is not None and message.get("id") == text:
            return {**seen, "text": message["result"]["result"].get("value")}
    return {"error": "no page within a minute"}


try:
    print(json.dumps(look()))
finally:
    try:
        os.killpg(browser.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    browser.wait()
    shutil.rmtree(profile, ignore_errors=True)
