"""The end of TLS towards partners: an nginx that lets the Fleet API's requests pass to the SuperLink, and nothing else.

Flower 1.41 serves three interfaces on one port: Fleet (partners' nodes), Control (whoever reaches it may register nodes and start runs) and
Runtime (whoever reaches it may ask for tasks). Partners reach the proxy only. It passes the requests in `PASSED`, by their exact names and
under no other spelling, and answers 404 to everything else. Paths in the configuration are relative: nginx is started with the home as its
prefix, by the coordinator's own user, and needs no other place to write.
"""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

from shared.addresses import join_address

from .settings import ServerSettings

PASSED = (
    "activate-node",
    "confirm-message-received",
    "deactivate-node",
    "get-fab",
    "get-run",
    "pull-messages",
    "pull-object",
    "push-messages",
    "push-object",
    "send-node-heartbeat",
)
"""Requests below /v1/fleet/ that a registered node makes."""
STOPPED = ("register-node", "unregister-node")
"""Requests below /v1/fleet/ by which a node registers itself: never, where nodes are enrolled."""

INSTALL = "nginx is not installed: install it with your system's packages (Debian: apt-get install nginx-light; Fedora: dnf install nginx)"

_TEMPLATE = """\
# The coordinator's end towards partners. Written by isthmus-server from server.toml: a change here is lost.
# Started with the home as prefix:  nginx -p HOME -c proxy/nginx.conf -e stderr
daemon off;
pid proxy/nginx.pid;
error_log stderr error;
worker_processes 2;
worker_shutdown_timeout 10s;

events {{
    worker_connections 1024;
}}

http {{
    server_tokens off;
    default_type application/octet-stream;
    charset off;

    # Only what was refused is written down, without its query; an idle node asks every three seconds, and a flood is a flood of 503.
    map $status $worth_a_line {{ "~^2" 0; 503 0; default 1; }}
    map $request_uri $asked {{ "~^(?<path>[^?]*)" $path; default -; }}
    log_format isthmus '$time_iso8601 $remote_addr "$request_method $asked" $status $request_length $bytes_sent $request_time';
    access_log logs/proxy-refused.log isthmus if=$worth_a_line;

    client_body_temp_path proxy/body;
    proxy_temp_path proxy/answers;
    fastcgi_temp_path proxy/unused-fastcgi;
    uwsgi_temp_path proxy/unused-uwsgi;
    scgi_temp_path proxy/unused-scgi;

    # 503 makes Flower's node try again later; 429 or 403 would end it.
    limit_req_zone $binary_remote_addr zone=requests:10m rate={requests_per_s}r/s;
    limit_conn_zone $binary_remote_addr zone=connections:10m;
    limit_req_zone $binary_remote_addr zone=strangers:10m rate=5r/s;
    limit_req_status 503;
    limit_conn_status 503;
    limit_req_log_level warn;
    limit_conn_log_level warn;

    upstream superlink.invalid {{
        server {superlink};
        keepalive 16;
        keepalive_timeout 3s;  # the SuperLink closes after 5 s without a request: ours has to be the shorter one
    }}

    server {{
{listen}
        server_name _;

        ssl_certificate {certificate};
        ssl_certificate_key {certificate_key};
        ssl_protocols TLSv1.3;
        ssl_session_tickets off;
        ssl_session_cache shared:isthmus:2m;
        ssl_session_timeout 1h;

        limit_req zone=requests burst={burst} nodelay;
        limit_conn connections {connections};
        client_max_body_size {body_mib}m;
        client_body_buffer_size 512k;
        client_header_timeout 10s;
        client_body_timeout 30s;
        send_timeout 30s;
        keepalive_timeout 75s;

        # Everything else: the Control and the Runtime API, and whatever a later Flower adds.
        # Not "return": it comes before the limit, and each of these is a line in the log.
        location / {{
            limit_req zone=strangers burst=200 nodelay;
            try_files /none =404;
        }}

        # \\z, not $: that would let a line's end pass.
        location ~ ^/v1/fleet/({passed})\\z {{
            if ($request_method != POST) {{
                rewrite ^ /none last;
            }}
            proxy_pass https://superlink.invalid/v1/fleet/$1;  # one of our names, whatever spelling came in, and no query
            proxy_http_version 1.1;
            proxy_set_header Host localhost;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto https;

            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {ca};
            proxy_ssl_verify_depth 1;
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
            proxy_ssl_protocols TLSv1.3;

            # A slow partner waits here, not in the SuperLink; nothing is sent twice.
            proxy_request_buffering on;
            proxy_buffering on;
            proxy_next_upstream off;
            proxy_connect_timeout 5s;
            proxy_send_timeout {wait_s}s;
            proxy_read_timeout {wait_s}s;
        }}
    }}
}}
"""


def configuration(settings: ServerSettings) -> str:
    """nginx.conf for a home."""
    limits = settings.proxy
    return _TEMPLATE.format(
        superlink=settings.superlink_address,
        listen="\n".join(f"        listen {join_address(ip, settings.port)} ssl default_server;" for ip in settings.listens_on),
        certificate="../tls/server.pem",  # of certificates nginx takes paths relative to the configuration
        certificate_key="../tls/server.key",
        ca="../ca/ca.crt",
        passed="|".join(PASSED),
        requests_per_s=limits.requests_per_s,
        burst=limits.burst,
        connections=limits.connections,
        body_mib=limits.body_mib,
        wait_s=limits.wait_s,
    )


def command(home: Path, program: str = "nginx") -> list[str]:
    """How the proxy of a home is started, in the foreground; SIGQUIT lets it finish what it is doing, SIGHUP reads certificates anew."""
    started = [program, "-p", f"{home}/", "-c", "proxy/nginx.conf", "-e", "stderr"]
    if os.geteuid() == 0:  # as in a container: else the workers would become somebody who may not enter the home
        started += ["-g", f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};"]
    return started
