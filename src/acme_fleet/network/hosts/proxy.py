"""The TLS proxy before a SuperLink: only what nodes need is reachable from outside the host.

A SuperLink asks no credential of who submits code or registers nodes, so nothing but the Fleet
path may be seen. With mutual TLS the proxy asks for a certificate too, see ``tunnel.py``.
"""

from __future__ import annotations

import shutil

from acme_fleet.errors import FleetError
from acme_fleet.network.hosts import certificates
from acme_fleet.network.hosts.site import Site

_PULL = "pull-messages"
_FLEET = (
    "activate-node|deactivate-node|send-node-heartbeat|push-messages|"
    "get-run|get-fab|push-object|pull-object|confirm-message-received"
)
CONNECTIONS = 1024
"""Of one address at the same time; each has a second one on this host, of 4096 in all."""
_TEMPLATE = """\
daemon off;
pid "{folder}/nginx.pid";
error_log stderr warn;
worker_processes 1;
worker_shutdown_timeout 30s;  # of workers whose certificates were replaced
events {{ worker_connections 4096; }}
http {{
    access_log off;
    server_tokens off;
    client_body_temp_path "{folder}/body";
    proxy_temp_path "{folder}/proxy";
    fastcgi_temp_path "{folder}/fastcgi";
    uwsgi_temp_path "{folder}/uwsgi";
    scgi_temp_path "{folder}/scgi";
    # Messages travel in pieces of 5 MiB; they are passed on as they come.
    client_max_body_size 16m;
    client_body_buffer_size 16m;
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_read_timeout 120s;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate "{keys}/{ca}";
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_tickets off;
    # One address, which a whole site may share, cannot take all connections, nor keep one without
    # sending anything. This is about what is sent: an answer may take as long as it does above.
    limit_conn_zone $binary_remote_addr zone=addresses:10m;
    limit_conn addresses {connections};
    client_header_timeout 10s;
    client_body_timeout 20s;
    send_timeout 20s;
    reset_timedout_connection on;
    upstream superlink {{
        server 127.0.0.1:{local_port};
        keepalive 64;
        keepalive_timeout 4s;  # the SuperLink closes after five
    }}
    proxy_set_header Host 127.0.0.1:{local_port};
    proxy_ssl_name localhost;
    server {{
        listen {address}:{port} ssl;
        ssl_certificate "{keys}/{server}";
        ssl_certificate_key "{keys}/{server_key}";
{demanded}        proxy_intercept_errors on;
        # A SuperNode ends its heartbeat for good at a 500 (a full disk); 503 is asked again.
        error_page 500 =503 /busy;
        location ~ ^/v1/fleet/({fleet})$ {{
            limit_except POST {{ deny all; }}
            proxy_pass https://superlink$uri;
        }}
        # Who asks for work waits until there is some; see waiting_room.py.
        location = /v1/fleet/{pull} {{
            limit_except POST {{ deny all; }}
            auth_request /waiting;
            proxy_pass https://superlink$uri;
        }}
        location = /waiting {{
            internal;
            proxy_pass http://127.0.0.1:{waiting_port}/;
            proxy_method GET;
            proxy_pass_request_body off;
            proxy_set_header Connection close;
            proxy_set_header Content-Length "";
        }}
        location = /busy {{ internal; return 503; }}
        location / {{ return 404; }}
    }}
}}
"""
_DEMANDED = """\
        ssl_client_certificate "{keys}/{ca}";
        ssl_crl "{keys}/{revoked}";
        ssl_verify_client on;
"""
_FILES = {
    "ca": certificates.CA,
    "server": certificates.SERVER,
    "server_key": certificates.SERVER_KEY,
    "revoked": certificates.REVOKED,
}


def proxy_command(site: Site, waiting_port: int) -> list[str]:
    """Write the proxy's configuration; return the command that starts it.

    Raises:
        FleetError: if nginx is not installed.
    """
    program, folder = nginx(), site.state / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nginx.conf"
    path.write_text(configuration(site, waiting_port))
    return [program, "-e", "stderr", "-p", str(folder), "-c", str(path)]


def nginx() -> str:
    """The proxy's program.

    Raises:
        FleetError: if nginx is not installed.
    """
    found = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        raise FleetError("install nginx (apt install nginx-light): it guards the SuperLink")
    return found


def configuration(site: Site, waiting_port: int) -> str:
    """The proxy's configuration.

    Args:
        site: the host.
        waiting_port: of its waiting room, on the loopback interface.
    """
    address = f"[{site.address}]" if ":" in site.address else site.address
    return _TEMPLATE.format(
        folder=site.state / "nginx",
        address=address,
        port=site.port,
        local_port=site.local_port,
        keys=site.keys,
        fleet=_FLEET,
        pull=_PULL,
        waiting_port=waiting_port,
        connections=CONNECTIONS,
        demanded=_DEMANDED.format(keys=site.keys, **_FILES) if site.mutual_tls else "",
        **_FILES,
    )
