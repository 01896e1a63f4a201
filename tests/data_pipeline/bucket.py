"""A stand-in for Google Cloud Storage on this machine, for the client in TensorFlow.

The client knows but the true addresses. It reaches them through a proxy that its
environment names: this server, which also answers in their place, by a certificate of
its own. Buckets are not told apart, and nobody is asked who they are.
"""

import http.server
import json
import os
import pathlib
import re
import ssl
import subprocess
import threading
import urllib.parse

HOSTS = "DNS:www.googleapis.com,DNS:storage.googleapis.com"


class Bucket(http.server.ThreadingHTTPServer):
    """Serves while it is entered.

    Attributes:
      objects: name -> bytes; folders are empty objects that end with a slash.
      environment: of processes that shall see it.
    """

    daemon_threads = True

    def __init__(self, folder: pathlib.Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-days", "1"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-subj", "/CN=stand-in", "-addext", f"subjectAltName={HOSTS}"),
                *("-keyout", key, "-out", certificate),
            ],
            check=True,
            capture_output=True,
        )
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate, key)
        self.environment = {
            **os.environ,
            "https_proxy": f"http://127.0.0.1:{self.server_port}",
            "no_proxy": "localhost,127.0.0.1",  # Beam's own connections
            "CURL_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",
        }

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def files(self, folder: str) -> dict[str, bytes]:
        """The objects below a folder by their names in it."""
        prefix = folder.rstrip("/") + "/"
        return {
            name.removeprefix(prefix): data
            for name, data in self.objects.items()
            if name.startswith(prefix) and not name.endswith("/")
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        """From here on we are the host that was asked for."""
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def finish(self):
        super().finish()
        self.connection.close()

    def do_any(self):
        body = self._body()
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if self.headers["Host"].startswith("storage."):
            self._download(urllib.parse.unquote(url.path[1:].partition("/")[2]))
        elif url.path.startswith("/upload/"):
            self._upload(url.path, query, body)
        else:
            self._about(url.path, query)

    do_GET = do_POST = do_PUT = do_DELETE = do_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _reply(self, code: int, body: bytes | dict = b"", **headers: str):
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _download(self, name: str):
        if name not in self.server.objects:
            return self._reply(404)
        first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        data = self.server.objects[name]
        if first >= len(data):
            return self._reply(416)
        return self._reply(206, data[first : last + 1])

    def _upload(self, path: str, query: dict[str, str], body: bytes):
        uploads = self.server.uploads
        if query.get("uploadType") == "resumable":
            uploads.append(query["name"])
            session = f"https://www.googleapis.com/upload/{len(uploads) - 1}"
            return self._reply(200, Location=session)
        named = query.get("name")
        name = named or uploads[int(path.rpartition("/")[2])]
        self.server.objects[name] = body
        return self._reply(200, {})

    def _about(self, path: str, query: dict[str, str]):
        """Lists objects, or describes, copies or removes one."""
        objects = self.server.objects
        found = re.fullmatch(r"/storage/v1/b/[^/]+/o(/.*)?", path)
        if not found:
            return self._reply(200, {})  # of the bucket itself
        if not found[1]:
            return self._reply(200, self._listed(query))
        name, _, target = map(
            urllib.parse.unquote, found[1][1:].partition("/rewriteTo/b/")
        )
        if name not in objects:
            return self._reply(404, {})
        if target:
            objects[target.partition("/o/")[2]] = objects[name]
            return self._reply(200, {"done": True})
        if self.command == "DELETE":
            del objects[name]
            return self._reply(204)
        return self._reply(200, self._described(name))

    def _listed(self, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], set()
        for name in sorted(self.server.objects):
            if name.startswith(prefix):
                own, is_below, _ = name[len(prefix) :].partition(delimiter or "\0")
                if is_below:
                    folders.add(f"{prefix}{own}{delimiter}")
                else:
                    items.append(self._described(name))
        return {"items": items, "prefixes": sorted(folders)}

    def _described(self, name: str) -> dict[str, str]:
        return {
            "name": name,
            "size": str(len(self.server.objects[name])),
            "generation": "1",
            "updated": "2026-01-01T00:00:00.000Z",
        }
