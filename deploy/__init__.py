"""How it is run: the command line, the one-machine supervisor with its own NATS server, the demo fleet and the replay.

Here belong the files that others run it with, too: Grafana dashboards, Prometheus, Alertmanager, NATS, compose, systemd
and Kubernetes. This is the only package that may import all parts, and so the only one that puts them together.

Here does not belong what a part needs in order to work when something else starts it.
"""
