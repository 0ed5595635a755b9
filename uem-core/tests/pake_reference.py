#!/usr/bin/env python3
"""The PAKE of activation once more, from the standards and nothing else (Python's own library, and openssl for AES).

Recomputes every byte of src/activation/pake/recorded_run.jsonl from its seed; exits 0 when all agree. Run by hand
when the recording is renewed: a change of the wire form must be made here too, from the description in pake/mod.rs.
"""
import base64, hashlib, hmac, json, pathlib, subprocess, sys

P = 2**521 - 1
N = 0x01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409
A = -3 % P
B = 0x0051953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109E156193951EC7E937B1652C0BD3BB1BF073573DF883D2C34F1EF451FD46B503F00
Z = -4 % P


def inv(x):
    return pow(x, P - 2, P)


def add(p, q):
    if p is None:
        return q
    if q is None:
        return p
    if p[0] == q[0]:
        if (p[1] + q[1]) % P == 0:
            return None
        slope = (3 * p[0] * p[0] + A) * inv(2 * p[1]) % P
    else:
        slope = (q[1] - p[1]) * inv(q[0] - p[0]) % P
    x = (slope * slope - p[0] - q[0]) % P
    return x, (slope * (p[0] - x) - p[1]) % P


def mul(k, p):
    out = None
    while k:
        if k & 1:
            out = add(out, p)
        p, k = add(p, p), k >> 1
    return out


def expand_message_xmd(msg, dst, length):  # RFC 9380, 5.3.1, SHA-512
    dst += bytes([len(dst)])
    b0 = hashlib.sha512(bytes(128) + msg + length.to_bytes(2, "big") + b"\0" + dst).digest()
    b = hashlib.sha512(b0 + b"\1" + dst).digest()
    out = b
    for i in range(2, -(-length // 64) + 1):
        b = hashlib.sha512(bytes(x ^ y for x, y in zip(b0, b)) + bytes([i]) + dst).digest()
        out += b
    return out[:length]


def map_to_curve(u):  # RFC 9380, 6.6.2
    tv = (Z * Z * pow(u, 4, P) + Z * u * u) % P
    x = B * inv(Z * A) % P if tv == 0 else -B * inv(A) * (1 + inv(tv)) % P
    gx = (x**3 + A * x + B) % P
    if pow(gx, (P - 1) // 2, P) not in (0, 1):
        x = Z * u * u * x % P
        gx = (x**3 + A * x + B) % P
    y = pow(gx, (P + 1) // 4, P)
    return x, y if y % 2 == u % 2 else P - y


def hash_to_curve(msg, dst):
    okm = expand_message_xmd(msg, dst, 196)
    return add(*(map_to_curve(int.from_bytes(okm[i : i + 98], "big") % P) for i in (0, 98)))


def sec1(p):
    return b"\4" + p[0].to_bytes(66, "big") + p[1].to_bytes(66, "big")


def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


class Seeded:
    def __init__(self, state):
        self.state = state

    def take(self, n):
        out = bytearray()
        for _ in range(n):
            self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
            out.append(self.state >> 33 & 0xFF)
        return bytes(out)

    def scalar(self):
        raw = bytearray(self.take(66))
        raw[0] &= 1
        value = int.from_bytes(raw, "big")
        assert 0 < value < N
        return value


def b64(x):
    return base64.b64encode(x).decode()


def envelope(direction, enc, key, session, iv, plaintext):
    command = ["openssl", "enc", "-aes-256-cbc", "-K", enc.hex(), "-iv", iv.hex()]
    ct = subprocess.run(command, input=plaintext, capture_output=True, check=True).stdout
    return b"\1" + iv + ct + mac(key, b"\1", bytes([direction]), session, iv, ct)


password, user, tenant, session, exporter = b"open sesame", b"anna@example.com", b"S12345678", b"\3" * 16, b"\t" * 32
random = Seeded(42)
message = b"".join(len(x).to_bytes(4, "big") + x for x in (password, user, tenant, session))
g = hash_to_curve(message, b"EM-EC-SPEKE-v1")
b = random.scalar()
a = random.scalar()
share_a, share_b = sec1(mul(a, g)), sec1(mul(b, g))
z = mul(a, mul(b, g))[0].to_bytes(66, "big")
label = b"hedgerow activation EC-SPEKE v1\0"
info = b"".join(len(x).to_bytes(8, "big") + x for x in (label, user, tenant, session, exporter))
prk = hmac.new(share_a + share_b, z, hashlib.sha512).digest()
okm, t = b"", b""
for i in range(1, 4):
    t = hmac.new(prk, t + info + bytes([i]), hashlib.sha512).digest()
    okm += t
keys = [okm[i : i + 32] for i in range(0, 192, 32)]
confirm = [
    mac(keys[i], b"hedgerow activation confirmation v1\0", bytes([d]), session, share_a, share_b) for i, d in ((2, 1), (5, 2))
]
sid = base64.b32encode(session).decode().rstrip("=").lower()
lines = [
    {"user": user.decode()},
    {"session": sid, "share": b64(share_b)},
    {"session": sid, "share": b64(share_a), "confirm": b64(confirm[0])},
    {"session": sid, "confirm": b64(confirm[1])},
    {"session": sid, "envelope": b64(envelope(1, keys[0], keys[1], session, random.take(16), b"request"))},
    {"session": sid, "envelope": b64(envelope(2, keys[3], keys[4], session, random.take(16), b"reply"))},
]
path = pathlib.Path(__file__).parent.parent / "src/activation/pake/recorded_run.jsonl"
recorded = [json.loads(line) for line in path.read_text().splitlines()]
for number, (ours, theirs) in enumerate(zip(lines, recorded, strict=True), 1):
    if ours != theirs:
        sys.exit(f"line {number} differs:\n  reference {ours}\n  recorded  {theirs}")
print(f"{len(lines)} messages agree")
