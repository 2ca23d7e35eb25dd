"""Hypothesis strategies of malformed requests: damaged photos, JSON, multipart, raw HTTP."""

import base64
import json
import struct
from typing import Any, Final

from hypothesis import strategies as st

from tests.service.malformed.image_samples import bad, doubtful, tiff, whole, with_exif

_BOUNDARY: Final = b"xX-boundary-Xx"


@st.composite
def damaged_images(draw: st.DrawFn) -> bytes:
    """Something that was a photo: cut off, bits flipped, bytes inserted, removed or swapped, headers rewritten."""
    photo = draw(st.sampled_from(sorted(whole().items())))[1]
    kind = draw(st.sampled_from(["cut", "flip early", "flip anywhere", "insert", "remove", "number", "splice", "exif"]))
    place = draw(st.integers(0, len(photo) - 1))
    if kind == "cut":
        return photo[:place]
    if kind in ("flip early", "flip anywhere"):
        data = bytearray(photo)
        reach = min(len(data), 700 if kind == "flip early" else len(data)) - 1
        for at, bit in draw(st.lists(st.tuples(st.integers(0, reach), st.integers(0, 7)), min_size=1, max_size=24)):
            data[at] ^= 1 << bit
        return bytes(data)
    if kind == "insert":
        return photo[:place] + draw(st.binary(min_size=1, max_size=64)) + photo[place:]
    if kind == "remove":
        return photo[:place] + photo[place + draw(st.integers(1, 2000)) :]
    if kind == "number":  # a length, a size or an offset that is nonsense
        value = draw(st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000]))
        width = draw(st.sampled_from([1, 2, 4]))
        early = min(place, 700)
        written = (value & ((1 << 8 * width) - 1)).to_bytes(width, draw(st.sampled_from(["big", "little"])))
        return photo[:early] + written + photo[early + width :]
    if kind == "splice":
        other = draw(st.sampled_from(sorted(whole().items())))[1]
        return photo[:place] + other[draw(st.integers(0, len(other) - 1)) :]
    return with_exif(whole()["jpeg"], draw(exif_blocks()))


@st.composite
def exif_blocks(draw: st.DrawFn) -> bytes:
    """TIFF directories of any tags, types, counts and places, that may follow or hold themselves."""
    tags = st.sampled_from([0x0112, 0x8769, 0x8825, 0xA005, 0x927C, 0x010F, 0x0132, 0x9003, 0x011A, 0x0201, 0x0202])
    entry = st.tuples(
        tags | st.integers(0, 0xFFFF),
        st.integers(0, 20),
        st.integers(0, 5) | st.integers(0, 2**32 - 1),
        (st.sampled_from([0, 1, 6, 8, 9, 2**32 - 1]) | st.integers(0, 4000)).map(
            lambda number: struct.pack("<I", number)
        ),
    )
    entries = draw(st.lists(entry, max_size=30))
    return tiff(entries, draw(st.sampled_from([0, 8, 4, 2**32 - 1])), draw(st.binary(max_size=300)))


def any_image() -> st.SearchStrategy[bytes]:
    """Whole, odd, bad or damaged."""
    fixed = [*whole().values(), *doubtful().values(), *bad().values()]
    return damaged_images() | st.sampled_from(fixed) | st.binary(max_size=300)


def content_types() -> st.SearchStrategy[str]:
    """Right and wrong ones."""
    photos = [
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/heic",
        "IMAGE/JPEG; x=y",
        "image/gif",
        "image/jpeg, image/png",
    ]
    others = [
        "",
        "a/b",
        "text/html",
        "application/octet-stream",
        "application/json",
        "application/json; charset=utf-16",
    ]
    forms = ["multipart/form-data", "multipart/form-data; boundary=", "application/x-www-form-urlencoded"]
    return st.sampled_from(photos + others + forms)


_NUMBERS: Final = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1e-999",
    "9" * 5000,
    "-0",
    "0.1e1",
    "00",
    "1.",
    "0x10",
]
_TEXTS: Final = [
    '"\\ud800"',
    '"\\u0000"',
    '"\\udfff\\ud800"',
    '""',
    '"10"',
    '"\xff"',
    "null",
    "true",
    "[]",
    "{}",
    '"' + "a" * 9999 + '"',
]


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    """JSON for /localize, /search, /localize/batch or /jobs, with at least one thing that is not as it should be."""
    kind = draw(st.sampled_from(["value", "nested", "twice", "any", "base64", "encoding", "cut"]))
    photo = json.dumps({"content": base64.b64encode(whole()["jpeg of one pixel"]).decode()})
    odd = draw(st.sampled_from(_NUMBERS + _TEXTS))
    if kind == "value":
        name = draw(
            st.sampled_from(
                ["top_k", "min_score", "geo_prior", "image", "images", "descriptor", "index", "version", "x"]
            )
        )
        return f'{{"image": {photo}, "{name}": {odd}}}'.encode("latin-1")
    if kind == "nested":
        depth = draw(st.sampled_from([10, 200, 1000, 100_000]))
        opening, closing = draw(st.sampled_from([("[", "]"), ('{"a":', "}"), ('{"image":', "}")]))
        return (opening * depth + "1" + closing * draw(st.sampled_from([0, depth]))).encode()
    if kind == "twice":
        return f'{{"image": {photo}, "top_k": 1, "top_k": {odd}, "image": {photo}}}'.encode("latin-1")
    if kind == "base64":
        text = draw(
            st.text(max_size=60) | st.sampled_from(["====", "A", "AAA=A", "AA AA", "A" * 100_000, "-_-_", "\n"])
        )
        return json.dumps({"image": {"content": text}, "images": [{"content": text}]}).encode()
    whole_body = f'{{"image": {photo}, "geo_prior": {{"lat": {odd}, "lon": 1, "radius_m": 5}}}}'
    if kind == "encoding":
        encoding = draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "latin-1"]))
        return whole_body.encode(encoding)
    if kind == "cut":
        return whole_body.encode("latin-1")[: draw(st.integers(0, len(whole_body)))]
    anything: st.SearchStrategy[Any] = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=20,
    )
    return json.dumps(draw(anything)).encode()


