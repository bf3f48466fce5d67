"""What of AWS gives passwords of its registry, on loopback: for one key, in AWS's words."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY_ID = "AKIDEXAMPLE"


@contextmanager
def aws_giving(password: str) -> Iterator[str]:
    """Its URL. Whose key is KEY_ID gets this password; whether the signature is right a unit test tells."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            known = f"Credential={KEY_ID}/" in self.headers["Authorization"]
            answer: dict[str, object] = {"__type": "UnrecognizedClientException", "message": "The token is invalid."}
            if known:
                token = base64.b64encode(f"AWS:{password}".encode()).decode()
                answer = {"authorizationData": [{"authorizationToken": token, "expiresAt": 1.7e9}]}
            body = json.dumps(answer).encode()
            self.send_response(200 if known else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
