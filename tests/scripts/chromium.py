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
    page = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=15)
    number, seen, loaded = 0, {}, False

    def ask(method, **parameters):
        """One command; what is told meanwhile is looked at. Its answer, or None when it does not come."""
        nonlocal number
        number += 1
        page.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while time.monotonic() < deadline:
            try:
                message = json.loads(page.recv())
            except websocket.WebSocketTimeoutException:
                return None
            if message.get("id") == number:
                return message
            note(message)
        return None

    def note(message):
        nonlocal seen, loaded
        parameters = message.get("params", {})
        if message.get("method") == "Network.responseReceived" and parameters["type"] == "Document":
            response = parameters["response"]
            security = response.get("securityDetails", {})
            seen = {
                "request": parameters["requestId"], "status": response["status"], "protocol": response.get("protocol"),
                "group": security.get("keyExchangeGroup"), "cipher": security.get("cipher"),
                "subject": security.get("subjectName"), "issuer": security.get("issuer"),
            }
        if message.get("method") == "Network.loadingFinished" and parameters["requestId"] == seen.get("request"):
            loaded = True

    # Both are answered before the page is asked for: what it tells is not missed.
    ask("Network.enable")
    ask("Page.enable")
    went = ask("Page.navigate", url=url)
    if went is not None and went["result"].get("errorText"):
        return {"error": went["result"]["errorText"]}
    while time.monotonic() < deadline:
        # The page's load event is not told when its renderer was changed on the way: it is asked for.
        answer = ask("Runtime.evaluate", expression="location.href + ' ' + document.readyState + '\\n' + document.body.innerText")
        text = (answer or {}).get("result", {}).get("result", {}).get("value", "")
        state, _, text = text.partition("\n")
        if loaded and state == f"{url} complete":
            seen.pop("request")
            return {**seen, "text": text}
        time.sleep(0.05)
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