@st.composite
def multipart_bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A content type and a body that is nearly multipart."""
    photo = draw(st.sampled_from([whole()["jpeg of one pixel"], b"", b"no photo", bad()["gif"]]))
    dispositions = [
        b'form-data; name="image"; filename="a.jpg"',
        b'form-data; name="image"',
        b'form-data; name="top_k"',
        b'form-data; name="images"; filename="a.jpg"',
        b"form-data",
        b"form-data; name=",
        b'form-data; name="image"; filename="' + b"a" * 3000 + b'"',
        b"form-data; name=\"image\"; filename*=utf-8''%ff%00..%2f",
        b'form-data; name="image"; filename="../../etc/passwd\0"',
        b"attachment",
        b"\xff\xfe",
        b"",
    ]
    some = st.lists(st.sampled_from(dispositions), min_size=0, max_size=4)
    parts = draw(some | st.sampled_from([[dispositions[0]] * 2, [dispositions[0]] * 40, [dispositions[2]] * 1000]))
    lines = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]))
    more = draw(
        st.sampled_from(
            [b"", b"", b"X: " + b"y" * 20_000 + b"\r\n", b"Content-Transfer-Encoding: base64\r\n", b":\r\n"]
        )
    )
    body = draw(st.sampled_from([b"", b"preamble\r\n", b"\r\n", b"--"]))
    for part in parts:
        body += b"--" + _BOUNDARY + lines + b"Content-Disposition: " + part + lines + more + lines + photo + lines
    body += draw(
        st.sampled_from([b"--" + _BOUNDARY + b"--" + lines, b"--" + _BOUNDARY + b"--", b"", b"--" + _BOUNDARY])
    )
    body += draw(st.sampled_from([b"", b"epilogue", bytes(1000)]))
    given_type = draw(
        st.sampled_from(
            [b"multipart/form-data; boundary=" + _BOUNDARY] * 6
            + [b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=other"]
            + [b'multipart/form-data; boundary="' + _BOUNDARY + b'"', b"multipart/form-data; boundary=" + b"b" * 500]
            + [
                b"multipart/form-data; boundary=\xff\xfe",
                b"multipart/form-data; charset=nonsense; boundary=" + _BOUNDARY,
            ]
        )
    )
    return given_type, body


@st.composite
def raw_requests(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly an HTTP request; the connection is half-closed after them."""
    method = draw(
        st.sampled_from([b"POST"] * 6 + [b"GET", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE", b"FOO", b"post"])
    )
    path = draw(
        st.sampled_from(
            [b"/localize"] * 6 + [b"/localize?top_k=%ff", b"/localize?" + b"a=b&" * 500, b"/references/%00/image"]
        )
        | st.sampled_from(
            [b"/../../etc/passwd", b"*", b"http://other/localize", b"/\xff", b"//", b"/indexes/..%2f..", b""]
        )
    )
    version = draw(st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"XTTP/1.1", b""]))
    photo = whole()["jpeg of one pixel"]
    body, length = draw(
        st.sampled_from(
            [(photo, b"Content-Length: %d" % len(photo))] * 3
            + [
                (photo, b"Content-Length: 5"),
                (photo, b"Content-Length: -1"),
                (photo, b"Content-Length: 99999999999999999999"),
            ]
            + [
                (photo, b"Content-Length: 10\r\nContent-Length: 20"),
                (photo, b"Content-Length: +3"),
                (photo[:9], b"Content-Length: 0x9"),
            ]
            + [(photo, b""), (b"", b"Content-Length: 0"), (_chunked(photo), b"Transfer-Encoding: chunked")]
            + [
                (_chunked(photo)[:-7], b"Transfer-Encoding: chunked"),
                (b"zz\r\n" + photo, b"Transfer-Encoding: chunked"),
            ]
            + [
                (b"FFFFFFFFFFFFFFFFF\r\n" + photo, b"Transfer-Encoding: chunked"),
                (photo, b"Transfer-Encoding: gzip, chunked"),
            ]
            + [(_chunked(photo), b"Transfer-Encoding: chunked\r\nContent-Length: 5")]
        )
    )
    odd = [
        b"X-Lane: nobody",
        b"X-Deadline-Ms: NaN",
        b"X-Deadline-Ms: 1e999",
        b"X-Deadline-Ms: -5",
        b"X-Deadline-Ms: 99999999999999999999999",
        b"X-Request-Id: " + b"i" * 5000,
        b"X-Request-Id: \xff\x01",
        b"Accept: " + b"application/geo+json," * 200,
        b"Accept: \xff",
        b"traceparent: 00-zz-zz-zz",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA",
        b"Expect: 100-continue",
        b"Content-Encoding: gzip",
        b"Authorization: Bearer \xff",
        b"Host: \xff\0",
        b"No colon here",
        b" folded: header",
        b"X: " + b"a" * 70_000,
        b"Range: bytes=0-1",
    ]
    headers = draw(st.lists(st.sampled_from(odd), max_size=3))
    some_type = b"Content-Type: " + draw(content_types()).encode()
    head = [method + b" " + path + b" " + version, b"Host: x", some_type, length, b"Connection: close", *headers]
    return b"\r\n".join(line for line in head if line) + b"\r\n\r\n" + body


def _chunked(data: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (data[:7], data[7:])) + b"0\r\n\r\n"
