# Weft in the peer benchmark: give this file to `peers.py` as PEERS_EXTRA, and the binary as WEFT_BIN.
# Telemetry, routing and policies are on, as a user runs it: metrics with Istio's names, trace contexts continued and 1 % sampled,
# a route list with retries and a timeout, a breaker, an outlier detector, the default balancer.


def weft(c):
    http = {"h1": "http1", "h2c": "http2", "h2": "http2"}
    tls = c.tls_up or c.tls_down
    identity = f"""
identity: {{certificate: {c.cert}, key: {c.key}, trust: [{{roots: [{c.ca}]}}]}}""" if tls else ""
    app = f"\n  app: 127.0.0.1:{c.upstream}" if c.tcp else ""
    inbound = f"""{app}
  mtls: strict
  clients: {{ids: [spiffe://cluster.local/ns/default/sa/client]}}""" if c.tls_down else ""
    to = "" if c.tls_down and c.tcp else "\n  to: backend"
    protocol = "tcp" if c.tcp else {"h1": "http1", "h2c": "http2", "h2": "http"}.get(c.down_proto, "http")
    server = "\n    identity: spiffe://cluster.local/ns/default/sa/server" if c.tls_up else ""
    routes = "" if c.tcp else """
  routes:
  - {name: admin, match: [{path: {pathPrefix: /admin}, method: POST}, {headers: {x-admin: {present: true}}}], respond: {status: 403}}
  - {name: canary, match: {headers: {x-canary: "1"}}, to: backend}
  - {name: bulk, match: {path: {prefix: /big}}, to: backend}
  - {name: rest, to: backend, timeout: {request: 60s}, retry: {attempts: 2, on: "connect-failure,refused-stream,unavailable,cancelled,503"}}"""
    cfg = c.write("weft.yaml", f"""workload: {{name: {c.role}, namespace: default, app: {c.role}, version: v1}}{identity}
admin: 127.0.0.1:{c.admin}
telemetry: {{names: [istio], tracing: {{samplingPercent: 1}}}}
listeners:
- name: main
  role: {c.role}
  address: 127.0.0.1:{c.listen}
  protocol: {protocol}{inbound}{to}
services:
- name: backend
  port: 80{routes}
  policy:
    http: {http.get(c.up_proto, "auto")}
    breaker: {{maxConnections: 10000, maxPending: 10000, maxRequests: 10000, maxRetries: 100}}
    outlier: {{ejection: {{consecutive5xx: 5, interval: 10s, baseEjectionTime: 30s, maxEjectionPercent: 50}}}}
    retryBudget: {{percent: 20, minPerSecond: 10}}
  endpoints:
  - address: 127.0.0.1:{c.upstream}{server}
""")
    return [E("WEFT_BIN", "weft-proxy"), "--config", cfg, "--workers", "1"]


PEERS["weft"] = dict(make=weft, version=[E("WEFT_BIN", "weft-proxy"), "--version"], mesh="h2", roles=ALLROLES, skip=())
