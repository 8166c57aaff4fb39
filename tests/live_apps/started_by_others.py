"""The live app on a server that it starts itself: ``started_by_others.py cheroot|gevent PORT [log]``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "gevent":
        from gevent import monkey

        monkey.patch_all()
    from live_app import app

    if kind == "cheroot":
        from cheroot.wsgi import Server

        server = Server(("127.0.0.1", port), app, numthreads=4, timeout=60)
        print("starting", flush=True)
        server.start()
    else:
        from gevent.pywsgi import WSGIServer

        print("starting", flush=True)
        WSGIServer(("127.0.0.1", port), app, log="default" if sys.argv[3:] == ["log"] else None).serve_forever()
