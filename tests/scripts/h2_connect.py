"""CONNECT over HTTP/2 with the h2 library: TLS to the relay, one CONNECT stream, TLS to the origin inside it, one GET.

h2_connect.py RELAY_PORT RELAY_CA TENANT ORIGIN PATH  -> prints the status of CONNECT, then the origin's answer
"""
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events

port, ca, tenant, origin, path = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.set_alpn_protocols(["h2"])
tls = context.wrap_socket(socket.create_connection(("127.0.0.1", int(port)), 10), server_hostname="127.0.0.1")
assert tls.selected_alpn_protocol() == "h2", tls.selected_alpn_protocol()
# The library's own check of what we send wants :scheme and :path, which RFC 9113 section 8.5 forbids for CONNECT.
config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
h2c = h2.connection.H2Connection(config)
h2c.initiate_connection()
stream = h2c.get_next_available_stream_id()
h2c.send_headers(stream, [
    (":method", "CONNECT"), (":authority", "server01:18084"), ("tenant-id", tenant), ("origin-server-id", origin),
])
tls.sendall(h2c.data_to_send())

inside, outside = ssl.MemoryBIO(), ssl.MemoryBIO()
status, refusal, ended = None, b"", False


def pump():
    """One read from the relay; what the stream carried goes to the inner TLS."""
    global status, refusal, ended
    data = tls.recv(65536)
    if not data:
        ended = True
    for event in h2c.receive_data(data):
        if isinstance(event, h2.events.ResponseReceived):
            status = dict(event.headers)[":status"]
        elif isinstance(event, h2.events.DataReceived):
            h2c.acknowledge_received_data(event.flow_controlled_length, stream)
            refusal += event.data
            inside.write(event.data)
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)):
            ended = True
    tls.sendall(h2c.data_to_send())


while status is None and not ended:
    pump()
print(status)
if status != "200":
    while not ended:
        pump()
    print(refusal.decode())
    sys.exit(0)

inner = ssl._create_unverified_context().wrap_bio(inside, outside, server_hostname="server01")


def step(action):
    """Runs a TLS action, moving bytes through the stream until it is done."""
    while True:
        try:
            result = action()
            waiting = False
        except ssl.SSLWantReadError:
            waiting = True
        if outside.pending:
            h2c.send_data(stream, outside.read())
            tls.sendall(h2c.data_to_send())
        if not waiting:
            return result
        if ended:
            raise SystemExit("the stream ended")
        pump()


step(inner.do_handshake)
request = f"GET {path} HTTP/1.1\r\nHost: server01\r\nConnection: close\r\n\r\n".encode()
step(lambda: inner.write(request))
answer = b""
while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < 5:
    answer += step(lambda: inner.read(65536))
print(answer.decode())
